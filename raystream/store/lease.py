"""A lease in the store: one process at a time writes a loop or a stream, and one that is gone holds nobody up.

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
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from raystream.errors import StoreError
from raystream.store.life import process_began, server_time
from raystream.store.protocol import Store

BEAT_SECONDS = 8.0
ALIVE_SECONDS = 30.0
_LOOK_SECONDS = 2.0
_ENDING_SECONDS = 5.0
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
        return max(numbers), who, written is not None and server_time(self._store) - written < ALIVE_SECONDS

    def _give(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(StoreError):  # the holder itself finds out what is wrong
                self._store.put(self._name, json.dumps(self._holder).encode())
