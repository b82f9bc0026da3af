"""What is kept of many units, as tables: a unit's outputs become an object when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import overload

import numpy as np

from raystream.errors import ModelError
from raystream.store.receipt_table import Integers, Mask, ReceiptTable
from raystream.store.receipts import EMBEDDINGS, Receipt, UnitOutputs

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
