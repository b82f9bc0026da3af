"""The catalogue: what it declares is so, and nothing else declares it again."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import raystream
from raystream import acquisition, selection
from raystream.errors import QueryError
from raystream.query import TASKS, Acquire, Model
from raystream.query.catalogue import KINDS, REGISTERED, SCORES, TRAITS, formulas, label_formulas

ROOT = Path(raystream.__file__).parent


@pytest.mark.parametrize("strategy", sorted(TRAITS))
def test_a_strategy_is_as_declared(strategy: str) -> None:
    """Its code is there, and the function for arrays has the declared parameters with the declared defaults."""
    entry = TRAITS[strategy]
    assert callable(entry.function)
    parameters = inspect.signature(getattr(selection, strategy)).parameters
    for name, arg in entry.args.items():
        if name != "covered":  # for arrays, labelled rows cover where they are given
            assert parameters[name].default == arg.default, name
        assert (arg.default is None) == bool(arg.otherwise), name
        assert arg.default is None or arg.accepts(arg.default), name


def test_scores_are_as_declared() -> None:
    """Each has its function for arrays, those of one pass their formulas, and those of multi_label one for a label."""
    assert all(callable(getattr(acquisition, name)) for name in SCORES)
    assert [*formulas("logits"), *formulas("members")] == [name for name, of in SCORES.items() if of.source in ("logits", "members")]
    labelled = [name for name, of in SCORES.items() if of.source == "logits" and "multi_label" in of.tasks]
    assert tuple(labelled) == TASKS["multi_label"].scores == tuple(label_formulas()) == ("entropy", "least_confidence", "margin")
    assert TASKS["regression"].member_scores == ("variance",)


@pytest.mark.parametrize("kind", [*sorted(KINDS), "registered"])
def test_a_kind_is_as_declared(kind: str) -> None:
    """Its loader is there, and takes the samples of MC dropout and the names of inputs exactly where the entry says so."""
    entry = KINDS.get(kind, REGISTERED)
    parameters = inspect.signature(entry.loader).parameters
    assert ("mc_samples" in parameters) == (not entry.no_dropout)
    assert ("names" in parameters) == entry.named
    assert ("last_layer" in parameters) == entry.last_layer


def test_only_the_catalogue_tells_entries_apart_by_name() -> None:
    """No other module compares anything with an entry's name."""
    names = {*TRAITS, *SCORES, *KINDS}
    for path in sorted(path for path in ROOT.rglob("*.py") if path.name != "check.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                compared = {leaf.value for part in node.comparators for leaf in ast.walk(part) if isinstance(leaf, ast.Constant)}
                assert not names & compared, f"{path.relative_to(ROOT)}:{node.lineno}"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"score": "entropi"}, "acquire.score is 'entropi', which is no score; did you mean 'entropy'"),
        ({"score": "margin", "args": {"egl_classes": 3}}, "acquire.args.egl_classes is used by egl_parameters only"),
        ({"score": "margin", "args": {"bias": True}}, "acquire.args.bias is used by egl and badge_norm only"),
        ({"score": "epig", "args": {"targets": 0}}, "acquire.args.targets is 0, expected a whole number of at least 1"),
        ({"score": "margin", "targets": "x"}, "acquire.targets are used by score epig only"),
        ({"score": "energy", "class_weights": [1.0, 2.0]}, "can't weight energy, which may be negative"),
    ],
)
def test_scores_are_checked_by_their_entries(given: dict[str, object], words: str) -> None:
    """Names, parameters and keys of scores, in the words that queries are refused with."""
    with pytest.raises(QueryError, match=words):
        Acquire(**given)


def test_a_key_of_one_kind_names_it() -> None:
    """What only one kind uses, and what several do."""
    with pytest.raises(QueryError, match=r"model.logits is used by kind: columns only; remove it or set model.kind to columns"):
        Model(kind="torch", source="a:b", logits="z")
    with pytest.raises(QueryError, match=r"model.trust is not used by kind: onnx \(only by torch, sklearn\)"):
        Model(kind="onnx", source="a.onnx", trust="pickle")


def test_parameters_have_their_defaults() -> None:
    """A score's parameter is what the query gives, else what the entry says."""
    assert (Acquire(score="egl_parameters").arg("egl_classes"), Acquire(score="epig").arg("targets"), Acquire().arg("bias")) == (
        10,
        1000,
        None,
    )
    assert Acquire(score="epig", args={"targets": 5}).arg("targets") == 5
