"""`select.strategy: auto`: the written rule, the strategy that it picks in a query, and what the result says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raystream as rs
from raystream.errors import QueryError
from raystream.query import Select
from raystream.query.catalogue import TRAITS
from raystream.query.catalogue.strategies import pick

MakeQuery = Callable[..., rs.Query]


@pytest.mark.parametrize(
    ("labelled", "classes", "task", "embedding", "score", "picked"),
    [
        (0, 4, "classes", True, True, "typiclust"),
        (0, 4, "classes", False, True, "random"),
        (0, 0, "regression", True, False, "typiclust"),
        (11, 4, "classes", True, True, "typiclust"),
        (11, 4, "classes", False, True, "power"),
        (12, 4, "classes", True, True, "k_means"),
        (12, 4, "multi_label", True, True, "k_means"),
        (800, 4, "classes", False, True, "power"),
        (800, 4, "classes", True, False, "typiclust"),
        (800, 4, "classes", False, False, "random"),
        (1, 0, "regression", True, False, "lcmd"),
        (1, 0, "regression", False, True, "power"),
        (1, 0, "regression", False, False, "random"),
    ],
)
def test_the_rule(labelled: int, classes: int, task: str, embedding: bool, score: bool, picked: str) -> None:
    """By labelled rows of each class, and by what there is; what it picks can do with that."""
    found = pick(labelled, classes, task=task, embedding=embedding, score=score)
    assert found.strategy == picked
    traits = TRAITS[picked]
    assert embedding or not traits.embedding
    assert score or not traits.score


@pytest.mark.parametrize(("labelled", "picked"), [(0, "typiclust"), (11, "typiclust"), (12, "k_means")])
def test_a_query_picks_by_what_is_labelled(make_query: MakeQuery, workplace: Path, labelled: int, picked: str) -> None:
    """The net has four classes; the batch is that of a query which names the strategy, and the result says which and why."""
    changes = {}
    if labelled:
        pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(labelled)]}), workplace / "labels.parquet")
        changes["pool__labelled"] = "labels.parquet"
    result = rs.run(make_query(select={"budget": 12, "strategy": "auto"}, **changes))
    named = rs.run(make_query(select={"budget": 12, "strategy": picked}, **changes))
    assert result.selection.equals(named.selection)
    assert result.query != named.query
    assert result.manifest.facts["strategy"] == picked
    assert str(result.manifest.facts["strategy_why"]).startswith(
        "nothing is labelled" if not labelled else f"{labelled} labelled rows of 4"
    )


def test_columns_without_an_embedding(workplace: Path) -> None:
    """A pool that carries logits alone is chosen from by chance while nothing is labelled."""
    logits = pa.FixedSizeListArray.from_arrays(pa.array([float(i % 7) for i in range(400)], pa.float32()), 4)
    pq.write_table(pa.table({"rid": range(100), "logits": logits}), workplace / "carried.parquet")
    query = rs.Query(
        pool=rs.Pool(uri="carried.parquet", id="rid"),
        model=rs.Model(kind="columns", logits="logits"),
        select=rs.Select(budget=5, strategy="auto"),
        cluster=rs.Cluster(address="in_process"),
    )
    result = rs.run(query)
    assert result.manifest.facts["strategy"] == "random"
    assert result.selection.num_rows == 5


@pytest.mark.parametrize(("key", "value"), [("candidates", 50), ("metric", "cosine"), ("args", {"iterations": 3}), ("weight", 1.0)])
def test_keys_of_what_it_may_pick_are_refused(key: str, value: object) -> None:
    """Nobody knows beforehand which strategy would have to use them."""
    with pytest.raises(QueryError, match=key):
        Select(budget=5, strategy="auto", **{key: value})


def test_a_near_name_is_guessed() -> None:
    """`auto` is among the names."""
    with pytest.raises(QueryError, match="did you mean 'auto'"):
        Select(budget=5, strategy="atuo")
