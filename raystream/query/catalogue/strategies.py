"""The strategies, and the rule by which `auto` picks one.

The selection strategies.

`strategy: auto`: the written rule by which a strategy is picked, and the figures that it stands on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raystream.query.catalogue.kinds import Arg, count, flag, fraction, load, natural, positive

AUTO = "auto"
CONTROL = "random"
"""The strategy that all others are compared with."""

ENOUGH = 3.0
"""Labelled rows per class seen, from which a model's scores are trusted.

From as many random rows as there are classes, 10 seeds, the area under the curve by labels against k_means throughout, by
`benchmarks/simulate.py --thresholds`:

    threshold     digits  near copies  MNIST   glosses  a class of 1%
    2             +.003   +.028        +.019   +.001    -.003
    3             +.004   +.031        +.022   +.009    +.001
    4             +.002   +.031        +.023   +.006    +.052
    5             +.002   +.031        +.027   -.004    +.052
    8             -.002   +.029        +.024   -.019    +.047

Each set left out, the others choose 4, 4, 4, 5 and 3. On digits, 30 seeds from 10 rows: 2 +.0050 (standard error .0013), 3 +.0040, 4
+.0027. With 3, and not with 2 or 4, `auto` is within one standard error of the best fixed strategy on three of these sets in
`benchmarks/simulate.py`. A first batch by typiclust instead of random gains .0147 on digits.
"""
_FIRST, _FIRST_PLAIN, _LATER, _LATER_PLAIN, _NUMBERS = "typiclust", CONTROL, "k_means", "power", "lcmd"


@dataclass(frozen=True)
class AutoChoice:
    """What the rule says.

    Attributes:
        strategy: with its own default of `candidates`.
        why: a sentence.
    """

    strategy: str
    why: str


def pick(labelled: int, classes: int, *, task: str, embedding: bool, score: bool, enough: float = ENOUGH) -> AutoChoice:
    """Pick the strategy for a batch.

    Args:
        labelled: rows that have labels.
        classes: of the model, or seen in the labels.
        task: `model.task`.
        embedding: whether rows have one.
        score: whether rows have one.
        enough: labelled rows per class from which scores are trusted; another than the default only to measure it.
    """
    if not labelled:
        if embedding:
            return AutoChoice(_FIRST, "nothing is labelled, so that scores mean nothing, and typical rows come first")
        return AutoChoice(_FIRST_PLAIN, "nothing is labelled, and there is no embedding to tell rows apart by")
    if task == "regression":
        if embedding:
            return AutoChoice(_NUMBERS, "the model predicts numbers")
        return AutoChoice(_LATER_PLAIN if score else _FIRST_PLAIN, "the model predicts numbers, and there is no embedding")
    each = labelled / max(classes, 1)
    seen = f"{labelled:,} labelled rows of {classes:,} {'class' if classes == 1 else 'classes'}, {each:.3g} for each"
    if embedding and (each < enough or not score):
        below = f"below {enough:g}: too few to trust scores" if each < enough else "but the model gives no score"
        return AutoChoice(_FIRST, f"{seen}, {below}")
    if not score:
        return AutoChoice(_FIRST_PLAIN, f"{seen}, but the model gives neither a score nor an embedding")
    if not embedding:
        return AutoChoice(_LATER_PLAIN, f"{seen}, and there is no embedding")
    return AutoChoice(_LATER, f"{seen}, at least {enough:g}: scores count")


@dataclass(frozen=True)
class Traits:
    """One strategy.

    Attributes:
        does: what it chooses, in a line.
        use_when: whom it serves, a sentence or two.
        code: the import path of its function, `(Candidates, Request) -> Picked`. The function for arrays is called by the strategy's
            name and stands in `raystream.selection`.
        costs: the time that it takes to choose 1,000 among a million candidates of 256 dimensions, on two cores with bfloat16 units.
        score: it can't do without an acquisition score.
        embedding: it can't do without embeddings.
        probabilities: it needs the class probabilities of every candidate.
        samples: it needs the log-probabilities that several members or dropout samples give every candidate.
        chance: it draws from the rows' hashes.
        tenfold: its candidates are ten times the budget unless the query says otherwise; else all rows.
        sharded: it works through `Shards`, so that candidates may lie on several machines.
        proves_radius: it goes farthest-first, so that by distance alone, with every parameter left as it is, no batch of the size has
            less than half its covering radius.
        keys: the keys of `select` that it uses beyond those of all strategies.
        args: its own parameters, in `select.args`.
    """

    does: str
    use_when: str
    code: str
    costs: str
    score: bool = False
    embedding: bool = False
    probabilities: bool = False
    samples: bool = False
    chance: bool = False
    tenfold: bool = False
    sharded: bool = False
    proves_radius: bool = False
    keys: frozenset[str] = frozenset()
    args: Mapping[str, Arg] = field(default_factory=dict)

    @property
    def function(self) -> Any:
        """The code, loaded."""
        return load(self.code)

    def leaves_defaults(self, args: Mapping[str, Any]) -> bool:
        """Tell whether all its parameters are what they would be if none were given."""
        return all(value == self.args[name].default for name, value in args.items() if name in self.args)

    def needs_score(self, terms: Mapping[str, float]) -> bool:
        """Tell whether it needs a score, given `select.terms`, which name it where the strategy takes terms; by default they do."""
        return self.score or ("terms" in self.keys and (not terms or terms.get("score", 0) > 0))


TERMS = ("score", "distance", "typicality", "similarity")
"""The objectives that a strategy with terms multiplies, `select.terms`."""

OPTIONAL_KEYS = frozenset({"metric", "weight", "mix", "memory", "terms", "similar_to"})
"""The keys of `select` that only some strategies use; any other strategy refuses them."""


def _keys(*names: str) -> frozenset[str]:
    return frozenset(names) | {"memory"}


TRAITS: Mapping[str, Traits] = {
    "badge": Traits(
        "by the size and direction of the last layer's gradient: D-squared sampling, exact, factorised",
        "predicted classes as well as embeddings should tell rows apart, by the gradients of the last layer.",
        "raystream.selection.strategies.badge:badge_strategy",
        "2 s",
        embedding=True,
        probabilities=True,
        tenfold=True,
        sharded=True,
        keys=_keys(),
        args={
            "bias": flag(True, "the last layer has a bias, which is part of the gradient"),
            "covered": flag(False, "labelled rows count as drawn already; in the paper they don't"),
        },
    ),
    "batch_bald": Traits(
        "the rows that tell most about the model together; to 50 rows, needs samples",
        "you have a committee or MC dropout, each label is dear, and the batch is of at most 50 rows.",
        "raystream.selection.strategies.batch_bald:batch_bald_strategy",
        "only its candidates, 10 x budget; grows with samples, classes and the square of the batch",
        samples=True,
        tenfold=True,
        args={
            "configurations": count(
                None, "of labels that are listed, or drawn once there are more", "100,000 / classes, from 1,000 to 10,000"
            )
        },
    ),
    "cluster_margin": Traits(
        "smallest margins, at most one a cluster in each round",
        "batches are of thousands of rows, and the pool is redundant.",
        "raystream.selection.strategies.cluster_margin:cluster_margin_strategy",
        "15 s",
        score=True,
        embedding=True,
        sharded=True,
        keys=_keys("metric"),
        args={
            "clusters": count(None, "of all candidates", "2 x budget"),
            "m": positive(10.0, "m x budget rows are shortlisted; at least 1: 1.25 for clean pools to 10 for redundant ones"),
        },
    ),
    "combine": Traits(
        "a product of objectives, each to the power of its strength",
        "you want to weigh uncertainty, distance, density and likeness yourself, as in `terms: {score: 1, distance: 1, typicality: 1, "
        "similarity: 2}`; `similar_to: [ids]` asks for more like these.",
        "raystream.selection.strategies.diverse:combine_strategy",
        "5 s",
        embedding=True,
        keys=_keys("metric", "terms", "similar_to"),
    ),
    "core_set": Traits(
        "the row farthest from all chosen ones, exactly, in a handful of passes",
        "the pool must be covered, rare rows included, and a bound on how well matters; with `candidates: all` it needs no score.",
        "raystream.selection.strategies.core_set:core_set_strategy",
        "3 s",
        embedding=True,
        tenfold=True,
        sharded=True,
        proves_radius=True,
        keys=_keys("metric", "weight"),
        args={"outliers": natural(0, "so many of the farthest rows are skipped at each step")},
    ),
    "diverse": Traits(
        "(1 - mix) x score + mix x distance, greedily",
        "you want one knob between the highest scores and a spread batch.",
        "raystream.selection.strategies.diverse:diverse_strategy",
        "3 s",
        score=True,
        embedding=True,
        tenfold=True,
        sharded=True,
        keys=_keys("metric", "mix"),
    ),
    "facility_location": Traits(
        "the rows most similar to all others",
        "the batch should represent the pool as a whole, and outliers aren't worth a label.",
        "raystream.selection.strategies.facility_location:facility_location_strategy",
        "48 s",
        embedding=True,
        chance=True,
        keys=_keys(),
        args={
            "targets": count(None, "rows to represent, drawn by hashes", "20,000, down to 2,000 where pairs with the candidates pass 2^32")
        },
    ),
    "k_center_two_round": Traits(
        "a core set in two rounds, for pools far beyond one machine",
        "a core set is wanted of so many rows that the exact passes take too long.",
        "raystream.selection.strategies.k_center_two_round:k_center_two_round_strategy",
        "18 s",
        embedding=True,
        keys=_keys("metric"),
        args={
            "eps": positive(0.5, "the smaller, the more rows a piece hands on"),
            "piece": count(262_144, "rows of a piece, counted from the first row"),
        },
    ),
    "k_means": Traits(
        "the row nearest to each centre of k-means weighted by the score; the default",
        "you have no reason for another: with `margin` it did best in our comparisons.",
        "raystream.selection.strategies.k_means:k_means_strategy",
        "13 s",
        score=True,
        embedding=True,
        tenfold=True,
        sharded=True,
        keys=_keys("metric"),
        args={"iterations": count(20, "of Lloyd's algorithm at most; it ends where one gains next to nothing")},
    ),
    "k_means_pp": Traits(
        "D-squared sampling of embeddings",
        "you want a spread batch drawn at random, so that several draws differ; outliers come less often than by a core set.",
        "raystream.selection.strategies.k_means_pp:k_means_pp_strategy",
        "2 s",
        embedding=True,
        sharded=True,
        keys=_keys("metric"),
    ),
    "lcmd": Traits(
        "the farthest row of the widest cluster; for regression",
        "the model predicts numbers; of classes without a score, `facility_location` and `typiclust` tell more.",
        "raystream.selection.strategies.lcmd:lcmd_strategy",
        "18 s",
        embedding=True,
        keys=_keys("metric"),
    ),
    "power": Traits(
        "the highest scores, with noise against redundancy: in proportion to score^beta",
        "there is no embedding, or choosing must cost nothing; scores are at least 0.",
        "raystream.selection.strategies.ranking:power_strategy",
        "under a second",
        score=True,
        chance=True,
        args={"beta": positive(1.0, "near 0 it is chance, far above 1 it is `top_k`")},
    ),
    "prob_cover": Traits(
        "balls that cover most rows",
        "few rows are labelled, embeddings are good, and typical rows should come first. Not on TF-IDF of short texts.",
        "raystream.selection.strategies.prob_cover:prob_cover_strategy",
        "60 s",
        embedding=True,
        keys=_keys("metric"),
        args={
            "delta": positive(None, "the radius that a label is believed in", "the largest whose balls are pure in pseudo-labels"),
            "purity": fraction(0.5, "the share of balls that are pure at `delta`; 0.95 in the paper, where the clusters are the classes"),
            "edges": count(
                None,
                "rows of each ball, on average, by which gains are counted: of larger balls, those drawn by hashes",
                "all up to 8,192 rows, 671 at 100,000, 67 at a million",
            ),
            "clusters": count(
                None, "of pseudo-labels, by which `delta` is found: the classes, if you know how many", "50, or one for every 20 rows"
            ),
        },
    ),
    "random": Traits(
        "chance alone; the control",
        "you want to know what selection buys you, or an unbiased sample.",
        "raystream.selection.strategies.ranking:random_strategy",
        "under a second",
        chance=True,
    ),
    "softmax": Traits(
        "the highest scores, with noise: in proportion to exp(beta x score)",
        "as `power`, but scores may be negative.",
        "raystream.selection.strategies.ranking:softmax_strategy",
        "under a second",
        score=True,
        chance=True,
        args={"beta": positive(1.0, "near 0 it is chance; the larger, the nearer to `top_k`")},
    ),
    "softrank": Traits(
        "the highest scores, with noise: in proportion to rank^-beta",
        "as `power`, but only the order of the scores should matter.",
        "raystream.selection.strategies.ranking:softrank_strategy",
        "under a second",
        score=True,
        chance=True,
        args={"beta": positive(1.0, "near 0 it is chance, far above 1 it is `top_k`")},
    ),
    "top_k": Traits(
        "the highest scores; the control",
        "rows are labelled one at a time or the pool holds no two alike.",
        "raystream.selection.strategies.ranking:top_k_strategy",
        "under a second",
        score=True,
    ),
    "typiclust": Traits(
        "the densest row of each cluster; for a first batch without labels",
        "nothing or little is labelled, so that scores mean nothing yet, and embeddings come from a pretrained model.",
        "raystream.selection.strategies.typiclust:typiclust_strategy",
        "13 s",
        embedding=True,
        sharded=True,
        keys=_keys("metric"),
        args={
            "clusters": count(500, "at most; beyond it every cluster is gone to again"),
            "neighbours": count(20, "that the density looks at"),
        },
    ),
    "u_herding": Traits(
        "the rows that explain most of the uncertainty around them",
        "score and density should count together, from the first batch to the last, embeddings come from a trained network and "
        "`model.temperature` is fitted: scores that are all alike leave density alone. Not on TF-IDF of short texts; take `k_means` there.",
        "raystream.selection.strategies.u_herding:u_herding_strategy",
        "90 s",
        score=True,
        embedding=True,
        chance=True,
        keys=_keys(),
        args={
            "delta": positive(
                None,
                "the kernel's width",
                "the median distance of targets to their 20th neighbour, or of labelled rows to their nearest labelled one, if less",
            ),
            "targets": count(None, "rows to explain, drawn by hashes", "as of `facility_location`"),
        },
    ),
}
"""What `select.strategy` may be, but for strategies that users write."""

USERS_OWN = Traits(
    "what its own code says",
    "none of the others does what you need; `raystream.selection.check_strategy` tells whether it keeps the contract.",
    "",
    "what its own code takes",
    embedding=True,
    chance=True,
    keys=_keys("metric"),
)
"""A strategy by import path: it is given all there is."""


PICKED = Traits(
    "what the written rule picks, see `raystream.query.catalogue.strategies`",
    "you don't want to choose a strategy.",
    "",
    "what the strategy that it picks takes",
    score=True,
    embedding=True,
    chance=True,
    keys=frozenset({"memory"}),
)
"""`auto`: all that any strategy that it picks may need."""


def traits(strategy: str) -> Traits:
    """Find those of a strategy by name, of `auto`, or by import path."""
    if strategy == AUTO:
        return PICKED
    return USERS_OWN if ":" in strategy else TRAITS[strategy]
