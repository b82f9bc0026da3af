"""What a name means that is no entry of the catalogue, but is used for some elsewhere: `uncertainty`, `coreset`, `query by committee`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raystream.errors import did_you_mean
from raystream.query.catalogue.auto import AUTO
from raystream.query.catalogue.scores import SCORES
from raystream.query.catalogue.strategies import TRAITS

_SCORES: Mapping[str, Sequence[str]] = {
    "uncertainty": ("least_confidence", "margin", "entropy"),
    "confidence": ("least_confidence",),
    "max_prob": ("least_confidence",),
    "best_vs_second_best": ("margin",),
    "bvsb": ("margin",),
    "disagreement": ("bald", "vote_entropy", "variation_ratio"),
    "query_by_committee": ("vote_entropy", "consensus_entropy", "bald"),
    "qbc": ("vote_entropy", "consensus_entropy", "bald"),
    "committee": ("vote_entropy", "consensus_entropy", "bald"),
    "dropout": ("bald", "mean_std", "variation_ratio"),
    "mutual_information": ("bald",),
    "information_gain": ("bald", "epig"),
    "epistemic": ("bald",),
    "knowledge_uncertainty": ("bald",),
    "total_uncertainty": ("consensus_entropy",),
    "std": ("mean_std", "variance"),
    "gradient": ("egl", "badge_norm", "egl_parameters"),
    "expected_gradient_length": ("egl", "egl_parameters"),
    "out_of_distribution": ("energy",),
    "ood": ("energy",),
}
_STRATEGIES: Mapping[str, Sequence[str]] = {
    "uncertainty": ("top_k", "k_means"),
    "greedy": ("top_k",),
    "highest": ("top_k",),
    "diversity": ("k_means", "core_set", "diverse"),
    "clustering": ("k_means", "typiclust", "cluster_margin"),
    "kmeans++": ("k_means_pp",),
    "k_means++": ("k_means_pp",),
    "k_center": ("core_set", "k_center_two_round"),
    "kcenter": ("core_set", "k_center_two_round"),
    "k_center_greedy": ("core_set",),
    "farthest_first": ("core_set",),
    "submodular": ("facility_location",),
    "representative": ("facility_location", "typiclust"),
    "density": ("typiclust", "prob_cover", "u_herding"),
    "coverage": ("prob_cover", "core_set"),
    "cold_start": ("typiclust", "prob_cover"),
    "herding": ("u_herding",),
    "hybrid": ("diverse", "combine", "badge"),
    "stochastic": ("power", "softmax", "softrank"),
    "gumbel": ("power", "softmax", "softrank"),
    "uniform": ("random",),
    "passive": ("random",),
}
"""Names that are not found by their spelling, and the entries that they may stand for."""


def meant_score(name: str) -> str:
    """Say of a name that is no score which ones are meant, or that it is a strategy."""
    return _meant(name, _SCORES, list(SCORES), list(TRAITS), "a strategy: select.strategy")


def meant_strategy(name: str) -> str:
    """Say of a name that is no strategy which ones are meant, or that it is a score."""
    return _meant(name, _STRATEGIES, [*TRAITS, AUTO], list(SCORES), "a score: acquire.score")


def _meant(name: str, known: Mapping[str, Sequence[str]], entries: Sequence[str], others: Sequence[str], place: str) -> str:
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    for stem in (plain, plain.removesuffix("_sampling"), plain.removesuffix("_score")):
        if stem in entries:
            return f"; did you mean {stem!r}?"
        if stem in known:
            *first, last = known[stem]
            return f"; that is {', '.join(first)} or {last} here" if first else f"; that is {last} here"
    if plain in others:
        return f"; {plain} is {place}"
    near = did_you_mean(plain, entries)
    return near if near.startswith("; did") else f", expected {', '.join(sorted(entries))} or an import path module:function"
