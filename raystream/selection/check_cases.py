"""The small pools and constraints on which `check_strategy` tries a strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystream.selection.constraints import Constraints
from raystream.selection.hashing import row_hash
from raystream.selection.limits import Cost, Quota
from raystream.selection.near_duplicates import NearDuplicates
from raystream.selection.repeats import Repeats, find_repeats
from raystream.selection.rows import Array, Metric, as_rows, normalised
from raystream.selection.shards import LocalShards
from raystream.selection.strategy import Candidates

_CLASSES = 4
_MEMBERS = 3


@dataclass(frozen=True)
class Case:
    """One pool and what is asked of it.

    Attributes:
        pool: its rows, in words.
        x: (n, d) float32 embeddings.
        budget: rows asked for, those of `must_include` included.
        labelled: (m, d) float32 of the same width.
    """

    pool: str
    x: Array
    budget: int
    labelled: Array
    metric: Metric = "euclidean"
    near_duplicates: float | None = None
    quotas: tuple[Quota, ...] = ()
    cost: Cost | None = None
    must_include: Array | None = None

    def __str__(self) -> str:
        n, d = self.x.shape
        words = [f"{n} {self.pool} rows of width {d}", f"budget {self.budget}", f"{len(self.labelled)} labelled"]
        words += ["metric cosine"] if self.metric == "cosine" else []
        words += [f"near_duplicates {self.near_duplicates}"] if self.near_duplicates is not None else []
        words += ["a quota"] if self.quotas else []
        words += ["a cost budget"] if self.cost is not None else []
        words += [f"{len(self.must_include)} rows of must_include"] if self.must_include is not None else []
        return ", ".join(words)

    def candidates(self, shards: int) -> Candidates:
        """Everything that a strategy may ask for, as fresh arrays, the embeddings in so many shards."""
        n = len(self.x)
        rng = np.random.Generator(np.random.Philox(n))
        logits = rng.standard_normal((n, _MEMBERS, _CLASSES))
        samples = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        return Candidates(
            score=np.round(rng.random(n), 1).astype(np.float32),  # with ties
            keys=row_hash(0, np.arange(n)),
            shards=LocalShards.of_array(self.x.copy(), metric=self.metric, shards=shards),
            labelled=self.labelled.copy(),
            probabilities=as_rows(np.exp(samples).mean(axis=1).astype(np.float32)),
            samples=samples.astype(np.float32),
            similar_to=self.x[:1].copy(),
        )

    def options(self) -> dict[str, Any]:
        """For `choose`."""
        return {
            "budget": self.budget,
            "metric": self.metric,
            "near_duplicates": self.near_duplicates,
            "quotas": self.quotas,
            "cost": self.cost,
            "must_include": self.must_include,
        }

    def constraints(self, repeats: Repeats | None) -> Constraints:
        """The same as `choose` makes, of which the strategy under test knows nothing."""
        alike = None
        if self.near_duplicates is not None:
            alike = NearDuplicates(self.near_duplicates, self.x.shape[1], self.space(self.labelled))
        return Constraints(self.budget, near_duplicates=alike, quotas=self.quotas, cost=self.cost, repeats=repeats)

    def repeats(self) -> Repeats | None:
        """Rows that equal each other or labelled ones; None where near-duplicates say more."""
        return None if self.near_duplicates is not None else find_repeats(LocalShards.of_array(self.x), self.labelled)

    def space(self, x: Array) -> Array:
        """`x` in the metric's space."""
        return normalised(x) if self.metric == "cosine" else x


def cases() -> Iterator[Case]:
    """Every pool with budgets of some and more, some of 1 and all; every constraint; labelled rows that are none, some or the pool."""
    for name, x in _pools():
        n, none = len(x), x[:0]
        for budget in sorted({min(7, n), n + 3} | ({1, n} if name in ("random", "duplicated") else set())):
            yield Case(name, x, budget, none)
        yield Case(name, x, min(7, n), x[:2] + np.float32(0.5))
        yield Case(name, x, min(7, n), x)
        yield Case(name, x, min(7, n), x[:2], "cosine")
    x = dict(_pools())["random"]
    half = (np.arange(len(x)) % 2).astype(np.int32)
    cap = Quota("parity", half, ["even", "odd"], np.array([3, len(x)]), np.array([0, 0]))
    both = Quota("parity", half, ["even", "odd"], np.array([len(x), len(x)]), np.array([0, 8]))
    shut = Quota("parity", half, ["even", "odd"], np.array([0, len(x)]), np.array([0, 0]))
    minutes = Cost("minutes", 1.0 + np.arange(len(x)) % 5, 20.0)
    given = np.array([4, 11])
    for labelled in (none, x[:2]):
        yield Case("random", x, 12, labelled, must_include=given)
        yield Case("random", x, 12, labelled, quotas=(cap,))
        yield Case("random", x, len(x), labelled, quotas=(cap,))
        yield Case("random", x, 12, labelled, quotas=(both,))
        yield Case("random", x, 12, labelled, cost=minutes)
        yield Case("random", x, 12, labelled, near_duplicates=0.9)
        yield Case("random", x, len(x), labelled, near_duplicates=0.9, must_include=given)
        yield Case("random", x, 12, labelled, near_duplicates=0.9, quotas=(cap,), cost=minutes, must_include=given)
    yield Case("random", x, 12, x[:2], quotas=(shut,))


def _pools() -> list[tuple[str, Array]]:
    rng = np.random.Generator(np.random.Philox(0))
    random = rng.standard_normal((40, 3)).astype(np.float32)
    return [
        ("random", random),
        ("duplicated", random[np.arange(24) % 6]),
        ("all-equal", np.repeat(random[:1], 12, axis=0)),
        ("all-zero", np.zeros((9, 3), dtype=np.float32)),
        ("unit-norm", normalised(random[:20])),
        ("0/1", rng.integers(0, 2, (20, 3)).astype(np.float32)),
        ("mostly repeated", np.concatenate([random[np.arange(30) % 3], random[:10]])),
        ("one-dimensional", random[:12, :1]),
        ("single", random[:1]),
    ]
