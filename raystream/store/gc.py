"""Removes from a store what no kept query needs: scored units, what unfinished runs left, and queries that are to be forgotten.

A committed query needs the units of its plan and those over labelled rows outside its pool. An unfinished one needs
those of its plan, and those that it says it uses, while it gives signs of life (see `store.life`) or its folder is younger than the
grace period. Nothing younger is ever removed. Ages go by the store's clock. What selection keeps of embeddings no query needs: it goes
with the grace period.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

from raystream.errors import StoreError
from raystream.store.life import announced, is_alive, server_time
from raystream.store.packs import PACKS, in_threads, pack_names
from raystream.store.protocol import Entry, Store
from raystream.store.queries import TABLES, plan_outputs, read_manifest, read_plan
from raystream.store.receipts import read_receipt

GRACE = 24 * 3600.0
"""Seconds for which files that nobody needs are left alone: a run that is under way may be about to need them."""

_REMOVE_THREADS = 32
_OUTPUT = re.compile(r"(.+-[0-9a-f]{12})(?:-([0-9a-f]{12})\.(?:quarantined\.)?[a-z]+|\.receipt\.json)")
_LEFT_BEHIND = re.compile(r"(?:token|needs)-[0-9a-f]{32}|(?:selection|quarantined)-[0-9a-f]{12}\.parquet|\..+\.[0-9a-f]{32}")


@dataclass(frozen=True)
class Group:
    """How many things and how many bytes."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Collected:
    """What was removed from a store, or would be.

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
    bytes: int

    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class _Queries:
    """The queries of a store, by what becomes of them, and the keys that those which stay need."""

    committed: tuple[str, ...]
    dropped: dict[str, list[Entry]]
    unfinished: dict[str, list[Entry]]
    running: tuple[str, ...]
    needed: dict[str, frozenset[str] | None]
    """By the units' keys, the names of the outputs; None: all."""
    strays: list[Entry]
    tables: set[str]
    """Files of pools that were given in memory, which committed queries are over."""
    packs: set[str]
    """Of receipts, that the plans of those which stay may have."""
    planning: bool = False
    """Whether a run has only begun, so that what it needs isn't known yet: it may be any unit."""


def collect(store: Store, *, drop: Collection[str] = (), older_than: float = GRACE, delete: bool = False) -> Collected:
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
    kept: list[list[Entry]] = []
    young: list[list[Entry]] = []
    units: dict[str, list[Entry]] = {}
    halves: dict[str, list[Entry]] = {}
    outputs: dict[tuple[str, str], list[Entry]] = {}
    strays = list(queries.strays)
    for key, files in _by_folder(store.walk("units"), depth=2).items():
        if key not in queries.needed:
            if queries.planning or any(file.modified > limit for file in files):
                young.append(files)
            else:
                (units if any(_is_receipt(file) for file in files) else halves)[key] = files
            continue
        gone: list[Entry] = []
        for output, own in _by_output(files).items():
            if _needs(queries.needed[key], output):
                gone += _stray(store, key, output, [file for file in own if file.modified <= limit], own)
            elif not queries.planning and all(file.modified <= limit for file in own):
                outputs[key, output] = own
        strays += gone
        kept.append([file for output, own in _by_output(files).items() if (key, output) not in outputs for file in own if file not in gone])
    # Packs are an index, which whoever needs it makes again: they go before anything that they may name does.
    removing = bool(units or outputs)
    packs = [file for file in store.walk(PACKS) if file.name not in queries.packs and (removing or file.modified <= limit)]
    derived = [files for files in _by_folder(store.walk("derived"), depth=2).values() if all(file.modified <= limit for file in files)]
    busy = bool(queries.running) or queries.planning
    tables = [file for file in store.walk(TABLES) if file.modified <= limit and not busy and _base(file) not in queries.tables]
    unfinished = queries.unfinished
    forgotten = [*queries.dropped.values(), *unfinished.values()]
    if delete:
        # A query that began meanwhile may use units that nobody needed when we looked.
        again = _queries(store, drop, limit, _now(store, needed=True))
        outputs = {
            (key, output): files
            for (key, output), files in outputs.items()
            if not again.planning and not (key in again.needed and _needs(again.needed[key], output))
        }
        taken = units.keys() | halves.keys() if again.planning else again.needed.keys()
        units, halves = ({key: files for key, files in some.items() if key not in taken} for some in (units, halves))
        unfinished = {name: files for name, files in unfinished.items() if name in again.unfinished}
        tables = [file for file in tables if not again.running and not again.planning and _base(file) not in again.tables]
        forgotten = [*queries.dropped.values(), *unfinished.values()]
        threads = _REMOVE_THREADS if store.remote else 1
        in_threads(lambda file: store.remove(file.name), packs, threads)
        # What can't be removed is an error: nothing is reported as removed that is still there.
        groups = [*forgotten, *units.values(), *halves.values(), *outputs.values(), *derived]
        in_threads(lambda files: _remove(store, files), groups, threads)
        in_threads(lambda file: store.remove(file.name), [*strays, *tables], threads)
    leftovers = _group([[file] for file in [*strays, *packs, *chain.from_iterable(halves.values())]])
    return Collected(
        store=store.uri,
        deleted=delete,
        older_than=older_than,
        queries_kept=len(queries.committed),
        dropped=tuple(sorted(queries.dropped)),
        unfinished=tuple(sorted(unfinished)),
        running=queries.running,
        units_kept=_group(kept),
        units_young=_group(young),
        units=_group(units.values()),
        outputs=_group(outputs.values()),
        leftovers=leftovers,
        tables=_group([[file] for file in tables]),
        derived=_group(derived),
        bytes=_group([*units.values(), *outputs.values(), *forgotten, *derived, *([file] for file in tables)]).bytes + leftovers.bytes,
    )


def _now(store: Store, *, needed: bool) -> float:
    """The time by the store's clock; where nothing can be written, and nothing is to be removed, by ours."""
    try:
        return server_time(store)
    except StoreError:
        if needed:
            raise
        return time.time()


def _queries(store: Store, drop: Collection[str], limit: float, now: float) -> _Queries:
    found = _Queries((), {}, {}, (), {}, [], set(), set())
    committed, running, planning = [], [], False
    for name, files in _by_folder(store.walk("queries"), depth=1).items():
        alive = is_alive(files, now)
        if alive:
            found.needed.update(dict.fromkeys(announced(store, files)))
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
    for files in _by_folder(store.walk("calibrations"), depth=1).values():
        if is_alive(files, now):
            found.needed.update(dict.fromkeys(announced(store, files)))
        else:
            found.strays.extend(file for file in files if _LEFT_BEHIND.fullmatch(_base(file)) and file.modified <= limit)
    return replace(found, committed=tuple(sorted(committed)), running=tuple(sorted(running)), planning=planning)


def _by_folder(files: Iterable[Entry], depth: int) -> dict[str, list[Entry]]:
    """Files by the folder that they lie in, which is so deep in the store."""
    folders: dict[str, list[Entry]] = {}
    for file in files:
        parts = file.name.split("/")
        if len(parts) > depth + 1:
            folders.setdefault(parts[depth], []).append(file)
    return folders


def _add_plan(found: _Queries, store: Store, name: str, labelled: Sequence[str] = ()) -> None:
    """Note what a query needs: the outputs that its plan names of its units, and of those over labelled rows."""
    plan = read_plan(store, name)
    outputs = frozenset(plan_outputs(plan))
    keys = plan.column("key").to_pylist()
    found.packs.update(pack_names(keys, plan_outputs(plan)))
    for key in chain(keys, labelled):
        before = found.needed.get(key, outputs)
        found.needed[key] = outputs if before is outputs else None if before is None else before | outputs


def _needs(outputs: frozenset[str] | None, output: str) -> bool:
    """Whether an output of a unit is among those that are needed; what is no output's is looked at as if it were."""
    return outputs is None or not output or output in outputs


def _by_output(files: Sequence[Entry]) -> dict[str, list[Entry]]:
    """A unit's files by the output that they belong to; under an empty name those of none."""
    outputs: dict[str, list[Entry]] = {}
    for file in files:
        match = _OUTPUT.fullmatch(_base(file))
        outputs.setdefault(match[1] if match else "", []).append(file)
    return outputs


def _stray(store: Store, key: str, output: str, old: Sequence[Entry], files: Sequence[Entry]) -> list[Entry]:
    """Those of an output's old files that its receipt doesn't name."""
    if not output:
        return list(old)
    attempts = {match[2] for file in files if (match := _OUTPUT.fullmatch(_base(file)))} - {None}
    if len(attempts) <= 1:
        return []  # one attempt alone is the one that the receipt names, or is about to
    receipt = read_receipt(store, key, output)
    named = {file.name for file in (files if receipt is None else receipt.files)}
    return [file for file in old if file.name not in named and not _is_receipt(file)]


def _remove(store: Store, files: Sequence[Entry]) -> None:
    """Remove a unit or a query: first what makes the rest count, so that no half of it is ever taken for whole."""
    for file in sorted(files, key=lambda file: (not _is_receipt(file) and _base(file) != "manifest.json", file.name)):
        store.remove(file.name)
    for folder in {file.name.rpartition("/")[0] for file in files}:
        store.discard_folder(folder)


def _group(things: Iterable[Sequence[Entry]]) -> Group:
    sizes = [sum(file.size for file in files) for files in things]
    return Group(len(sizes), sum(sizes))


def _is_receipt(file: Entry) -> bool:
    return file.name.endswith(("/receipt.json", ".receipt.json"))


def _base(file: Entry) -> str:
    return file.name.rpartition("/")[2]
