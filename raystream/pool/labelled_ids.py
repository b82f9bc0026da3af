"""Reading the ids of labelled files a batch at a time, since there may be millions of them, and the states of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import LabelsError
from raystream.figures import of_columns, quoted
from raystream.pool.files import File, open_parquet, schema_of
from raystream.pool.ids import comparable
from raystream.pool.scan import check_text, scan

STATE = "state"
"""The column that says what became of a row, if a labelled file has it; a null says that the row is labelled."""
LABELLED, ABSENT = "labelled", ("draft", "deleted")
STATES = (LABELLED, "skipped", "rejected", *ABSENT)
_BATCH = 1 << 18

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FoundIds:
    """The ids of labelled files.

    Attributes:
        labelled: sorted, each once.
        excluded: the same of those that are skipped or rejected, and labelled nowhere.
        outside: how many rows hold an id that can't be the pool's.
    """

    labelled: pa.Array
    excluded: pa.Array
    outside: int = 0


@dataclass(frozen=True, eq=False)
class _LabelledFileRows:
    """Rows of a labelled file in order, without those that count as absent.

    Attributes:
        rows: (n,) positions in the file.
        ids: (n,) of the pool's type, or integers of any width.
        labelled: (n,) false where they are skipped or rejected; None if none is.
    """

    rows: npt.NDArray[np.int64]
    ids: pa.Array
    labelled: Mask | None

    def ids_by_state(self) -> tuple[pa.Array, pa.Array]:
        """Return the ids of the labelled rows, and those of the others."""
        if self.labelled is None:
            return self.ids, self.ids.slice(0, 0)
        return self.ids.filter(pa.array(self.labelled)), self.ids.filter(pa.array(~self.labelled))


def read_integers(files: Sequence[File], name: str, id_type: pa.DataType, threads: int) -> FoundIds:
    """Return the ids of all files.

    Those of labelled rows are decoded into one array and sorted in place: there is never a second copy of them.
    """
    dtype = id_type.to_pandas_dtype()
    with ThreadPoolExecutor(threads) as executor:
        rows = list(executor.map(_rows, files))
        try:
            values = np.empty(sum(rows), dtype)
        except (MemoryError, ValueError):
            most = files[int(np.argmax(rows))].path
            raise LabelsError(f"there is no memory for {sum(rows)} labelled ids, most of them in {most}; check that file") from None
        starts = [0, *accumulate(rows)]

        def fill(number: int) -> tuple[int, int, list[npt.NDArray[np.integer]]]:
            at, outside, others = starts[number], 0, []
            for found in _batches(files[number], name, id_type):
                labelled, excluded = (within(ids, id_type) for ids in found.ids_by_state())
                outside += labelled.null_count + excluded.null_count
                inside = labelled.drop_null().to_numpy()
                values[at : at + len(inside)] = inside
                at += len(inside)
                if len(excluded):
                    others.append(excluded.drop_null().to_numpy())
            return at, outside, others

        filled = list(executor.map(fill, range(len(files))))
    values = _close_gaps(values, [(start, end) for start, (end, _, _) in zip(starts, filled, strict=False)])
    if not (values[1:] > values[:-1]).all():
        values.sort()
        values = _once(values)
    excluded = np.unique(np.concatenate([np.empty(0, dtype), *(part for _, _, others in filled for part in others)]))
    excluded = excluded[~np.isin(excluded, values)] if len(excluded) else excluded
    return FoundIds(pa.array(values, id_type), pa.array(excluded, id_type), sum(outside for _, outside, _ in filled))


def read_strings(files: Sequence[File], name: str, id_type: pa.DataType, threads: int) -> FoundIds:
    """Return the ids of all files, strings or binary with 64-bit offsets; all of them are of the pool's type."""
    with ThreadPoolExecutor(threads) as executor:
        batches = list(executor.map(lambda file: [found.ids_by_state() for found in _batches(file, name, id_type)], files))
    target = comparable(pa.array([], id_type)).type
    labelled, excluded = (pc.unique(pa.chunked_array([pair[kind] for of_file in batches for pair in of_file], target)) for kind in (0, 1))
    excluded = excluded.filter(pc.invert(pc.is_in(excluded, value_set=labelled)))
    return FoundIds(*(ids.take(pc.array_sort_indices(ids)) for ids in (labelled, excluded)))


def id_batches(file: File, name: str, id_type: pa.DataType) -> Iterator[tuple[npt.NDArray[np.int64], pa.Array]]:
    """Yield the labelled rows of a file that aren't deleted from its table, in order, and their ids, of the pool's type or any integers.

    Raises:
        LabelsError: the column is missing, unreadable, null, or of another kind than the pool's ids, or a state is none.
    """
    for found in _batches(file, name, id_type):
        yield found.rows if found.labelled is None else found.rows[found.labelled], found.ids_by_state()[0]


def _batches(file: File, name: str, id_type: pa.DataType) -> Iterator[_LabelledFileRows]:
    """See `id_batches`; with the rows that were skipped or rejected."""
    with open_parquet(file) as parquet:
        schema = schema_of(file, parquet)
        if name not in schema.names:
            raise LabelsError(f"id column {name} is missing in the labelled file {file.path}{of_columns(name, schema.names)}")
        if schema.names.count(name) > 1:
            raise LabelsError(
                f"id column {name} stands {schema.names.count(name)} times in the labelled file {file.path}; rename all but one"
            )
        columns = list(dict.fromkeys([name, *([STATE] if STATE in schema.names else [])]))
        for start, batch in scan(file, parquet, columns, _BATCH, what=f"id column {name} of {file.path}"):
            ids, rows = comparable(batch.column(name)), np.arange(start, start + batch.num_rows)
            check_text(ids, f"id column {name} of {file.path}")
            kept, labelled = _states(file, batch, start)
            if file.deletes is not None:
                there = np.zeros(len(rows), bool)
                there[file.deletes.kept(start, len(rows))] = True
                kept = there if kept is None else kept & there
            if kept is not None:
                ids, rows = ids.filter(pa.array(kept)), rows[kept]
                labelled = None if labelled is None else labelled[kept]
            if ids.null_count:
                raise LabelsError(f"id column {name} of {file.path} holds {_nulls(file, name)} nulls; expected an id in every labelled row")
            if _family(ids.type) != _family(comparable(pa.array([], id_type)).type):
                found = schema.field(name).type
                raise LabelsError(f"id column {name} of {file.path} is {found}, but the pool's is {id_type}; write it as {id_type}")
            yield _LabelledFileRows(rows, ids, labelled)


def labelled_rows(file: File) -> npt.NDArray[np.int64] | None:
    """Return the rows of a file that are labelled, ascending; None for all of them, as where it says nothing of their state."""
    with open_parquet(file) as parquet:
        if STATE not in schema_of(file, parquet).names:
            found = _states(file, pa.record_batch({"": [None]}), 0)
            return None if found == (None, None) else np.empty(0, np.int64)
        rows = [np.empty(0, np.int64)]
        for start, batch in scan(file, parquet, [STATE], _BATCH, what=f"column {STATE} of {file.path}"):
            kept, labelled = (np.ones(batch.num_rows, bool) if mask is None else mask for mask in _states(file, batch, start))
            rows.append(start + np.flatnonzero(kept & labelled))
    return np.concatenate(rows)


def _states(file: File, batch: pa.RecordBatch, start: int) -> tuple[Mask | None, Mask | None]:
    """Tell (n,) which rows don't count as absent, and which are labelled; None for all of them."""
    states = states_of(file, batch, start)
    if states is None:
        return None, None
    kept = ~np.asarray(pc.is_in(states, value_set=pa.array(ABSENT)))
    labelled = np.asarray(pc.equal(states, LABELLED))
    return None if kept.all() else kept, None if labelled[kept].all() else labelled


def states_of(file: File, batch: pa.RecordBatch, start: int) -> pa.Array | None:
    """Read what became of each row, one of `STATES`; None where the file says nothing of it.

    Args:
        file: a labelled file.
        batch: some of its rows, with the column `state` if the file has it.
        start: the row of the file that is the first of these.

    Raises:
        LabelsError: a state is none.
    """
    if STATE in batch.schema.names:
        states = batch.column(STATE)
    elif STATE in dict(file.partitions):
        states = pa.repeat(pa.scalar(dict(file.partitions)[STATE], pa.string()), batch.num_rows)
    else:
        return None
    if not (pa.types.is_null(states.type) or pa.types.is_string(states.type) or pa.types.is_large_string(states.type)):
        raise LabelsError(f"column {STATE} of {file.path} is {states.type}; expected text, {_spelt_states()}")
    states = pc.fill_null(states.cast(pa.string()), LABELLED)
    known = pc.is_in(states, value_set=pa.array(STATES))
    if not pc.all(known).as_py():
        at = pc.index(known, False).as_py()
        raise LabelsError(
            f"column {STATE} of {file.path} is {quoted(states[at].as_py())} in row {start + at}; expected {_spelt_states()}, or nothing "
            "for labelled rows; rename the column if it means something else"
        )
    return states


def _spelt_states() -> str:
    return f"{', '.join(STATES[:-1])} or {STATES[-1]}"


def within(ids: pa.Array, type_: pa.DataType) -> pa.Array:
    """Return integers as that type, null where it can't hold them; other ids as they are."""
    if not pa.types.is_integer(type_) or ids.type.equals(type_):
        return ids
    values, limits = ids.to_numpy(), np.iinfo(type_.to_pandas_dtype())
    outside = (values < int(limits.min)) | (values > int(limits.max))
    return pa.array(values.astype(limits.dtype), type_, mask=outside if outside.any() else None)


def _rows(file: File) -> int:
    with open_parquet(file) as parquet:
        return int(parquet.metadata.num_rows) - (len(file.deletes.positions) if file.deletes is not None else 0)


def _nulls(file: File, name: str) -> int:
    with open_parquet(file) as parquet:
        return int(sum(batch.column(name).null_count for _, batch in scan(file, parquet, [name], _BATCH)))


def _family(type_: pa.DataType) -> str:
    return "integer" if pa.types.is_integer(type_) else str(type_)


def _close_gaps(values: npt.NDArray[np.integer], stretches: Sequence[tuple[int, int]]) -> npt.NDArray[np.integer]:
    """Return the values of these stretches, ascending, moved together in place."""
    end = 0
    for low, high in stretches:
        if low != end:
            values[end : end + high - low] = values[low:high]
        end += high - low
    return values[:end]


def _once(values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Move sorted values together in place, each once."""
    new = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    end = 0
    for start in range(0, len(values), _BATCH):
        kept = values[start : start + _BATCH][new[start : start + _BATCH]]
        values[end : end + len(kept)] = kept
        end += len(kept)
    return values[:end]
