"""Looking units up: packs of receipts first, those of a thousand units or so in one file, then single ones that no pack has.

A pack holds one output's receipts of a run of units that follow each other in a plan. Where a run ends, the units' keys decide, so that
files that are added to a pool move no other run; its name is the hash of its keys, so that whoever has a plan knows what to ask for.
Packs are an index: they can be made again from the units, and are removed with the first unit that is.

Single receipts are asked for many at a time.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from raystream.errors import DataError
from raystream.lake.retry import LASTING, Patience, retried
from raystream.store.protocol import Store, WriteBroken
from raystream.store.receipt_table import Integers, Keys, Mask, ReceiptTable
from raystream.store.receipts import read_receipt, receipt_name

_AT_A_TIME = 32
"""Items that a thread takes before it is handed more: to hand over a small request takes as long as to make it."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(call: Callable[[_Item], _Result], items: Sequence[_Item], threads: int = 32) -> list[_Result]:
    """Call a function for each of the items in threads; returns what it gives in their order, and its first error ends it."""
    size = min(_AT_A_TIME, -(-len(items) // threads)) or 1

    def some(start: int) -> list[_Result]:
        return [call(item) for item in items[start : start + size]]

    with ThreadPoolExecutor(threads) as pool:
        return list(chain.from_iterable(pool.map(some, range(0, len(items), size))))


def ahead(call: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Yield what a function gives for each of the items, in their order: it is called in threads, for no more than is soon taken."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            if len(waiting) == threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(call, item))
        while waiting:
            yield waiting.popleft().result()


_AGAIN_SECONDS = 1.0
"""Before broken work is begun again, at first."""


class _Again(ConnectionError):
    """The work broke in the middle and is to be done from the beginning."""

    def __init__(self, cause: DataError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _is_broken(error: DataError) -> bool:
    return isinstance(error, WriteBroken)


def unbroken(
    store: Store,
    work: Callable[[], _Result],
    patience: Patience = LASTING,
    broken: Callable[[DataError], bool] = _is_broken,
    place: str | None = None,
) -> _Result:
    """Do some work that writes files piece by piece, again if a storage went away in the middle, and is back; returns what it gives.

    Args:
        store: that it writes to.
        work: leaves nothing behind when it fails.
        patience: with storages that are away.
        broken: whether the work failed by an outage that it didn't wait for itself.
        place: what it needs, for people; left out, the store.

    Raises:
        DataError: of the work, in the end.
    """

    def attempt() -> _Result:
        try:
            return work()
        except DataError as error:
            if not broken(error):
                raise
            store.exists("format.json")  # which waits until the store answers
            raise _Again(error) from None

    place = place or store.place("").rstrip("/")
    try:
        return retried(attempt, patience=patience, place=place, errors=(_Again,), first_pause=_AGAIN_SECONDS)
    except _Again as again:
        raise again.cause from None


PACKS = "receipts"
FEWEST = 64
"""Units below which receipts are read one by one."""
_RUN_BITS = 10
_FEW_ASKED = 64
_NAMES_LISTED = 16
"""Of a folder on a disk, in the time of one question."""
_FOLDERS = 256
"""Of units, at most."""
_PAGE, _MOST_PAGES, _WORTH_A_PAGE = 1000, 16, 32
"""Files that a bucket lists in one request, the most requests that are made one after the other, and the questions that one is worth."""
_ASKED_AT_ONCE = {True: 8, False: 512}
"""Sizes that a thread asks for before it takes on more, by whether each is a request."""
_PACKS_AT_ONCE, _PACK_THREADS = 64, 16


def read_receipts(
    store: Store, keys: Keys, outputs: Sequence[str], names: Sequence[str] | None = None, places: Integers | None = None
) -> tuple[ReceiptTable, ...]:
    """Read the receipts of units that are in the store whole, a table for each of `outputs`.

    Of many units, packs are read first; that what they name is there is asked for in a folder, and in a bucket, where that is a request
    each, seen in a listing. Then come the single receipts of the others, of which a listing says whether there are any.

    Args:
        store: to look in.
        keys: of the units, in the order of their plan.
        outputs: the names of their outputs.
        names: the units'; left out, the receipts say them.
        places: of the only units that are looked for, which are going to be read: in a bucket, packs are believed then; left out, all.
    """
    tables = tuple(ReceiptTable(output, keys, names) for output in outputs)
    lookup = _Lookup(store, keys, tables)
    wanted = np.arange(len(keys)) if places is None else places
    if len(keys) < FEWEST and len(wanted) * len(outputs) <= _FEW_ASKED:
        lookup.ask(wanted)
    elif not store.remote:
        lookup.in_folder(wanted)
    elif places is None:
        lookup.in_bucket(wanted)
    else:
        lookup.unpack(wanted)
        lookup.ask(wanted[~lookup.complete(wanted)])
    return tables


def write_packs(store: Store, tables: Sequence[ReceiptTable]) -> None:
    """Pack receipts where some came from elsewhere than a pack."""
    for table in tables:
        if len(table) < FEWEST:
            continue
        for start, stop in runs(table.keys):
            if table.loose[start:stop].any():
                store.put(pack_name(table.keys[start:stop], table.output), table.packed(start, stop))


class _Lookup:
    """Finds out what of some receipts is in the store.

    Args:
        store: to look in.
        keys: of the units.
        tables: to be filled.
    """

    def __init__(self, store: Store, keys: Keys, tables: Sequence[ReceiptTable]) -> None:
        self._store, self._keys, self._tables = store, keys, tables

    def complete(self, places: Integers) -> Mask:
        """Tell (m,) which of these units have all receipts."""
        return np.asarray(np.all([table.there[places] for table in self._tables], axis=0))

    def in_folder(self, places: Integers) -> None:
        """Look these units up in a folder: what packs name is asked for, and the rest in the way that takes less."""
        folders = self._store.names("units")
        if not folders:
            return
        self.unpack(places)
        self._confirm(places)
        lacking = places[~self.complete(places)]
        count = len(lacking) * len(self._tables)
        few = count <= _FEW_ASKED or count < len(folders)
        first = [] if few else self._store.names(f"units/{folders[0]}")
        if few or count < len(folders) * (1 + len(first) / _NAMES_LISTED):
            self.ask(lacking)
            return
        inside = self._by_folder(lacking)

        def look(folder: str) -> None:
            listed = set(first if folder == folders[0] else self._store.names(f"units/{folder}"))
            for place in inside.get(folder, np.empty(0, np.int64)).tolist():
                if self._keys[place] in listed:
                    self._read(place)

        in_threads(look, folders)

    def in_bucket(self, places: Integers) -> None:
        """Look these units up in a bucket: hold what packs name against a listing, or ask where that is fewer requests."""
        count = len(places) * len(self._tables)
        limit = _PAGE * max(1, min(_MOST_PAGES, count // _WORTH_A_PAGE))
        listed = list(islice(self._store.walk("units"), limit + 1))
        if not listed:
            return
        self.unpack(places)
        if len(listed) <= limit:
            self._look(places, {entry.name: entry.size for entry in listed})
        elif count < _FOLDERS + limit / _share(listed[-1].name) / _PAGE:
            self._confirm(places)
            self.ask(places[~self.complete(places)])
        else:

            def look(of: tuple[str, Integers]) -> None:
                folder, inside = of
                self._look(inside, {entry.name: entry.size for entry in self._store.walk(f"units/{folder}")})

            in_threads(look, list(self._by_folder(places).items()))

    def ask(self, places: Integers) -> None:
        """Ask for the receipts of these units that no table has, one by one."""
        in_threads(self._read, places.tolist())

    def unpack(self, places: Integers) -> None:
        """Take the receipts that are packed, of runs in which there is any of these units."""
        if len(self._keys) < FEWEST:
            return
        touched = [(start, stop) for start, stop in runs(self._keys) if np.diff(np.searchsorted(places, [start, stop])).any()]

        def read(run: tuple[ReceiptTable, int, int]) -> bytes | None:
            table, start, stop = run
            return self._store.read_if_there(pack_name(self._keys[start:stop], table.output))

        for table in self._tables:
            for begin in range(0, len(touched), _PACKS_AT_ONCE):  # a table is filled by one thread
                some = [(table, start, stop) for start, stop in touched[begin : begin + _PACKS_AT_ONCE]]
                for (_, start, stop), data in zip(some, in_threads(read, some, _PACK_THREADS), strict=True):
                    if data is not None:
                        table.unpack(start, stop, data)

    def _by_folder(self, places: Integers) -> dict[str, Integers]:
        """Group units by the folder that theirs lies in."""
        of = self._keys.first_bytes[places]
        order = np.argsort(of, kind="stable")
        found, first = np.unique(of[order], return_index=True)
        return {f"{byte:02x}": places[some] for byte, some in zip(found.tolist(), np.split(order, first[1:]), strict=True)}

    def _confirm(self, places: Integers) -> None:
        """Ask for what the tables name of these units, and forget what isn't there in full."""

        def ask(run: tuple[ReceiptTable, Integers]) -> None:
            table, some = run
            files = table.files(some)
            for (place, _, size), found in zip(files, self._store.sizes([name for _, name, _ in files]), strict=True):
                if found != size:
                    table.remove(place)

        size = _ASKED_AT_ONCE[self._store.remote]
        in_threads(ask, [(table, places[i : i + size]) for table in self._tables for i in range(0, len(places), size)])

    def _look(self, places: Integers, listed: Mapping[str, int]) -> None:
        """Hold what packs name of these units against files that are listed with their sizes, and read receipts that are beside them."""
        for table in self._tables:
            for place, name, size in table.files(places):
                if listed.get(name) != size:
                    table.remove(place)
        for place in places[~self.complete(places)].tolist():
            self._read(place, listed)

    def _read(self, place: int, listed: Mapping[str, int] | None = None) -> None:
        """Read the receipts of a unit that no table has; where files are listed, those that are whole by that."""
        key = self._keys[place]
        for table in self._tables:
            if table.there[place] or (listed is not None and receipt_name(key, table.output) not in listed):
                continue
            receipt = read_receipt(self._store, key, table.output, listed)
            if receipt is not None:
                table.add(place, receipt)


def _share(name: str) -> float:
    """Estimate the share of all units that comes up to this file's in a listing."""
    try:
        return (int(name.split("/")[2][:4], 16) + 1) / 65536
    except (IndexError, ValueError):
        return 1.0


def pack_names(keys: Keys, outputs: Sequence[str]) -> Iterator[str]:
    """Yield the packs that a plan of these units may have."""
    for start, stop in runs(keys):
        some = keys[start:stop]
        yield from (pack_name(some, output) for output in outputs)


def runs(keys: Keys) -> Iterator[tuple[int, int]]:
    """Cut units into runs that are packed together."""
    last = np.ascontiguousarray(keys.digests[:, -4:]).view(">u4").reshape(-1)
    ends = np.flatnonzero(last % (1 << _RUN_BITS) == 0) + 1
    if len(keys) and (not len(ends) or ends[-1] != len(keys)):
        ends = np.append(ends, len(keys))
    yield from zip([0, *ends[:-1].tolist()], ends.tolist(), strict=False)


def pack_name(keys: Sequence[str], output: str) -> str:
    """Name the file of the store that holds the receipts of an output of a run of units."""
    digest = hashlib.sha256("\n".join([output, *keys]).encode()).hexdigest()
    return f"{PACKS}/{digest[:2]}/{digest}.arrow"
