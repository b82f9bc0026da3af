"""Several annotators of one row become one label: by majority, or by how far each can be trusted (Dawid and Skene, 1979)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from raystream.errors import QueryError
from raystream.labels.annotation import DELETED, DRAFT, LABELLED, REJECTED, SKIPPED, Label
from raystream.labels.ids import Id
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
