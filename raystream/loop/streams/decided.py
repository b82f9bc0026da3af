"""What was decided on rows: as it is made, a few rows at a time, and in columns, as a file of decisions has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.loop.streams.managers import Decision

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Decided:
    """Rows in order, with what was decided on each: plain numbers, since columns of Arrow's take longer to make than a decision.

    Attributes:
        ids: (n,), as a file of decisions has them.
        scores: (n,); NaN: none.
        thresholds: (n,) that scores were compared with; NaN: with none.
        chosen: (n,) bool.
        seen: (n,) int64, the rows that count up to this one.
        epoch: the number of the model, from 1.
    """

    ids: pa.Array
    scores: Numbers
    thresholds: Numbers
    chosen: npt.NDArray[np.bool_]
    seen: npt.NDArray[np.int64]
    epoch: int

    @classmethod
    def by(cls, decisions: Sequence[Decision | None], ids: pa.Array, scores: Numbers, seen: int, epoch: int) -> Decided:
        """Make it of decisions, None where a row counts for nothing, after so many rows that do."""
        thresholds, chosen, counts = [], [], []
        for decision in decisions:
            seen += decision is not None
            thresholds.append(np.nan if decision is None or decision.threshold is None else decision.threshold)
            chosen.append(decision is not None and decision.chosen)
            counts.append(seen)
        return cls(ids, scores, np.array(thresholds, np.float64), np.array(chosen, np.bool_), np.array(counts, np.int64), epoch)

    @classmethod
    def of(cls, rows: pa.Table) -> Decided:
        """Make it of rows of a file of decisions, all of one epoch."""
        scores, thresholds = (np.asarray(rows.column(name).to_numpy(), np.float64) for name in ("score", "threshold"))
        chosen, seen = rows.column("chosen").to_numpy(), rows.column("seen").to_numpy()
        epoch = rows.column("epoch")[0].as_py() if rows.num_rows else 0
        return cls(rows.column(0).combine_chunks(), scores, thresholds, chosen, seen, epoch)

    @classmethod
    def joined(cls, parts: Sequence[Decided]) -> Decided:
        """Join rows that follow each other, of one epoch."""
        return cls(
            pa.concat_arrays([part.ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.thresholds for part in parts]),
            np.concatenate([part.chosen for part in parts]),
            np.concatenate([part.seen for part in parts]),
            parts[0].epoch,
        )

    def __len__(self) -> int:
        return len(self.chosen)

    def slice(self, start: int, end: int) -> Decided:
        """Return some of the rows."""
        if start == 0 and end == len(self):
            return self
        here = slice(start, end)
        return Decided(self.ids[here], self.scores[here], self.thresholds[here], self.chosen[here], self.seen[here], self.epoch)

    def as_told(self, schema: pa.Schema | None) -> Decided:
        """Return the rows as they are answered: with scores as a file of decisions of these columns has them, if it rounds them."""
        rounds = schema is not None and schema.field("score").type == pa.float32()
        return replace(self, scores=self.scores.astype(np.float32).astype(np.float64)) if rounds else self

    def in_columns(self, id_name: str, schema: pa.Schema | None = None) -> pa.Table:
        """Return the columns of a file of decisions, of these types where there are some already."""
        columns = {
            id_name: self.ids,
            "score": pa.array(self.scores, mask=np.isnan(self.scores)),
            "threshold": pa.array(self.thresholds, mask=np.isnan(self.thresholds)),
            "chosen": pa.array(self.chosen),
            "seen": pa.array(self.seen),
            "epoch": pa.array(np.full(len(self), self.epoch, np.int32)),
        }
        table = pa.table(columns)
        return table if schema is None else table.cast(schema)
