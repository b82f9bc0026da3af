"""Several annotators of one row: how far they agree, and the one label that comes of theirs.

Several annotators of one row become one label: by majority, or by how far each can be trusted (Dawid and Skene, 1979).

How far annotators agree beyond chance: Cohen's kappa of each two, and Krippendorff's alpha of all.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from raystream.errors import QueryError
from raystream.labels.annotation import DELETED, DRAFT, LABELLED, REJECTED, SKIPPED, Id, Label, as_text
from raystream.labels.label_table import LabelRow, LabelTable

Method = Literal["none", "majority", "dawid_skene"]
METHODS: tuple[Method, ...] = ("none", "majority", "dawid_skene")
_ITERATIONS = 200
_CONVERGED = 1e-7
_LEAST = 1e-12
"""Stands for a probability of zero, of which there is no logarithm."""
_TIE = 1e-9


def consolidate(table: LabelTable, method: Method) -> LabelTable:
    """Make one row of each id; the annotations stay in it, so that more can be merged later.

    A row that somebody labelled is labelled, whoever skipped it. Where classes are equally likely, nothing is decided: the row becomes a
    draft, which may be chosen again.

    Args:
        table: annotations.
        method: `none` gives the table back.

    Raises:
        QueryError: the labels are no classes, which these methods need.
    """
    if method == "none":
        return replace(table, voted=(), disagreement=())
    if table.task not in ("classes", "multi_label") or (table.task == "multi_label" and method == "dawid_skene"):
        wanted = "model.task classes" if method == "dawid_skene" else "model.task classes or multi_label"
        raise QueryError(f"--consolidate {method} needs {wanted}, but the query's is {table.task}; use --consolidate none")
    by_id: dict[Id, list[LabelRow]] = {}
    for row in table.rows:
        by_id.setdefault(row.id, []).append(row)
    votes = {id_: [row for row in rows if row.state == LABELLED and row.label is not None] for id_, rows in by_id.items()}
    decided = _majority(votes) if method == "majority" else _by_trust(votes)
    voted, disagreement = [], []
    for id_, rows in by_id.items():
        said = votes[id_]
        state, label = (LABELLED, decided[id_]) if said else (_state([row.state for row in rows]), None)
        if said and label is None:
            state = DRAFT
        newest = max(rows, key=lambda row: (row.time, row.query or ""))
        tools = {row.tool for row in rows}
        tool = tools.pop() if len(tools) == 1 else "several"
        voted.append(LabelRow(id_, label, state, None, newest.labelled_at, tool, "", newest.query, newest.rank))
        disagreement.append(sum(row.label != label for row in said) / len(said) if said else 0.0)
    return replace(table, voted=tuple(voted), disagreement=tuple(disagreement))


def _state(states: Sequence[str]) -> str:
    """Return what becomes of a row that nobody labelled."""
    return next(state for state in (REJECTED, SKIPPED, DRAFT, DELETED, LABELLED) if state in states)


def _majority(votes: dict[Id, list[LabelRow]]) -> dict[Id, Label | None]:
    found: dict[Id, Label | None] = {}
    for id_, rows in votes.items():
        counts = Counter(row.label for row in rows).most_common(2)
        tied = len(counts) == 2 and counts[0][1] == counts[1][1]
        found[id_] = None if tied or not counts else counts[0][0]
    return found


def _by_trust(votes: dict[Id, list[LabelRow]]) -> dict[Id, Label | None]:
    ids = [id_ for id_, rows in votes.items() if rows]
    answers = [(number, row) for number, id_ in enumerate(ids) for row in votes[id_]]
    if not answers:
        return {}
    classes = sorted({str(row.label) for _, row in answers})
    people = sorted({row.annotator or "" for _, row in answers})
    place, who = ({name: number for number, name in enumerate(names)} for names in (classes, people))
    fitted = dawid_skene(
        np.array([number for number, _ in answers]),
        np.array([who[row.annotator or ""] for _, row in answers]),
        np.array([place[str(row.label)] for _, row in answers]),
    )
    found: dict[Id, Label | None] = {}
    for id_, row in zip(ids, fitted.posterior, strict=True):
        best = np.flatnonzero(row >= row.max() - _TIE)
        found[id_] = classes[int(best[0])] if len(best) == 1 else None
    return found


@dataclass(frozen=True, eq=False)
class DawidSkene:
    """What was fitted.

    Attributes:
        posterior: (n_rows, n_classes) how likely each class is.
        confusion: (n_annotators, n_classes, n_classes) how likely an annotator says the second where the first is true.
        prior: (n_classes,) how frequent each class is.
        iterations: of expectation and maximisation.
    """

    posterior: npt.NDArray[np.float64]
    confusion: npt.NDArray[np.float64]
    prior: npt.NDArray[np.float64]
    iterations: int


def dawid_skene(row: npt.NDArray[np.int64], annotator: npt.NDArray[np.int64], label: npt.NDArray[np.int64]) -> DawidSkene:
    """Fit each annotator's errors and the true classes together, by maximum likelihood.

    A. P. Dawid and A. M. Skene, Maximum likelihood estimation of observer error-rates using the EM algorithm, Applied Statistics 28 (1979).
    It starts from the shares of votes.

    Args:
        row: (n_answers,) numbers of rows, from 0 and without gaps.
        annotator: (n_answers,) numbers of annotators, likewise.
        label: (n_answers,) numbers of classes, likewise.
    """
    rows, people, classes = int(row.max()) + 1, int(annotator.max()) + 1, int(label.max()) + 1
    posterior = np.zeros((rows, classes))
    np.add.at(posterior, (row, label), 1.0)
    posterior /= posterior.sum(axis=1, keepdims=True)
    before, iterations = -np.inf, 0
    while True:
        iterations += 1
        counts = np.zeros((people, classes, classes))
        np.add.at(counts.transpose(0, 2, 1), (annotator, label), posterior[row])
        confusion = counts / np.maximum(counts.sum(axis=2, keepdims=True), _LEAST)
        prior = posterior.mean(axis=0)
        logs = np.tile(np.log(np.maximum(prior, _LEAST)), (rows, 1))
        np.add.at(logs, row, np.log(np.maximum(confusion, _LEAST))[annotator, :, label])
        top = logs.max(axis=1, keepdims=True)
        weights = np.exp(logs - top)
        total = weights.sum(axis=1, keepdims=True)
        posterior = weights / total
        likelihood = float((np.log(total) + top).sum())
        if likelihood - before < _CONVERGED * max(1.0, abs(likelihood)) or iterations == _ITERATIONS:
            return DawidSkene(posterior, confusion, prior, iterations)
        before = likelihood


@dataclass(frozen=True)
class Agreement:
    """Of all annotators.

    Attributes:
        annotators: how many.
        rows: labelled by two of them or more.
        kappa: Cohen's, averaged over pairs, each weighted by the rows that both labelled; NaN where none is defined.
        alpha: Krippendorff's, for classes; NaN where everybody always says the same class.
    """

    annotators: int
    rows: int
    kappa: float
    alpha: float

    def __str__(self) -> str:
        kappa, alpha = (("undefined" if math.isnan(value) else f"{value:.3f}") for value in (self.kappa, self.alpha))
        return (
            f"agreement of {self.annotators} annotators over {self.rows:,} rows that two or more labelled: Cohen's kappa {kappa}, "
            f"Krippendorff's alpha {alpha}"
        )


def agreement(table: LabelTable) -> Agreement | None:
    """Measure how far the annotators of a table agree; None where no row was labelled by two people."""
    said: dict[str, dict[Hashable, Hashable]] = defaultdict(dict)
    for row in table.rows:
        if row.state == LABELLED and row.label is not None and row.annotator is not None:
            said[as_text(row.id)][row.annotator] = row.label
    shared = {id_: answers for id_, answers in said.items() if len(answers) > 1}
    if not shared:
        return None
    people = {who for answers in shared.values() for who in answers}
    return Agreement(len(people), len(shared), mean_kappa(shared.values()), krippendorff_alpha(shared.values()))


def cohen_kappa(pairs: Iterable[tuple[Hashable, Hashable]]) -> float:
    """Compute (observed - expected) / (1 - expected) agreement of two annotators; NaN where chance alone explains all.

    J. Cohen, A coefficient of agreement for nominal scales, Educational and Psychological Measurement 20 (1960).

    Args:
        pairs: what the first and the second said of each row.
    """
    given = list(pairs)
    count = len(given)
    if not count:
        return math.nan
    first, second = Counter(a for a, _ in given), Counter(b for _, b in given)
    observed = sum(a == b for a, b in given) / count
    expected = sum(first[name] * second[name] for name in first) / count**2
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


def mean_kappa(rows: Iterable[Mapping[Hashable, Hashable]]) -> float:
    """Compute Cohen's kappa of every two annotators, weighted by the rows that both labelled.

    Args:
        rows: what each annotator said of a row.
    """
    by_pair: dict[tuple[Hashable, Hashable], list[tuple[Hashable, Hashable]]] = defaultdict(list)
    for answers in rows:
        for a, b in combinations(sorted(answers, key=str), 2):
            by_pair[a, b].append((answers[a], answers[b]))
    found = [(cohen_kappa(pairs), len(pairs)) for pairs in by_pair.values()]
    defined = [(kappa, weight) for kappa, weight in found if not math.isnan(kappa)]
    total = sum(weight for _, weight in defined)
    return sum(kappa * weight for kappa, weight in defined) / total if total else math.nan


def krippendorff_alpha(rows: Iterable[Mapping[Hashable, Hashable]]) -> float:
    """Compute 1 - observed / expected disagreement, of any number of annotators, who needn't have seen all rows; for classes.

    K. Krippendorff, Computing Krippendorff's alpha-reliability (2011).

    Args:
        rows: what each annotator said of a row; rows with one answer don't count.
    """
    totals: Counter[Hashable] = Counter()
    differing = 0.0
    for answers in rows:
        counts = Counter(answers.values())
        size = sum(counts.values())
        if size < 2:
            continue
        totals.update(counts)
        differing += (size**2 - sum(count**2 for count in counts.values())) / (size - 1)
    n = sum(totals.values())
    expected = n**2 - sum(count**2 for count in totals.values())
    return 1 - (n - 1) * differing / expected if expected else math.nan
