"""Who is at work on a store: signs of life, leases, jobs.

Signs of life: by them `raystream gc` tells a run that is under way from one that ended halfway, and what it is about to need.

A run keeps a file `token-…` in its folder, which it writes anew every few seconds, whatever else it does, until it ends. Ages go by
the store's own clock, which stamps the files: that of the machine that asks may be an hour off.

What a store knows of a cluster's jobs: which queries each one runs, so that its progress is found after the cluster is gone.

It stands in the names of empty files, `jobs/<job>/<query>`, so that to look it up is to list them.

A lease in the store: one process at a time writes a loop or a stream, and one that is gone holds nobody up.

A lease is a file of its own, put if absent under the next number; its holder writes it again every few seconds. Whoever comes second
waits until the newest one ended, gives no sign of life for 30 seconds by the store's clock, or was held by a process of this machine
that is gone. Nothing depends on it for being right: what its holder commits, it puts if absent.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from types import TracebackType

import psutil

from raystream.errors import StoreError
from raystream.store.protocol import Entry, Store

BEAT_SECONDS = 20.0
"""Between two signs: one a minute is promised, and any of them may be late."""
ALIVE_SECONDS = 600.0
"""A run without a sign for so long is taken for dead, unless it is young; a store that is away is waited for as long."""

_TOKEN, _NEEDS = "token-", "needs-"
_ENDING_SECONDS = 5.0


class SignOfLife:
    """Gives signs of life from `begin` until the block ends.

    Args:
        wait: waits so many seconds, and says whether the run ended meanwhile; left out, until it does.
    """

    def __init__(self, wait: Callable[[float], bool] | None = None) -> None:
        self._ended = threading.Event()
        self._wait = wait or self._ended.wait
        self._store: Store | None = None
        self._folder = ""
        self._files: list[str] = []
        self._thread = threading.Thread(target=self._give, name="raystream-life", daemon=True)

    @property
    def begun(self) -> bool:
        """True if there is a token."""
        return self._store is not None

    @property
    def token(self) -> str:
        """The file of the store that is written again and again; whoever can read it sees the same store."""
        return self._files[0]

    def begin(self, store: Store, folder: str) -> None:
        """Give the first sign in this folder of the store, and go on."""
        self._files = [f"{folder}/{_TOKEN}{uuid.uuid4().hex}"]
        store.put(self.token, b"the driver was here")
        self._store, self._folder = store, folder
        self._thread.start()

    def needs(self, keys: Iterable[str]) -> None:
        """Note that the run uses units of these keys, which are not in the plan that its folder holds."""
        wanted = list(keys)
        if self._store is not None and wanted:
            self._files.append(f"{self._folder}/{_NEEDS}{uuid.uuid4().hex}")
            self._store.put(self._files[-1], "\n".join(wanted).encode())

    def end(self) -> None:
        """Give no further sign, and remove those that were given."""
        self._ended.set()
        if self._store is None:
            return
        self._thread.join(_ENDING_SECONDS)
        with suppress(StoreError):  # what is left is too old for a sign of life in some minutes
            for name in self._files:
                self._store.discard(name)

    def __enter__(self) -> SignOfLife:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def _give(self) -> None:
        assert self._store is not None
        while not self._wait(BEAT_SECONDS):
            with suppress(StoreError):  # the run itself finds out what is wrong
                self._store.put(self.token, b"the driver is here")


def is_alive(files: Collection[Entry], now: float) -> bool:
    """Tell whether a run gives signs of life in the folder that these files lie in; `now` by the store's clock."""
    last = last_sign(files)
    return last is not None and last >= now - ALIVE_SECONDS


def last_sign(files: Collection[Entry]) -> float | None:
    """Find when the last sign of life was given in the folder that these files lie in, by the store's clock; None without any."""
    return max((file.modified for file in files if _base(file).startswith(_TOKEN)), default=None)


def announced(store: Store, files: Collection[Entry]) -> set[str]:
    """Read the keys of units that runs in a folder use beside those of their plan."""
    found: set[str] = set()
    for file in files:
        if _base(file).startswith(_NEEDS):
            found.update((store.read_if_there(file.name) or b"").decode().split())
    return found


def server_time(store: Store) -> float:
    """Read the store's own clock, in seconds since the epoch, by a file that is written and removed again.

    Raises:
        StoreError: nothing can be written.
    """
    folder = f"probe-{uuid.uuid4().hex}"
    name = f"{folder}/now"
    store.put(name, b"now")
    try:
        return max(entry.modified for entry in store.walk(folder))
    finally:
        store.discard(name)
        store.discard_folder(folder)


def process_began(process: int) -> float | None:
    """Find when a process of this machine began, in seconds since the epoch; None if there is none of that number."""
    try:
        return float(psutil.Process(process).create_time())
    except (psutil.Error, ValueError):
        return None


def _base(file: Entry) -> str:
    return file.name.rpartition("/")[2]


JOBS = "jobs"


def note_job(store: Store, job: str, query: str) -> None:
    """Keep that a job runs this query.

    Raises:
        StoreError: it can't be written.
    """
    store.put(f"{JOBS}/{job}/{query}", b"")


def query_of_job(store: Store, job: str) -> str | None:
    """Return the whole name of the query that a job runs or ran; of several, the last. None if it got to none, or ran elsewhere.

    Raises:
        StoreError: the store can't be read.
    """
    noted = [file for file in store.walk(f"{JOBS}/{job}") if not file.name.rpartition("/")[2].startswith(".")]
    return max(noted, key=lambda file: file.modified).name.rpartition("/")[2] if noted else None


LEASE_BEAT_SECONDS = 8.0
LEASE_SECONDS = 30.0
_LOOK_SECONDS = 2.0
_ENDED = "ended"


class Lease:
    """Held within its block.

    Args:
        store: where it is kept.
        folder: of the store, for its files alone.
        say: told who is waited for.
        wait: waits so many seconds; left out, it does.
        what: is held, in words.
    """

    def __init__(
        self, store: Store, folder: str, say: Callable[[str], None], wait: Callable[[float], object] | None = None, *, what: str = "loop"
    ) -> None:
        self._store, self._folder, self._say, self._what = store, folder, say, what
        self._ended = threading.Event()
        self._wait = wait or threading.Event().wait
        self._thread = threading.Thread(target=self._give, name="raystream-lease", daemon=True)
        self._name = ""
        self._holder = {"token": uuid.uuid4().hex, "host": platform.node(), "process": os.getpid(), "started": process_began(os.getpid())}

    def __enter__(self) -> Lease:
        told = False
        while not self._take():
            if not told:
                self._say(f"another process holds this {self._what} ({self._newest()[1]}); waiting until it is done")
                told = True
            self._wait(_LOOK_SECONDS)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(_ENDING_SECONDS)
        with suppress(StoreError):  # it is too old in half a minute
            self._store.put(self._name, json.dumps(self._holder | {_ENDED: True}).encode())

    @property
    def held(self) -> bool:
        """Whether somebody holds it at this moment, this object or another."""
        return self._newest()[2]

    def _take(self) -> bool:
        """Put the next lease, unless the newest is held, or somebody else was first."""
        number, _, held = self._newest()
        if held:
            return False
        self._name = f"{self._folder}/{number + 1:08d}"
        if not self._store.put_if_absent(self._name, json.dumps(self._holder).encode()):
            return False
        for old in self._store.names(self._folder):
            if old.isdigit() and int(old) < number:  # the one before stays: whoever looks at this moment finds one
                self._store.discard(f"{self._folder}/{old}")
        return True

    def _newest(self) -> tuple[int, str, bool]:
        """Read the number of the newest lease, its holder in words, and whether it is held."""
        numbers = [int(name) for name in self._store.names(self._folder) if name.isdigit()]
        if not numbers:
            return 0, "", False
        name = f"{self._folder}/{max(numbers):08d}"
        data = self._store.read_if_there(name)
        try:
            holder = json.loads(data or b"{}")
        except ValueError:
            holder = {}
        if not holder or holder.get(_ENDED):
            return max(numbers), "", False
        who = f"process {holder.get('process')} on {holder.get('host')}"
        if holder.get("host") == platform.node() and process_began(int(holder["process"])) != holder.get("started"):
            return max(numbers), who, False  # it is gone, or its number is another's
        written = next((entry.modified for entry in self._store.walk(self._folder) if entry.name == name), None)
        return max(numbers), who, written is not None and server_time(self._store) - written < LEASE_SECONDS

    def _give(self) -> None:
        while not self._ended.wait(LEASE_BEAT_SECONDS):
            with suppress(StoreError):  # the holder itself finds out what is wrong
                self._store.put(self._name, json.dumps(self._holder).encode())
