"""Strategies as functions: they take what holds numbers, and refuse what is wrong by the name of the argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from raystream import selection
from raystream.errors import DataError, QueryError
from raystream.query.catalogue import TRAITS
from raystream.selection import Candidates, LocalShards, choose, row_hash, select
from raystream.selection.rows import as_rows
from raystream.selection.select import STRATEGIES

READERS = sorted(name for name, traits in TRAITS.items() if traits.embedding)
"""All that read embeddings."""
RANKERS = ["power", "softmax", "softrank", "top_k"]
LONG = {"facility_location", "k_center_two_round", "lcmd", "prob_cover", "u_herding"}
"""Those that take a second to choose 2,000 rows."""
N, K = 40, 6


def beside(name: str, n: int = N) -> dict[str, Any]:
    """What the strategy can't do without beside embeddings, as float64 NumPy arrays of numbers that bfloat16 holds."""
    rng = np.random.default_rng(1)
    if name == "badge":
        return {"probabilities": np.full((n, 4), 0.25) + np.eye(4)[rng.integers(0, 4, n)] * 0.5 - 0.125}
    scored = "score" in inspect.signature(getattr(selection, name)).parameters
    return {"score": rng.integers(0, 64, n) / 64.0} if scored else {}


def pool(n: int = N) -> np.ndarray:
    """(n, 5) float64 of numbers that bfloat16 holds."""
    return np.random.default_rng(0).integers(-128, 129, (n, 5)) / 16.0


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "a list": lambda x: x.tolist(),
    "a tuple of lists": lambda x: tuple(x.tolist()),
    "float32": lambda x: x.astype(np.float32),
    "float16": lambda x: x.astype(np.float16),
    "Fortran order": np.asfortranarray,
    "big-endian": lambda x: x.astype(">f4"),
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "a masked array without a mask": np.ma.masked_array,
    "a tensor": torch.from_numpy,
    "a bfloat16 tensor": lambda x: torch.from_numpy(x).bfloat16(),
    "a half tensor": lambda x: torch.from_numpy(x).half(),
    "a tensor with a gradient": lambda x: torch.from_numpy(x).float().requires_grad_(),
    "a tensor with steps": lambda x: torch.from_numpy(np.repeat(x, 2, axis=0))[::2],
    "a list of tensors": lambda x: [torch.from_numpy(row).bfloat16().requires_grad_() if row.ndim else float(row) for row in x],
}


@pytest.mark.parametrize("name", READERS)
def test_whatever_holds_numbers_is_taken(name):
    """The same rows from lists, NumPy arrays and tensors of every dtype, for embeddings and for what stands beside them."""
    function, x, more = getattr(selection, name), pool(), beside(name)
    if name == "badge":
        more["labelled_probabilities"] = more["probabilities"][:3]
    if "labelled" in inspect.signature(function).parameters:
        more["labelled"] = x[:3] + 1
    expected = function(x, K, **more)
    for form, give in FORMS.items():
        given = {key: give(value) for key, value in more.items()}
        np.testing.assert_array_equal(function(give(x), K, **given), expected, err_msg=form)


@pytest.mark.parametrize("name", RANKERS)
def test_scores_are_taken_in_any_form(name):
    """As above, for what ranks by scores alone."""
    function, score = getattr(selection, name), np.random.default_rng(1).permutation(N) / 64.0
    for form, give in FORMS.items():
        np.testing.assert_array_equal(function(give(score), K), function(score, K), err_msg=form)


def test_log_probabilities_and_ids_are_taken_in_any_form():
    """`batch_bald`, `random`, `power` with ids."""
    log_p = np.log(np.full((N, 3, 2), 0.5)) + 0.0
    log_p[::2, 0] = [[np.log(0.25), np.log(0.75)]]
    for give in FORMS.values():
        np.testing.assert_array_equal(selection.batch_bald(give(log_p), 3), selection.batch_bald(log_p, 3))
    ids = np.arange(N) * 3
    for given in (ids.tolist(), torch.from_numpy(ids), ids.astype(np.int32), tuple(ids.tolist())):
        np.testing.assert_array_equal(selection.random(given, 5, seed=4), selection.random(ids, 5, seed=4))
        np.testing.assert_array_equal(selection.power(np.ones(N), 5, ids=given), selection.power(np.ones(N), 5, ids=ids))
    words = [f"row {i}\0" for i in range(N)]
    np.testing.assert_array_equal(selection.random(words, 5), selection.random([word.encode() for word in words], 5))
    np.testing.assert_array_equal(selection.random(words, 5), selection.random_order(row_hash(0, words), 5))
    with pytest.raises(DataError, match=r"`ids` has shape \(39,\), expected \(40,\)"):
        selection.power(np.ones(N), 5, ids=words[:39])
    with pytest.raises(QueryError, match="id 7 is a int, expected integers, strings or bytes"):
        selection.random(["a", 7], 1)


@pytest.mark.parametrize("name", READERS)
def test_what_is_wrong_is_refused_by_name(name):
    """One edge for all: no strategy ends the interpreter, fails somewhere inside, or answers."""
    function, x, more = getattr(selection, name), pool(), beside(name)
    call = partial(function, k=K, **more)
    bad = x.copy()
    bad[[7, 3]] = np.nan
    infinite = np.where(x == x.max(), np.inf, x)
    masked = np.ma.masked_array(x, np.arange(5 * N).reshape(N, 5) == 11)
    for values, words in (
        (bad, "2 rows of `x` hold NaN or infinite values, first at rows 3, 7"),
        (torch.from_numpy(bad).bfloat16(), "2 rows of `x` hold NaN"),
        (infinite, "rows of `x` hold NaN or infinite values"),
        (x * 1e300, "`x` holds .* beyond float32; scale it"),
        (x[:, :0], r"`x` has shape \(40, 0\), expected \(rows, width\) with a width of at least 1"),
        (x[:0, :0], r"`x` has shape \(0, 0\)"),
        (x[:, 0], r"`x` has shape \(40,\), expected \(rows, width\)"),
        (x[None], r"`x` has shape \(1, 40, 5\), expected \(rows, width\)"),
        (masked, r"`x` has 1 masked values, first at \[2, 1\]; leave those rows out, or fill them in"),
        ([masked[0], masked[2]], "`x` has 1 masked values"),
        ([[1.0, 2.0], [3.0]], "`x` is no array: .*; expected rows of one length"),
        (x + 1j, "`x` holds values of type complex128, expected real numbers"),
        (x.astype(str), "`x` holds values of type <U"),
        (torch.eye(5).to_sparse(), "`x` is a sparse"),
    ):
        with pytest.raises(DataError, match=words):
            call(values)
    with pytest.raises(QueryError, match=r"`k` is -1, expected a whole number of at least 0"):
        function(x, -1, **more)
    for k in (2.0, True, "3", None):
        with pytest.raises(QueryError, match=r"`k` is .*, expected a whole number of at least 0"):
            function(x, k, **more)
    assert len(function(x, np.int64(3), **more)) == len(function(x, torch.tensor(3), **more)) == 3
    assert len(function(x, 0, **more)) == len(function(x[:0], K, **{key: value[:0] for key, value in more.items()})) == 0
    parameters = inspect.signature(function).parameters
    if "metric" in parameters:
        with pytest.raises(QueryError, match="`metric` is 'cosin'; did you mean 'cosine'"):
            function(x, K, metric="cosin", **more)
    if "seed" in parameters:
        with pytest.raises(QueryError, match=r"`seed` is 1\.5, expected a whole number"):
            function(x, K, seed=1.5, **more)
    if "labelled" in parameters:
        with pytest.raises(DataError, match="labelled"):
            function(x, K, labelled=x[:3, :2], **more)
        with pytest.raises(DataError, match="labelled"):
            function(x, K, labelled=masked[2:3], **more)
        assert len(function(x, K, labelled=[], **more)) == K
    for key, value in more.items():
        with pytest.raises(DataError, match=f"{key}|probabilities"):
            function(x, K, **{key: value[:-1]})


@pytest.mark.parametrize("name", ["k_means", "core_set", "diverse", "u_herding", "combine", "power"])
def test_scores_that_are_no_weights(name):
    """Negative scores, and such as are no numbers, weigh nothing."""
    function, x, score = getattr(selection, name), pool(), np.ones(N)
    more = {"weight": 1.0} if name == "core_set" else {}
    negative = "1 of 40 candidates have a negative score, the lowest -0.5"
    for value, words in ((-0.5, negative), (np.nan, "1 of 40 .* NaN or infinite"), (np.inf, "1 of 40")):
        wrong = np.where(np.arange(N) == 5, value, score)
        with pytest.raises(QueryError, match=words):
            function(wrong, K) if name == "power" else function(x, K, score=wrong, **more)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in READERS])
@pytest.mark.parametrize("k", [2000, pytest.param(1999, marks=pytest.mark.slow), pytest.param(2500, marks=pytest.mark.slow)])
def test_as_many_as_there_are(name, k):
    """k against n, where blocks of rows are not all the same: every row comes once."""
    n = 2000
    more = {"probabilities": np.random.default_rng(2).dirichlet(np.ones(4), n)} if name == "badge" else beside(name, n)
    x = np.random.default_rng(0).standard_normal((n, 4))
    rows = getattr(selection, name)(x, k, **more)
    assert len(rows) == len(np.unique(rows)) == min(k, n)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_candidates_are_checked_before_any_strategy_sees_them(name):
    """In a query: embeddings without width or that are not finite, and columns of another length."""
    n = 12
    log_p = np.log(np.full((n, 3, 2), 0.5))
    given = {"score": np.ones(n), "keys": row_hash(0, np.arange(n)), "probabilities": as_rows(np.full((n, 2), 0.5)), "samples": log_p}
    x = np.random.default_rng(0).standard_normal((n, 3))
    for wrong, words in ((x[:, :0], "width 0"), (np.where(np.arange(n)[:, None] == 4, np.nan, x), "1 candidate embeddings .* at rows 4")):
        with pytest.raises(DataError, match=words):
            choose(Candidates(**given, shards=LocalShards.of_array(wrong)), strategy=name, budget=3)
    for key, argument in (("score", "score"), ("keys", "keys"), ("samples", "log_probs")):
        with pytest.raises(DataError, match=f"`{argument}` has 11 values, expected 12"):
            choose(Candidates(**{**given, key: given[key][:11]}, shards=LocalShards.of_array(x)), strategy=name, budget=3)
    with pytest.raises(QueryError, match="`k` is -1"):
        choose(Candidates(**given, shards=LocalShards.of_array(x)), strategy=name, budget=-1)


def test_one_order_of_arguments():
    """`x` or what stands for it, `k`, and by name `score`, `labelled`, `metric`, `seed`, then what is the strategy's own."""
    order = ["score", "probabilities", "labelled", "labelled_probabilities", "metric", "seed"]
    for name in sorted(STRATEGIES):
        parameters = list(inspect.signature(getattr(selection, name)).parameters.values())
        assert [parameter.name for parameter in parameters][1] == "k"
        assert all(parameter.kind == parameter.KEYWORD_ONLY for parameter in parameters[2:])
        shared = [parameter.name for parameter in parameters[2:] if parameter.name in order]
        assert shared == sorted(shared, key=order.index)
        assert [parameter.name for parameter in parameters[2:]][: len(shared)] == shared
        assert ("metric" in shared) == ("metric" in TRAITS[name].keys)


def test_select_takes_any_form():
    """The whole choice, too."""
    x, score = pool(), np.random.default_rng(1).permutation(N) / 64.0
    for give in FORMS.values():
        found = select(give(x), K, score=give(score), labelled=give(x[:2]), exclude=torch.tensor([0, 1]), must_include=[5])
        np.testing.assert_array_equal(found, select(x, K, score=score, labelled=x[:2], exclude=[0, 1], must_include=np.array([5])))
