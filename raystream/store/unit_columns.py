"""What units hold, as tables: their receipts, and their outputs' columns.

Columns of units' outputs, read one unit after the other, and the rows that all kinds of a unit hold.

Rows that were left out under `on_error: skip` are kept by each kind of a unit's outputs in a file; a query has all in one. Its columns
are the id under its own name, `path`, `row` and `reason`; the rows stand in the pool's order.

What is kept of many units, as tables: a unit's outputs become an object when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import ModelError, StoreError
from raystream.figures import number_of, shown
from raystream.store.integrity import check_file, reading
from raystream.store.local import LocalStore
from raystream.store.packs import ahead, read_receipts
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipt_table import Integers, Keys, Mask, ReceiptTable
from raystream.store.receipts import EMBEDDINGS, SCORES, Receipt, UnitOutputs

Kept = tuple[Mapping[str, np.ndarray], int]
"""By output, which rows of its file all kinds hold, and how many rows some kind left out."""


class ScoredUnits(Sequence[UnitOutputs]):
    """The outputs of units, in order.

    Args:
        tables: one for each output that is read of them.
        places: (m,) where the units stand in these tables; of each, all outputs are there that can be.
        kept: by place, of the units whose kinds don't all hold the same rows.
    """

    def __init__(self, tables: Sequence[ReceiptTable], places: Integers, kept: Mapping[int, Kept]) -> None:
        self.tables, self.places, self._kept = tuple(tables), places, kept

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> UnitOutputs: ...

    @overload
    def __getitem__(self, index: slice) -> ScoredUnits: ...

    def __getitem__(self, index: int | slice) -> UnitOutputs | ScoredUnits:
        if isinstance(index, slice):
            return ScoredUnits(self.tables, self.places[index], self._kept)
        place = int(self.places[index])
        receipts = (table.at(place) for table in self.tables)
        kept, left_out = self._kept.get(place, ({}, None))
        return UnitOutputs(tuple(receipt for receipt in receipts if receipt is not None), kept, left_out)

    def __iter__(self) -> Iterator[UnitOutputs]:
        return (self[index] for index in range(len(self)))

    @property
    def rows(self) -> Integers:
        """(m,) rows of each unit that all kinds hold."""
        rows = self.tables[0].rows[self.places]
        for index, kept in self._differing():
            rows[index] = len(next(iter(kept[0].values())))
        return rows

    @property
    def quarantined(self) -> Integers:
        """(m,) rows of each unit that some kind left out."""
        rows = self.tables[0].quarantined[self.places]
        for index, kept in self._differing():
            rows[index] = kept[1]
        return rows

    @property
    def filled(self) -> ScoredUnits:
        """Those of the units that have rows."""
        return ScoredUnits(self.tables, self.places[self.rows > 0], self._kept)

    def say(self, what: str) -> Mask:
        """Tell (m,) whether any receipt of a unit says this of its model."""
        return np.asarray(np.any([table.say(what, self.places) for table in self.tables], axis=0))

    def of_models(self) -> list[Receipt]:
        """List a receipt for everything that is said of the model, in the order in which the units say it first."""
        first = [(index, number) for number, table in enumerate(self.tables) for index in table.first_of_models(self.places)]
        found = (self.tables[number].at(int(self.places[index])) for index, number in sorted(first))
        return [receipt for receipt in found if receipt is not None]

    def with_losses(self) -> Iterator[UnitOutputs]:
        """Yield the units that some kind left rows out of."""
        lost = np.any([table.quarantined[self.places] > 0 for table in self.tables], axis=0)
        return (self[index] for index in np.flatnonzero(lost).tolist())

    def and_also(self, table: ReceiptTable) -> ScoredUnits:
        """Return these units with a further output of them."""
        return ScoredUnits((*self.tables, table), self.places, self._kept)

    def _differing(self) -> Iterator[tuple[int, Kept]]:
        if self._kept:
            for index in np.flatnonzero(np.isin(self.places, list(self._kept))).tolist():
                yield index, self._kept[int(self.places[index])]


def differing(tables: Sequence[ReceiptTable], places: Integers) -> Integers:
    """Find those of the units at these places whose files don't all hold the same rows."""
    first, *others = tables
    odd = np.zeros(len(places), bool)
    for table in others:
        odd |= table.there[places] & (table.positions[places] != first.positions[places])
    return places[odd]


def of_models(groups: Iterable[Iterable[UnitOutputs]]) -> Iterator[Receipt]:
    """Yield receipts of units in order; of many, one for everything that they say of the model."""
    for units in groups:
        yield from units.of_models() if isinstance(units, ScoredUnits) else chain.from_iterable(unit.receipts for unit in units)


def with_losses(groups: Iterable[Iterable[UnitOutputs]]) -> Iterator[UnitOutputs]:
    """Yield the units that some kind left rows out of."""
    for units in groups:
        yield from units.with_losses() if isinstance(units, ScoredUnits) else (unit for unit in units if _has_losses(unit))


def _has_losses(unit: UnitOutputs) -> bool:
    return any(receipt.quarantined for receipt in unit.receipts)


def check_same_model(*groups: Iterable[UnitOutputs]) -> None:
    """Refuse units that different models scored, or one model with outputs of different shapes."""

    def pair_of(values: Iterator[tuple[str, object]]) -> tuple[str, str] | None:
        first = next(values, None)
        other = next((unit for unit, value in values if first is not None and value != first[1]), None)
        return None if first is None or other is None else (first[0], other)

    receipts = list(of_models(groups))
    for what, kinds, value in (
        ("the model's state", None, "state_hash"),
        ("the embedding's width", (EMBEDDINGS,), "width"),
        ("the number of classes", None, "classes"),
    ):
        told = (receipt for receipt in receipts if kinds is None or receipt.kind in kinds)
        pair = pair_of((receipt.unit, found) for receipt in told if (found := getattr(receipt, value)) is not None)
        if pair is not None:
            raise ModelError(
                f"{what} differs between units {pair[0]} and {pair[1]}: the factory does not build the same model every time; "
                "make it deterministic or give model.weights"
            )


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
    yield from ahead(lambda unit: _read(store, unit, columns), chain(first, units), at_once)  # what nobody has taken yet is in memory


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
