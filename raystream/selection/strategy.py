"""The contract of strategies: what each is given and what it answers, also those that users write.

`Kept` is for what is costly and the same in the next choice among the same rows: clusters and neighbour graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from raystream.errors import QueryError
from raystream.selection.constraints import Constraints
from raystream.selection.rows import Array, Block, Rows, not_finite
from raystream.selection.shards import Shards
from raystream.threads import each

Parameters = Mapping[str, float | int]
Arrays = dict[str, Array]


class Kept(Protocol):
    """Arrays that were computed from the candidates' embeddings alone, from one choice to the next."""

    def get(self, kind: str, parameters: Parameters) -> Arrays | None:
        """Return the arrays that were kept under this name and these parameters, not to be written to; None if there are none."""

    def put(self, kind: str, parameters: Parameters, arrays: Arrays) -> None:
        """Keep arrays; what can't be kept is computed anew next time."""


def derive(kept: Kept | None, kind: str, parameters: Parameters, compute: Callable[[], Arrays]) -> Arrays:
    """Get arrays that are kept, or compute and keep them.

    Args:
        kept: where; None computes.
        kind: a name for what is computed; another version of the code that gives other digits takes another name.
        parameters: all that the arrays depend on beside the candidates' embeddings.
        compute: gives them.
    """
    found = None if kept is None else kept.get(kind, parameters)
    if found is None:
        found = compute()
        if kept is not None:
            kept.put(kind, parameters, found)
    return found


@dataclass(frozen=True)
class Candidates:
    """The n rows to choose from, in row order.

    Attributes:
        score: (n,) float, higher = label sooner; None when nothing asks for it.
        keys: (n,) uint64 of `row_hash`, from which all chance is drawn; None when nothing asks for it.
        shards: their embeddings; None when nothing needs them.
        labelled: (m, d) float16 or float32 embeddings of labelled rows, as stored; may be empty or None.
        probabilities: (n, c) rows, for `badge`; None when nothing asks for them.
        labelled_probabilities: (m, c) of the labelled rows, for `badge` with `covered`; None when nothing asks for them.
        samples: (n, k, c) log-probabilities of k members or dropout samples, for `batch_bald`.
        similar_to: (m, d) embeddings of the rows that the batch should resemble.
        kept: where clusters and neighbour graphs of the embeddings are kept from one choice to the next; None: nowhere.
    """

    score: Array | None = None
    keys: Array | None = None
    shards: Shards | None = None
    labelled: Array | None = None
    probabilities: Rows | None = None
    samples: Array | None = None
    similar_to: Array | None = None
    labelled_probabilities: Array | None = None
    kept: Kept | None = None

    def __len__(self) -> int:
        parts = (self.shards, self.score, self.keys, self.probabilities, self.samples)
        held = next((part for part in parts if part is not None), ())
        return len(held)


@dataclass(frozen=True)
class Request:
    """The request that a strategy is given.

    Attributes:
        budget: how many rows to choose.
        seed: of every draw.
        labelled: (m, d) float32 in the metric's space: rows that count as covered, those taken before the strategy began included.
        constraints: asked before a row is taken (`blocked`), told when one is (`take`).
        weight, mix: see `core_set` and `diverse`.
        memory: bytes of embeddings that one process may hold.
        terms: name -> strength, for `combine`.
        args: the strategy's own parameters, `select.args`.
    """

    budget: int
    seed: int
    labelled: Array | None
    constraints: Constraints
    weight: float = 0.0
    mix: float = 0.5
    memory: int = 2 << 30
    terms: Mapping[str, float] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Picked:
    """The answer that a strategy gives.

    Attributes:
        rows: (b,) int64 distinct candidates in order of choice, b = min(budget, those not blocked).
        gain: (b,) float64, what the strategy maximised when it took the row, nan where it maximised nothing.
        distance: (b,) float64 to the nearest row chosen before or labelled; None if it hasn't come by it.
        passes: how often the embeddings were read to choose.
        note: why fewer rows came back than the budget and the constraints allow; None else.
        radius: of the covering, where the strategy defines another one than the largest distance; None else.
        facts: what else the manifest should say, such as the recall of an approximate index.
        probability: (b,) float64, the chance that each row had to be drawn, given those before it; None where rows aren't drawn.
    """

    rows: Array
    gain: Array
    distance: Array | None = None
    passes: int = 0
    note: str | None = None
    radius: float | None = None
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    probability: Array | None = None


Strategy = Callable[[Candidates, Request], Picked]


def embeddings(candidates: Candidates, strategy: str) -> Shards:
    """Return the candidates' embeddings, or raise a QueryError that names the strategy."""
    if candidates.shards is None:
        raise QueryError(f"{strategy} needs embeddings, but the candidates have none; give `x`")
    return candidates.shards


def scores(candidates: Candidates, strategy: str) -> Array:
    """Return (n,) scores, or raise a QueryError that names the strategy."""
    if candidates.score is None:
        raise QueryError(f"{strategy} needs a score, but the candidates have none; give `score`")
    return np.asarray(candidates.score)


def row_keys(candidates: Candidates, strategy: str) -> Array:
    """Return (n,) uint64 keys, or raise a QueryError that names the strategy."""
    if candidates.keys is None:
        raise QueryError(f"{strategy} needs hashes of the ids, but the candidates have none")
    return np.asarray(candidates.keys, dtype=np.uint64)


def gathered(rows: Rows, memory: int, strategy: str) -> Array:
    """Gather (n, d) float32, all rows at once, in row order: to be read alone, since rows in memory may be the caller's own.

    Raises:
        QueryError: they don't fit `memory`.
        DataError: some are not finite.
    """
    need = len(rows) * rows.width * 4
    if need > memory:
        raise QueryError(
            f"{strategy} gathers its {len(rows)} candidates, which takes {need} bytes, but `memory` is {memory}; "
            "give fewer `candidates` or raise `memory`"
        )
    held = rows.held
    x = np.empty((len(rows), rows.width), dtype=np.float32) if held is None else held

    def read(block: Block) -> Array:
        here = x[block.start : block.stop]
        if held is None:
            here[:] = block.read()
        return block.start + np.flatnonzero(~np.isfinite(here).all(axis=1))

    bad = np.concatenate([np.empty(0, dtype=np.int64), *each(rows.blocks(0, len(rows), 4096), lambda: read)])
    if len(bad):
        raise not_finite(len(bad), [int(row) for row in bad[:3]])
    return x
