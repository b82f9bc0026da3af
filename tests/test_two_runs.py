"""Two runs of one query at once: they share what they score, one of them commits, and both print that."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from commands import Command

import raystream as rs
from raystream.store.local import LocalStore

MakeQuery = Callable[..., rs.Query]


def test_one_commits_while_the_other_is_about_to(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run begins when the first has scored all, and is done before the first one's manifest: both return its batch."""
    others: list[Any] = []
    put = LocalStore.put_if_absent

    def overtaken(self: LocalStore, name: str, data: bytes, **options: Any) -> bool:
        if name.endswith("manifest.json") and not others:
            others.append(None)
            others[0] = rs.run(make_query(store__query="q"))
        return put(self, name, data, **options)

    monkeypatch.setattr(LocalStore, "put_if_absent", overtaken)
    first = rs.run(make_query(store__query="q"))
    [second] = others
    assert (first.new, second.new) == (False, True)
    assert (first.manifest.units_scored, second.manifest.units_scored) == (0, 0)
    assert first.selection.equals(second.selection)
    assert len(list(Path("runs/queries/q").glob("selection-*.parquet"))) == 1


@pytest.mark.slow
def test_two_threads_of_one_process(make_query: MakeQuery) -> None:
    """Begun in the same moment, as by a service: the same batch, each unit's outputs kept once."""
    expected = rs.run(make_query(store__uri="undisturbed"))
    found: list[Any] = []
    start = threading.Barrier(2)

    def run() -> None:
        start.wait()
        found.append(rs.run(make_query(store__query="q", cluster={"address": "in_process", "workers": 2})))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.selection.equals(expected.selection) for result in found] == [True, True]
    assert sorted(result.new for result in found) == [False, True]
    assert len(list(Path("runs").glob("units/*/*/embeddings-*.arrow"))) == 4


@pytest.mark.slow
def test_two_commands(make_query: MakeQuery, workplace: Path) -> None:
    """In processes of their own, as on two machines that share a disk: both end well and print one query."""
    expected = rs.run(make_query(store__uri="undisturbed"))
    (workplace / "query.yaml").write_text(yaml.safe_dump(yaml.safe_load(make_query(store__query="q").to_yaml())))
    (workplace / "other").mkdir()
    arguments = ["query", str(workplace / "query.yaml"), "--json", "--no-report", "--store", str(workplace / "runs")]
    place = ["--set", f"pool.uri={workplace / 'pool'}"]
    here = {"PYTHONPATH": str(workplace)}
    first = Command(workplace, *arguments, *place)
    second = Command(workplace / "other", *arguments, *place, environment=here)
    said = []
    for command in (first, second):
        code, output, error = command.wait()
        assert code == 0, error
        said.append(json.loads(output))
    assert sorted(summary["new"] for summary in said) == [False, True]
    assert pq.read_table(said[0]["selection"]).drop_columns("path").equals(expected.selection.drop_columns("path"))
    assert said[0]["selection"] == said[1]["selection"]
