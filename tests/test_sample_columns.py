"""Pools that carry the log-probabilities of a committee themselves: `kind: columns` with `model.samples`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import vectors

import raystream as rs
from raystream.errors import ModelError, QueryError
from raystream.model import fingerprint
from raystream.query import Model

MakeQuery = Callable[..., rs.Query]
ROWS, MEMBERS, CLASSES = 90, 5, 3


def nested(values: np.ndarray) -> pa.Array:
    """(n, k, c) as a list of lists, as other programs write it."""
    return pa.array(values.astype(np.float32).tolist(), pa.list_(pa.list_(pa.float32())))


@pytest.fixture
def probabilities(workplace: Path) -> np.ndarray:
    """float64 (n, k, c) of a pool `opinions.parquet` that holds their logarithms as `members`, and an embedding `e`."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(CLASSES), (ROWS, MEMBERS))
    table = pa.table({"id": np.arange(ROWS), "members": nested(np.log(p)), "e": vectors(rng.standard_normal((ROWS, 4)))})
    pq.write_table(table, workplace / "opinions.parquet", row_group_size=40)
    return p


def ask(make_query: MakeQuery, **changes: Any) -> rs.Query:
    base = {
        "pool": {"uri": "opinions.parquet", "id": "id"},
        "model": {"kind": "columns", "samples": "members"},
        "acquire": {"score": "bald", "also": ["consensus_entropy", "variation_ratio", "entropy"]},
        "select": {"strategy": "top_k", "budget": 10},
    }
    return make_query(**(base | changes))


def test_scores_are_the_formulas(make_query: MakeQuery, probabilities: np.ndarray) -> None:
    """bald, its parts and the mean's entropy, by plain float64 sums, with the mean's class as prediction."""
    result = rs.run(ask(make_query)).selection
    p = probabilities
    mean = p.mean(1)
    consensus = -(mean * np.log(mean)).sum(1)
    bald = consensus + (p * np.log(p)).sum(2).mean(1)
    votes = np.array([np.bincount(row, minlength=CLASSES).max() for row in p.argmax(2)])
    chosen = result.column("id").to_numpy()
    assert set(chosen) == set(np.argsort(-bald)[:10])
    for name, expected in (
        ("score", bald), ("consensus_entropy", consensus), ("entropy", consensus), ("variation_ratio", 1 - votes / MEMBERS),
        ("confidence", mean.max(1)), ("prediction", mean.argmax(1)),
    ):  # fmt: skip
        np.testing.assert_allclose(result.column(name).to_numpy(), expected[chosen], atol=1e-6)


def test_batch_bald_from_columns_alone(make_query: MakeQuery, probabilities: np.ndarray) -> None:
    """The first row is that of largest bald, and the gains sum to the joint score of the batch, at most log of the members."""
    result = rs.run(ask(make_query, select={"strategy": "batch_bald", "budget": 4, "candidates": "all"})).selection
    p = probabilities[result.column("id").to_numpy()]
    joint = np.ones((MEMBERS, 1))
    for row in p:
        joint = (joint[:, :, None] * row[:, None, :]).reshape(MEMBERS, -1)
    mean = joint.mean(0)
    expected = -(mean * np.log(mean)).sum() + (p * np.log(p)).sum(2).mean(1).sum()
    assert result.column("gain").to_numpy().sum() == pytest.approx(expected, abs=1e-5)


def test_temperature_acts_on_every_member(make_query: MakeQuery, probabilities: np.ndarray) -> None:
    """p_k^(1/T), normalised, is what each member then says."""
    result = rs.run(ask(make_query, model={"kind": "columns", "samples": "members", "temperature": 2.0})).selection
    p = np.sqrt(probabilities) / np.sqrt(probabilities).sum(2, keepdims=True)
    mean = p.mean(1)
    bald = -(mean * np.log(mean)).sum(1) + (p * np.log(p)).sum(2).mean(1)
    chosen = result.column("id").to_numpy()
    np.testing.assert_allclose(result.column("score").to_numpy(), bald[chosen], atol=1e-6)
    np.testing.assert_allclose(result.column("confidence").to_numpy(), mean.max(1)[chosen], atol=1e-6)


def test_logits_beside_samples_stay_themselves(make_query: MakeQuery, probabilities: np.ndarray, workplace: Path) -> None:
    """With a column of logits, margin and prediction are theirs, and bald is the samples'; a class may be ruled out by -inf."""
    table = pq.read_table("opinions.parquet")
    p = probabilities.copy()
    p[:, :, 2] = 0
    p /= p.sum(2, keepdims=True)
    z = np.random.default_rng(9).standard_normal((ROWS, CLASSES))
    with np.errstate(divide="ignore"):
        table = table.set_column(1, "members", nested(np.log(p))).append_column("z", vectors(z))
    pq.write_table(table, workplace / "opinions.parquet")
    result = rs.run(ask(make_query, model={"kind": "columns", "samples": "members", "logits": "z", "embedding": "e"})).selection
    chosen = result.column("id").to_numpy()
    assert result.column("prediction").to_pylist() == z.argmax(1)[chosen].tolist()
    mean, q = p.mean(1)[:, :2], p[:, :, :2]
    bald = -(mean * np.log(mean)).sum(1) + (q * np.log(q)).sum(2).mean(1)
    np.testing.assert_allclose(result.column("score").to_numpy(), bald[chosen], atol=1e-6)


def test_probabilities_given_as_samples_are_refused(make_query: MakeQuery, probabilities: np.ndarray, workplace: Path) -> None:
    """What isn't a distribution's logarithm is an error that names the row, and is left out with on_error skip."""
    table = pq.read_table("opinions.parquet")
    values = np.log(probabilities)
    values[7] = probabilities[7]
    pq.write_table(table.set_column(1, "members", nested(values)), workplace / "opinions.parquet")
    with pytest.raises(ModelError, match=r"row 7: a member's samples are no log-probabilities"):
        rs.run(ask(make_query))
    result = rs.run(ask(make_query, on_error="skip", select={"strategy": "top_k", "budget": ROWS - 1}))
    assert 7 not in result.selection.column("id").to_pylist()
    assert result.selection.num_rows == ROWS - 1


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"samples": "e"}, r"column e \(model.samples\) is .* of shape \(90, 4\).*expected log-probabilities \(rows, members, classes\)"),
        ({"samples": "members", "logits": "e"}, r"model.samples\) has 3 classes, but e has 4"),
    ],
)
def test_other_shapes_are_refused(make_query: MakeQuery, probabilities: np.ndarray, model: dict[str, str], says: str) -> None:
    """The column, its shape and the expected one; two columns with different classes name both."""
    with pytest.raises(ModelError, match=says):
        rs.run(ask(make_query, model={"kind": "columns", **model}))


def test_samples_belong_to_columns_only() -> None:
    """Other kinds compute their samples."""
    with pytest.raises(QueryError, match=r"model.samples is used by kind: columns only"):
        Model(source="a:b", samples="s")


def test_the_column_is_part_of_the_fingerprint_only_when_named() -> None:
    """Scores of pools without samples keep their keys; another column of samples is another model."""
    named = [fingerprint(Model(kind="columns", logits="z", samples=s)) for s in (None, "a", "b")]
    assert len(set(named)) == 3
    assert named[0] == "2263280a8e3ecd5855ada11f351b548b72037e35f67f9bfcd0daba7932f3549c"
