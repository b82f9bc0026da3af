"""Signs of life: by them `raystream gc` tells a run that is under way from one that ended halfway, and what it is about to need.

A run keeps a file `token-…` in its folder, which it writes anew every few seconds, whatever else it does, until it ends. Ages go by
the store's own clock, which stamps the files: that of the machine that asks may be an hour off.
"""

from __future__ import annotations

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
