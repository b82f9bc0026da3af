"""Removes from a store what no kept query needs: scored units, what unfinished runs left, and queries that are to be forgotten.

A committed query needs the units of its plan and those over labelled rows outside its pool. An unfinished one needs
those of its plan, and those that it says it uses, while it gives signs of life (see `store.life`) or its folder is younger than the
grace period. Nothing younger is ever removed. Ages go by the store's clock. What selection keeps of embeddings no query needs: it goes
with the grace period.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby, islice
from typing import Any

import numpy as np

from raystream.errors import StoreError
from raystream.store.life import JOBS, announced, is_alive, server_time
from raystream.store.packs import PACKS, ahead, in_threads, pack_names
from raystream.store.protocol import Entry, Store
from raystream.store.queries import TABLES, labelled_keys, plan_outputs, read_manifest, read_plan
from raystream.store.receipt_table import Keys, is_key
from raystream.store.receipts import read_receipt
from raystream.store.service_records import finished

GRACE = 24 * 3600.0
"""Seconds for which files that nobody needs are left alone: a run that is under way may be about to need them."""

_REMOVE_THREADS = 32
_FOLDERS_AT_ONCE = 8
_UNITS = len("units/")
_FEW_FILES = 16_000
"""Of a bucket's units, that are listed at once: a thousand come with a request."""
_NO_KEY = "0" * 64
"""In place of a folder's name that is no key; should a unit have it, a folder is kept that need not be."""
_OUTPUT = re.compile(r"(.+-[0-9a-f]{12})(?:-([0-9a-f]{12})\.(?:quarantined\.)?[a-z]+|\.receipt\.json)")
_RECEIPT, _ATTEMPT = ".receipt.json", re.compile(r"-[0-9a-f]{12}\.[a-z]+")
_LEFT_BEHIND = re.compile(r"(?:token|needs)-[0-9a-f]{32}|(?:selection|quarantined)-[0-9a-f]{12}\.parquet|\..+\.[0-9a-f]{32}")
_RECORDS = ("calibrations", "loops", "simulations", "streams")
"""Folders whose folders are kept, but for what a writer that was killed left in them."""


@dataclass(frozen=True)
class Group:
    """A count of things and of their bytes."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Reclaimed:
    """The things that were removed from a store, or would be.

    Attributes:
        store: where.
        deleted: whether anything was removed; if not, this is what `--delete` would remove.
        older_than: the grace period in seconds.
        queries_kept: committed queries.
        dropped: queries that were to be forgotten.
        unfinished: queries that were never committed, give no sign of life, and are old.
        running: queries that aren't committed, but run or are younger, so that they may still be.
        units_kept: units that a kept or running query needs.
        units_young: units that nobody needs, but that aren't old enough.
        units: units that are removed.
        outputs: outputs that are removed of units of which others are needed.
        leftovers: files of attempts and runs that ended halfway.
        tables: pools that were given in memory, which no kept query is over.
        derived: clusters and neighbour graphs that are removed; the next query that wants one computes it again.
        service: files of what servers noted of requests that are over.
    """

    store: str
    deleted: bool
    older_than: float
    queries_kept: int
    dropped: tuple[str, ...]
    unfinished: tuple[str, ...]
    running: tuple[str, ...]
    units_kept: Group
    units_young: Group
    units: Group
    outputs: Group
    leftovers: Group
    tables: Group
    derived: Group
    service: Group
    bytes: int

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class _QueriesByFate:
    """The queries of a store, by what becomes of them, and the keys that those which stay need."""

    committed: tuple[str, ...]
    dropped: dict[str, list[Entry]]
    unfinished: dict[str, list[Entry]]
    running: tuple[str, ...]
    needed: _Needed
    strays: list[Entry]
    tables: set[str]
    """Files of pools that were given in memory, which committed queries are over."""
    packs: set[str]
    """Of receipts, that the plans of those which stay may have."""
    planning: bool = False
    """Whether a run has only begun, so that what it needs isn't known yet: it may be any unit."""


def collect(store: Store, *, drop: Collection[str] = (), older_than: float = GRACE, delete: bool = False) -> Reclaimed:
    """Find, and with `delete` remove, what no query needs.

    Args:
        store: to clean.
        drop: names of queries to forget, whatever their age.
        older_than: the grace period in seconds: younger units and leftovers stay.
        delete: remove them; otherwise nothing is changed.

    Raises:
        StoreError: a committed query doesn't say which units it needs, or something can't be removed.
    """
    now = _now(store, needed=delete)
    limit = now - older_than
    queries = _queries(store, drop, limit, now)
    found = _unneeded_units(store, queries, limit)
    strays = [*queries.strays, *found.strays]
    known = {*queries.committed, *queries.running}
    strays += [file for file in store.walk(JOBS) if file.modified <= limit and _base(file) not in known]
    # Packs are an index, which whoever needs it makes again: they go before anything that they may name does.
    removing = bool(found.units or found.outputs)
    packs = [file for file in store.walk(PACKS) if file.name not in queries.packs and (removing or file.modified <= limit)]
    derived = [files for files in _by_folder(store.walk("derived"), depth=2).values() if all(file.modified <= limit for file in files)]
    busy = bool(queries.running) or queries.planning
    tables = [file for file in store.walk(TABLES) if file.modified <= limit and not busy and _base(file) not in queries.tables]
    served = finished(store, known, limit)
    unfinished = queries.unfinished
    forgotten = [*queries.dropped.values(), *unfinished.values()]
    if delete:
        # A query that began meanwhile may use units that nobody needed when we looked.
        again = _queries(store, drop, limit, _now(store, needed=True))
        found = found.without(again)
        unfinished = {name: files for name, files in unfinished.items() if name in again.unfinished}
        tables = [file for file in tables if not again.running and not again.planning and _base(file) not in again.tables]
        forgotten = [*queries.dropped.values(), *unfinished.values()]
        threads = _REMOVE_THREADS if store.remote else 1
        in_threads(lambda file: store.remove(file.name), packs, threads)
        # What can't be removed is an error: nothing is reported as removed that is still there.
        groups = [*forgotten, *found.units.values(), *found.halves.values(), *found.outputs.values(), *derived]
        in_threads(lambda files: _remove(store, files), groups, threads)
        in_threads(lambda file: store.remove(file.name), [*strays, *tables], threads)
        served.remove(store)
    leftovers = _group([[file] for file in [*strays, *packs, *chain.from_iterable(found.halves.values())]])
    scored = [*found.units.values(), *found.outputs.values()]
    return Reclaimed(
        store=store.uri,
        deleted=delete,
        older_than=older_than,
        queries_kept=len(queries.committed),
        dropped=tuple(sorted(queries.dropped)),
        unfinished=tuple(sorted(unfinished)),
        running=queries.running,
        units_kept=found.kept,
        units_young=found.young,
        units=_group(found.units.values()),
        outputs=_group(found.outputs.values()),
        leftovers=leftovers,
        tables=_group([[file] for file in tables]),
        derived=_group(derived),
        service=_group([file] for file in served.files),
        bytes=_group([*scored, *forgotten, *derived, *([file] for file in [*tables, *served.files])]).bytes + leftovers.bytes,
    )


def _now(store: Store, *, needed: bool) -> float:
    """Read the time by the store's clock; where nothing can be written, and nothing is to be removed, by ours."""
    try:
        return server_time(store)
    except StoreError:
        if needed:
            raise
        return time.time()


def _queries(store: Store, drop: Collection[str], limit: float, now: float) -> _QueriesByFate:
    found = _QueriesByFate((), {}, {}, (), _Needed(), [], set(), set())
    committed, running, planning = [], [], False
    for name, files in _by_folder(store.walk("queries"), depth=1).items():
        alive = is_alive(files, now)
        if alive:
            found.needed.add(Keys.of(key for key in announced(store, files) if is_key(key)), None)
        manifest = None if name in drop else read_manifest(store, name)
        if name in drop:
            found.dropped[name] = files
        elif manifest is not None:
            committed.append(name)
            _add_plan(found, store, name, manifest.labelled_units)
            found.tables.update(path.rpartition("/")[2] for path, _, _ in manifest.files)
            own = {file.name for file in (manifest.selection, manifest.quarantined) if file is not None}
            found.strays.extend(f for f in files if _LEFT_BEHIND.fullmatch(_base(f)) and f.name not in own and f.modified <= limit)
        elif not alive and max(file.modified for file in files) <= limit:
            found.unfinished[name] = files
        else:
            running.append(name)
            if any(_base(file) == "plan.parquet" for file in files):
                _add_plan(found, store, name)
            else:
                planning = planning or alive
    for files in (group for place in _RECORDS for group in _by_folder(store.walk(place), depth=1).values()):
        if is_alive(files, now):
            found.needed.add(Keys.of(key for key in announced(store, files) if is_key(key)), None)
        else:
            found.strays.extend(file for file in files if _LEFT_BEHIND.fullmatch(_base(file)) and file.modified <= limit)
    return replace(found, committed=tuple(sorted(committed)), running=tuple(sorted(running)), planning=planning)


class _Needed:
    """The units that queries need, and which outputs of them, some bytes a unit.

    Units go by the first digits of their keys: two that share them are both taken to be needed if one is, and nothing is lost.
    """

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.uint64)
        self._which = np.empty(0, np.int32)
        # invariant: names of outputs, each set once; None: all
        self._outputs: list[frozenset[str] | None] = []

    def add(self, keys: Keys, outputs: frozenset[str] | None) -> None:
        """Need these outputs of units, whatever else is needed of them; None: all."""
        numbers = np.unique(keys.numbers)
        every = np.union1d(self._numbers, numbers)
        which = np.full(len(every), -1, np.int32)
        which[np.searchsorted(every, self._numbers)] = self._which
        at = np.searchsorted(every, numbers)
        before = which[at]
        for number in np.unique(before).tolist():
            which[at[before == number]] = self._number(outputs if number < 0 else _both(self._outputs[number], outputs))
        self._numbers, self._which = every, which

    def outputs_of(self, keys: Sequence[str]) -> list[tuple[bool, frozenset[str] | None]]:
        """Tell of each unit whether it is needed, and which outputs of it; None: all."""
        if not len(self._numbers):
            return [(False, None)] * len(keys)
        try:
            numbers = Keys.of(keys).numbers
        except ValueError:
            numbers = Keys.of(key if is_key(key) else _NO_KEY for key in keys).numbers
        at = np.minimum(self._numbers.searchsorted(numbers), len(self._numbers) - 1)
        found = zip((self._numbers[at] == numbers).tolist(), self._which[at].tolist(), strict=True)
        return [(True, self._outputs[which]) if there else (False, None) for there, which in found]

    def _number(self, outputs: frozenset[str] | None) -> int:
        if outputs not in self._outputs:
            self._outputs.append(outputs)
        return self._outputs.index(outputs)


def _both(some: frozenset[str] | None, others: frozenset[str] | None) -> frozenset[str] | None:
    return None if some is None or others is None else some | others


@dataclass(frozen=True)
class _UnneededUnits:
    """What no query needs of a store's units, and what stays.

    Attributes:
        units: with a receipt, by key.
        halves: without any, which attempts that ended halfway left.
        outputs: that nobody needs of units that stay, by key and output.
        strays: files of outputs that stay which their receipts don't name.
        kept, young: see `Reclaimed`.
    """

    units: dict[str, list[Entry]]
    halves: dict[str, list[Entry]]
    outputs: dict[tuple[str, str], list[Entry]]
    strays: list[Entry]
    kept: Group
    young: Group

    def without(self, again: _QueriesByFate) -> _UnneededUnits:
        """Leave out what a query needs that began since the first look."""
        if again.planning:
            return replace(self, units={}, halves={}, outputs={})
        units, halves = (
            {key: files for (key, files), (needed, _) in zip(some.items(), again.needed.outputs_of(list(some)), strict=True) if not needed}
            for some in (self.units, self.halves)
        )
        asked = again.needed.outputs_of([key for key, _ in self.outputs])
        outputs = {
            (key, output): files
            for ((key, output), files), (needed, those) in zip(self.outputs.items(), asked, strict=True)
            if not (needed and _needs(those, output))
        }
        return replace(self, units=units, halves=halves, outputs=outputs)


def _unneeded_units(store: Store, queries: _QueriesByFate, limit: float) -> _UnneededUnits:
    """Find what no query needs of the units, as far as it is older than `limit`."""
    kept, young = _Tally(), _Tally()
    units: dict[str, list[Entry]] = {}
    halves: dict[str, list[Entry]] = {}
    outputs: dict[tuple[str, str], list[Entry]] = {}
    strays: list[Entry] = []
    for key, files, (needed, those) in chain.from_iterable(
        zip(some, some.values(), queries.needed.outputs_of(list(some)), strict=True) for some in _units(store)
    ):
        if not needed:
            if queries.planning or any(file.modified > limit for file in files):
                young.add(files)
            else:
                (units if any(_is_receipt(file) for file in files) else halves)[key] = files
            continue
        if those is not None and _is_plain(files, those):
            kept.add(files)
            continue
        stay: list[Entry] = []
        for output, (own, attempts) in _by_output(files).items():
            if _needs(those, output):
                # one attempt alone is the one that the receipt names, or is about to
                gone = _stray(store, key, output, own, limit) if len(attempts) > 1 or not output else []
                strays += gone
                stay += [file for file in own if file not in gone] if gone else own
            elif not queries.planning and all(file.modified <= limit for file in own):
                outputs[key, output] = own
            else:
                stay += own
        kept.add(stay)
    return _UnneededUnits(units, halves, outputs, strays, kept.group, young.group)


class _Tally:
    """Counts things and their bytes, without holding them."""

    def __init__(self) -> None:
        self._count = self._bytes = 0

    def add(self, files: Sequence[Entry]) -> None:
        self._count += 1
        for file in files:
            self._bytes += file.size

    @property
    def group(self) -> Group:
        return Group(self._count, self._bytes)


def _units(store: Store) -> Iterator[dict[str, list[Entry]]]:
    """Yield the units of a store with their files: some at a time, or all at once where they are few."""
    if store.remote:
        first = list(islice(store.walk("units"), _FEW_FILES + 1))
        if len(first) <= _FEW_FILES:
            yield _by_folder(first, depth=2)
            return
    folders = [f"units/{folder}" for folder in store.names("units")]
    listed: Iterable[Iterable[Entry]]
    if store.remote:
        listed = ahead(lambda folder: list(store.walk(folder)), folders, _FOLDERS_AT_ONCE)
    else:
        listed = (files for _, files in groupby(store.walk(*folders), lambda file: file.name[: file.name.find("/", _UNITS)]))
    for files in listed:
        units: dict[str, list[Entry]] = {}
        for file in files:  # as `_by_folder` does, without taking each name apart
            start = file.name.find("/", _UNITS) + 1
            end = file.name.find("/", start)
            if end > 0:
                units.setdefault(file.name[start:end], []).append(file)
        yield units


def _by_folder(files: Iterable[Entry], depth: int) -> dict[str, list[Entry]]:
    """Group files by the folder that they lie in, which is so deep in the store."""
    folders: dict[str, list[Entry]] = {}
    for file in files:
        parts = file.name.split("/")
        if len(parts) > depth + 1:
            folders.setdefault(parts[depth], []).append(file)
    return folders


def _add_plan(found: _QueriesByFate, store: Store, name: str, labelled: Sequence[str] = ()) -> None:
    """Note what a query needs: the outputs that its plan names of its units, and of those over labelled rows."""
    plan = read_plan(store, name)
    outputs, keys = plan_outputs(plan.schema), Keys.of_column(plan.column("key"))
    found.packs.update(pack_names(keys, outputs))
    found.needed.add(keys, frozenset(outputs))
    found.needed.add(labelled_keys(labelled, name), frozenset(outputs))


def _needs(outputs: frozenset[str] | None, output: str) -> bool:
    """Tell whether an output of a unit is among those that are needed; what is no output's is looked at as if it were."""
    return outputs is None or not output or output in outputs


def _is_plain(files: Sequence[Entry], outputs: frozenset[str]) -> bool:
    """Tell whether a unit's files are a receipt and one attempt each of outputs that are needed, as those of most units are."""
    names = sorted([file.name for file in files])  # an attempt's before its receipt's
    start = names[0].rindex("/") + 1
    for attempt, receipt in zip(names[::2], names[1::2], strict=False):
        output = receipt[start : -len(_RECEIPT)]
        own = receipt.endswith(_RECEIPT) and attempt.startswith(output, start) and output in outputs
        if not own or not _ATTEMPT.fullmatch(attempt, start + len(output)):
            return False
    return len(names) % 2 == 0


def _by_output(files: Sequence[Entry]) -> dict[str, tuple[list[Entry], set[str]]]:
    """Group a unit's files by the output that they belong to, with the attempts that left them; under an empty name those of none."""
    outputs: dict[str, tuple[list[Entry], set[str]]] = {}
    for file in files:
        match = _OUTPUT.fullmatch(file.name, file.name.rindex("/") + 1)
        own, attempts = outputs.setdefault(match[1] if match else "", ([], set()))
        own.append(file)
        if match and match[2]:
            attempts.add(match[2])
    return outputs


def _stray(store: Store, key: str, output: str, files: Sequence[Entry], limit: float) -> list[Entry]:
    """Find those of an output's files that are old, and that its receipt doesn't name."""
    old = [file for file in files if file.modified <= limit]
    if not output or not old:
        return old
    receipt = read_receipt(store, key, output, {file.name: file.size for file in files})
    named = {file.name for file in (files if receipt is None else receipt.files)}
    return [file for file in old if file.name not in named and not _is_receipt(file)]


def _remove(store: Store, files: Sequence[Entry]) -> None:
    """Remove a unit or a query: first what makes the rest count, so that no half of it is ever taken for whole."""
    for file in sorted(files, key=lambda file: (not _is_receipt(file) and _base(file) != "manifest.json", file.name)):
        store.remove(file.name)
    for folder in sorted({file.name.rpartition("/")[0] for file in files}, reverse=True):  # one within another goes before it
        store.discard_folder(folder)


def _group(things: Iterable[Sequence[Entry]]) -> Group:
    sizes = [sum(file.size for file in files) for files in things]
    return Group(len(sizes), sum(sizes))


def _is_receipt(file: Entry) -> bool:
    return file.name.endswith(("/receipt.json", ".receipt.json"))


def _base(file: Entry) -> str:
    return file.name.rpartition("/")[2]
