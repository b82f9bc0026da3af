"""Queries as values in Python: they don't change, copies are checked, paths may be paths."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

import raystream as rs
from raystream.errors import QueryError


@pytest.fixture
def query() -> rs.Query:
    return rs.Query(pool=rs.Pool(uri="pool", inputs=["x"]), model=rs.Model(source="nets:net"), select=rs.Select(budget=5))


def test_nothing_can_be_set(query: rs.Query) -> None:
    """Our error, which says what to do instead."""
    with pytest.raises(QueryError, match=r"select\.budget can't be set: queries do not change; make another by select\.model_copy"):
        query.select.budget = 7
    with pytest.raises(QueryError, match=r"budgte can't be set: it is not a key of the query; known: acquire"):
        query.budgte = 7  # type: ignore[attr-defined]
    with pytest.raises(QueryError, match=r"pool can't be set"):
        del query.pool
    assert query.select.budget == 5


def test_copies_are_checked(query: rs.Query) -> None:
    """A copy is what it would be if it had been written so; keys that weren't given stay as if left out."""
    copied = query.model_copy(update={"select": {"budget": 9}, "seed": 3})
    assert (copied.select.budget, copied.seed, copied.pool) == (9, 3, query.pool)
    assert copied == rs.Query(pool=query.pool, model=query.model, select=rs.Select(budget=9), seed=3)
    assert copied.to_yaml() == rs.Query(pool=query.pool, model=query.model, select=rs.Select(budget=9), seed=3).to_yaml()
    with pytest.raises(QueryError, match=r"select\.budget is -1, expected a number above 0"):
        query.select.model_copy(update={"budget": -1})
    with pytest.raises(QueryError, match=r"select\.weight is not used by strategy k_means"):
        query.select.model_copy(update={"weight": 1.0})
    with pytest.raises(QueryError, match=r"selct is not a key of the query; did you mean 'select'\?"):
        query.model_copy(update={"selct": {}})
    with pytest.raises(QueryError, match=r"model is missing from the query"):
        rs.Query.model_validate({"pool": {"uri": "p"}})
    assert query.model_copy() == query


def test_they_travel(query: rs.Query) -> None:
    """By pickle and by copy."""
    assert pickle.loads(pickle.dumps(query)) == query == copy.deepcopy(query)


def test_paths_are_taken_for_text() -> None:
    """Wherever a path may stand, alone or in a list."""
    pool = rs.Pool(uri=Path("a/b"), labelled=[Path("c"), "d"])  # type: ignore[arg-type,list-item]
    assert (pool.uri, pool.labelled) == (str(Path("a/b")), ["c", "d"])
    assert rs.Store(uri=Path("runs")).uri == "runs"  # type: ignore[arg-type]


def test_a_table_is_no_uri() -> None:
    """Refused in words that say where rows in memory go; and a pool without a URI is found when it is looked for."""
    with pytest.raises(QueryError, match=r"pool\.uri is a Table, expected the path or URI of Parquet; .*rs\.run\(query, pool=rows\)"):
        rs.Pool(uri=pa.table({"x": [1]}))
    with pytest.raises(QueryError, match=r"pool\.uri is missing from the query; .*rs\.run\(query, pool=rows\)"):
        _ = rs.Pool(inputs=["x"]).uris
