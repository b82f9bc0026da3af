"""The batches of a loop's rounds, with the control rows that no query chose."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from label_queries import commit_query

from raystream.errors import QueryError, StoreError
from raystream.store.queries import parquet_bytes
from raystream.store.result import Result
from raystream.store.rounds import as_asked, batch_folder, find_batch, is_round, load_batch, round_folder


@pytest.fixture
def first(tmp_path: Path) -> Result:
    """Query `mine-r1`, which chose 8 of 40 rows."""
    return commit_query(tmp_path, pa.array(range(40)), store={"query": "mine-r1"})


def put_round(result: Result, number: int, query: str, table: pa.Table, loop: str = "model: {}") -> None:
    """What a loop leaves of itself, and of a round that it asked for."""
    folder = round_folder("mine", number)
    result.store.put("loops/mine/loop.yaml", loop.encode())
    result.store.put(f"{folder}/selection-x.parquet", parquet_bytes(table))
    result.store.put(f"{folder}/asked.json", json.dumps({"round": number, "query": query, "batch": "selection-x.parquet"}).encode())


def test_a_round_has_its_control_rows_and_any_other_query_is_as_it_is(first: Result) -> None:
    """By the round's own record alone: a query that happens to be called so is no loop's."""
    assert as_asked(first) is first
    longer = pa.concat_tables([first.selection, first.selection.slice(0, 2)])
    put_round(first, 1, "another", longer)
    assert as_asked(first) is first
    put_round(first, 1, "mine-r1", longer)
    assert as_asked(first).selection.num_rows == 10
    assert load_batch(first.store.uri, "mine-r1").selection.num_rows == 10
    assert load_batch(first.store.uri, "mine").selection.num_rows == 10
    assert first.selection.num_rows == 8


def test_people_are_asked_for_the_loops_task_and_classes(first: Result) -> None:
    """Whatever the round's own model knows of them; nothing else of the record changes."""
    put_round(first, 1, "mine-r1", first.selection, "model: {task: multi_label, classes: [a, b], batch_size: 7}")
    model, own = as_asked(first).manifest.resolved["model"], first.manifest.resolved["model"]
    assert model == own | {"task": "multi_label", "classes": ["a", "b"]}
    assert is_round(first)
    put_round(first, 1, "mine-r1", first.selection)
    assert as_asked(first).manifest.resolved["model"] == own | {"task": "classes", "classes": None}
    put_round(first, 1, "mine-r1", first.selection, "[")
    with pytest.raises(StoreError, match=r"loop\.yaml is damaged; restore it"):
        as_asked(first)


def test_a_round_of_control_rows_alone_is_known_by_its_name(first: Result) -> None:
    """What the pool is comes from the last query before it; records about it stand in the round's folder."""
    alone = first.selection.select(["rank", "rid", "why", "path", "row"]).slice(0, 3)
    put_round(first, 1, "mine-r1", first.selection)
    put_round(first, 3, "", alone)
    found = find_batch(first.store, "mine-r3")
    assert found is not None
    assert (found.query, found.selection.num_rows) == ("mine-r3", 3)
    assert load_batch(first.store.uri, "mine-r3").selection.equals(alone)
    assert (batch_folder(first.store, "mine-r3"), batch_folder(first.store, "mine-r1")) == ("loops/mine/rounds/0003", "queries/mine-r1")
    assert find_batch(first.store, "mine-r2") is None
    with pytest.raises(QueryError):
        load_batch(first.store.uri, "mine-r2")


def test_a_damaged_record_is_said(first: Result) -> None:
    """Rather than a batch without its control rows."""
    first.store.put(f"{round_folder('mine', 1)}/asked.json", b"{")
    with pytest.raises(StoreError, match="is damaged"):
        as_asked(first)
