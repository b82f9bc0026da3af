"""What each selection strategy needs and takes, as data: for checking a query without loading any of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arg:
    """A parameter in `select.args`: what is expected, in words, and whether a value is that."""

    expected: str
    accepts: Callable[[object], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


COUNT = Arg("a whole number of at least 1", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1)
NATURAL = Arg("a whole number of at least 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0)
POSITIVE = Arg("a number above 0", lambda v: _is_number(v) and 0 < v < float("inf"))  # type: ignore[operator]
FRACTION = Arg("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1)  # type: ignore[operator]
FLAG = Arg("true or false", lambda v: isinstance(v, bool))


@dataclass(frozen=True)
class Traits:
    """One strategy.

    Attributes:
        score: it can't do without an acquisition score.
        embedding: it can't do without embeddings.
        probabilities: it needs the class probabilities of every candidate.
        samples: it needs the log-probabilities that several members or dropout samples give every candidate.
        chance: it draws from the rows' hashes.
        tenfold: its candidates are ten times the budget unless the query says otherwise; else all rows.
        sharded: it works through `Shards`, so that candidates may lie on several machines.
        keys: the keys of `select` that it uses beyond those of all strategies.
        args: its own parameters, in `select.args`.
    """

    score: bool = False
    embedding: bool = False
    probabilities: bool = False
    samples: bool = False
    chance: bool = False
    tenfold: bool = False
    sharded: bool = False
    keys: frozenset[str] = frozenset()
    args: Mapping[str, Arg] = field(default_factory=dict)


TRAITS: Mapping[str, Traits] = {
    "badge": Traits(
        embedding=True, probabilities=True, tenfold=True, sharded=True, keys=frozenset({"memory"}), args={"bias": FLAG, "covered": FLAG}
    ),
    "batch_bald": Traits(samples=True, tenfold=True, args={"configurations": COUNT}),
    "cluster_margin": Traits(score=True, embedding=True, keys=frozenset({"metric", "memory"}), args={"clusters": COUNT, "m": POSITIVE}),
    "combine": Traits(embedding=True, keys=frozenset({"metric", "memory", "terms", "similar_to"})),
    "core_set": Traits(
        embedding=True, tenfold=True, sharded=True, keys=frozenset({"metric", "weight", "memory"}), args={"outliers": NATURAL}
    ),
    "diverse": Traits(score=True, embedding=True, tenfold=True, sharded=True, keys=frozenset({"metric", "mix", "memory"})),
    "facility_location": Traits(embedding=True, chance=True, keys=frozenset({"memory"}), args={"targets": COUNT}),
    "k_center_two_round": Traits(embedding=True, keys=frozenset({"metric", "memory"}), args={"eps": POSITIVE, "piece": COUNT}),
    "k_means": Traits(score=True, embedding=True, tenfold=True, keys=frozenset({"metric", "memory"}), args={"iterations": COUNT}),
    "k_means_pp": Traits(embedding=True, sharded=True, keys=frozenset({"metric", "memory"})),
    "lcmd": Traits(embedding=True, keys=frozenset({"metric", "memory"})),
    "power": Traits(score=True, chance=True, args={"beta": POSITIVE}),
    "prob_cover": Traits(
        embedding=True,
        keys=frozenset({"metric", "memory"}),
        args={"delta": POSITIVE, "purity": FRACTION, "edges": COUNT, "clusters": COUNT},
    ),
    "random": Traits(chance=True),
    "softmax": Traits(score=True, chance=True, args={"beta": POSITIVE}),
    "softrank": Traits(score=True, chance=True, args={"beta": POSITIVE}),
    "top_k": Traits(score=True),
    "typiclust": Traits(embedding=True, keys=frozenset({"metric", "memory"}), args={"clusters": COUNT, "neighbours": COUNT}),
    "u_herding": Traits(score=True, embedding=True, chance=True, keys=frozenset({"memory"}), args={"delta": POSITIVE, "targets": COUNT}),
}
"""What `select.strategy` may be, but for strategies that users write."""

TERMS = ("score", "distance", "typicality", "similarity")
"""The objectives that `combine` multiplies, `select.terms`."""

OPTIONAL_KEYS = frozenset({"metric", "weight", "mix", "memory", "terms", "similar_to"})
"""The keys of `select` that only some strategies use; any other strategy refuses them."""

USERS_OWN = Traits(embedding=True, chance=True, keys=frozenset({"metric", "memory"}))
"""A strategy by import path: it is given all there is."""


def traits(strategy: str) -> Traits:
    """Of a strategy by name, or by import path."""
    return USERS_OWN if ":" in strategy else TRAITS[strategy]
