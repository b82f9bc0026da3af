"""The executable contract of strategies: run your own through it before you trust its batches.

The model is scikit-learn's `check_estimator`.

A strategy is tried on small pools and constraints that strategies stumble over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystream.errors import QueryError, StrategyContractError, did_you_mean
from raystream.selection.constraints import Constraints
from raystream.selection.hashing import row_hash
from raystream.selection.limits import Cost, Quota
from raystream.selection.repeats import NearDuplicates, Repeats, find_repeats
from raystream.selection.rows import Array, Metric, as_rows, normalised, squared_distances
from raystream.selection.select import STRATEGIES, Chosen, choose
from raystream.selection.shards import LocalShards
from raystream.selection.strategy import Candidates, Picked, Request, Strategy

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
        """Make everything that a strategy may ask for, as fresh arrays, the embeddings in so many shards."""
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
        """Return its arguments of `choose`."""
        return {
            "budget": self.budget,
            "metric": self.metric,
            "near_duplicates": self.near_duplicates,
            "quotas": self.quotas,
            "cost": self.cost,
            "must_include": self.must_include,
        }

    def constraints(self, repeats: Repeats | None) -> Constraints:
        """Make the same as `choose` makes, of which the strategy under test knows nothing."""
        alike = None
        if self.near_duplicates is not None:
            alike = NearDuplicates(self.near_duplicates, self.x.shape[1], self.space(self.labelled))
        return Constraints(self.budget, near_duplicates=alike, quotas=self.quotas, cost=self.cost, repeats=repeats)

    def repeats(self) -> Repeats | None:
        """Find rows that equal each other or labelled ones; None where near-duplicates say more."""
        return None if self.near_duplicates is not None else find_repeats(LocalShards.of_array(self.x), self.labelled)

    def space(self, x: Array) -> Array:
        """Return `x` in the metric's space."""
        return normalised(x) if self.metric == "cosine" else x


def cases() -> Iterator[Case]:
    """Yield every pool with budgets of some and more, some of 1 and all; every constraint; labelled rows: none, some or the pool."""
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


def check_strategy(strategy: str | Strategy, *, args: Mapping[str, Any] | None = None, terms: Mapping[str, float] | None = None) -> None:
    """Try a strategy on small pools of every awkward kind, and say which promise it breaks first.

    What is promised: distinct candidates, min(budget, those not blocked) of them, none that is blocked, as exact repeats of chosen and
    labelled rows are, or taken already; the constraints are told of each; the same answer when asked again and from any number of
    shards; what is given is left as it was; `gain` is (b,) float64, and `distance`, if not None, (b,) float64 and true,
    as is `probability` above 0 and at most 1.

    Args:
        strategy: the function, or the name of one of ours.
        args: its own parameters, as in `select.args`.
        terms: as in `select.terms`.

    Raises:
        StrategyContractError: the promise that is broken, and on which data.
    """
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise QueryError(f"strategy {strategy!r} is unknown{did_you_mean(strategy, STRATEGIES)}")
        strategy = STRATEGIES[strategy]
    for case in cases():
        _StrategyTrial(strategy, case, args or {}, terms or {}).run()


class _StrategyTrial:
    """One strategy on one case."""

    def __init__(self, strategy: Strategy, case: Case, args: Mapping[str, Any], terms: Mapping[str, float]) -> None:
        self._strategy, self._case, self._args, self._terms = strategy, case, args, terms
        self._note: str | None = None

    def run(self) -> None:
        once = self._chosen(shards=1)
        self._check_constraints(once)
        for words, shards in (("when asked again with the same data", 1), ("from 7 shards as from 1", 7)):
            other = self._chosen(shards)
            for name in ("rows", "gain", "probability"):
                self._require_equal(f"must come to the same {name} {words}", getattr(once, name), getattr(other, name))

    def _chosen(self, shards: int) -> Chosen:
        candidates, options = self._case.candidates(shards), self._case.options()
        try:
            return choose(candidates, strategy=self._watched, args=self._args, terms=self._terms, **options)
        except QueryError as error:  # floors that could be met
            raise self._broken(f"must leave places for what the quotas ask for: {error}") from error

    def _watched(self, candidates: Candidates, request: Request) -> Picked:
        before, taken, left = _inputs(candidates, request), request.constraints.taken, request.constraints.left
        try:
            picked = self._strategy(candidates, request)
        except Exception as error:
            raise self._broken(f"must not fail, but raised {type(error).__name__}: {error}") from error
        for (name, kept), now in zip(before.items(), _inputs(candidates, request).values(), strict=True):
            self._require(np.array_equal(kept, now, equal_nan=kept.dtype.kind == "f"), f"must not write into what it is given, here {name}")
        self._check_picked(picked, request, candidates)
        again = np.intersect1d(picked.rows, taken)
        self._require(not len(again), f"must not choose rows that are taken already, but chose {again[:3]}")
        told = left - request.constraints.left
        words = f"must tell the constraints of each row it takes, but chose {len(picked.rows)} and told of {told}"
        self._require(told == len(picked.rows) and np.isin(picked.rows, request.constraints.taken).all(), words)
        self._note = picked.note
        return picked

    def _check_picked(self, picked: Picked, request: Request, candidates: Candidates) -> None:
        self._require(isinstance(picked, Picked), f"must return a Picked, but returned a {type(picked).__name__}")
        rows, n = picked.rows, len(candidates)
        good = isinstance(rows, np.ndarray) and rows.ndim == 1 and rows.dtype == np.int64
        self._require(good, f"must return rows as a (b,) int64 array, but returned {_kind(rows)}")
        outside = rows[(rows < 0) | (rows >= n)]
        self._require(not len(outside), f"must choose rows in 0 .. {n - 1}, but chose {outside[:3]}")
        values, counts = np.unique(rows, return_counts=True)
        self._require(len(values) == len(rows), f"must choose distinct rows, but chose {values[counts > 1][:3]} more than once")
        self._require(len(rows) <= request.budget, f"must choose at most {request.budget} rows here, but chose {len(rows)}")
        for name, column in (("gain", picked.gain), ("distance", picked.distance), ("probability", picked.probability)):
            good = isinstance(column, np.ndarray) and column.shape == rows.shape and column.dtype == np.float64
            optional = name != "gain" and column is None
            self._require(good or optional, f"must return {name} as a ({len(rows)},) float64 array, but returned {_kind(column)}")
        if picked.probability is not None:
            bad = picked.probability[~((picked.probability > 0) & (picked.probability <= 1))]
            self._require(not len(bad), f"must return probabilities above 0 and at most 1, but returned {bad[:3]}")
        if picked.distance is not None:
            expected = _distances(self._case.space(self._case.x), rows, request.labelled)
            self._require_equal("must report each row's distance to the nearest before it", expected, picked.distance, tolerance=1e-6)

    def _check_constraints(self, chosen: Chosen) -> None:
        """Go through the batch again under constraints that the strategy has never seen."""
        repeats, x = self._case.repeats(), self._case.space(self._case.x)
        constraints, everyone = self._case.constraints(repeats), np.arange(len(x))
        given = 0 if self._case.must_include is None else len(self._case.must_include)
        for rank, row in enumerate(map(int, chosen.rows)):
            if repeats is not None and rank >= given and constraints.blocked(everyone).all():
                repeats.passed_over = False  # nothing else is left
            blocked = rank >= given and constraints.blocked(np.asarray([row]), x[row : row + 1])[0]
            self._require(not blocked, f"must not choose blocked rows, but chose {row}, which the constraints had blocked by then")
            constraints.take(row, x[row])
        free = everyone[~constraints.blocked(everyone, x)]
        words = f"must choose min(budget, those not blocked) rows or say in `note` why not, but chose {len(chosen.rows) - given}"
        self._require(not len(free) or self._note is not None, f"{words} and left out {free[:3]}, which nothing blocked")

    def _require(self, kept: bool | np.bool_, promise: str) -> None:
        if not kept:
            raise self._broken(promise)

    def _require_equal(self, promise: str, expected: Array, got: Array, tolerance: float = 0.0) -> None:
        self._require(len(expected) == len(got), f"{promise}, but chose {len(expected)} rows, then {len(got)}")
        differ = np.flatnonzero(~np.isclose(got, expected, rtol=tolerance, atol=0, equal_nan=True))
        if len(differ):
            raise self._broken(f"{promise}, but at rank {differ[0]} it is {got[differ[0]]} instead of {expected[differ[0]]}")

    def _broken(self, promise: str) -> StrategyContractError:
        name = getattr(self._strategy, "__name__", "the strategy")
        return StrategyContractError(f"{name} {promise} (on {self._case})")


def _inputs(candidates: Candidates, request: Request) -> dict[str, Array]:
    """Copy every array that a strategy is given."""
    arrays = {f"candidates.{name}": getattr(candidates, name) for name in ("score", "keys", "labelled", "samples", "similar_to")}
    arrays["request.labelled"] = request.labelled
    held = {"shards": None if candidates.shards is None else candidates.shards.rows, "probabilities": candidates.probabilities}
    for name, rows in held.items():
        arrays |= {f"candidates.{name}": part.array for part in (rows.parts if rows is not None else ())}
    return {name: array.copy() for name, array in arrays.items() if array is not None}


def _distances(x: Array, rows: Array, labelled: Array | None) -> Array:
    """Compute (b,) float64 distances by the definition, nan where nothing comes before."""
    fixed = np.empty((0, x.shape[1]), dtype=np.float32) if labelled is None else labelled
    before = np.concatenate([fixed, x[rows]])
    ends = range(len(fixed), len(before))
    return np.asarray([np.sqrt(squared_distances(before[:end], before[end]).min()) if end else np.nan for end in ends])


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
