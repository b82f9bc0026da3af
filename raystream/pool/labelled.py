"""The ids that already have labels, and where their rows are.

Labelled rows that the pool's filters exclude aren't candidates, but they count as covered, so they are found, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import LabelsError, PoolError
from raystream.lake import LOCAL, Storage
from raystream.pool.columns import BYTES, TEXT, Column, declared_type, recognise
from raystream.pool.files import File, open_parquet, pinned, schema_of, threads_for
from raystream.pool.filters import Filters, filter_columns, matching_rows, residual
from raystream.pool.footers import Footer, read_footers
from raystream.pool.ids import Ids, KnownIds, comparable, derived_ids, id_blocks, id_bytes, numbered
from raystream.pool.labelled_ids import id_batches, read_integers, read_strings, within
from raystream.pool.plan import DERIVED_ID, PoolPlan
from raystream.pool.reader import ReadSpec
from raystream.pool.scan import scan
from raystream.pool.tables import list_pool
from raystream.pool.text_files import TextIds, text_format
from raystream.pool.units import Unit, units_at

Mask = npt.NDArray[np.bool_]

_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labelled ids, sorted, each once; 8 bytes an id for integers of 64 bits, and nothing else, since there may be millions.

    Attributes:
        id_name: the id column in the labelled files.
        ids: sorted; strings and binary with 64-bit offsets, integers in the pool's type.
        files: where they were read.
        excluded: the same of ids that are never chosen either, but not labelled: of rows that were skipped or rejected.
        outside: how many rows hold an id beyond the pool's type.
    """

    id_name: str
    ids: pa.Array
    files: tuple[File, ...]
    excluded: pa.Array = field(default_factory=lambda: pa.array([], pa.int64()))
    outside: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user."""
        if not self.outside:
            return ()
        column = f"the type of the pool's id column {self.id_name}"
        return (f"{self.outside} labelled ids are beyond {self.ids.type}, {column}, and can't be rows of it",)

    @property
    def digest(self) -> str:
        """SHA-256 of the sets of ids, the same whatever files they came in; hexadecimal."""
        digest = hashlib.sha256()
        _add_ids(digest, self.ids)
        if len(self.excluded):
            _add_ids(digest, self.excluded)
        return digest.hexdigest()

    def find(self, ids: Ids | pa.Array) -> Mask:
        """Tell (n,) whether each id is labelled; a null never is."""
        found = np.zeros(len(ids), dtype=bool)
        for start, block in id_blocks(ids) if len(self) else ():
            found[start : start + len(block)] = self._known.index(block) >= 0
        return found

    @property
    def every(self) -> Labelled:
        """The same as if all ids were labelled, also those that were skipped or rejected."""
        if not len(self.excluded):
            return self
        ids = pa.concat_arrays([self.ids, self.excluded])
        return replace(self, ids=ids.take(pc.array_sort_indices(ids)), excluded=self.excluded.slice(0, 0))

    def only(self, mask: Mask) -> Labelled:
        """Return the ids for which the (len(self),) mask is true."""
        return replace(self, ids=self.ids.filter(pa.array(mask)))

    def index(self, ids: Ids | pa.Array) -> npt.NDArray[np.int64]:
        """Find (n,) the position of each id among the labelled ones, -1 where it isn't labelled."""
        found = np.empty(len(ids), dtype=np.int64)
        for start, block in id_blocks(ids):
            found[start : start + len(block)] = self._known.index(block)
        return found

    @cached_property
    def _known(self) -> KnownIds:
        return KnownIds(self.ids)


class LabelledMarks:
    """Which rows are labelled, as their ids come by.

    Args:
        labelled: the ids.
        rows: how many rows there will be.

    Attributes:
        labelled, excluded: (n,) which rows are labelled, and which were skipped or rejected.
        missing: (len(labelled),) which labelled ids didn't come by.
    """

    def __init__(self, labelled: Labelled, rows: int) -> None:
        self._known, self._others = KnownIds(labelled.ids), KnownIds(labelled.excluded)
        self.labelled, self.excluded = np.zeros(rows, bool), np.zeros(rows, bool)
        self.missing = np.ones(len(labelled), bool)

    @classmethod
    def of(cls, labelled: Labelled, ids: Ids | pa.Array) -> LabelledMarks:
        """Return those of rows of these ids."""
        marks = cls(labelled, len(ids))
        for row, chunk in numbered(ids):
            marks.add(row, chunk)
        return marks

    def add(self, row: int, ids: pa.Array) -> None:
        """Take the ids of the rows from this one on."""
        for start, block in id_blocks(ids):
            here = slice(row + start, row + start + len(block))
            where = self._known.index(block)
            self.labelled[here] = where >= 0
            self.missing[where[where >= 0]] = False
            if len(self._others):
                self.excluded[here] = self._others.index(block) >= 0


def read_labelled(uris: Sequence[str], id_name: str | None, id_type: pa.DataType, threads: int = 8, storage: Storage = LOCAL) -> Labelled:
    """Read the ids and states, and nothing else, of files with labelled rows: Parquet, CSV or JSON Lines.

    Integers of another width than the pool's are matched by value. Those that the pool's type can't hold are no rows
    of it: they are left out, with a warning. Rows that are drafts or deleted count as absent.

    Args:
        uris: files, folders or globs; none gives no labelled ids.
        id_name: the pool's id column; None means derived ids, which stand in a column named `id`.
        id_type: of the pool's ids.
        threads: files read at a time.
        storage: how to reach those that aren't on this machine.

    Raises:
        LabelsError: a file or its id column is missing, unreadable, null, or of another kind than the pool's ids, or a state is none.
    """
    name = id_name or DERIVED_ID
    target = comparable(pa.array([], id_type)).type
    read = read_integers if pa.types.is_integer(target) else read_strings
    try:
        listed = list_pool(uris, key="pool.labelled", storage=storage, texts=True)[0] if uris else []
        at_once = threads_for(listed, threads)
        with ThreadPoolExecutor(at_once) as executor:
            files = tuple(executor.map(lambda file: _opened(file, TextIds(name, id_type)), listed))
        found = read(files, name, id_type, at_once)
    except PoolError as error:
        raise LabelsError(str(error)) from None
    return Labelled(name, found.labelled, files, found.excluded, found.outside)


def has_columns(files: Sequence[File], columns: Sequence[Column]) -> list[bool]:
    """Tell of each labelled file whether it holds all of the pool's input columns, so that its rows can be scored.

    Raises:
        LabelsError: an input column is there, but can't become the pool's tensor.
    """
    with ThreadPoolExecutor(max_workers=threads_for(files, 1)) as executor:
        return list(executor.map(lambda file: _has_columns(file, columns), files))


def labelled_units(labelled: Labelled, spec: ReadSpec, enough: Sequence[str] | None = None) -> tuple[list[Unit], Labelled]:
    """Make units that read labelled rows from the labelled files themselves, for rows that the pool doesn't hold.

    An id that stands in several of these files is read from the first one that holds all inputs, else from the first with enough.

    Args:
        labelled: the ids wanted.
        spec: how the pool's units are read; these units are read with it, too.
        enough: input columns that suffice where a file lacks others; its units read them alone, see `Unit.columns`.

    Returns:
        The units, and the ids that they don't reach because their files lack the inputs.

    Raises:
        LabelsError: a labelled file holds an input column of another shape or kind.
    """
    wanted = np.ones(len(labelled), dtype=bool)
    units = _reading(labelled, range(len(labelled.files)), spec, None, wanted)
    part = spec.only(enough or ()).inputs
    if part:
        units |= _reading(labelled, [index for index in range(len(labelled.files)) if index not in units], spec, part, wanted)
    return [unit for index in sorted(units) for unit in units[index]], labelled.only(wanted)


def _reading(
    labelled: Labelled, indices: Sequence[int], spec: ReadSpec, part: tuple[str, ...] | None, wanted: Mask
) -> dict[int, list[Unit]]:
    """Return the units of those files that hold the columns: a part of the spec's, or all of them; what they reach is wanted no more."""
    read = spec.only(part)
    able = [i for i, ok in zip(indices, has_columns([labelled.files[i] for i in indices], read.columns), strict=True) if ok]
    footers = read_footers([labelled.files[i] for i in able], [labelled.id_name, *read.inputs]) if able else []
    units = {}
    for index, footer in zip(able, footers, strict=True):
        rows = _take(labelled, footer.file, spec.id_type, wanted)
        own_id = labelled.id_name if spec.id is None else None
        units[index] = units_at(footer, rows.tolist(), own_id, columns=part, widened=spec.widened, work_rows=read.work_rows)
    return units


def _opened(file: File, ids: TextIds) -> File:
    file = replace(file, ids=ids) if text_format(file.path) else file
    with open_parquet(file) as parquet:
        return pinned(file, parquet)


def _add_ids(digest: Any, ids: pa.Array) -> None:
    """Tell a hash of these sorted ids."""
    digest.update(f"{ids.type} {len(ids)}".encode())
    if pa.types.is_integer(ids.type):
        values = ids.to_numpy()
        for start in range(0, len(values), _BLOCK):
            digest.update(values[start : start + _BLOCK].astype("<i8" if pa.types.is_signed_integer(ids.type) else "<u8").data)
    elif len(ids):
        data, offsets = id_bytes(ids)
        digest.update((offsets - offsets[0]).tobytes())
        digest.update(data[offsets[0] : offsets[-1]].data)


def _take(labelled: Labelled, file: File, id_type: pa.DataType, wanted: Mask) -> npt.NDArray[np.int64]:
    """Return the rows of a file in which wanted ids stand first, ascending."""
    rows = [np.empty(0, np.int64)]
    for places, ids in id_batches(file, labelled.id_name, id_type):
        at = labelled.index(within(ids, labelled.ids.type))
        at, here = np.unique(at, return_index=True)
        new = (at >= 0) & wanted[at]
        wanted[at[new]] = False
        rows.append(places[np.sort(here[new])])
    return np.concatenate(rows)


def _has_columns(file: File, columns: Sequence[Column]) -> bool:
    with open_parquet(file) as parquet:
        schema = schema_of(file, parquet)
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
        if not same_shape or here.is_encoded or column.is_encoded or not _takes(column.dtype, here.dtype):
            raise LabelsError(
                f"column {column.name} of the labelled file {file.path} is {type_}; "
                f"expected what the pool holds, {column.dtype} of shape {column.shape}"
            )
    return True


def _takes(pool: str, here: str) -> bool:
    """Tell whether the pool's tensors can hold a labelled file's values: numbers become float32, integers wider ones."""
    if pool in (here, "float32"):
        return True
    return {pool, here}.isdisjoint({TEXT, BYTES}) and np.dtype(pool).kind == np.dtype(here).kind and np.can_cast(here, pool)


def locate_labelled(plan: PoolPlan, labelled: Labelled, threads: int = 8) -> tuple[list[Unit], Labelled]:
    """Make units of the labelled rows that no unit of the plan yields, reading only the id and filter columns.

    Args:
        plan: the pool's.
        labelled: the labelled ids.
        threads: files read at a time.

    Returns:
        Units with `positions`, sorted by (path, first row), and the labelled ids that they don't hold.

    Raises:
        PoolError: a file is gone, changed or damaged.
    """
    if not plan.filters or not len(labelled):
        return [], labelled
    left = [residual(plan.filters, footer.file, plan.partition_types) for footer in plan.footers]
    # Where every row passes, the plan's own units yield the labelled rows.
    todo = [(footer, filters) for footer, filters in zip(plan.footers, left, strict=True) if filters != () and footer.rows]
    rest = np.ones(len(labelled), dtype=bool)
    with ThreadPoolExecutor(max_workers=threads_for([footer.file for footer, _ in todo], threads)) as executor:
        results = list(executor.map(lambda item: _excluded(item[0], item[1], plan.read.id, labelled), todo))
    units: list[Unit] = []
    for (footer, _), (positions, indices) in zip(todo, results, strict=True):
        units += units_at(footer, positions.tolist(), widened=plan.read.widened, work_rows=plan.read.work_rows)
        rest[indices] = False
    return units, labelled.only(rest)


def _excluded(
    footer: Footer, filters: Filters | None, id_name: str | None, labelled: Labelled
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find a file's labelled rows that don't pass, and their indices among the labelled ids; None: nothing passes."""
    columns = list(dict.fromkeys([*([id_name] if id_name else []), *filter_columns(filters or ())]))
    positions: list[npt.NDArray[np.int64]] = []
    indices: list[npt.NDArray[np.int64]] = []
    with open_parquet(footer.file) as parquet:
        for first, batch in scan(footer.file, parquet, columns):
            rows = np.arange(first, first + batch.num_rows)
            ids = batch.column(id_name) if id_name else derived_ids(footer.file.path, rows)
            index = labelled.index(ids)
            if filters and (index >= 0).any():
                index[matching_rows(filters, batch, footer.file.path)] = -1
            if footer.file.deletes is not None:
                gone = np.ones(len(rows), dtype=bool)
                gone[footer.file.deletes.kept(first, len(rows))] = False
                index[gone] = -1
            positions.append(rows[index >= 0])
            indices.append(index[index >= 0])
    return np.concatenate(positions), np.concatenate(indices)
