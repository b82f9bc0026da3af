"""Kinds of model: which keys of the query each uses, and what it gives."""

from __future__ import annotations

from typing import Any

import pytest

import raystream as rs
from raystream.errors import QueryError
from raystream.query import Model
from raystream.query.catalogue import KINDS
from raystream.query.catalogue import MODEL_KEYS as OPTIONAL_KEYS

VALUES: dict[str, Any] = {
    "source": "m", "args": {"a": 1}, "weights": "w", "embedding": "e", "device": "cpu", "precision": "float16", "version": "1",
    "trust": "pickle", "logits": "z", "probabilities": "p", "preprocess": "m:f",
    "samples": "s",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_takes_its_own_keys_and_no_other(kind: str) -> None:
    """Each key that a kind doesn't use is refused with the kinds that do; those that it uses are accepted together."""
    own = KINDS[kind].keys
    needed = {"logits": "z"} if kind == "columns" else {"source": "m"}
    assert set(VALUES) == OPTIONAL_KEYS
    for key in OPTIONAL_KEYS - own:
        with pytest.raises(QueryError, match=rf"^model\.{key} is (not used by kind: {kind} \(only by|used by kind: columns only)"):
            Model(kind=kind, **(needed | {key: VALUES[key]}))
    Model(kind=kind, **(needed | {key: VALUES[key] for key in own - {"probabilities"}}))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"columns"}))
def test_a_source_is_needed(kind: str) -> None:
    """Without a source the query says what it would be, and that weights, which are found first, aren't it."""
    with pytest.raises(QueryError, match=r"^model.source is missing; give (a|the) "):
        Model(kind=kind)
    said = rf"; kind: {kind} reads no model.weights" if "weights" not in KINDS[kind].keys else ""
    with pytest.raises(QueryError, match=rf"^model.source is missing; give [^;]*{said}$"):
        Model(kind=kind, weights="spam.joblib")


def test_an_unknown_kind_names_the_nearest() -> None:
    """A typing error is found when the query is read."""
    with pytest.raises(QueryError, match=r"model.kind is 'onx', expected one of torch, columns, .*; did you mean 'onnx'\?"):
        Model(kind="onx", source="m")


def query(strategy: str, **model: Any) -> rs.Query:
    return rs.Query(
        pool=rs.Pool(uri="pool", inputs=["text"]), model=Model(**model), select=rs.Select(budget=3, strategy=strategy, candidates="all")
    )


def test_an_embedding_alone_can_not_rank() -> None:
    """Sentence transformers give no scores: strategies that need one are refused, others take its embedding."""
    text = dict(kind="sentence_transformers", source="m")
    with pytest.raises(QueryError, match=r"needs a score, but the model gives an embedding alone; choose by typiclust, or"):
        query("k_means", **text)
    with pytest.raises(QueryError, match=r"candidates 30 needs a score, .* alone; set select.candidates to all$"):
        rs.Query(pool=rs.Pool(uri="pool", inputs=["text"]), model=Model(**text), select=rs.Select(budget=3, strategy="core_set"))
    for way in ("typiclust", "core_set"):
        assert not query(way, **text).needs_score
    columns = Model(kind="columns", embedding="e")
    with pytest.raises(QueryError, match=r"alone; give model.logits or model.probabilities, or choose by typiclust"):
        rs.Query(pool=rs.Pool(uri="pool"), model=columns, select=rs.Select(budget=3, strategy="k_means", candidates="all"))
    with pytest.raises(QueryError, match=r"acquire asks for scores"):
        rs.Query(
            pool=rs.Pool(uri="pool", inputs=["text"]),
            model=Model(kind="sentence_transformers", source="m"),
            acquire=rs.Acquire(score="entropy"),
            select=rs.Select(budget=3, strategy="core_set", candidates="all"),
        )
    found = query("random", kind="sentence_transformers", source="m")
    assert (found.gives_scores, found.needs_embedding) == (False, True)
    assert query("top_k", kind="onnx", source="m").needs_embedding is False


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"columns"}))
def test_inputs_are_needed(kind: str) -> None:
    """Every kind but columns reads columns that the query names."""
    with pytest.raises(QueryError, match=r"pool.inputs is missing"):
        rs.Query(pool=rs.Pool(uri="pool"), model=Model(kind=kind, source="m"), select=rs.Select(budget=3, strategy="random"))
