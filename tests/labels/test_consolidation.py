"""Several annotators: majority, Dawid and Skene against simulated people, and agreement against published and independent figures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import cohen_kappa_score

from raystream.errors import QueryError
from raystream.labels.annotation import IdColumn
from raystream.labels.consolidate import agreement, cohen_kappa, consolidate, dawid_skene, krippendorff_alpha
from raystream.labels.label_table import LabelRow, LabelTable, empty

IDS = IdColumn("rid", pa.int64())
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def table_of(answers: list[tuple[int, str, Any, str]], task: str = "classes") -> LabelTable:
    """(id, annotator, label, state) as annotations of one time."""
    rows = [LabelRow(id_, label, state, who, NOON, "csv", "", "q", id_) for id_, who, label, state in answers]
    return empty(IDS, task).merged(rows)


def simulated(seed: int, rows: int = 400, people: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """True classes, and three answers a row by people of whom some are good and some nearly guess."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, rows, p=[0.6, 0.3, 0.1])
    skill = np.linspace(0.36, 0.97, people)
    row = np.repeat(np.arange(rows), 3)
    who = np.concatenate([rng.choice(people, 3, replace=False) for _ in range(rows)])
    wrong = (truth[row] + rng.integers(1, classes, len(row))) % classes
    label = np.where(rng.random(len(row)) < skill[who], truth[row], wrong)
    return truth, row, who, label


def test_dawid_skene_finds_the_truth_better_than_votes() -> None:
    """On eight simulations: more rows right than by majority on average, and each annotator's skill is found."""
    gains = []
    for seed in range(8):
        truth, row, who, label = simulated(seed)
        fitted = dawid_skene(row, who, label)
        votes = np.zeros((len(truth), 3))
        np.add.at(votes, (row, label), 1)
        gains.append((fitted.posterior.argmax(1) == truth).mean() - (votes.argmax(1) == truth).mean())
        diagonal = np.einsum("kcc,c->k", fitted.confusion, fitted.prior)
        assert np.corrcoef(diagonal, np.linspace(0.36, 0.97, 6))[0, 1] > 0.9
        assert np.allclose(fitted.posterior.sum(1), 1)
    assert np.mean(gains) > 0.04
    assert min(gains) > 0


def test_dawid_skene_climbs_the_likelihood() -> None:
    """What it stops at is a maximum: one step of the formulas in the paper, by plain loops, changes nothing."""
    truth, row, who, label = simulated(3, rows=60)
    fitted = dawid_skene(row, who, label)
    posterior = np.zeros_like(fitted.posterior)
    for i in range(len(truth)):
        for c in range(3):
            posterior[i, c] = fitted.prior[c] * np.prod([fitted.confusion[who[a], c, label[a]] for a in np.flatnonzero(row == i)])
        posterior[i] /= posterior[i].sum()
    assert np.abs(posterior - fitted.posterior).max() < 1e-9
    for k in range(6):
        for c in range(3):
            weights = np.array([posterior[row[a], c] if who[a] == k else 0 for a in range(len(row))])
            expected = [weights[label == other].sum() / weights.sum() for other in range(3)]
            assert np.abs(fitted.confusion[k, c] - expected).max() < 1e-2


def test_consolidation_in_the_table() -> None:
    """Votes decide labelled rows, whoever skipped; a tie decides nothing and becomes a draft; the rest keep their state."""
    table = table_of(
        [
            (1, "a", "cat", "labelled"), (1, "b", "cat", "labelled"), (1, "c", "dog", "labelled"), (1, "d", None, "skipped"),
            (2, "a", "cat", "labelled"), (2, "b", "dog", "labelled"),
            (3, "a", None, "skipped"), (3, "b", None, "draft"), (4, "a", None, "rejected"), (5, "a", None, "deleted"),
        ]
    )  # fmt: skip
    voted = consolidate(table, "majority")
    assert [(row.id, row.state, row.label) for row in voted.shown] == [
        (1, "labelled", "cat"), (2, "draft", None), (3, "skipped", None), (4, "rejected", None), (5, "deleted", None),
    ]  # fmt: skip
    assert voted.disagreement == pytest.approx((1 / 3, 1, 0, 0, 0))
    assert consolidate(voted, "none").shown == table.rows
    several = table_of([(1, "a", ("x", "y"), "labelled"), (1, "b", ("x", "y"), "labelled"), (1, "c", (), "labelled")], "multi_label")
    assert consolidate(several, "majority").voted[0].label == ("x", "y")


def test_dawid_skene_outvotes_a_majority_that_guesses() -> None:
    """Two who always say cat against one who is right elsewhere: the table follows the one who can be trusted."""
    answers = []
    for id_ in range(60):
        true = "cat" if id_ % 2 else "dog"
        answers += [(id_, "good", true, "labelled"), (id_, "also good", true, "labelled")]
    for id_ in range(60, 120):
        true = "cat" if id_ % 2 else "dog"
        answers += [(id_, "good", true, "labelled"), (id_, "lazy", "cat", "labelled"), (id_, "lazier", "cat", "labelled")]
    table = table_of(answers)
    wanted = {id_: "cat" if id_ % 2 else "dog" for id_ in range(120)}
    assert {row.id: row.label for row in consolidate(table, "dawid_skene").voted} == wanted
    assert {row.id: row.label for row in consolidate(table, "majority").voted} != wanted


def test_labels_that_are_no_classes_are_not_voted_on() -> None:
    """Numbers and shapes have no majority; the error says what to use."""
    for task, method in (("regression", "majority"), ("tokens", "majority"), ("multi_label", "dawid_skene")):
        with pytest.raises(QueryError, match=r"use --consolidate none$"):
            consolidate(empty(IDS, task), method)  # type: ignore[arg-type]


def test_kappa_is_scikit_learns() -> None:
    """On random answers of two annotators; undefined where chance explains all."""
    rng = np.random.default_rng(0)
    for classes in (2, 3, 5):
        first = rng.integers(0, classes, 50)
        second = np.where(rng.random(50) < 0.6, first, rng.integers(0, classes, 50))
        pairs = list(zip(first.tolist(), second.tolist(), strict=True))
        assert cohen_kappa(pairs) == pytest.approx(cohen_kappa_score(first, second))
    assert np.isnan(cohen_kappa([(1, 1), (1, 1)]))
    assert np.isnan(cohen_kappa([]))


def test_alpha_is_krippendorffs() -> None:
    """The published example of four observers, twelve units and missing answers: nominal alpha .743."""
    observers = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = zip(*(line.split() for line in observers), strict=True)
    rows = [{who: answer for who, answer in enumerate(unit) if answer != "."} for unit in units]
    assert krippendorff_alpha(rows) == pytest.approx(0.743, abs=5e-4)
    assert np.isnan(krippendorff_alpha([{0: "a", 1: "a"}]))


def test_agreement_counts_rows_that_two_labelled() -> None:
    """Skips and rows of one person don't count; without any shared row there is no agreement to speak of."""
    table = table_of(
        [(1, "a", "cat", "labelled"), (1, "b", "cat", "labelled"), (2, "a", "dog", "labelled"), (2, "b", "cat", "labelled"),
         (3, "a", "dog", "labelled"), (3, "b", None, "skipped")]
    )  # fmt: skip
    found = agreement(table)
    assert found is not None
    assert (found.annotators, found.rows, found.kappa) == (2, 2, pytest.approx(0))
    assert agreement(table_of([(1, "a", "cat", "labelled")])) is None
