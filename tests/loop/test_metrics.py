"""Metrics: scikit-learn's figures, on labels of several types."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as theirs

from raystream.acquisition import expected_calibration_error
from raystream.errors import DataError, QueryError
from raystream.loop.metrics import check_metric, measure, shares
from raystream.loop.pool_rows import Share
from raystream.query.catalogue.scores import DEFAULT_METRICS, METRICS, metric_of

RNG = np.random.default_rng(0)
NAMES = ["ant", "bee", "cat", "dog"]


def probabilities(n, c):
    p = RNG.exponential(size=(n, c))
    return p / p.sum(axis=1, keepdims=True)


def test_of_classes():
    """By the names of the classes."""
    p, truth = probabilities(200, 4), RNG.choice(NAMES, 200)
    predicted = np.array(NAMES)[p.argmax(axis=1)]
    found = measure(["accuracy", "macro_f1", "recall", "nll", "ece"], "classes", truth, p, NAMES)
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(theirs.f1_score(truth, predicted, average="macro"))
    assert found["nll"] == pytest.approx(theirs.log_loss(truth, p, labels=NAMES))
    assert found["ece"] == pytest.approx(expected_calibration_error(p, np.array([NAMES.index(name) for name in truth])))
    of_each = theirs.recall_score(truth, predicted, average=None, labels=NAMES)
    assert [found[f"recall_{name}"] for name in NAMES] == pytest.approx(of_each.tolist())
    counted = shares(["accuracy", "nll", "recall"], "classes", truth, p, NAMES)
    assert counted["accuracy"] == Share(int((truth == predicted).sum()), 200)
    assert counted["recall_dog"].of == (truth == "dog").sum()
    assert set(counted) == {"accuracy", *(f"recall_{name}" for name in NAMES)}


def test_a_class_that_the_model_has_never_seen():
    """Its rows are wrong, at a finite loss."""
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    found = measure(["accuracy", "recall", "nll", "macro_f1"], "classes", np.array([3, 5, 7]), p, [3, 5])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["recall_7"] == 0
    assert found["nll"] == pytest.approx(-(np.log(0.9) + np.log(0.8) + np.log(np.finfo(float).eps)) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_of_labels():
    """F1 at a probability of one half, and average precision; a label that no row has has none."""
    truth, p = RNG.integers(0, 2, (80, 3)), np.round(RNG.random((80, 3)), 1)
    found = measure(["micro_f1", "macro_f1", "map"], "multi_label", truth, p)
    assert found["micro_f1"] == pytest.approx(theirs.f1_score(truth, p >= 0.5, average="micro"))
    assert found["macro_f1"] == pytest.approx(theirs.f1_score(truth, p >= 0.5, average="macro"))
    assert found["map"] == pytest.approx(theirs.average_precision_score(truth, p, average="macro"))
    alone = np.concatenate([truth, np.zeros((80, 1), dtype=int)], axis=1)
    assert measure(["map"], "multi_label", alone, np.concatenate([p, p[:, :1]], axis=1))["map"] == pytest.approx(found["map"])


@pytest.mark.parametrize("shape", [(60,), (60, 2)])
def test_of_numbers(shape):
    """Over rows and outputs."""
    truth = RNG.normal(size=shape)
    output = truth + RNG.normal(size=shape)
    found = measure(["rmse", "mae", "r2"], "regression", truth, output)
    assert found["rmse"] == pytest.approx(np.sqrt(theirs.mean_squared_error(truth, output)))
    assert found["mae"] == pytest.approx(theirs.mean_absolute_error(truth, output))
    assert found["r2"] == pytest.approx(theirs.r2_score(truth, output))


def test_numbers_that_never_vary():
    """All or nothing is explained."""
    ones = np.ones(5)
    assert measure(["r2"], "regression", ones, ones)["r2"] == theirs.r2_score(ones, ones) == 1
    assert measure(["r2"], "regression", ones, 2 * ones)["r2"] == 0


def test_what_fits_no_labels_is_refused():
    """Other lengths, NaN, no rows, a metric of another task."""
    p = probabilities(3, 2)
    for truth, output in ((np.zeros(2), p), (np.zeros(0), p[:0]), (np.zeros(3), p * np.nan)):
        with pytest.raises(DataError):
            measure(["accuracy"], "classes", truth, output)
    with pytest.raises(DataError, match="a column a class"):
        measure(["accuracy"], "classes", np.zeros(3), p, ["a", "b", "c"])
    with pytest.raises(DataError, match="one shape"):
        measure(["rmse"], "regression", np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(QueryError, match="did you mean 'accuracy'"):
        measure(["acuracy"], "classes", np.zeros(3), p)
    with pytest.raises(QueryError, match="none of model"):
        measure(["accuracy"], "regression", np.zeros(3), np.zeros(3))


def test_the_catalogue_and_the_code_agree():
    """Each metric is measured for exactly the tasks that it is declared for."""
    two = np.arange(2.0)
    cases = {"classes": (np.arange(2), np.eye(2)), "multi_label": (np.eye(2), np.eye(2)), "regression": (two, two)}
    for task, (truth, output) in cases.items():
        of_task = [name for name, entry in METRICS.items() if task in entry.tasks]
        assert DEFAULT_METRICS[task] in of_task
        perfect = measure(of_task, task, truth, output)
        for column, value in perfect.items():
            assert value == pytest.approx(0.0 if metric_of(column).lower_is_better else 1.0, abs=1e-12), column
        for name in set(METRICS) - set(of_task):
            with pytest.raises(QueryError):
                check_metric(name, task)
