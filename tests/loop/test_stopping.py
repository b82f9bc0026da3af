"""When a loop may stop: each rule by its definition, on small histories."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from raystream.errors import QueryError
from raystream.loop.pool_rows import Share
from raystream.loop.stopping import (
    Budget,
    ClassificationChange,
    Exhausted,
    Kappa,
    OverallUncertainty,
    Plateau,
    Round,
    Rounds,
    Target,
    first_stop,
    kappa,
    make_rule,
    stops,
)
from raystream.query.catalogue.rules import RULES

SAME = np.arange(1000) % 7


def models(*predictions, **more):
    return [Round(10 * i, 100, predictions=p, **more) for i, p in enumerate(predictions, 1)]


def accuracies(*values):
    return [Round(10 * i, 100, metrics={"accuracy": value}) for i, value in enumerate(values, 1)]


def test_kappa_of_two_models():
    """1 if and only if they are equal; else agreement beyond chance, which a constant has none of."""
    assert kappa(np.array([0, 1, 1, 2, 1]), np.array([0, 1, 2, 2, 0])) == pytest.approx(4 / 9)
    assert kappa(np.zeros(100), np.append(np.zeros(99), 1)) == 0
    assert kappa(np.zeros(5), np.zeros(5)) == 1
    assert kappa(np.array(["cat", "dog"]), np.array(["dog", "cat"])) == -1
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 50))
    assert kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))


def test_kappa_needs_four_models():
    """The mean of three kappas between successive models; a round without a model is no round of it."""
    assert first_stop(Kappa(), models(*[SAME] * 6)) == 4
    assert first_stop(Kappa(), models(None, None, *[SAME] * 4)) == 6
    assert not Kappa().holds(models(*[SAME] * 4, None))
    nearly = SAME.copy()
    nearly[:40] = (nearly[:40] + 1) % 7
    assert kappa(SAME, nearly) < 0.97
    history = models(SAME, nearly, nearly, nearly, nearly)
    assert first_stop(Kappa(), history) == 5
    assert first_stop(Kappa(threshold=0.95), history) == 4
    assert first_stop(Kappa(window=1), history) == 3


def test_classification_change_and_uncertainty():
    """No prediction changed; the mean entropy is below a share of the largest."""
    other = SAME.copy()
    other[0] += 1
    history = models(SAME, other, other)
    assert first_stop(ClassificationChange(), history) == 3
    assert first_stop(ClassificationChange(0.001), history) == 2
    assert first_stop(ClassificationChange(), history[:1]) is None
    rounds = [Round(10, 5, uncertainty=value) for value in (None, 0.2, 0.05, 0.049)]
    assert first_stop(OverallUncertainty(), rounds) == 4


def test_plateau():
    """A gain below `least` over `patience` rounds, whichever way the metric goes; from round patience + 1 on."""
    assert first_stop(Plateau("accuracy"), accuracies(0.5, 0.6, 0.7, 0.501)) == 4
    assert first_stop(Plateau("accuracy"), accuracies(0.5, 0.6, 0.7, 0.502, 0.61)) is None
    assert first_stop(Plateau("accuracy", patience=1), accuracies(0.5, 0.4)) == 2
    falling = [Round(1, 1, metrics={"rmse": value}) for value in (4.0, 3.0, 2.9995)]
    assert first_stop(Plateau("rmse", patience=1), falling) == 3
    assert first_stop(Plateau("rmse", patience=2), falling) is None
    control = [Round(1, 1, control=Share(right, 100)) for right in (50, 60, 60)]
    assert first_stop(Plateau("accuracy", patience=1), control) == 3
    assert first_stop(Plateau("accuracy", patience=1), [Round(1, 1)] * 5) is None


def test_target():
    """The lower end of Wilson's interval with z = 3.02, of the evaluation set, else of all control rows, else of the last three rounds'."""
    test = [Round(1, 1, shares={"accuracy": Share(right, 1000)}, control=Share(10**6, 10**6)) for right in (950, 970, 971)]
    assert [Share(right, 1000).interval(3.02)[0] >= 0.95 for right in (950, 970, 971)] == [False, False, True]
    assert first_stop(Target("accuracy", 0.95), test) == 3
    assert first_stop(Target("accuracy", 0.95), [Round(1, 1, control=Share(971, 1000), prequential=Share(0, 9))]) == 1
    ahead = [Round(1, 1, prequential=Share(0, 1000)), *[Round(1, 1, prequential=Share(right, 400)) for right in (387, 387, 389)]]
    assert first_stop(Target("accuracy", 0.95), ahead) == 4
    assert not Target("accuracy", 0.95).holds(ahead[:3])
    assert not Target("accuracy", 0.5).holds([Round(1, 1)])
    assert Target("recall_cat", 0.5).holds([Round(1, 1, shares={"recall_cat": Share(90, 100)}, control=Share(0, 9))])


def test_budget_rounds_exhausted():
    """What has been spent, and what is left."""
    history = [Round(10, 5), Round(20, 0)]
    assert [first_stop(rule, history) for rule in (Budget(11), Budget(21), Rounds(1), Rounds(3), Exhausted())] == [2, None, 1, None, 2]


def test_no_rule_holds_before_the_first_round():
    """Of an empty history nothing is known."""
    for name in RULES:
        given = {"budget": {"labels": 1}, "rounds": {"rounds": 1}, "target": {"value": 0.5}}.get(name, {})
        assert not make_rule(name, given, ["accuracy"]).holds([]), name


def test_rules_together():
    """`any`: one of them is enough; `all`: each must hold now."""
    rules = {"budget": Budget(20), "rounds": Rounds(3)}
    history = [Round(20, 1)] * 3
    assert stops(rules, history[:2], "any") == ["budget"]
    assert stops(rules, history[:2], "all") == []
    assert stops(rules, history, "all") == ["budget", "rounds"]
    assert stops({}, history, "all") == []


@pytest.mark.parametrize(
    ("name", "args", "metrics", "said"),
    [
        ("kapa", {}, ["accuracy"], "did you mean 'kappa'"),
        ("kappa", {"treshold": 0.9}, ["accuracy"], "did you mean 'threshold'"),
        ("kappa", {"threshold": 2}, ["accuracy"], "expected a number from 0 to 1"),
        ("target", {}, ["accuracy"], "needs value"),
        ("target", {"value": 0.9}, ["nll"], "no share of rows"),
        ("target", {"value": 0.9}, ["recall"], "one number a class"),
        ("target", {"value": 0.9, "metric": "acuracy"}, ["accuracy"], "did you mean 'accuracy'"),
        ("plateau", {}, ["recall"], "one number a class"),
        ("budget", {}, ["accuracy"], "needs labels"),
    ],
)
def test_what_is_no_rule_is_refused(name, args, metrics, said):
    """Names, parameters and metrics, with what would be right."""
    with pytest.raises(QueryError, match=said):
        make_rule(name, args, metrics)


def test_a_rule_takes_its_metric_from_the_loop():
    """The first of the metrics, unless it names another; of recall, that of one class."""
    assert make_rule("plateau", {}, ["nll", "accuracy"]) == Plateau("nll")
    assert make_rule("target", {"value": 0.9, "metric": "recall_cat"}, ["accuracy", "recall"]) == Target("recall_cat", 0.9)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_is_as_declared(name):
    """Its class has the declared parameters with the declared defaults."""
    entry = RULES[name]
    parameters = inspect.signature(entry.make).parameters
    assert set(parameters) == set(entry.args)
    for key, arg in entry.args.items():
        default = parameters[key].default
        assert default == (inspect.Parameter.empty if arg.default is None else arg.default), key
