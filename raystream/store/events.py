"""The log of a run, a loop, a stream or the service: numbered events that outlive whoever wrote them, and the state of a run by them.

On a local disk a log is the file `events.jsonl` of its folder, an event a line, written under the file's lock; in a bucket, where
files can't grow, it is an object an event below `events/`, put if absent. Both are read, whichever wrote them. Events only inform:
what happened to a query is what its manifest says.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raystream.errors import QueryError, StoreError
from raystream.store.life import last_sign, process_began, server_time
from raystream.store.protocol import Entry, Store
from raystream.store.queries import query_folder, read_manifest

Event = dict[str, Any]
"""`n`, its number; `at`, when, in UTC by ISO 8601; `kind`; `id`, which no other event has; and the facts of its kind."""

ENDS = frozenset({"committed", "scored", "failed", "stopped"})
"""Kinds of events that end a run; the state that it is in then is of the same name."""
LOST_SECONDS = 120.0
"""A run whose driver gave no sign of life for so long has stopped: six signs late."""

_TAIL = 16
_WINDOW = 1 << 16
_THREADS = 16
_LOCK_SECONDS = 10.0
_LOCK_PAUSE = 0.01
_clock, _pause = time.monotonic, time.sleep


class EventLog:
    """Appends events to the log of a folder, and reads them; any number of writers may do so at once.

    Args:
        store: which holds it.
        folder: of the store, that of a run, a loop, a stream.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._file = f"{folder}/events.jsonl"
        self._objects = f"{folder}/events"
        # invariant: of a bucket, what events.jsonl held when it was first looked at: no one adds to it there
        self._copied: list[Event] | None = None
        self._last: int | None = None

    def append(self, kind: str, **facts: Any) -> int:
        """Write an event; it is there for all readers when this returns.

        Args:
            kind: what happened, such as `planned`.
            facts: what is to be known of it, as JSON has it.

        Returns:
            Its number: they count from 1 on without a gap, whoever writes.

        Raises:
            StoreError: it can't be written.
        """
        about = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind, "id": uuid.uuid4().hex[:12]}

        def line(number: int) -> bytes:
            return json.dumps({"n": number, **about, **facts}).encode() + b"\n"

        return self._append_object(line) if self._store.remote else self._append_line(line)

    def read(self, after: int = 0) -> list[Event]:
        """Read the events whose numbers are greater, in order.

        Raises:
            StoreError: the log can't be read.
        """
        copied = [event for event in self._copies() if event["n"] > after]
        if self._store.remote and not copied and self._event(after + 1) is None:
            return []  # whoever follows a log asks often, and mostly in vain: that is one request, and no listing
        return _in_order([*copied, *self._read_objects(number for number in self._numbers() if number > after)])

    def tail(self, count: int) -> list[Event]:
        """Read the last so many events, in order.

        Raises:
            StoreError: the log can't be read.
        """
        some = self._read_objects(self._numbers()[-count:])
        return _in_order([*self._copies(), *some])[-count:]

    def at(self, number: int) -> Event | None:
        """Read the event of this number, if there is one.

        Raises:
            StoreError: the log can't be read.
        """
        found = self._event(number) if self._store.remote else None
        return found or next((event for event in self._copies() if event["n"] == number), None) or self._event(number)

    # a line an event

    def _copies(self) -> list[Event]:
        """Read what the file holds."""
        if self._copied is not None:
            return self._copied
        events = _parsed(self._store.read_if_there(self._file) or b"")
        if self._store.remote:
            self._copied = events
        return events

    def _append_line(self, line: Callable[[int], bytes]) -> int:
        path = Path(self._store.place(self._file))
        try:
            while True:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                try:
                    _lock(descriptor)
                    if os.fstat(descriptor).st_nlink:  # else it was removed before the lock was ours
                        return self._add(descriptor, line)
                finally:
                    os.close(descriptor)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"store: {path} can't be written: {error.strerror or error}") from error

    def _add(self, descriptor: int, line: Callable[[int], bytes]) -> int:
        """Write behind the last whole line: what follows it was being written when its writer died, and never was an event."""
        size = os.fstat(descriptor).st_size
        whole, last = _end(descriptor, size)
        if whole < size:
            os.ftruncate(descriptor, whole)
        if self._last is None:
            self._last = max(self._numbers(), default=0)  # of a log that came here from a bucket
        number = max(last, self._last) + 1
        data = line(number)
        while data:
            written = os.pwrite(descriptor, data, whole)
            data, whole = data[written:], whole + written
        os.fsync(descriptor)
        return number

    # an object an event

    def _numbers(self) -> list[int]:
        names = self._store.names(self._objects)
        return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdigit())

    def _append_object(self, line: Callable[[int], bytes]) -> int:
        if self._last is None:
            copied = (event["n"] for event in self._copies())
            self._last = max([*self._numbers(), *copied], default=0)
        while True:
            number = self._last + 1
            # Where that fails, the next event asks for the same number again: if it was written after all, it has it, and none is left out.
            written = self._store.put_if_absent(self._object(number), line(number))
            self._last = number
            if written:
                return number

    def _object(self, number: int) -> str:
        return f"{self._objects}/{number:08d}.json"

    def _event(self, number: int) -> Event | None:
        found = _parsed(self._store.read_if_there(self._object(number)) or b"")
        return found[0] if found else None

    def _read_objects(self, numbers: Iterable[int]) -> list[Event]:
        wanted = list(numbers)
        if not wanted:
            return []
        with ThreadPoolExecutor(_THREADS if self._store.remote else 1) as threads:
            return [event for event in threads.map(self._event, wanted) if event is not None]


def _in_order(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: int(event["n"]))


def _parsed(data: bytes) -> list[Event]:
    """Parse the events that a log's lines hold, each that isn't damaged."""
    found = []
    for line in data.split(b"\n")[:-1]:  # the last one isn't whole
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("n"), int) and {"at", "kind"} <= event.keys():
            found.append(event)
    return found


def _end(descriptor: int, size: int) -> tuple[int, int]:
    """Find where the last whole line of a log ends, and the number of its last event; 0 if there is none."""
    window = _WINDOW
    while True:
        start = max(0, size - window)
        data = os.pread(descriptor, size - start, start)
        whole = data.rfind(b"\n") + 1
        events = _parsed(data[:whole])
        if events or not start:
            return start + whole, events[-1]["n"] if events else 0
        window *= 2


def _lock(descriptor: int) -> None:
    """Hold a file alone until it is closed; whoever has it keeps it for one line."""
    until = _clock() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if _clock() > until:
                raise
        _pause(_LOCK_PAUSE)


@dataclass(frozen=True)
class RunState:
    """How far a query's run is, as its store tells it.

    Attributes:
        name: of the query.
        state: `queued`, `running`, `committed`, `failed`, `stopped`; or `scored`, where `raystream score` was all that was asked.
            A driver that died has `stopped`.
        rows, rows_done: of the pool's units, before filters; those that were scored before count as done. None before they are known.
        units, units_done: likewise.
        rate: rows a second lately, while it runs.
        seconds_left: at that rate.
        started_at, changed_at: UTC, ISO 8601; the start of its newest run, and its newest event.
        who: asked for it.
        error, exit_code: why it failed.
    """

    name: str
    state: str
    rows: int | None = None
    rows_done: int | None = None
    units: int | None = None
    units_done: int | None = None
    rate: float | None = None
    seconds_left: float | None = None
    started_at: str | None = None
    changed_at: str | None = None
    who: str | None = None
    error: str | None = None
    exit_code: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return self.state not in ("queued", "running")

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def run_state(store: Store, name: str, now: float | None = None) -> RunState:
    """Read the state of a query's newest run, or of one that goes on.

    Args:
        store: which holds it.
        name: of the query, whole.
        now: by the store's clock, in seconds since the epoch; left out, the store is asked where that matters.

    Raises:
        QueryError: nothing was ever run under this name.
        StoreError: the store can't be read.
    """
    folder = query_folder(name)
    log = EventLog(store, folder)
    events = log.tail(_TAIL)
    if store.exists(f"{folder}/manifest.json"):
        return _committed(store, name, events, log)
    if events and events[-1]["kind"] == "queued":
        return RunState(name, "queued", changed_at=events[-1]["at"], who=events[-1].get("who"))
    runs: dict[int, list[Event]] = {}
    for event in events:
        number = event["n"] if event["kind"] == "started" else event.get("run")
        if isinstance(number, int):
            runs.setdefault(number, []).append(event)
    files = list(store.walk(folder))
    if not runs:
        if not files:
            raise QueryError(f"store {store.uri} has no run of query {name}; see --store, and raystream show for those that it holds")
        return RunState(name, "running" if _signs(store, files, now) else "stopped")
    going_on = [number for number, told in runs.items() if told[-1]["kind"] not in ENDS]
    for number in reversed(going_on):
        if _is_here_or_unknown(log.at(number)) and _signs(store, files, now):
            return _state_of(name, "running", runs[number], log.at(number))
    newest = max(runs, key=lambda number: runs[number][-1]["n"])
    last = runs[newest][-1]["kind"]
    return _state_of(name, last if last in ENDS else "stopped", runs[newest], log.at(newest))


def _committed(store: Store, name: str, events: Sequence[Event], log: EventLog) -> RunState:
    ends = [event for event in events if event["kind"] == "committed"]
    if ends:
        of = ends[-1].get("run")
        own = [event for event in events if event.get("run") == of]
        return _state_of(name, "committed", own, log.at(of) if isinstance(of, int) else None)
    try:
        manifest = read_manifest(store, name)
    except StoreError:
        manifest = None  # damaged, and committed all the same
    if manifest is None:
        return RunState(name, "committed")
    rows = manifest.counts.pool
    units = manifest.units_scored + manifest.units_reused
    return RunState(name, "committed", rows, rows, units, units, changed_at=manifest.committed)


def _state_of(name: str, state: str, events: Sequence[Event], started: Event | None) -> RunState:
    """Return the state of one run, by the last of its events."""
    told: Event = {}
    for event in events:
        told |= event
    known = {key: told.get(key) for key in ("rows", "rows_done", "units", "units_done")}
    if known["rows_done"] is None and "rows_todo" in told:
        known |= {"rows_done": told["rows"] - told["rows_todo"], "units_done": told["units"] - told["units_todo"]}
    if state in ("committed", "scored"):
        known |= {"rows_done": known["rows"], "units_done": known["units"]}
    running, failed = state == "running", state == "failed"
    return RunState(
        name=name,
        state=state,
        **known,
        rate=told.get("rate") if running else None,
        seconds_left=told.get("seconds_left") if running else None,
        started_at=(started or {}).get("at"),
        changed_at=told.get("at"),
        who=(started or {}).get("who"),
        error=told.get("error") if failed else None,
        exit_code=told.get("exit_code") if failed else None,
    )


def _signs(store: Store, files: Sequence[Entry], now: float | None) -> bool:
    """Tell whether a run gave a sign of life in this folder lately."""
    last = last_sign(files)
    if last is None:
        return False
    if now is None:
        try:
            now = server_time(store)
        except StoreError:
            now = time.time()  # whoever may only read goes by the clock of this machine
    return last >= now - LOST_SECONDS


def _is_here_or_unknown(started: Event | None) -> bool:
    """Return False if the driver ran on this machine and is gone; of another machine, its signs of life tell."""
    if started is None or started.get("host") != platform.node():
        return True
    return process_began(started.get("process", 0)) == started.get("process_began")
