"""`raystream init`: what it writes runs as it is, and nothing is overwritten."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("kind", ["images", "texts", "table"])
def test_what_it_writes_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """From the written query alone: twenty rows, none of them labelled, no warning; and what it says to change first is marked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    code, out, _ = cli("init", f"--{kind}")
    assert code == 0
    assert "raystream query query.yaml" in out
    code, out, err = cli("query", "query.yaml", "--address", "in_process", "--json", "--no-report")
    assert code == 0, err
    result = json.loads(out)
    chosen, labelled = pq.read_table(result["selection"]), pq.read_table("labelled.parquet")
    name = labelled.column_names[0]
    assert (chosen.num_rows, result["warnings"], result["counts"]["labelled"]) == (20, [], 60)
    assert not set(chosen.column(name).to_pylist()) & set(labelled.column(name).to_pylist())
    text = Path("query.yaml").read_text()
    spec = yaml.safe_load(text)
    marked = [line.split(":")[0].strip() for line in text.splitlines() if re.search(r"# >", line)]
    assert set(marked) >= {"uri", "id", "inputs", "labelled", "source", "weights", "budget"}
    assert spec["select"]["budget"] == 20
    monkeypatch.delitem(sys.modules, "my_model", raising=False)


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """A file of such a name is exit 2, and nothing else is written; two kinds at once are refused."""
    (tmp_path / "query.yaml").write_text("mine")
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("init", "--texts")
    assert code == 2
    assert f"{tmp_path / 'query.yaml'} is there already, and init overwrites nothing" in err
    assert [path.name for path in tmp_path.iterdir()] == ["query.yaml"]
    assert (tmp_path / "query.yaml").read_text() == "mine"
    assert "given; give one of them" in cli("init", "--texts", "--table")[2]
