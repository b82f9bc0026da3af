"""The rounds of one strategy and seed in memory, and the scores that they choose by.

Rounds in memory: choose, label, train, judge, on arrays of which every label is known. The one loop behind all learning curves.

Nothing is read or written. What a round does is what a loop's round does over a store: the same strategies see the same scores,
embeddings and hashes. Every draw is a function of (seed, round), never of the strategy, so that strategies are paired by seed.

The acquisition scores of a trained model's outputs, for rounds that hold arrays.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raystream.acquisition import (
    logit_scores,
    member_scores,
    multi_label_member_scores,
    multi_label_scores,
    regression_variance,
)
from raystream.errors import QueryError
from raystream.figures import number_of
from raystream.loop.metrics import measure
from raystream.loop.trainers.by_name import CommitteeFitted, fit
from raystream.loop.trainers.training import Fitted, Trainer, TrainingRows, gives_embedding, seed_of
from raystream.query.catalogue import SCORES, TRAITS
from raystream.query.catalogue.strategies import AUTO, CONTROL, ENOUGH, pick
from raystream.selection import Cost, select

Array = npt.NDArray[Any]
_SIMULATED = ("logits", "members")
"""What a score may be computed from; the others look into the model."""


def score_rows(score: str, task: str, values: Array, samples: Array | None) -> Array:
    """Return (n,) float32, higher = label sooner, as workers score the same outputs.

    Args:
        score: its name.
        task: `model.task`.
        values: (n, classes) probabilities, or (n, labels) of multi-label.
        samples: (n, members, classes) what each member of a committee says; needed by scores of members.
    """
    if task == "regression":
        return np.asarray(regression_variance(_members(samples, score)), dtype=np.float32)
    if SCORES[score].source == "members":
        logits = _logits(_members(samples, score), task)
        found = multi_label_member_scores(logits, [score]) if task == "multi_label" else member_scores(logits, [score]).scores
        return found[score].float().numpy()
    logits = _logits(values, task)
    if task == "multi_label":
        result: Array = np.asarray(multi_label_scores(logits, score), dtype=np.float32)
        return result
    return logit_scores(logits).scores[score].numpy()


def check_score(score: str, task: str, members: int) -> None:
    """Refuse a score that rounds in memory can't compute.

    Raises:
        QueryError: it looks into the model, is a function of the user's own, or needs a committee.
    """
    entry = SCORES.get(score)
    if entry is None or entry.source not in _SIMULATED:
        known = ", ".join(name for name, of in SCORES.items() if of.source in _SIMULATED and task in of.tasks)
        raise QueryError(f"acquire.score is {score}, which is not simulated; use one of {known}")
    if (entry.source == "members" or task == "regression") and members < 2:
        raise QueryError(f"acquire.score {score} compares several opinions of a row; set loop.committee to 2 or more")


def _members(samples: Array | None, score: str) -> Array:
    assert samples is not None, f"{score} was checked"
    return samples


def _logits(values: Array, task: str) -> torch.Tensor:
    """Return logarithms of probabilities, or log-odds of labels; -inf where a class is out of the question."""
    p = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    return (torch.logit(p) if task == "multi_label" else torch.log(p)).float()


Indices = npt.NDArray[np.int64]
_CHOICE, _TRAINING, _SPLIT, _CEILING = range(1, 5)
"""Purposes of seeds."""
_DIVERSE = "k_means_pp"
"""Spreads a batch without scores."""
_FEW = 2
"""Rows by which it shows whether a model gives embeddings."""
_OF_ANY = "near_duplicates"
"""The option that holds for every strategy, where there is an embedding to tell them by."""


@dataclass(frozen=True)
class Contender:
    """A strategy with what it is told.

    Attributes:
        name: for tables and curves.
        strategy: of the catalogue, or `auto`.
        score: what ranks.
        options: further arguments of `raystream.selection.select`, such as `candidates` and `args`.
        enough: labelled rows a class from which `auto` trusts scores.
    """

    name: str
    strategy: str
    score: str = "margin"
    options: Mapping[str, Any] = field(default_factory=dict)
    enough: float = ENOUGH


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows of which every label is known.

    Attributes:
        rows: all of them.
        ids: (n,) integers or strings, or left out the row numbers: what chance goes by.
        embedding: float32 (n, d), of a model that no round trains, computed once; None where the trained model gives it.
        first: float32 (n, d), what the first batch is chosen by, before there is a trained model; None if there is nothing.
        costs: (n,) float64 of at least 0, what labelling each row costs; None where nobody said.
    """

    rows: TrainingRows
    ids: Any = None
    embedding: Array | None = None
    first: Array | None = None
    costs: Array | None = None


@dataclass(frozen=True)
class Campaign:
    """How rounds go, for all strategies alike.

    Attributes:
        trainer: trains a model each round.
        metrics: what it is judged by.
        start: chooses the first batch, while nothing is labelled.
        start_budget: how many rows that is.
        batch: rows of each further round.
        rounds: how many, the first one included; None: until `budget`.
        budget: labels in all; None: until `rounds`.
        members: of a committee.
        warm_start: whether training goes on from the last round's model.
        batch_cost: what the rows of a batch may cost together; None: whatever they cost.
    """

    trainer: Trainer
    metrics: tuple[str, ...]
    start: Contender
    start_budget: int
    batch: int
    rounds: int | None = None
    budget: int | None = None
    members: int = 1
    warm_start: bool = False
    batch_cost: float | None = None


@dataclass(frozen=True)
class Played:
    """One round.

    Attributes:
        labels: in all, after it.
        strategy: that chose its batch; empty of a first batch that was given.
        why: what `auto` says of its choice; else empty.
        metrics: of its model, by column.
        seconds_query: what choosing took, the forward pass and the scores with it.
        seconds_train: what training took.
        cost: of all labels so far; None where rows have no cost.
    """

    labels: int
    strategy: str
    why: str
    metrics: dict[str, float]
    seconds_query: float
    seconds_train: float
    cost: float | None = None


def play(
    pool: Pool,
    test: TrainingRows,
    campaign: Campaign,
    contender: Contender,
    seed: int,
    *,
    among: Indices | None = None,
    start: Indices | None = None,
) -> list[Played]:
    """Play one strategy's rounds under one seed.

    Args:
        pool: rows to choose from.
        test: rows to judge by, of the same task and classes.
        campaign: how rounds go.
        contender: what chooses, from the second round on.
        seed: of the start, every draw and every training.
        among: rows of the pool that may be chosen; left out, all.
        start: the first batch; left out, what `campaign.start` chooses.

    Returns:
        a round at least; fewer than asked for where no rows are left, or none that a batch may cost.

    Raises:
        QueryError: no row is cheap enough for the first batch.
    """
    free = np.ones(len(pool.rows), dtype=bool)
    if among is not None:
        free[:] = False
        free[among] = True
    labelled = np.empty(0, dtype=np.int64)
    model: Fitted | None = None
    history: list[Played] = []
    while True:
        number = len(history) + 1
        began = time.perf_counter()
        budget = campaign.start_budget if number == 1 else campaign.batch
        if campaign.budget is not None:
            budget = min(budget, campaign.budget - len(labelled))
        if number == 1 and start is not None:
            batch, strategy, why = start, "", ""
        else:
            seen = _RowsInView(pool, campaign, np.flatnonzero(free), labelled, model)
            batch, strategy, why = seen.batch(campaign.start if number == 1 else contender, budget, seed_of(seed, number, _CHOICE))
        chosen = time.perf_counter()
        if not len(batch) and not history and pool.costs is not None and campaign.batch_cost is not None:
            raise QueryError(
                f"no row can be chosen: the cheapest of {number_of(int(free.sum()), 'row')} costs {pool.costs[free].min():g}, but "
                f"select.cost.budget is {campaign.batch_cost:g}; raise it"
            )
        if not len(batch):
            return history
        free[batch] = False
        labelled = np.concatenate([labelled, batch])
        model = _train(pool.rows, campaign, labelled, model, seed_of(seed, number, _TRAINING))
        trained = time.perf_counter()
        metrics = _judge(test, campaign.metrics, model, pool.rows, labelled)
        cost = None if pool.costs is None else float(pool.costs[labelled].sum())
        history.append(Played(len(labelled), strategy, why, metrics, chosen - began, trained - chosen, cost))
        if number == campaign.rounds or len(labelled) == campaign.budget or not free.any():
            return history


def ceiling(pool: Pool, test: TrainingRows, campaign: Campaign, seed: int, *, among: Indices | None = None) -> dict[str, float]:
    """Return the metrics of the same trainer on all labels."""
    rows = np.arange(len(pool.rows)) if among is None else among
    model = _train(pool.rows, campaign, rows, None, seed_of(seed, _CEILING))
    return _judge(test, campaign.metrics, model, pool.rows, rows)


def split(rows: TrainingRows, share: float, seed: int) -> tuple[Indices, Indices]:
    """Return the rows that may be chosen and those that are judged by, drawn by the seed; of classes, each in its share.

    Args:
        rows: all.
        share: that is judged by; at least one row is on either side.
        seed: of the draw.
    """
    n = len(rows)
    count = min(max(1, round(share * n)), n - 1)
    order = np.random.default_rng([seed, _SPLIT]).permutation(n)
    if rows.task == "classes":
        # rows of a class, in the order drawn, stand at even distances on one scale, of which the beginning is taken
        place = np.empty(n)
        for number in np.unique(rows.labels):
            own = order[rows.labels[order] == number]
            place[own] = (np.arange(len(own)) + 0.5) / len(own)
        order = order[np.argsort(place[order], kind="stable")]
    return np.sort(order[count:]), np.sort(order[:count])


def _train(rows: TrainingRows, campaign: Campaign, labelled: Indices, before: Fitted | None, seed: int) -> Fitted | None:
    """Train the model of these labels; None of one class alone, which nothing can be learnt from."""
    if rows.task == "classes" and len(np.unique(rows.labels[labelled])) < 2:
        return None
    return fit(campaign.trainer, rows.at(labelled), before if campaign.warm_start else None, seed, campaign.members)


def _judge(test: TrainingRows, metrics: Sequence[str], model: Fitted | None, rows: TrainingRows, labelled: Indices) -> dict[str, float]:
    """Compute the metrics; without a model, of saying always the one class that is known."""
    if test.task == "classes":
        assert test.classes is not None
        named = test.classes
        truth = np.array(test.labels)
        if model is None:
            only = int(rows.labels[labelled[0]])
            said, known = np.ones((len(test), 1)), [only]
        else:
            said = model.predict(test.inputs).values
            known = _numbers(model, named, said.shape[1])
        return _by_name(measure(metrics, test.task, truth, said, known), metrics, named)
    assert model is not None
    return measure(metrics, test.task, test.labels, model.predict(test.inputs).values)


def _numbers(model: Fitted, named: Sequence[Any], count: int) -> list[int]:
    """Return what the model's outputs stand for, as places in `named`."""
    if model.classes is None:
        return list(range(count))
    place = {label: number for number, label in enumerate(named)}
    if all(label in place for label in model.classes):
        return [place[label] for label in model.classes]
    return list(range(count))


def _by_name(found: dict[str, float], metrics: Sequence[str], named: Sequence[Any]) -> dict[str, float]:
    """Return columns of one class by what the class is called."""
    whole = set(metrics)
    return {
        column if column in whole else f"{column.rpartition('_')[0]}_{named[int(column.rpartition('_')[2])]}": value
        for column, value in found.items()
    }


@dataclass(frozen=True, eq=False)
class _RowsInView:
    """What a strategy may see of the rows before a round.

    Attributes:
        free: (m,) rows that may be chosen.
        labelled: (k,) rows that are labelled.
        model: of the last round; None before the first, and of one class alone.
    """

    pool: Pool
    campaign: Campaign
    free: Indices
    labelled: Indices
    model: Fitted | None

    @property
    def fixed(self) -> Array | None:
        """(n, d) embeddings that no model of a round gives."""
        if self.pool.embedding is not None or self.model is not None:
            return self.pool.embedding
        return self.pool.first

    @property
    def scored(self) -> bool:
        """Whether rows can be scored."""
        return self.model is not None and (self.pool.rows.task != "regression" or isinstance(self.model, CommitteeFitted))

    def picked(self, contender: Contender) -> tuple[str, str, Mapping[str, Any]]:
        """Return the strategy, why it is not the contender's own, and its options."""
        rows = self.pool.rows
        if contender.strategy == AUTO:
            few = tuple(values[:_FEW] for values in rows.inputs)
            embedded = self.fixed is not None or (self.model is not None and gives_embedding(self.model, few))
            classes = rows.labels.shape[1] if rows.task == "multi_label" else len(np.unique(rows.labels[self.labelled]))
            found = pick(len(self.labelled), classes, task=rows.task, embedding=embedded, score=self.scored, enough=contender.enough)
            return found.strategy, found.why, contender.options
        traits = TRAITS[contender.strategy]
        if self.model is not None or not (traits.needs_score({}) or traits.probabilities or traits.samples):
            return contender.strategy, "", contender.options
        return (
            CONTROL if self.fixed is None else _DIVERSE,
            f"labels of one class alone train no model, so {contender.strategy} has no scores",
            {key: value for key, value in contender.options.items() if key == _OF_ANY},
        )

    def batch(self, contender: Contender, budget: int, seed: int) -> tuple[Indices, str, str]:
        """Return the rows of a batch, the strategy that chose them, and why it did where that isn't the contender's own."""
        strategy, why, options = self.picked(contender)
        traits, rows, free = TRAITS[strategy], self.pool.rows, self.free
        looks = traits.embedding or bool(options.get(_OF_ANY))
        x, score, p, samples = self.fixed if looks else None, None, None, None
        ranked = traits.score or traits.tenfold or "terms" in traits.keys or "candidates" in options or options.get("weight", 0) > 0
        if self.model is not None and (ranked or traits.probabilities or traits.samples or (looks and x is None)):
            trained = looks and x is None
            said = self.model.predict(rows.inputs, embedding=trained)
            x = said.embedding if trained else x
            if isinstance(self.model, CommitteeFitted):
                samples = self.model.samples(tuple(values[free] for values in rows.inputs))
            score = score_rows(contender.score, rows.task, said.values[free], samples) if ranked and self.scored else None
            p = said.values[free].astype(np.float32) if traits.probabilities else None
        if x is None and options.get(_OF_ANY):  # texts before a model is trained
            options = {key: value for key, value in options.items() if key != _OF_ANY}
        with np.errstate(divide="ignore"):
            log_probs = np.log(samples).astype(np.float32) if samples is not None and traits.samples else None
        chosen = select(
            None if x is None else x[free],
            min(budget, len(free)),
            strategy=strategy,
            score=score,
            labelled=x[self.labelled] if x is not None and len(self.labelled) else None,
            seed=seed,
            probabilities=p,
            log_probs=log_probs,
            ids=free if self.pool.ids is None else self.pool.ids[free],
            cost=self._limit(),
            **options,
        )
        return free[chosen], strategy, why

    def _limit(self) -> Cost | None:
        """Return what the free rows cost, and a batch of them may cost; None where nothing is said of that."""
        if self.pool.costs is None or self.campaign.batch_cost is None:
            return None
        return Cost("cost", self.pool.costs[self.free], self.campaign.batch_cost)
