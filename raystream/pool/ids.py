"""The ids of a pool: as they are read and compared, and whether each is there once.

Ids: those derived from where rows are, those of some rows, and the types that they are compared in.

Millions of ids are compared as numbers of 64 bits, in no more memory than the numbers take. Two ids of the same number may differ:
numbers find, the ids themselves decide.

Whether ids tell rows apart over a whole pool: by hashes, which many rows' are kept on disk, in partitions; the ids settle what clashes.

Ids come by once, as they are merged, in any order, and eight bytes of each are kept: in memory of some millions, of more in files without
names in the temporary folder (`TMPDIR`), one for each range of hashes. A file is read, not mapped, and sorted by itself. Only if two
hashes are alike are the ids looked at again.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import IO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from raystream.errors import PoolError, StoreError
from raystream.figures import shown
from raystream.pool.columns import plain
from raystream.strings import words

BLOCK_ROWS = 1 << 16
"""Ids that are looked at together: what is made of them on the way is small beside the ids."""
_LONG = 256
"""Bytes of an id from which a call for each id is cheaper than a step for every eight bytes of all."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Mixes numbers by multiplication: the highest bits of the product depend on all of theirs."""
_SHIFT = np.uint64(29)

Numbers = npt.NDArray[np.integer]


class Ids(Protocol):
    """Ids of one type in order, in pieces: an Arrow chunked array, or what reads them again each time that they are looked at."""

    @property
    def type(self) -> pa.DataType: ...

    @property
    def chunks(self) -> Iterable[pa.Array]: ...

    def __len__(self) -> int: ...


def numbered(ids: Ids | pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """Yield the pieces of ids in order, each with the number of its first row."""
    row = 0
    for chunk in [ids] if isinstance(ids, pa.Array) else ids.chunks:
        yield row, chunk
        row += len(chunk)


def id_blocks(ids: Ids | pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """Yield runs of ids in order, in their plain type, each with the number of its first row."""
    for row, chunk in numbered(ids):
        for start in range(0, len(chunk), BLOCK_ROWS):
            yield row + start, plain(chunk.slice(start, BLOCK_ROWS))


def id_numbers(ids: Ids | pa.Array) -> Numbers:
    """Return (n,) equal for equal ids: integers themselves, uint64 hashes of strings and bytes. No id may be null."""
    numbers: Numbers | None = None
    for start, block in id_blocks(ids):
        found = numbers_of(block)
        if numbers is None:
            numbers = np.empty(len(ids), found.dtype)
        numbers[start : start + len(found)] = found
    return np.empty(0, np.uint64) if numbers is None else numbers


def numbers_of(block: pa.Array) -> Numbers:
    """Return the `id_numbers` of one block."""
    if pa.types.is_integer(block.type):
        values: Numbers = block.to_numpy()
        return values
    return _hashes(*id_bytes(block))


def id_bytes(block: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the bytes of some ids, one after the other as they lie in Arrow's buffer, and (n + 1,) where each begins and the last ends."""
    if pa.types.is_fixed_size_binary(block.type):
        block = block.cast(pa.binary())
    wide = pa.types.is_large_string(block.type) or pa.types.is_large_binary(block.type)
    _, where, content = block.buffers()
    dtype = np.int64 if wide else np.int32
    offsets = np.frombuffer(where, dtype, len(block) + 1, block.offset * dtype().itemsize) if len(block) else np.zeros(1, dtype)
    data = np.frombuffer(content, np.uint8) if content is not None and content.size else np.empty(0, np.uint8)
    return data, offsets.astype(np.int64)


def _hashes(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return (n,) uint64 hashes of the bytes between these offsets: eight bytes of all ids at a time are mixed into them."""
    length = np.diff(offsets)
    hashes = length.astype(np.uint64) * FACTOR
    short = len(length) and int(length.min()) < _LONG
    for rows, word in islice(words(data, offsets), _LONG // 8) if short else ():
        mixed = (hashes[rows] ^ word) * FACTOR
        hashes[rows] = mixed ^ (mixed >> _SHIFT)
    view = data.data
    for row in np.flatnonzero(length >= _LONG).tolist():
        hashes[row] = xxhash.xxh3_64_intdigest(view[offsets[row] : offsets[row + 1]])
    return hashes


def take_ids(ids: Ids | pa.Array, rows: npt.NDArray[np.int64]) -> pa.Array:
    """Return the ids of these rows, in the order asked for; Arrow would first make one array of all, which may be too long for its type."""
    if not len(rows):
        return pa.array([], ids.type)
    chunks = [ids] if isinstance(ids, pa.Array) else list(ids.chunks)
    starts = np.cumsum([0, *map(len, chunks)])
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    edges = np.searchsorted(ordered, starts)
    pieces = [
        chunk.take(pa.array(ordered[low:high] - start))
        for chunk, start, low, high in zip(chunks, starts, edges, edges[1:], strict=False)
        if low < high
    ]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_arrays(pieces).take(pa.array(back))


def derived_ids(path: str, rows: npt.NDArray[np.int64]) -> pa.Array:
    """Write `path#row` for positions in a file: what rows are called when the pool has no id column."""
    return pc.binary_join_element_wise(path, pa.array(rows).cast(pa.string()), "#")


def comparable(ids: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return the same ids in a type that Arrow can sort and look up: dictionaries decoded, strings and binary with 64-bit offsets."""
    ids = plain(ids)
    if pa.types.is_string(ids.type):
        return ids.cast(pa.large_string())
    if pa.types.is_binary(ids.type) or pa.types.is_fixed_size_binary(ids.type):
        return ids.cast(pa.large_binary())
    return ids


Index = npt.NDArray[np.int64]


class KnownIds:
    """Where ids stand among known ones; 16 bytes a known id for strings and bytes, nothing for integers.

    Args:
        ids: sorted, each once, without nulls; strings and bytes with 64-bit offsets.
    """

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids
        self._order: Index | None = None
        if pa.types.is_integer(ids.type):
            self._numbers = ids.to_numpy()
        else:
            self._numbers = id_numbers(ids)
            self._order = np.argsort(self._numbers)
            self._numbers = self._numbers[self._order]

    def __len__(self) -> int:
        return len(self._ids)

    def index(self, block: pa.Array) -> Index:
        """Find (n,) the position of each of some ids of the same kind, -1 where it isn't known, as a null never is."""
        if not len(self):
            return np.full(len(block), -1, dtype=np.int64)
        if self._order is None:
            return self._integers(block if block.type.equals(self._ids.type) else block.cast(self._ids.type))
        at, found = self._at(numbers_of(block))
        index = np.where(found, self._order[at], -1)
        index[np.asarray(block.is_null())] = -1
        same = np.flatnonzero(index >= 0)
        if len(same):
            given = comparable(block.take(pa.array(same)))
            other = ~np.asarray(pc.equal(given, self._ids.take(pa.array(index[same]))))
            if other.any():  # hashes that clash
                exact = pc.fill_null(pc.index_in(given.filter(pa.array(other)), value_set=self._ids), -1)
                index[same[other]] = np.asarray(exact)
        return index

    def _integers(self, block: pa.Array) -> Index:
        at, found = self._at(pc.fill_null(block, 0).to_numpy())
        index = np.where(found, at, -1)
        if block.null_count:
            index[np.asarray(block.is_null())] = -1
        return index

    def _at(self, numbers: npt.NDArray[np.integer]) -> tuple[Index, npt.NDArray[np.bool_]]:
        """Find where each number would stand among the known ones, and whether it does."""
        # Neighbours in order are found in memory that the one before has fetched: 1M of 10M in 0.2 s, not in 1 s.
        order = np.argsort(numbers)
        at = np.empty(len(numbers), dtype=np.int64)
        at[order] = np.minimum(np.searchsorted(self._numbers, numbers[order]), len(self._numbers) - 1)
        return at, self._numbers[at] == numbers


HELD_NUMBERS = 1 << 21
"""Ids whose hashes are kept in memory: of more, they are on disk, and about as many are in a partition."""
_MOST_PARTITIONS = 256
_MOST_SUSPECTS = 1 << 20
"""Ids that are compared with each other where hashes are alike; of more, hashes alone are counted: 64 bits of them."""
_SHOWN = 3
_THREADS = 4
"""Partitions that are sorted at a time."""

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


class UniqueIds:
    """Sees whether ids are whole and unique, as they come by.

    Args:
        rows: how many there will be.
        name: the id column's, for messages.
    """

    def __init__(self, rows: int, name: str) -> None:
        self._name = name
        self._held: dict[int, Hashes] = {}
        self._guard = threading.Lock()
        self._bits = 0
        self._partitions: list[IO[bytes]] = []
        if rows > HELD_NUMBERS:
            self._bits = min(_MOST_PARTITIONS, 2 * rows // HELD_NUMBERS).bit_length() - 1
            self._partitions = [self._file() for _ in range(1 << self._bits)]
        self._integers = True
        self._nulls = 0
        self._first_nulls: list[int] = []

    def __enter__(self) -> UniqueIds:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._partitions:
            file.close()

    def add(self, row: int, ids: pa.Array) -> None:
        """Take the ids of the rows from this one on; several threads may, in any order."""
        for start, block in id_blocks(ids):
            if block.null_count:
                nulls = row + start + np.flatnonzero(np.asarray(block.is_null()))
                with self._guard:
                    self._nulls += len(nulls)
                    self._first_nulls = sorted([*self._first_nulls, *nulls[:_SHOWN].tolist()])[:_SHOWN]
            elif not self._nulls:
                self._keep(row + start, block)

    def check(self, ids: Ids | pa.Array, where: Callable[[int], str] | None = None) -> None:
        """Raise PoolError if ids are null or occur more than once.

        Args:
            ids: all of them, which are looked at again if two have one hash.
            where: names the place of a row, as in `/pool/a.parquet row 17`; left out, the row's number does.
        """
        where = where or "row {}".format
        if self._nulls:
            raise PoolError(
                f"{self._nulls} ids of column {self._name} are null, first: {', '.join(map(where, self._first_nulls))}; "
                "expected one id a row, so fill them or leave pool.id out"
            )
        again = np.concatenate([np.empty(0, np.uint64), *self._repeated()])
        again.sort()
        count, places = _repeats(ids, again) if len(again) else (0, {})
        if count:
            raise PoolError(
                f"{count} ids of column {self._name} are not unique, first: {', '.join(map(shown, places))}, "
                f"met again at {', '.join(map(where, places.values()))}; "
                "expected one id a row, so correct them or leave pool.id out"
            )

    def _keep(self, row: int, block: pa.Array) -> None:
        numbers = _block_hashes(block)
        if not self._partitions:
            self._integers = self._integers and pa.types.is_integer(block.type)
            self._held[row] = numbers
            return
        of = (numbers * FACTOR) >> np.uint64(64 - self._bits)
        order = np.argsort(of.astype(np.uint8), kind="stable")
        ends = np.cumsum(np.bincount(of.astype(np.int64), minlength=len(self._partitions))).tolist()
        numbers = numbers[order]
        try:
            with self._guard:
                for file, start, end in zip(self._partitions, [0, *ends[:-1]], ends, strict=True):
                    file.write(numbers[start:end].data)
        except OSError as error:
            raise _no_room(error) from None

    def _repeated(self) -> list[Hashes]:
        """List the hashes that occur more than once, those of one partition after the other's."""
        if not self._partitions:
            numbers = np.concatenate([np.empty(0, np.uint64), *(self._held[row] for row in sorted(self._held))])
            return [] if self._integers and _ascend(numbers) else [_twice(numbers)]
        with ThreadPoolExecutor(min(pa.cpu_count(), _THREADS)) as threads:
            return list(threads.map(self._repeated_in, self._partitions))

    @staticmethod
    def _repeated_in(file: IO[bytes]) -> Hashes:
        seen, again = np.empty(0, np.uint64), np.empty(0, np.uint64)
        try:
            file.seek(0)
        except OSError as error:  # what was still to be written
            raise _no_room(error) from None
        while len(some := np.fromfile(file, np.uint64, 2 * HELD_NUMBERS)):
            if len(seen):  # of ids that are nearly all the same
                again, seen = np.union1d(again, _twice(np.concatenate([seen, np.unique(some)]))), np.union1d(seen, some)
            else:
                seen = some
            again = np.union1d(again, _twice(some))
        return again

    @staticmethod
    def _file() -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(prefix="raystream-ids-", buffering=1 << 14)
        except OSError as error:
            raise _no_room(error) from None


def check_unique(ids: Ids | pa.Array, name: str, where: Callable[[int], str] | None = None) -> None:
    """Raise PoolError if ids are null or occur more than once; see `UniqueIds.check`."""
    with UniqueIds(len(ids), name) as unique:
        for row, chunk in numbered(ids):
            unique.add(row, chunk)
        unique.check(ids, where)


def _no_room(error: OSError) -> StoreError:
    return StoreError(
        f"the temporary folder {tempfile.gettempdir()} can't hold hashes of the ids, 8 bytes a row: {error.strerror or error}; free some "
        "space or set TMPDIR"
    )


def _block_hashes(block: pa.Array) -> Hashes:
    """Return (n,) equal for equal ids; of integers, nothing else has the same."""
    numbers = numbers_of(block)
    wide = np.int64 if numbers.dtype.kind == "i" else np.uint64
    return numbers.astype(wide, copy=False).view(np.uint64)


def _ascend(hashes: Hashes) -> bool:
    """Tell whether integers, as they are hashed, are each above the one before, so that there is nothing to sort."""
    return bool((hashes[1:] > hashes[:-1]).all()) or bool((hashes.view(np.int64)[1:] > hashes.view(np.int64)[:-1]).all())


def _twice(hashes: Hashes) -> Hashes:
    """Find those that occur more than once, each once, ascending."""
    hashes = np.sort(hashes)
    found: Hashes = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    return found


def _repeats(ids: Ids | pa.Array, again: Hashes) -> tuple[int, dict[object, int]]:
    """Count the ids that occur more than once, and find the first that are met again, in row order, with the rows where they are.

    Args:
        ids: all of them.
        again: the hashes that occur more than once, ascending.
    """
    rows, suspects, count = [np.empty(0, np.int64)], [], 0
    seen = np.zeros(len(again), bool)
    met: dict[object, int] = {}
    for start, block in id_blocks(ids):
        found = _block_hashes(block)
        at = np.minimum(np.searchsorted(again, found), len(again) - 1)
        inside = np.flatnonzero(again[at] == found)
        count += len(inside)
        if count <= _MOST_SUSPECTS:
            rows.append(start + inside)
            suspects.append(comparable(block.take(pa.array(inside))))
        if len(met) < _SHOWN:
            which, first = np.unique(at[inside], return_index=True)
            new = np.zeros(len(inside), bool)
            new[first[~seen[which]]] = True
            for place in inside[~new].tolist():
                if len(met) == _SHOWN:
                    break
                met.setdefault(block[place].as_py(), start + place)
            seen[which] = True
    if count > _MOST_SUSPECTS:
        return len(again), met
    every = pa.chunked_array(suspects).combine_chunks()
    counts = pc.value_counts(every)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    places = np.concatenate(rows)
    return len(repeated), {id_: int(places[place]) for id_, place in _first_repeats(every, repeated).items()}


def _first_repeats(ids: pa.Array, repeated: pa.Array) -> dict[object, int]:
    """Return the ids that are met again first, with their places."""
    if not len(repeated):
        return {}
    found = pc.index_in(ids, value_set=repeated)
    rows, values = pc.indices_nonzero(found.is_valid()).to_numpy(), found.drop_null().to_numpy()
    again = np.delete(np.arange(len(values)), np.unique(values, return_index=True)[1])
    first = again[np.sort(np.unique(values[again], return_index=True)[1])[:_SHOWN]]
    return {repeated[int(values[i])].as_py(): int(rows[i]) for i in first}
