"""One seed: what goes wrong is drawn from it, the query is run until nothing goes wrong any more, and every promise is looked at."""

from __future__ import annotations

import json
import logging
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from raystream.errors import ClusterError, StoreError, UnitsFailed
from raystream.lake.retry import Patience
from raystream.scoring.scheduler import ATTEMPTS, IN_FLIGHT
from raystream.store.queries import parquet_bytes, read_parquet
from simulation.bucket import Broken, Bucket, Weather, weather_of
from simulation.runs import Ended, Pool, Run, collecting
from simulation.workers import Manners, Tally
from simulation.world import Clock, Process, World, drawn

_LONG = 4 * 24 * 3600.0


@dataclass(frozen=True)
class Told:
    """What became of a seed.

    Attributes:
        faults: that it met, by kind.
        runs: of the query, that were begun.
        refused: of them, that ended in an error, as they should.
        units: of the pool.
        attempts: at units.
        repeated: of them, those at a unit that had been attempted before.
        steps: of the simulation.
    """

    faults: Counter[str]
    runs: int
    refused: int
    units: int
    attempts: int
    repeated: int
    steps: int


@contextmanager
def simulated(world: World, bucket: Bucket) -> Iterator[None]:
    """raystream's store is the bucket, its clock the world's, and nothing but the seed decides."""
    state, chance = random.getstate(), random.Random(world.random.getrandbits(64))
    clock: Any = Clock(world)

    def in_turn(call: Callable[[Any], Any], items: Any, threads: int = 1) -> list[Any]:
        return [call(item) for item in items]

    with ExitStack() as stack:
        for name, value in {
            "raystream.store.bucket.obstore": bucket,
            "raystream.store.bucket.bucket_of": lambda uri, storage: bucket,
            "raystream.store.packs.in_threads": in_turn,
            "raystream.store.gc.in_threads": in_turn,
            "raystream.store.packs.FEWEST": 4,
            "raystream.store.packs._FEW_ASKED": 4,
            "raystream.store.packs._RUN_BITS": 2,
            # of the commit, whose patience nobody hands over
            "raystream.lake.retry.pause": lambda seconds: bool(world.sleep(seconds)),
            "raystream.scoring.session.time": clock,
            "raystream.store.gc.time": clock,
        }.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(patch.object(uuid, "uuid4", lambda: uuid.UUID(int=chance.getrandbits(128), version=4)))
        random.seed(chance.getrandbits(64))
        log = logging.getLogger("raystream")
        before, log.disabled = log.disabled, True
        try:
            yield
        finally:
            log.disabled = before
            random.setstate(state)


class Trial:
    """See the module.

    Args:
        seed: of everything.
        say: told what happens; left out, nobody.
    """

    def __init__(self, seed: int, say: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.world = world = World(seed, say)
        chance = world.random
        self.faults: Counter[str] = Counter()
        self.pool = Pool.of(chance.choice([1, 2, 3, 5, 8, 13, 21]), chance.choice([1, 2]))
        self.calm = chance.random() < 0.1
        self.bucket = Bucket(world, weather_of(world, self.calm), chance.choice([0.0, -3600.0, 3600.0]))
        self.tally, self.ended = Tally(), Ended()
        self.workers = chance.choice([1, 2, 3, 5])
        self.skip = chance.random() < 0.3
        self.manners = self._manners()
        self.runs: list[Run] = []
        self.at_once = False
        self.kills = 0

    def go(self) -> Told:
        """Run it.

        Raises:
            Broken: a promise is broken.
            TimeoutError: it doesn't end.
        """
        with simulated(self.world, self.bucket):
            self._disturb(self._run())
            if self.world.random.random() < 0.25:
                self.at_once = True
                self.faults["two runs at once"] += 1
                self._run().begin(self.world.random.uniform(0.0, 60.0))
            self.runs[0].begin()
            self._settle()
            while not self.ended.results and len(self.runs) < 4:
                self._disturb(self._run())
                self.runs[-1].begin()
                self._settle()
            self.bucket.weather = Weather()
            last = self._run()
            last.begin()
            self._settle()
            self._judge(last)
            self._judge_events()
        attempts = [(key, outputs) for _, key, outputs in self.tally.attempts]
        repeated = len(attempts) - len(set(attempts))
        faults = self.faults + Counter(self.bucket.met)
        return Told(faults, len(self.runs), len(self.ended.refusals), len(self.pool.units), len(attempts), repeated, self.world.steps)

    # what goes wrong

    def _manners(self) -> Manners:
        chance, poison = self.world.random, dict[str, str]()
        if chance.random() < 0.15 and not self.calm:
            what = chance.choice(["kills", "raises", "bad"])
            poison = dict.fromkeys(chance.sample(self.pool.keys, min(len(self.pool.keys), chance.choice([1, 1, 2]))), what)
            self.faults[f"a unit that {'is bad' if what == 'bad' else what}"] += 1
        hangs = chance.choice([0.0, 0.0, 0.0, 0.05])
        self.faults["a worker that hangs"] += bool(hangs)
        return Manners(poison, chance.choice([0.5, 5.0, 30.0]), hangs)

    def _run(self) -> Run:
        run = Run(
            self.world, f"run {len(self.runs)}", self.bucket, self.pool, self.workers, self.manners, self.skip, self.tally, self.ended
        )
        self.runs.append(run)
        return run

    def _disturb(self, run: Run) -> None:
        if self.calm:
            return
        chance, world = self.world.random, self.world
        if chance.random() < 0.4:
            run.process.dies_at, run.process.dies_after = chance.randint(1, chance.choice([12, 40, 120])), chance.random() < 0.5
            self.faults["the driver killed at one of its requests"] += 1
        elif chance.random() < 0.2:
            self.faults["the driver killed at any moment"] += 1
            world.at(chance.uniform(0.0, 60.0), run.process.kill)
        elif chance.random() < 0.15:
            self.faults["Ctrl-C"] += 1
            world.at(chance.uniform(0.0, 60.0), lambda: setattr(run.process, "interrupted", True))
        for _ in range(chance.choice([0, 0, 0, 1, 2])):
            kind = drawn(world, (3, "a worker killed"), (2, "several at once"), (2, "a worker taken for dead"), (2, "a node taken away"))
            self.faults[kind] += 1
            world.at(chance.uniform(1.0, 90.0), lambda kind=kind: self._strike(run, kind))  # type: ignore[misc]
        if chance.random() < 0.1:
            self.faults["gc beside it"] += 1
            patience = Patience(from_start=True, pause=run._pause, clock=lambda: world.now)
            world.spawn(Process("gc", chance.choice([0.0, 3600.0])), collecting(run, patience), chance.uniform(0.0, 60.0))

    def _strike(self, run: Run, kind: str) -> None:
        machines = run.machines
        if machines is None or run.over:
            return
        if kind in ("a worker killed", "several at once"):
            count = 1 if kind == "a worker killed" else self.workers
            self.kills += count
            machines.kill(count)
        elif kind == "a worker taken for dead":
            self.kills += 1
            machines.take_for_dead()
        else:
            machines.drain()

    def _settle(self) -> None:
        """Until all that was begun has come to an end."""
        self.world.run(_LONG)

    # what was promised

    def _judge(self, last: Run) -> None:
        if self.manners.poison and not self.skip and not self.ended.results:
            self._judge_refusals()
            if not isinstance(self.ended.refusals[-1], UnitsFailed | StoreError) and not self._bad:
                raise Broken(f"poison ends with {self.ended.refusals[-1]!r}")
            return
        if not self.ended.results:
            raise Broken(f"nothing goes wrong any more, and the run ends with {self.ended.refusals[-1:]}")
        self._judge_refusals()
        wanted = parquet_bytes(self.pool.chosen(self.manners.poison if self.skip else {}))
        for result in self.ended.results:
            if parquet_bytes(result.selection) != wanted:
                raise Broken(f"other rows: {result.selection.to_pylist()}, not {read_parquet(wanted).to_pylist()}")
        if sum(result.new for result in self.ended.results) > 1:
            raise Broken("a query that was committed is committed again")
        for name, (data, _) in self.bucket.files.items():
            if name.endswith((".receipt.json", "/manifest.json")) and not self.bucket.names_whole(data):
                raise Broken(f"{name} names what isn't there")
        repeated = len(self.tally.attempts) - len({(key, outputs) for _, key, outputs in self.tally.attempts})
        allowed = self.tally.excused + (len(self.pool.units) + IN_FLIGHT * self.workers) * self.at_once
        if repeated > allowed:
            raise Broken(f"{repeated} attempts were repeated, and {allowed} of them explained")

    def _judge_events(self) -> None:
        """Numbers count from 1 without a gap, each event is there once, and what a run was told is written is there under its number."""
        files = {name: data for name, (data, _) in self.bucket.files.items() if "/events/" in name}
        events = [json.loads(files[name]) for name in sorted(files)]
        if [event["n"] for event in events] != list(range(1, len(events) + 1)):
            raise Broken(f"the events have the numbers {[event['n'] for event in events]}")
        told = [(event["run"], event["kind"]) for event in events]
        if len(set(told)) < len(told):
            raise Broken(f"an event is there twice: {told}")
        for run in self.runs:
            for number, kind in run.noted.items():
                if told[number - 1] != (run.name, kind):
                    raise Broken(f"event {number} of {run.name} is not {kind}")

    @property
    def _bad(self) -> bool:
        return "bad" in self.manners.poison.values()

    def _judge_refusals(self) -> None:
        """Whatever ended a run is something that did go wrong, and says so by its kind."""
        for error in self.ended.refusals:
            of_store = isinstance(error, StoreError | ClusterError) and bool(self.bucket.met)
            of_store |= isinstance(error, ClusterError) and self.kills >= ATTEMPTS
            of_units = isinstance(error, UnitsFailed) and (bool(self.manners.poison) or self.kills >= ATTEMPTS)
            of_rows = self._bad and error.exit_code == 3
            if not (of_store or of_units or of_rows):
                raise Broken(f"a run ends with {type(error).__name__}: {error}, and nothing that happened explains it")


def tried(seed: int, say: Callable[[str], None] | None = None) -> Told:
    """Run one seed; see `Trial.go`."""
    return Trial(seed, say).go()
