"""Columns of units' outputs, read one unit after the other, and the rows that all kinds of a unit hold.

Rows that were left out under `on_error: skip` are kept by each kind of a unit's outputs in a file; a query has all in one. Its columns
are the id under its own name, `path`, `row` and `reason`; the rows stand in the pool's order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import StoreError
from raystream.figures import number_of, shown
from raystream.store.integrity import check_file, reading
from raystream.store.local import LocalStore
from raystream.store.packs import read_receipts
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipt_table import Integers, ReceiptTable
from raystream.store.receipts import SCORES, Receipt, UnitOutputs
from raystream.store.scored_units import Kept, ScoredUnits, differing, with_losses
from raystream.store.unit_keys import Keys

COMPUTED = "epig-"
"""How outputs begin that are computed from stored ones; see `scoring.output_kinds`."""
REQUESTS, FILES = 16, 4
"""At a time, to an object store, and from a disk."""


def read_outputs(
    store: Store, keys: Keys, outputs: Sequence[str], names: Sequence[str] | None = None, places: Integers | None = None
) -> ScoredUnits:
    """Read these outputs of units, as far as they have all of them. Of a unit without rows, nothing is computed from what is stored.

    Args:
        store: holds them.
        keys: the units', in the order of their plan.
        outputs: the names of their outputs.
        names: the units'; left out, the receipts say them.
        places: of the only units that are looked for; see `read_receipts`.
    """
    return whole_units(store, read_receipts(store, keys, outputs, names, places), places)


def whole_units(store: Store, tables: Sequence[ReceiptTable], among: Integers | None = None) -> ScoredUnits:
    """Return the units that have all outputs, and of each the rows that all of its kinds hold: a kind may have left out more than another.

    Args:
        store: holds them.
        tables: one for each output.
        among: the places of the only units that are meant; left out, all.
    """
    whole = np.ones(len(tables[0]), bool)
    for table in tables:
        empty = tables[0].there & (tables[0].rows == 0) if table.output.startswith(COMPUTED) else np.zeros(1, bool)
        whole &= table.there | empty
    places = np.flatnonzero(whole) if among is None else among[whole[among]]
    plain = ScoredUnits(tables, places, {})
    odd = differing(tables, places)
    return ScoredUnits(tables, places, {int(place): _kept(store, plain[int(np.searchsorted(places, place))]) for place in odd})


def read_columns(store: Store, units: Iterable[UnitOutputs], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read these columns of units' tables, and yield one table after the other; some are read ahead."""
    units = iter(units)
    first = list(islice(units, 2))
    at_once = REQUESTS if store.remote else min(pa.cpu_count(), FILES)
    if len(first) < 2 or at_once == 1:
        yield from (_read(store, unit, columns) for unit in chain(first, units))
        return
    with ThreadPoolExecutor(at_once) as threads:
        ahead: deque[Future[pa.Table]] = deque()
        for unit in chain(first, units):
            if len(ahead) == at_once:  # what nobody has taken yet is in memory
                yield ahead.popleft().result()
            ahead.append(threads.submit(_read, store, unit, columns))
        while ahead:
            yield ahead.popleft().result()


def read_table(store: Store, file: StoredFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table of the store, checked, or some of its columns in the order asked for."""
    if isinstance(store, LocalStore):
        check_file(store.path(file.name), file)
    with reading(store, file):
        # `read_table` would import pandas, where that is installed: a quarter of a second of every query.
        # A bucket's bytes are Python's, which Arrow's threads may let go of beyond the end of the process; see `queries.read_parquet`.
        parquet = pq.ParquetFile(store.source(file), pre_buffer=False)
        table = parquet.read(None if columns is None else list(columns), use_threads=not store.remote)
        return table if columns is None else table.select(list(columns))


def _read(store: Store, unit: UnitOutputs, columns: Sequence[str]) -> pa.Table:
    found: dict[str, pa.ChunkedArray] = {}
    for receipt in unit.receipts:
        names = [name for name in columns if name in receipt.columns and name not in found]
        if names and receipt.file is not None:
            table = read_table(store, receipt.file, names)
            if receipt.output in unit.kept:
                table = table.take(pa.array(unit.kept[receipt.output]))
            found |= zip(names, table.columns, strict=True)
    lacking = next((name for name in columns if name not in found), None)
    if lacking is not None:
        raise StoreError(f"store: {unit.unit} holds no column {lacking}; remove units/{unit.key[:2]}/{unit.key} and score it again")
    return pa.table({name: found[name] for name in columns})


def _kept(store: Store, unit: UnitOutputs) -> Kept:
    """Find the rows that all kinds of a unit hold."""
    scores = next(receipt for receipt in unit.receipts if receipt.kind == SCORES)
    assert scores.file is not None
    out = {receipt.output: _rows_of(store, receipt.quarantine) for receipt in unit.receipts}
    every = np.union1d(read_table(store, scores.file, ["row"]).column(0).to_numpy(), out[scores.output])
    lost = np.unique(np.concatenate(list(out.values())))
    common = np.setdiff1d(every, lost, assume_unique=True)
    return {name: np.searchsorted(np.setdiff1d(every, gone, assume_unique=True), common) for name, gone in out.items()}, len(lost)


def _rows_of(store: Store, file: StoredFile | None) -> np.ndarray:
    found: np.ndarray = np.empty(0, np.int64) if file is None else read_table(store, file, ["row"]).column(0).to_numpy()
    return found


NAMED = 10
"""Rows that are named one by one where people look; the file has all of them."""


def quarantined_rows(store: Store, *groups: Iterable[UnitOutputs]) -> Iterator[pa.Table]:
    """Yield the rows that some kind of these units' outputs left out, unit by unit, each row once.

    Raises:
        StoreError: a file isn't what was written.
    """
    for unit in with_losses(groups):
        apart: dict[str, Receipt] = {}  # kinds that hold the same rows left out the same
        for receipt in unit.receipts:
            apart.setdefault(receipt.positions, receipt)
        tables = [read_table(store, receipt.quarantine) for receipt in apart.values() if receipt.quarantine is not None]
        if len(tables) > 1:
            every = pa.concat_tables(tables)
            _, first = np.unique(every.column("row").to_numpy(), return_index=True)
            tables = [every.take(pa.array(first))]
        yield from tables


def write_quarantined(store: Store, name: str, *groups: Iterable[UnitOutputs]) -> StoredFile | None:
    """Write the rows that these units left out into one file, a unit at a time; None if there are none."""
    tables = quarantined_rows(store, *groups)
    first = next(tables, None)
    if first is None:
        return None
    with store.writing(name) as file, pq.ParquetWriter(file, first.schema, use_dictionary=["path", "reason"]) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    return store.stored(name)


def named(tables: Iterable[pa.Table], count: int) -> list[str]:
    """Say how many rows were left out, with a line for each of the first ten; nothing if none was.

    Args:
        tables: the rows.
        count: of all of them.
    """
    lines: list[str] = []
    for table in tables:
        lines += described(table.slice(0, NAMED - len(lines)))
        if len(lines) == NAMED:
            break
    were = "1 row was" if count == 1 else f"{number_of(count, 'row')} were"
    return [f"{were} quarantined{f', the first {NAMED}' if count > NAMED else ''}:", *lines] if count else []


def described(rows: pa.Table) -> list[str]:
    """Write a line for each of some quarantined rows, with its id if that is among the columns."""
    *ids, paths, numbers, reasons = (column.to_pylist() for column in rows.columns)
    places = [f"{path} row {row}: {reason}" for path, row, reason in zip(paths, numbers, reasons, strict=True)]
    if not ids:
        return places
    return [f"{shown(id_)}, {place}" for id_, place in zip(ids[0], places, strict=True)]
