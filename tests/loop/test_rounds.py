"""Rounds in memory: what is labelled when, that strategies are paired, and a literal loop beside it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from raystream.errors import QueryError
from raystream.loop.simulation.rounds import Campaign, Contender, Pool, ceiling, play, split
from raystream.loop.simulation.run import one_thread_each
from raystream.loop.trainers.by_name import fit, make_trainer
from raystream.loop.trainers.training import TrainingRows, seed_of

LOGISTIC = {"estimator": "sklearn.linear_model:LogisticRegression", "C": 1.0}


@pytest.fixture(autouse=True)
def _one_thread():
    """As simulations play: small pieces of work, which threads only slow down."""
    with one_thread_each():
        yield


def blobs(n=120, classes=3, seed=0):
    """Rows around a centre each class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = (rng.normal(0, 3, (classes, 4))[labels] + rng.normal(0, 1.5, (n, 4))).astype(np.float32)
    return TrainingRows((x,), labels.astype(np.int64), "classes", tuple(f"class {i}" for i in range(classes)))


def campaign(**more):
    given = {"trainer": make_trainer("sklearn", LOGISTIC), "metrics": ("accuracy",), "start": Contender("start", "random"),
             "start_budget": 10, "batch": 5, "rounds": 4}  # fmt: skip
    return Campaign(**{**given, **more})


ROWS, TEST = blobs(), blobs(60, seed=1)
POOL = Pool(ROWS, embedding=ROWS.inputs[0], first=ROWS.inputs[0])


def labels_of(history):
    return [played.labels for played in history]


def test_labels_by_round():
    """By rounds, by budget, and until nothing is left; the last batch takes what there is."""
    assert labels_of(play(POOL, TEST, campaign(), Contender("r", "random"), 0)) == [10, 15, 20, 25]
    assert labels_of(play(POOL, TEST, campaign(rounds=None, budget=18), Contender("r", "random"), 0)) == [10, 15, 18]
    assert labels_of(play(POOL, TEST, campaign(rounds=9), Contender("r", "k_means"), 0, among=np.arange(22))) == [10, 15, 20, 22]
    given = play(POOL, TEST, campaign(rounds=2), Contender("r", "random"), 0, start=np.arange(6))
    assert labels_of(given) == [6, 11]
    assert [played.strategy for played in given] == ["", "random"]


def test_strategies_are_paired():
    """One start and one first model for all under a seed; another seed has others, and the same one the same again."""
    first = {name: play(POOL, TEST, campaign(), Contender(name, name), 3) for name in ("random", "top_k", "badge", "auto")}
    assert len({str(history[0].metrics) for history in first.values()}) == 1
    again = play(POOL, TEST, campaign(), Contender("badge", "badge"), 3)
    assert [played.metrics for played in again] == [played.metrics for played in first["badge"]]
    others = {str(play(POOL, TEST, campaign(rounds=1), Contender("random", "random"), seed)[0].metrics) for seed in range(6)}
    assert len(others) > 1


def test_a_literal_loop_does_the_same():
    """Train, rank the rest by margin, label the best, train again."""
    start = np.arange(9)
    x, labels, known = ROWS.inputs[0], ROWS.labels, start
    expected = []
    for number in (1, 2, 3):
        model = LogisticRegression(C=1.0, random_state=seed_of(0, number, 2)).fit(x[known], labels[known])
        expected.append(float((model.predict(TEST.inputs[0]) == TEST.labels).mean()))
        p = np.sort(model.predict_proba(x), axis=1)
        score = 1 - (p[:, -1] - p[:, -2])
        score[known] = -1
        known = np.concatenate([known, np.argsort(-score, kind="stable")[:5]])
    found = play(POOL, TEST, campaign(rounds=3), Contender("margin", "top_k"), 0, start=start)
    assert [played.metrics["accuracy"] for played in found] == pytest.approx(expected)


def test_auto_says_what_it_chose():
    """typiclust while nothing is labelled, then while there are fewer than three rows a class, then k_means."""
    auto = Contender("auto", "auto")
    history = play(POOL, TEST, campaign(start=auto, start_budget=4, batch=3, rounds=4), auto, 0)
    assert [played.strategy for played in history] == ["typiclust", "typiclust", "typiclust", "k_means"]
    assert history[0].why.startswith("nothing is labelled")
    assert "4 labelled rows of 3 classes, 1.33 for each, below 3" in history[1].why


def test_auto_without_embeddings():
    """Texts that become sparse rows: chance first, then the highest margins with noise."""
    texts = np.array([f"{'ham' if label else 'spam'} {row % 7}" for row, label in enumerate(ROWS.labels == 0)], dtype=object)
    rows = TrainingRows((texts,), (ROWS.labels == 0).astype(np.int64), "classes", ("ham", "spam"))
    steps = ["sklearn.feature_extraction.text:TfidfVectorizer", "sklearn.linear_model:LogisticRegression"]
    auto = Contender("auto", "auto")
    trainer = make_trainer("sklearn", {"estimator": steps})
    history = play(Pool(rows), rows, campaign(trainer=trainer, start=auto, rounds=3), auto, 0)
    assert [played.strategy for played in history] == ["random", "power", "power"]


def test_numbers_of_sparse_texts_go_by_chance():
    """A regressor over words gives neither an embedding nor a score, and `auto` says so."""
    texts = np.array([f"{'ham' if label else 'spam'} {row % 7}" for row, label in enumerate(ROWS.labels == 0)], dtype=object)
    rows = TrainingRows((texts,), (ROWS.labels[:, None] == 0).astype(np.float32), "regression")
    steps = ["sklearn.feature_extraction.text:TfidfVectorizer", "sklearn.linear_model:Ridge"]
    trainer = make_trainer("sklearn", {"estimator": steps}, _regression())
    history = play(Pool(rows), rows, campaign(trainer=trainer, metrics=("rmse",), rounds=3), Contender("auto", "auto"), 0)
    assert [played.strategy for played in history] == ["random"] * 3
    assert "there is no embedding" in history[1].why


def test_labels_of_one_class_alone():
    """No model is trained; the one class is said for all rows, and the next batch is spread without scores."""
    zeros = np.flatnonzero(ROWS.labels == 0)
    history = play(POOL, TEST, campaign(rounds=3), Contender("k", "k_means"), 0, start=zeros[:5])
    assert history[0].metrics["accuracy"] == pytest.approx(1 / 3)
    assert history[1].strategy == "k_means_pp"
    assert "one class alone" in history[1].why
    assert history[2].strategy == "k_means"
    typical = play(POOL, TEST, campaign(rounds=2), Contender("t", "typiclust"), 0, start=zeros[:5])
    assert typical[1].strategy == "typiclust"


def test_recall_goes_by_the_names_of_classes():
    """Its columns, whatever the model has seen of them."""
    history = play(POOL, TEST, campaign(metrics=("accuracy", "recall"), rounds=1), Contender("r", "random"), 0, start=np.arange(2))
    assert set(history[0].metrics) == {"accuracy", *(f"recall_class {i}" for i in range(3))}
    assert history[0].metrics["recall_class 2"] == 0


def test_committees():
    """Scores of members, and strategies that look at all of them."""
    four = campaign(members=4, rounds=2)
    bald = play(POOL, TEST, four, Contender("bald", "top_k", "bald"), 0)
    together = play(POOL, TEST, four, Contender("batch_bald", "batch_bald", "bald"), 0)
    assert labels_of(bald) == labels_of(together) == [10, 15]


def test_numbers():
    """Regression: lcmd by auto, and a committee's variance as a score."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3)).astype(np.float32)
    rows = TrainingRows((x,), (x @ np.array([[1.0], [2.0], [0.5]])).astype(np.float32), "regression")
    pool = Pool(rows, embedding=x, first=x)
    ridge = campaign(trainer=make_trainer("sklearn", {"estimator": "sklearn.linear_model:Ridge"}, _regression()), metrics=("rmse", "r2"))
    history = play(pool, rows, ridge, Contender("auto", "auto"), 0)
    assert [played.strategy for played in history] == ["random", "lcmd", "lcmd", "lcmd"]
    assert history[-1].metrics["rmse"] < history[0].metrics["rmse"]


def _regression():
    from raystream.query import Model

    return Model(kind="python", source="raystream.loop.trainers.sklearn_trainer:SklearnRegressor", task="regression")


def test_the_ceiling_is_the_trainer_on_all_labels():
    """Of the rows that may be chosen."""
    among = np.arange(60)
    model = LogisticRegression(C=1.0).fit(ROWS.inputs[0][among], ROWS.labels[among])
    found = ceiling(POOL, TEST, campaign(), 0, among=among)
    assert found == {"accuracy": pytest.approx(float((model.predict(TEST.inputs[0]) == TEST.labels).mean()))}


def test_a_split_keeps_each_class_in_its_share():
    """Every row on one side, each class as near to the share as whole rows go; another seed draws others."""
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    rows = TrainingRows((np.zeros((100, 1), np.float32),), labels.astype(np.int64), "classes", (0, 1, 2))
    kept, judged = split(rows, 0.3, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, judged])), np.arange(100))
    np.testing.assert_array_equal(np.bincount(labels[judged]), [21, 6, 3])
    assert set(judged.tolist()) != set(split(rows, 0.3, 1)[1].tolist())
    np.testing.assert_array_equal(judged, split(rows, 0.3, 0)[1])


class Summing:
    """Trains as another trainer does, and keeps what the labelled rows cost, which stands in their first column."""

    def __init__(self, trainer):
        self.trainer, self.paid = trainer, []

    def fit(self, rows, previous, seed):
        self.paid.append(rows.inputs[0][:, 0].astype(np.float64))
        return self.trainer.fit(rows, previous, seed)


@pytest.mark.parametrize("strategy", ["random", "top_k", "k_means", "auto"])
def test_what_labels_cost(strategy):
    """The sum over the rows that were labelled, a batch within its budget, so that dear rows make small batches; the first one, too."""
    x = np.abs(ROWS.inputs[0]) + np.float32(0.01)
    rows = TrainingRows((x,), ROWS.labels, "classes", ROWS.classes)
    pool = Pool(rows, embedding=x, first=x, costs=x[:, 0].astype(np.float64))
    trainer = Summing(make_trainer("sklearn", LOGISTIC))
    priced = campaign(trainer=trainer, start_budget=30, batch=20, batch_cost=15.0)
    history = play(pool, TEST, priced, Contender("any", strategy), 0)
    assert [played.cost for played in history] == pytest.approx([paid.sum() for paid in trainer.paid])
    before = 0
    for played, paid in zip(history, trainer.paid, strict=True):
        assert played.labels == len(paid)
        assert 0 < paid[before:].sum() <= 15.0 + 1e-6
        before = len(paid)
    assert len(trainer.paid[0]) < 30
    cheap = play(pool, TEST, campaign(), Contender("any", strategy), 0)
    assert labels_of(cheap) == [10, 15, 20, 25]  # costs alone limit nothing


def test_rows_that_no_batch_can_pay_for():
    """Of the first batch that is an error, of a later one the end."""
    costs = np.full(len(ROWS), 2.0)
    costs[:8] = 0.5
    pool = Pool(ROWS, embedding=ROWS.inputs[0], first=ROWS.inputs[0], costs=costs)
    history = play(pool, TEST, campaign(start_budget=4, rounds=9, batch_cost=1.0), Contender("r", "random"), 0)
    assert [played.cost for played in history] == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(QueryError, match=r"the cheapest of 120 rows costs 0\.5, but select\.cost\.budget is 0\.4; raise it"):
        play(pool, TEST, campaign(batch_cost=0.4), Contender("r", "random"), 0)


def test_near_duplicates_hold_in_the_first_batch(monkeypatch):
    """Of two rows that are one, a start of chance takes one; texts, which have no embedding yet, are no obstacle."""
    twice = TrainingRows((np.repeat(ROWS.inputs[0], 2, axis=0),), np.repeat(ROWS.labels, 2), "classes", ROWS.classes)
    near = {"near_duplicates": 0.999999}
    seen = []

    def watched(trainer, rows, *rest):
        seen.append(len(np.unique(rows.inputs[0], axis=0)))
        return fit(trainer, rows, *rest)

    monkeypatch.setattr("raystream.loop.simulation.rounds.fit", watched)
    whole, texts = Pool(twice, embedding=twice.inputs[0], first=twice.inputs[0]), Pool(twice)
    for pool, options in ((whole, {}), (whole, near), (texts, near)):
        start = Contender("start", "random", options=options)
        play(pool, TEST, campaign(start=start, start_budget=80, rounds=1), Contender("r", "random"), 0)
    assert seen[0] < 80
    assert seen[1] == 80
    assert seen[2] == seen[0]
