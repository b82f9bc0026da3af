"""The rules of the catalogue in words: what goes with what, what may have been meant, what is there.

When a loop may stop: the rules, with their parameters.

What a name means that is no entry of the catalogue, but is used for some elsewhere: `uncertainty`, `coreset`, `query by committee`.

The catalogue as tables: what `raystream strategies` prints, and from what the reference in docs/ is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from raystream.errors import did_you_mean
from raystream.query.catalogue.kinds import (
    ALL_TASKS,
    ENTRY_POINTS,
    KINDS,
    REGISTERED,
    Arg,
    KindEntry,
    count,
    fraction,
    load,
    positive,
    share,
    text,
)
from raystream.query.catalogue.scores import SCORES, ScoreEntry
from raystream.query.catalogue.strategies import AUTO, ENOUGH, TRAITS, Traits


@dataclass(frozen=True)
class RuleEntry:
    """One rule.

    Attributes:
        does: when it stops, in a line.
        needs: what it looks at beyond labels and rounds, in words; empty where there is nothing.
        code: the import path of its class, whose instances are asked `holds(history)`.
        tasks: what `model.task` may be; empty for all.
        args: its parameters.
    """

    does: str
    code: str
    needs: str = ""
    tasks: frozenset[str] = frozenset()
    args: Mapping[str, Arg] = field(default_factory=dict)

    @property
    def make(self) -> Any:
        """The class, loaded."""
        return load(self.code)


_CLASSES = frozenset({"classes"})
_METRIC = text("the metric that it looks at", "the first of `metrics`")

RULES: Mapping[str, RuleEntry] = {
    "budget": RuleEntry(
        "so many rows are labelled in all", "raystream.loop.stopping:Budget", args={"labels": count(None, "in all", "`loop.budget`")}
    ),
    "classification_change": RuleEntry(
        "no more than a share of the sample changed its prediction",
        "raystream.loop.stopping:ClassificationChange",
        "a sample of the pool",
        _CLASSES,
        {"threshold": share(0.0, "at most this share")},
    ),
    "exhausted": RuleEntry("nothing eligible is left", "raystream.loop.stopping:Exhausted"),
    "kappa": RuleEntry(
        "successive models agree, by Cohen's kappa of their predictions",
        "raystream.loop.stopping:Kappa",
        "a sample of the pool",
        _CLASSES,
        {"threshold": share(0.99, "the mean kappa is at least this"), "window": count(3, "so many of the last kappas")},
    ),
    "overall_uncertainty": RuleEntry(
        "the mean entropy of the sample is low, as a share of the largest possible",
        "raystream.loop.stopping:OverallUncertainty",
        "a sample of the pool",
        _CLASSES,
        {"threshold": fraction(0.05, "below this share")},
    ),
    "plateau": RuleEntry(
        "the metric has hardly gained",
        "raystream.loop.stopping:Plateau",
        "`evaluate` or `control`",
        args={
            "metric": _METRIC,
            "patience": count(3, "over so many rounds"),
            "least": positive(0.002, "a gain below this is none"),
        },
    ),
    "rounds": RuleEntry(
        "so many rounds are closed", "raystream.loop.stopping:Rounds", args={"rounds": count(None, "in all", "`loop.rounds`")}
    ),
    "target": RuleEntry(
        "the metric's lower bound has reached the target, by Wilson's interval with z = 3.02",
        "raystream.loop.stopping:Target",
        "`evaluate` or `control`",
        _CLASSES,
        {"metric": _METRIC, "value": fraction(None, "the target", "**needed**")},
    ),
}
"""What `loop.stop.rules` may name."""

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


@dataclass(frozen=True)
class CatalogueEntry:
    """One entry, in words.

    Attributes:
        name: as a query names it.
        does: a line.
        needs: what it can't do without.
        facts: what else there is to say, by name.
        keys: of its section of a query, that it uses beyond those of all others.
        args: its own parameters.
        code: the import path of its code.
    """

    name: str
    does: str
    needs: tuple[str, ...]
    facts: Mapping[str, str]
    keys: tuple[str, ...]
    args: Mapping[str, Arg] = field(default_factory=dict)
    code: str = ""

    def summary(self) -> dict[str, Any]:
        """Make what `--json` prints."""
        args = [
            {"name": name, "expected": arg.expected, "default": arg.default, "otherwise": arg.otherwise, "meaning": arg.meaning}
            for name, arg in self.args.items()
        ]
        return {"name": self.name, "does": self.does, "needs": list(self.needs), **self.facts, "keys": list(self.keys), "args": args,
                "code": self.code}  # fmt: skip


def listings() -> dict[str, list[CatalogueEntry]]:
    """List all entries: `strategies`, `scores`, and `kinds` with those that other packages register; each sorted by name or by source."""
    registered = sorted(entry_points(group=ENTRY_POINTS).names - KINDS.keys())
    return {
        "strategies": [*(_strategy(name, traits) for name, traits in TRAITS.items()), _AUTO],
        "scores": [_score(name, entry) for name, entry in SCORES.items()],
        "kinds": [*(_kind(name, entry) for name, entry in KINDS.items()), *(_kind(name, REGISTERED) for name in registered)],
    }


def _strategy(name: str, traits: Traits) -> CatalogueEntry:
    needs = {"score": traits.needs_score({}), "embedding": traits.embedding, "probabilities": traits.probabilities,
             "samples": traits.samples}  # fmt: skip
    return CatalogueEntry(
        name,
        traits.does,
        tuple(word for word, needed in needs.items() if needed),
        {"use_when": traits.use_when, "costs": traits.costs, "candidates": "10 x budget" if traits.tenfold else "all"},
        tuple(sorted(traits.keys)),
        traits.args,
        traits.code,
    )


def _score(name: str, entry: ScoreEntry) -> CatalogueEntry:
    return CatalogueEntry(
        name, entry.does, (entry.needs,), {"tasks": _tasks(entry.tasks)}, tuple(sorted(entry.keys)), entry.args, entry.code
    )


_AUTO = CatalogueEntry(
    AUTO,
    "leaves it to a written rule: typiclust while little is labelled, then k_means weighted by the score, of numbers lcmd",
    (),
    {
        "use_when": f"you would rather not decide; scores are trusted from {ENOUGH:g} labelled rows for each class seen, and the result "
        "says what was picked, and why.",
        "costs": "as long as what it picks",
        "candidates": "those of what it picks",
    },
    (),
    code="raystream.query.catalogue.strategies:pick",
)


def _tasks(tasks: frozenset[str]) -> str:
    return "all" if tasks == frozenset(ALL_TASKS) else ", ".join(task for task in ALL_TASKS if task in tasks)


def _kind(name: str, entry: KindEntry) -> CatalogueEntry:
    facts = {
        "source": entry.source or "none",
        "embedding": entry.embedding,
        "tasks": _tasks(entry.tasks),
        "texts": entry.texts,
        "mc_dropout": f"no: {entry.no_dropout}" if entry.no_dropout else "yes",
    }
    needs = (f"pip install '.[{entry.extra}]'",) if entry.extra else ()
    return CatalogueEntry(name, entry.does, needs, facts, tuple(sorted(entry.keys)), code=entry.code)
