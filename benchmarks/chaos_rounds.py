"""Rounds of `chaos.py` in process: a query in a process of its own, which is killed, starved or lied to by its file system.

What a process does to itself, such as to end at its seventh write, is installed in it before the query runs.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILES, ROWS, DIMENSION, WORKERS = 10, 160, 8, 2
_PATIENCE_SECONDS = 0.02
"""For which an outage that a round makes lasts at most; the pauses in it are shortened as well."""

NETS = """
import os, time
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent

class Slow(nn.Sequential):
    def forward(self, x):
        time.sleep({pause})
        for flag in ("memory", "odd", "deadly"):
            if (HERE / flag).exists() and float(x[0, 0]) == float((HERE / flag).read_text() or "nan"):
                if flag == "deadly":
                    os._exit(1)
                if flag == "odd":
                    raise RuntimeError("something odd")
                (HERE / flag).unlink(missing_ok=True)
                raise MemoryError("no memory left")
        return super().forward(x)

def note_attempts():
    # a line for each unit that a worker of this process begins
    from raystream.scoring.worker import Worker

    real = Worker.attempt

    def attempt(self, task, *more):
        with (HERE / "attempts").open("a") as file:
            file.write(f"{{task.key}} {{' '.join(output.name for output in task.outputs)}}\\n")
        return real(self, task, *more)

    if not hasattr(Worker, "noted"):
        Worker.attempt, Worker.noted = attempt, True

def net():
    note_attempts()
    with (HERE / "pids").open("a") as file:
        file.write(f"{{os.getpid()}}\\n")
    torch.manual_seed(0)
    return Slow(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
"""


@dataclass
class Round:
    """What became of one round.

    Attributes:
        seed: of it.
        fault: that it was about.
        identical: whether the batch is the undisturbed one's.
        refused: runs that ended in an error, as they should.
        attempts: at units.
        repeated: of them, those at a unit that had been attempted before.
        wrong: what went wrong; empty if nothing did.
    """

    seed: int
    fault: str
    identical: bool = False
    refused: int = 0
    attempts: int = 0
    repeated: int = 0
    wrong: str = ""


def make_lake(folder: Path, pause: float) -> None:
    """A pool of a few files and a model that takes a moment for each batch."""
    (folder / "pool").mkdir(parents=True)
    (folder / "chaos_nets.py").write_text(NETS.format(pause=pause))
    for number in range(FILES):
        rng = np.random.default_rng(number)
        values = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
        x = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), DIMENSION)
        ids = [f"r{number:02d}-{row:04d}" for row in range(ROWS)]
        pq.write_table(pa.table({"rid": ids, "x": x}), folder / "pool" / f"{number:02d}.parquet", row_group_size=64)


def first_number(folder: Path, file: int) -> float:
    """The first number of a file of the pool, by which the model knows its first batch."""
    return float(pq.read_table(folder / "pool" / f"{file:02d}.parquet").column("x")[0].as_py()[0])


def query(folder: Path, store: Path, address: str, **changes: Any) -> Any:
    """The query of all rounds."""
    import raystream as rs

    return rs.Query(
        pool={"uri": str(folder / "pool"), "id": "rid", "inputs": ["x"]},
        model={"source": "chaos_nets:net", "batch_size": 40},
        select={"budget": 20},
        cluster={"address": address, "workers": WORKERS},
        store={"uri": str(store), "query": "q"},
        **changes,
    )


def batch(store: Path) -> bytes | None:
    """The committed batch, as bytes; None before the commit."""
    if not (store / "queries/q/manifest.json").exists():
        return None
    return (store / "queries/q/selection.parquet").read_bytes()


def receipts(store: Path) -> dict[str, bytes]:
    """Every receipt, and the manifest."""
    found = [*store.glob("units/*/*/*.receipt.json"), *store.glob("queries/q/manifest.json")]
    return {str(path): path.read_bytes() for path in found}


def attempts(folder: Path) -> tuple[int, int]:
    """Attempts at units, and how many of them were at one that had been attempted before."""
    path = folder / "attempts"
    lines = path.read_text().splitlines() if path.exists() else []
    return len(lines), len(lines) - len(set(lines))


def lost_or_changed(before: dict[str, bytes], after: dict[str, bytes]) -> str:
    """What was committed and isn't there any more, or is another."""
    changed = [name for name, data in before.items() if after.get(name) != data]
    return f"{changed[0]} was committed, and is gone or another" if changed else ""


# what happens within a process


@dataclass(frozen=True)
class Harm:
    """What a process is to suffer.

    Attributes:
        dies_at: the number of the write to the store with which it is killed; 0: none. `of` limits them to names that begin so.
        after: whether that write is done first.
        lies: of calls that name or sync a file, the share that is done and said to have failed.
        away: so many of these calls fail for an outage.
        full_at: the number of such a call with which the disk is full.
        skew: seconds that the clock is ahead.
        counts: whether it notes how often it writes.
    """

    counts: bool = False
    dies_at: int = 0
    of: str = ""
    after: bool = False
    lies: float = 0.0
    away: int = 0
    full_at: int = 0
    skew: float = 0.0
    seed: int = 0


def install(harm: Harm) -> list[int]:
    """Have this process suffer it; returns how often it has written so far, which goes on."""
    from raystream.store.local import LocalStore

    chance = random.Random(harm.seed)
    writes = [0]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, name: Any, *arguments: Any, **options: Any) -> Any:
            where = str(name).removeprefix(f"{self.root}/")
            writes[0] += where.startswith(harm.of)
            due = where.startswith(harm.of) and writes[0] == harm.dies_at
            if due and not harm.after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(self, name, *arguments, **options)
            if due:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return call

    if harm.dies_at or harm.counts:
        for name in ("_create", "_replace", "append", "discard", "stored"):
            setattr(LocalStore, name, dying(getattr(LocalStore, name)))
    calls = [0]
    link, replace, fsync, clock = os.link, os.replace, os.fsync, time.time

    def suffers(real: Callable[..., Any], lie: OSError) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if harm.full_at and calls[0] >= harm.full_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if 10 < calls[0] <= 10 + harm.away:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            found = real(*arguments, **options)
            if chance.random() < harm.lies:
                raise type(lie)(lie.errno, os.strerror(lie.errno or 0))
            return found

        return call

    if harm.lies or harm.away or harm.full_at:
        os.link = suffers(link, FileExistsError(errno.EEXIST, ""))
        os.replace = suffers(replace, FileNotFoundError(errno.ENOENT, ""))
        os.fsync = suffers(fsync, OSError(errno.EIO, ""))
        import raystream.lake.retry as retry

        retry.FIRST_PAUSE = _PATIENCE_SECONDS
        retry.LONGEST_PAUSE = _PATIENCE_SECONDS
    if harm.skew:
        time.time = lambda: clock() + harm.skew
    return writes


def child(folder: str, store: str, harm: Harm, changes: dict[str, Any]) -> None:
    """The process of a run: its exit code is that of the command line."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    import raystream as rs
    from raystream.errors import RaystreamError

    writes = install(harm)
    try:
        rs.run(query(Path(folder), Path(store), "in_process", **changes))
    except RaystreamError as error:
        with (Path(folder) / "said").open("a") as file:
            file.write(f"{type(error).__name__}: {error}\n")
        os._exit(error.exit_code)
    if harm.counts:
        (Path(folder) / "writes").write_text(str(writes[0]))
    os._exit(0)


# rounds


@dataclass
class Play:
    """Rounds over one lake.

    Attributes:
        folder: of the lake.
        expected: the undisturbed batch.
        commits: how many writes an undisturbed run makes below `queries/`.
    """

    folder: Path
    expected: bytes = b""
    commits: int = 0
    context: Any = field(default_factory=lambda: multiprocessing.get_context("forkserver"))

    @property
    def store(self) -> Path:
        return self.folder / "runs"

    def start(self, harm: Harm | None = None, **changes: Any) -> Any:
        process = self.context.Process(target=child, args=(str(self.folder), str(self.store), harm or Harm(), changes))
        process.start()
        return process

    def clean(self) -> None:
        """As if nothing had been run."""
        shutil.rmtree(self.store, ignore_errors=True)
        for name in ("attempts", "said", "pids", "memory", "odd"):
            (self.folder / name).unlink(missing_ok=True)

    def measure(self) -> None:
        """An undisturbed run: what it chooses, how long it takes, how often it writes where a commit does."""
        self.ended(self.start())  # imports what the process that all others are forked from doesn't
        self.clean()
        assert self.ended(self.start(Harm(counts=True, of="queries/"))) == 0, self.said()
        found = batch(self.store)
        assert found is not None
        self.expected = found
        self.commits = int((self.folder / "writes").read_text())

    def let_go_on(self, process: Any, chance: random.Random) -> None:
        """Let it score some units, one more or less, and not be anywhere in particular."""
        units = chance.randrange(FILES)
        while process.is_alive() and len(list(self.store.glob("units/*/*/embeddings-*.receipt.json"))) < units:
            process.join(0.005)
        process.join(chance.uniform(0.0, 0.05))

    def ended(self, process: Any, within: float = 120.0) -> int:
        process.join(within)
        if process.is_alive():
            process.kill()
            process.join()
            return -999
        return int(process.exitcode)

    def said(self) -> str:
        path = self.folder / "said"
        return path.read_text().splitlines()[-1] if path.exists() else ""

    def go(self, seed: int) -> Round:
        """One round."""
        self.clean()
        chance = random.Random(seed)
        turn, place = divmod(seed, len(ORDER))
        name = ORDER[place]
        told = Round(seed, name)
        allowed, codes = FAULTS[name](self, chance, 2 * turn + place if name == ORDER[0] else turn)
        before = receipts(self.store)
        for _ in range(3):
            code = self.ended(self.start())
            if code == 0:
                break
            codes.append(code)
        told.wrong = "" if name == "files cut short" else lost_or_changed(before, receipts(self.store))
        told.identical = batch(self.store) == self.expected
        told.refused = sum(code in (3, 4, 5) for code in codes)
        odd = [code for code in codes if code not in (0, -signal.SIGKILL, 3, 4, 5)]
        told.attempts, told.repeated = attempts(self.folder)
        if odd:
            told.wrong = told.wrong or f"exit code {odd[0]}: {self.said()}"
        elif not told.identical:
            told.wrong = told.wrong or f"another batch, or none: exit codes {codes}: {self.said()}"
        elif told.repeated > allowed:
            told.wrong = told.wrong or f"{told.repeated} units repeated, {allowed} were in flight"
        return told


IN_FLIGHT = 2 * WORKERS
"""Units that the workers of a run hold at most."""


def _killed_at_a_write(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    """Every write of a commit in its turn, before it and after it."""
    place, after = 1 + (number // 2) % play.commits, bool(number % 2)
    return IN_FLIGHT, [play.ended(play.start(Harm(dies_at=place, of="queries/", after=after)))]


def _killed_at_a_units_write(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    harm = Harm(dies_at=chance.randint(1, 4 * FILES), of="units/", after=chance.random() < 0.5)
    return IN_FLIGHT, [play.ended(play.start(harm))]


def _killed_at_any_moment(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    process = play.start()
    play.let_go_on(process, chance)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    return IN_FLIGHT, [play.ended(process)]


def _killed_again_and_again(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    codes: list[int] = []
    for _ in range(3):
        codes += _killed_at_any_moment(play, chance, number)[1]
    return 3 * IN_FLIGHT, codes


def _reply_lost(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    """Of a unit whose files were said not to be on the disk, all is begun again within its attempt."""
    return IN_FLIGHT, [play.ended(play.start(Harm(lies=chance.choice([0.02, 0.1]), seed=chance.randrange(1 << 30))))]


def _store_away(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    return IN_FLIGHT, [play.ended(play.start(Harm(away=chance.randint(1, 30))))]


def _disk_full(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    return IN_FLIGHT, [play.ended(play.start(Harm(full_at=chance.randint(1, 8 * FILES))))]


def _cut_short(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    """As after a crash of the machine: what was not waited for is lost, half of it or all."""
    _, codes = _killed_at_any_moment(play, chance, number)
    cut = [path for path in play.store.glob("units/*/*/*") if chance.random() < 0.2]
    for path in cut:
        data = path.read_bytes()
        path.write_bytes(data[: chance.randrange(len(data))] if data else b"")
    return IN_FLIGHT + len(cut), codes


def _two_at_once(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    first = play.start(Harm(skew=3600.0))
    play.let_go_on(first, chance)
    return 2 * FILES, [play.ended(play.start(Harm(skew=-3600.0))), play.ended(first)]


def _stopped_and_late(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    """A process stands still while another one commits, and then goes on writing."""
    late = play.start()
    play.let_go_on(late, chance)
    with suppress(ProcessLookupError):
        os.kill(late.pid, signal.SIGSTOP)
    code = play.ended(play.start())
    with suppress(ProcessLookupError):
        os.kill(late.pid, signal.SIGCONT)
    return 2 * FILES, [code, play.ended(late)]


def _clock(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    process = play.start(Harm(skew=chance.choice([-3600.0, 3600.0])))
    play.let_go_on(process, chance)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    return IN_FLIGHT, [play.ended(process)]


def _no_memory(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    (play.folder / "memory").write_text(repr(first_number(play.folder, chance.randrange(1, FILES))))
    return IN_FLIGHT, [play.ended(play.start())]


def _odd(play: Play, chance: random.Random, number: int) -> tuple[int, list[int]]:
    """Refused; once the cause is mended, what was scored by then is there."""
    (play.folder / "odd").write_text(repr(first_number(play.folder, chance.randrange(1, FILES))))
    code = play.ended(play.start())
    (play.folder / "odd").unlink()
    return IN_FLIGHT, [code]


FAULTS: dict[str, Callable[[Play, random.Random, int], tuple[int, list[int]]]] = {
    "the driver killed at each write of a commit": _killed_at_a_write,
    "the driver killed at a write of a unit": _killed_at_a_units_write,
    "the driver killed at any moment": _killed_at_any_moment,
    "killed three times": _killed_again_and_again,
    "the reply lost after a write": _reply_lost,
    "the store away for a while": _store_away,
    "the disk full": _disk_full,
    "files cut short": _cut_short,
    "two runs at once, clocks two hours apart": _two_at_once,
    "a late second writer": _stopped_and_late,
    "a clock an hour off, killed": _clock,
    "memory used up": _no_memory,
    "a model that fails on a batch": _odd,
}
"""By name: plays the fault, and returns how many units may be scored again and the exit codes."""
ORDER = [next(iter(FAULTS)), *FAULTS]
"""Which seeds are about what: a commit's writes are many, so every second turn is one's."""


@contextmanager
def in_process(folder: Path) -> Iterator[Callable[[int], Round]]:
    """Plays rounds by their seeds."""
    make_lake(folder, pause=0.01)
    play = Play(folder)
    play.context.set_forkserver_preload(["raystream.steps", "chaos_rounds"])
    play.measure()
    yield play.go
