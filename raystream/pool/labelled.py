"""The ids that already have labels, and where their rows are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import LabelsError, PoolError, did_you_mean
from raystream.lake import LOCAL, Storage
from raystream.pool.columns import Column, plain, recognise
from raystream.pool.files import File, one_line, open_parquet, pinned, threads_for, unreadable
from raystream.pool.footers import read_footers
from raystream.pool.ids import comparable
from raystream.pool.plan import DERIVED_ID
from raystream.pool.reader import ReadSpec
from raystream.pool.tables import list_pool
from raystream.pool.tensor_types import declared_type
from raystream.pool.units import Unit, units_at

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labelled ids, sorted, each once.

    Attributes:
        id_name: the id column in the labelled files.
        ids: sorted; strings and binary with 64-bit offsets, integers in the pool's type.
        files: where they were read.
        file_of: (n,) index into `files` of the first row that each id stands in.
        row_of: (n,) that row's position in its file.
    """

    id_name: str
    ids: pa.Array
    files: tuple[File, ...]
    file_of: npt.NDArray[np.integer]
    row_of: npt.NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 of the set of ids, the same whatever files they came in; hexadecimal."""
        digest = hashlib.sha256(f"{self.ids.type} {len(self)}".encode())
        if pa.types.is_integer(self.ids.type):
            digest.update(self.ids.to_numpy().astype("<i8" if pa.types.is_signed_integer(self.ids.type) else "<u8").tobytes())
        elif len(self):
            offsets = np.frombuffer(self.ids.buffers()[1], dtype=np.int64)[self.ids.offset :][: len(self) + 1]
            digest.update((offsets - offsets[0]).tobytes())
            digest.update(memoryview(self.ids.buffers()[2] or b"")[int(offsets[0]) : int(offsets[-1])])
        return digest.hexdigest()

    def find(self, ids: pa.Array | pa.ChunkedArray) -> Mask:
        """(n,) whether each id is labelled; a null never is."""
        return self.index(ids) >= 0

    def missing_from(self, ids: pa.Array | pa.ChunkedArray) -> Labelled:
        """The labelled ids that are not among the given ones."""
        missing = np.ones(len(self), dtype=bool)
        where = self.index(ids)
        missing[where[where >= 0]] = False
        return self.only(missing)

    def only(self, mask: Mask) -> Labelled:
        """The ids for which the (len(self),) mask is true."""
        return Labelled(self.id_name, self.ids.filter(pa.array(mask)), self.files, self.file_of[mask], self.row_of[mask])

    def index(self, ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """(n,) the position of each id among the labelled ones, -1 where it isn't labelled."""
        if not len(self):
            return np.full(len(ids), -1, dtype=np.int64)
        ids = comparable(ids)
        if not ids.type.equals(self.ids.type):
            ids = ids.cast(self.ids.type)
        if pa.types.is_integer(ids.type) and not ids.null_count and 4 * len(ids) < len(self):
            # Arrow hashes all labelled ids anew at each call: 100,000 of them cost 3.4 ms, a search for 4,096 ids 0.5 ms.
            known, values = self.ids.to_numpy(), ids.to_numpy()
            order = np.argsort(values)  # in order, neighbours are found in the cache: a million ids in ten million cost a tenth
            at = np.minimum(np.searchsorted(known, values[order]), len(known) - 1)
            result: npt.NDArray[np.int64] = np.empty(len(values), dtype=np.int64)
            result[order] = np.where(known[at] == values[order], at, -1)
            return result
        found = pc.fill_null(pc.index_in(ids, value_set=self.ids), -1).cast(pa.int64())
        index: npt.NDArray[np.int64] = np.array(found)
        return index


def read_labelled(uris: Sequence[str], id_name: str | None, id_type: pa.DataType, threads: int = 8, storage: Storage = LOCAL) -> Labelled:
    """Read the id column, and nothing else, of Parquet files with labelled rows.

    Args:
        uris: files, folders or globs; none gives no labelled ids.
        id_name: the pool's id column; None means derived ids, which stand in a column named `id`.
        id_type: of the pool's ids.
        threads: files read at a time.
        storage: how to reach those that aren't on this machine.

    Raises:
        LabelsError: a file or its id column is missing, unreadable, null, or of another kind than the pool's ids.
    """
    name = id_name or DERIVED_ID
    try:
        listed = list_pool(uris, key="pool.labelled", storage=storage)[0] if uris else []
        with ThreadPoolExecutor(max_workers=threads_for(listed, threads)) as executor:
            found = list(executor.map(lambda file: _read_ids(file, name, id_type), listed))
    except PoolError as error:
        raise LabelsError(str(error)) from None
    files, columns = tuple(file for file, _ in found), [column for _, column in found]
    empty = comparable(pa.array([], id_type))
    ids = pa.concat_arrays([chunk for column in columns for chunk in column.chunks] or [empty])
    lengths = [len(column) for column in columns]
    # Ten million labels are 80 MB of ids; as 64-bit numbers, where they stand would be 160 more.
    rows = np.int32 if max(lengths, default=0) < 2**31 else np.int64
    file_of = np.repeat(np.arange(len(files), dtype=np.min_scalar_type(len(files))), lengths)
    places = [_rows_left(file, length).astype(rows) for file, length in zip(files, lengths, strict=True)]
    row_of = np.concatenate(places or [np.arange(0, dtype=rows)])
    del found, columns
    ids, first = _sorted_unique(ids)
    return Labelled(name, ids, files, file_of[first], row_of[first])


def has_columns(files: Sequence[File], columns: Sequence[Column]) -> list[bool]:
    """Whether each labelled file holds all of the pool's input columns, so that its rows can be scored.

    Raises:
        LabelsError: an input column is there, but can't become the pool's tensor.
    """
    with ThreadPoolExecutor(max_workers=threads_for(files, 1)) as executor:
        return list(executor.map(lambda file: _has_columns(file, columns), files))


def labelled_units(labelled: Labelled, spec: ReadSpec, enough: Sequence[str] | None = None) -> tuple[list[Unit], Labelled]:
    """Units that read labelled rows from the labelled files themselves, for rows that the pool doesn't hold.

    Args:
        labelled: the ids wanted.
        spec: how the pool's units are read; these units are read with it, too.
        enough: input columns that suffice where a file lacks others; its units read them alone, see `Unit.columns`.

    Returns:
        The units, and the ids that they don't reach because their files lack the inputs.

    Raises:
        LabelsError: a labelled file holds an input column of another shape or kind.
    """
    in_use = np.unique(labelled.file_of).tolist()
    units = _reading(labelled, in_use, spec, None)
    part = spec.only(enough or ()).inputs
    if part:
        units |= _reading(labelled, [index for index in in_use if index not in units], spec, part)
    return [unit for index in in_use for unit in units.get(index, [])], labelled.only(~np.isin(labelled.file_of, list(units)))


def _reading(labelled: Labelled, indices: Sequence[int], spec: ReadSpec, part: tuple[str, ...] | None) -> dict[int, list[Unit]]:
    """The units of those files that hold the columns: a part of the spec's, or all of them."""
    read = spec.only(part)
    able = [i for i, ok in zip(indices, has_columns([labelled.files[i] for i in indices], read.columns), strict=True) if ok]
    footers = read_footers([labelled.files[i] for i in able], [labelled.id_name, *read.inputs], same_types=False)
    units = {}
    for index, footer in zip(able, footers, strict=True):
        rows = np.sort(labelled.row_of[labelled.file_of == index])
        units[index] = units_at(footer, rows.tolist(), labelled.id_name if spec.id is None else None, columns=part)
    return units


def _read_ids(file: File, name: str, id_type: pa.DataType) -> tuple[File, pa.ChunkedArray]:
    """The file as it was opened, and its ids in the pool's type."""
    with open_parquet(file) as parquet:
        file = pinned(file, parquet)
        names = parquet.schema_arrow.names
        if name not in names:
            raise LabelsError(f"id column {name} is missing in the labelled file {file.path}{did_you_mean(name, names)}")
        try:
            ids = parquet.read(columns=[name]).column(name)
            ids = ids if file.deletes is None else ids.take(pa.array(file.deletes.kept(0, len(ids))))
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file, f"id column {name} of {file.path} can't be read", error) from None
    if ids.null_count:
        raise LabelsError(f"id column {name} of {file.path} holds {ids.null_count} nulls; expected an id in every labelled row")
    found = ids.type
    ids, target = comparable(plain(ids)), comparable(pa.array([], id_type)).type
    if _family(ids.type) == _family(target):
        try:
            return file, ids.cast(target)
        except pa.ArrowException as error:
            raise LabelsError(
                f"id column {name} of {file.path} is {found}, the pool's is {id_type}, and an id doesn't fit: {one_line(error)}; "
                "label rows of this pool, or widen its id column"
            ) from None
    raise LabelsError(f"id column {name} of {file.path} is {found}, but the pool's is {id_type}; write it as {id_type}")


def _rows_left(file: File, count: int) -> npt.NDArray[np.int64]:
    """The positions of a file's rows once as many are left as it has ids."""
    return np.arange(count) if file.deletes is None else file.deletes.kept(0, count + len(file.deletes.positions))


def _family(type_: pa.DataType) -> str:
    return "integer" if pa.types.is_integer(type_) else str(type_)


def _sorted_unique(ids: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Each id once in order, and where it stands first."""
    if pa.types.is_integer(ids.type):
        values = ids.to_numpy()
        if len(values) > 1 and (values[1:] > values[:-1]).all():
            return ids, np.arange(len(values))
        values, first = np.unique(values, return_index=True)
        return pa.array(values, ids.type), first
    encoded = ids.dictionary_encode()
    _, first = np.unique(encoded.indices.to_numpy(), return_index=True)
    order = pc.array_sort_indices(encoded.dictionary)
    return encoded.dictionary.take(order), first[order.to_numpy()]


def _has_columns(file: File, columns: Sequence[Column]) -> bool:
    with open_parquet(file) as parquet:
        schema = parquet.schema_arrow
    if any(column.name not in schema.names for column in columns):
        return False
    for column in columns:
        if column.is_raw:
            continue
        try:
            type_ = declared_type(schema.field(column.name))
            here = recognise(column.name, type_, "expected" if column.is_text else "refused")
        except PoolError as error:
            raise LabelsError(f"labelled file {file.path}: {error}") from None
        if column.is_encoded and here.is_encoded:
            continue
        same_shape = len(here.shape) == len(column.shape) and all(h in (None, c) for h, c in zip(here.shape, column.shape, strict=True))
        if not same_shape or here.is_encoded or column.is_encoded or column.dtype not in (here.dtype, "float32"):
            raise LabelsError(
                f"column {column.name} of the labelled file {file.path} is {type_}; "
                f"expected what the pool holds, {column.dtype} of shape {column.shape}"
            )
    return True
