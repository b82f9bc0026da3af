"""The labels of a loop at one moment: of which rows, what they serve for, and what a query is told of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raystream.figures import number_of
from raystream.loop.labels import DELETED, Answers, Id
from raystream.pool.labelled_ids import LABELLED, STATE

TRAIN, CONTROL, EVALUATE, OUTSIDE = "train", "control", "evaluate", "outside"
"""What a labelled row serves for; nothing, where the pool doesn't hold it."""


@dataclass(frozen=True, eq=False)
class RoundLabels:
    """All answers so far.

    Attributes:
        ids: in order.
        states: of each.
        labels: as `LabelValues` keeps them; None where the state isn't labelled.
        uses: what each row serves for.
    """

    ids: list[Id]
    states: list[str]
    labels: list[Any]
    uses: list[str]

    @classmethod
    def of(cls, answers: Answers, inside: Collection[Id], control: Collection[Id], evaluate: Collection[Id]) -> RoundLabels:
        """Return what people said, given which rows the pool holds, and which of them are set apart."""
        ids = sorted(answers.by_id)
        held, apart, judged = set(inside), set(control), set(evaluate)
        uses = [EVALUATE if id_ in judged else OUTSIDE if id_ not in held else CONTROL if id_ in apart else TRAIN for id_ in ids]
        found = [answers.by_id[id_] for id_ in ids]
        return cls(ids, [answer.state for answer in found], [answer.label for answer in found], uses)

    def labelled(self, *uses: str) -> tuple[list[Id], list[Any]]:
        """Return the labelled rows of some uses, with their labels."""
        rows = [i for i, state in enumerate(self.states) if state == LABELLED and self.uses[i] in uses]
        return [self.ids[i] for i in rows], [self.labels[i] for i in rows]

    @property
    def count(self) -> int:
        """Labels that count: of the pool's rows, control rows included."""
        return len(self.labelled(TRAIN, CONTROL)[0])

    @property
    def digest(self) -> str:
        """SHA-256 of all answers, hexadecimal."""
        digest = hashlib.sha256()
        for id_, state, label, use in zip(self.ids, self.states, self.labels, self.uses, strict=True):
            digest.update(json.dumps([_text(id_), state, label, use], default=str).encode())
        return digest.hexdigest()

    def as_table(self, id_type: pa.DataType) -> pa.Table:
        """Return the answers as a table: labels as JSON text, since they may be classes, several classes, or numbers."""
        labels = [None if label is None else json.dumps(label) for label in self.labels]
        columns = {"id": pa.array(self.ids, id_type), "label": pa.array(labels, pa.string())}
        return pa.table({**columns, STATE: pa.array(self.states, pa.string()), "use": pa.array(self.uses, pa.string())})

    @classmethod
    def from_table(cls, table: pa.Table) -> RoundLabels:
        """Read back what `as_table` made."""
        labels = [None if text is None else _label(json.loads(text)) for text in table.column("label").to_pylist()]
        ids, states, uses = (table.column(name).to_pylist() for name in ("id", STATE, "use"))
        return cls(ids, states, labels, uses)

    def told(self, id_name: str, id_type: pa.DataType, barred: Sequence[Id]) -> pa.Table | None:
        """Return what the next query is told: rows that are labelled, and so covered, and rows that are never chosen; None of none.

        Args:
            id_name: the pool's column of ids.
            id_type: their type.
            barred: rows of the pool that are never chosen, beside those that are labelled.
        """
        known: dict[Id, str] = dict.fromkeys(barred, "rejected")
        known |= {
            id_: LABELLED if state == LABELLED and use == TRAIN else "rejected"
            for id_, state, use in zip(self.ids, self.states, self.uses, strict=True)
            if use != OUTSIDE and (state != DELETED or id_ in known)
        }
        if not known:
            return None
        ids = sorted(known)
        return pa.table({id_name: pa.array(ids, id_type), STATE: pa.array([known[id_] for id_ in ids], pa.string())})

    def answered(self, batch: Sequence[Id]) -> int:
        """Count how many rows of a batch have an answer, whatever it is."""
        known = set(self.ids)
        return sum(id_ in known for id_ in batch)

    def counts(self, batch: Sequence[Id], asked: Collection[Id]) -> dict[str, int]:
        """Return rows by what became of them, and how many were labelled though nobody asked, or aren't the pool's."""
        given = set(asked) | set(batch)
        found: dict[str, int] = {}
        for state in self.states:
            found[state] = found.get(state, 0) + 1
        labelled = [(id_, use) for id_, use, state in zip(self.ids, self.uses, self.states, strict=True) if state == LABELLED]
        return found | {
            "never_asked": sum(id_ not in given and use in (TRAIN, CONTROL) for id_, use in labelled),
            "unknown_ids": sum(use == OUTSIDE for _, use in labelled),
            "evaluated": sum(use == EVALUATE for _, use in labelled),
        }


def counted(counts: Mapping[str, int]) -> list[str]:
    """Return sentences on labels that are of no use, or that nobody asked for."""
    found = []
    if counts.get("never_asked"):
        found.append(f"{_rows(counts['never_asked'])} labelled that nobody asked for; they are used all the same")
    if counts.get("unknown_ids"):
        found.append(f"{_rows(counts['unknown_ids'])} labelled whose ids the pool doesn't hold; their labels are left alone")
    if counts.get("evaluated"):
        found.append(f"{_rows(counts['evaluated'])} labelled that loop.evaluate holds, too; they are never trained on")
    return found


def _rows(count: int) -> str:
    return f"{number_of(count, 'row')} {'is' if count == 1 else 'are'}"


def _label(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(id_: Id) -> str | int:
    return id_.hex() if isinstance(id_, bytes) else id_
