"""Receipts of units' outputs: what is kept of each kind, and where it lies in the store.

A unit has one folder, and in it each kind of its outputs a receipt of its own. Kinds of one unit may hold different rows, since a row
whose embedding can't be stored still has its scores: a query that reads several kinds sees the rows that all of them hold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from raystream.store.protocol import Store, StoredFile

SCORES, EMBEDDINGS, PROBABILITIES, SAMPLES = "scores", "embeddings", "probabilities", "samples"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that one kind of a unit's outputs is kept: written last, and only if there is none yet.

    Attributes:
        key: the unit's.
        output: the kind, and after a dash the digest of the parameters that name it.
        unit: its name.
        rows: how many the file holds, after filters and quarantine.
        positions: hash of where they stand in the pool's file; kinds of equal ones hold the same rows.
        file: what holds them; None for vectors of a unit without rows.
        columns: of a table.
        width: of vectors.
        members: how many opinions of a row there were, None for one alone.
        classes: of the model.
        batch_size: smaller than the query's when the device ran out of memory.
        state_hash: of the model's tensors as loaded, the same in every worker.
        quarantined, quarantine_reasons, quarantine: how many rows were left out, what is wrong with the first few, and the file of all.
        bytes_read, seconds, repeated_reads: of the pass over the unit; the last are requests to object storage that broke.
        class_labels: what the model itself calls its classes, and `notes` what is to be said of it, where there is anything.
    """

    key: str
    output: str
    unit: str
    rows: int
    positions: str
    file: StoredFile | None
    columns: tuple[str, ...]
    width: int | None
    members: int | None
    classes: int | None
    batch_size: int
    state_hash: str
    quarantined: int
    quarantine_reasons: tuple[str, ...]
    bytes_read: int
    seconds: float
    repeated_reads: int = 0
    quarantine: StoredFile | None = None
    class_labels: tuple[str | int | float | bool, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of the output, whatever its parameters."""
        return self.output.rpartition("-")[0]

    @property
    def files(self) -> list[StoredFile]:
        """All that the output has in the store beside this receipt."""
        return [file for file in (self.file, self.quarantine) if file is not None]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        fields = json.loads(data)
        for name in ("file", "quarantine"):
            fields[name] = StoredFile(**fields[name]) if fields[name] else None
        for name in ("columns", "quarantine_reasons", "notes"):
            fields[name] = tuple(map(sys.intern, fields[name]))
        for name in ("key", "output", "unit", "state_hash"):  # of a million receipts, most are the same
            fields[name] = sys.intern(fields[name])
        labels = fields.pop("class_labels")
        return cls(class_labels=None if labels is None else tuple(labels), **fields)


@dataclass(frozen=True)
class UnitOutputs:
    """The outputs that are kept of one unit, for a query that reads these kinds of it.

    Attributes:
        receipts: one a kind, but for functions of the user's, which have one each.
        kept: by output, which rows of its file all kinds hold; empty where they hold the same rows.
        left_out: how many rows some kind left out, where they don't.
    """

    receipts: tuple[Receipt, ...]
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    left_out: int | None = None

    @property
    def key(self) -> str:
        return self.receipts[0].key

    @property
    def unit(self) -> str:
        """The unit's name."""
        return self.receipts[0].unit

    @property
    def rows(self) -> int:
        """Rows that all kinds hold."""
        return len(next(iter(self.kept.values()))) if self.kept else self.receipts[0].rows

    @property
    def quarantined(self) -> int:
        """Rows that some kind left out."""
        return self.receipts[0].quarantined if self.left_out is None else self.left_out

    @property
    def reasons(self) -> list[str]:
        """The reasons for which the first few quarantined rows were left out."""
        return list(dict.fromkeys(reason for receipt in self.receipts for reason in receipt.quarantine_reasons))

    @property
    def batch_size(self) -> int:
        """The smallest that any of them was computed with."""
        return min(receipt.batch_size for receipt in self.receipts)

    @property
    def members(self) -> int | None:
        return next((receipt.members for receipt in self.receipts if receipt.members is not None), None)

    @property
    def classes(self) -> int | None:
        return next((receipt.classes for receipt in self.receipts if receipt.classes is not None), None)

    @property
    def class_labels(self) -> tuple[str | int | float | bool, ...] | None:
        return next((receipt.class_labels for receipt in self.receipts if receipt.class_labels is not None), None)

    @property
    def notes(self) -> tuple[str, ...]:
        """The workers' notes on the model."""
        return tuple(note for receipt in self.receipts for note in receipt.notes)

    @property
    def files(self) -> list[StoredFile]:
        return [file for receipt in self.receipts for file in receipt.files]

    def of(self, kind: str) -> Receipt | None:
        """Return the receipt of a kind, if it is among them and has a file."""
        return next((receipt for receipt in self.receipts if receipt.kind == kind and receipt.file is not None), None)


def unit_folder(key: str) -> str:
    """Name the unit's folder in the store."""
    return f"units/{key[:2]}/{key}"


def receipt_name(key: str, output: str) -> str:
    """Name the file of the store that an output's receipt is."""
    return f"{unit_folder(key)}/{output}.receipt.json"


def read_receipt(store: Store, key: str, output: str, listed: Mapping[str, int] | None = None) -> Receipt | None:
    """Read the receipt of a unit's output, if there is one and the files that it names are there in full.

    Args:
        store: to look in.
        key: the unit's.
        output: the kind, and the digest of its parameters.
        listed: the files of the unit's folder with their sizes; left out, the store is asked.
    """
    data = store.read_if_there(receipt_name(key, output))
    if data is None:
        return None
    try:
        receipt = Receipt.from_json(data)
    except (ValueError, TypeError, KeyError):
        return None  # cut short by a crash of the machine: computed again
    size = store.size if listed is None else listed.get
    return receipt if all(size(file.name) == file.size for file in receipt.files) else None
