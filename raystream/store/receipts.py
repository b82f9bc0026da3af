"""What a unit's scoring yields, and where it lies in the store."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from raystream.errors import ModelError
from raystream.store.protocol import Store, StoredFile
from raystream.store.requests import in_threads

if TYPE_CHECKING:
    pass

@dataclass(frozen=True)
class Receipt:
    """Proof that a unit is scored: written last, and only if there is none yet.

    `rows` counts the rows scored, after filters and quarantine. `batch_size` is smaller than the query's when the
    device ran out of memory. `members` is how many opinions of a row there were, None for one alone. `state_hash` is
    of the model's tensors as loaded, the same in every worker; `class_labels` what the model itself calls its classes, and `notes` what
    is to be said of it, where there is anything. `repeated_reads` counts the requests to object storage that broke and were made
    again. `quarantine` is the file of all rows left out, None if there are none; `quarantine_reasons` says what is wrong with the
    first few.
    """

    key: str
    unit: str
    rows: int
    scores: StoredFile
    embeddings: StoredFile | None
    probabilities: StoredFile | None
    samples: StoredFile | None
    members: int | None
    dimension: int | None
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
    def files(self) -> list[StoredFile]:
        """All that the unit has in the store beside this receipt."""
        every = (self.scores, self.embeddings, self.probabilities, self.samples, self.quarantine)
        return [file for file in every if file is not None]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Receipt:
        fields = json.loads(data)
        for name in ("embeddings", "probabilities", "samples", "quarantine"):
            fields[name] = StoredFile(**fields[name]) if fields.get(name) else None
        if fields["quarantined"] and fields["quarantine"] is None:
            raise ValueError("of an earlier version, which didn't keep all rows that were left out")
        return cls(
            scores=StoredFile(**fields.pop("scores")),
            quarantine_reasons=tuple(fields.pop("quarantine_reasons")),
            class_labels=None if (labels := fields.pop("class_labels", None)) is None else tuple(labels),
            notes=tuple(fields.pop("notes", ())),
            **fields,
        )


def unit_folder(key: str) -> str:
    """The unit's folder in the store."""
    return f"units/{key[:2]}/{key}"


def read_receipt(store: Store, key: str) -> Receipt | None:
    """The unit's receipt, if it is scored and the files that the receipt names are there in full."""
    data = store.read_if_there(f"{unit_folder(key)}/receipt.json")
    if data is None:
        return None
    try:
        receipt = Receipt.from_json(data)
    except (ValueError, TypeError, KeyError):
        return None  # cut short by a crash of the machine, or of another layout: the unit is scored again
    return receipt if all(store.size(file.name) == file.size for file in receipt.files) else None


def read_receipts(store: Store, keys: Sequence[str], there: Collection[str] | None = None) -> list[Receipt | None]:
    """The receipts of units, None for those that aren't in the store whole.

    Args:
        store: to look in.
        keys: of the units.
        there: the only keys that are looked for; None: all.
    """
    return in_threads(lambda key: read_receipt(store, key) if there is None or key in there else None, keys)


def check_same_model(receipts: Sequence[Receipt]) -> None:
    """Refuse units that different models scored, or one model with outputs of different shapes."""
    for what, values in (
        ("the model's state", {r.unit: r.state_hash for r in receipts}),
        ("the embedding's width", {r.unit: r.dimension for r in receipts if r.embeddings is not None}),
        ("the number of classes", {r.unit: r.classes for r in receipts if r.classes is not None}),
    ):
        if len(set(values.values())) > 1:
            first = next(iter(values))
            other = next(unit for unit, value in values.items() if value != values[first])
            raise ModelError(
                f"{what} differs between units {first} and {other}: the factory does not build the same model every time; "
                "make it deterministic or give model.weights"
            )
