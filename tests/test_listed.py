"""`raystream strategies`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from raystream import cli
from raystream.query.catalogue import KINDS, SCORES, TRAITS


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["strategies", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_it_loads_no_code_and_prints_one_object() -> None:
    """All strategies as JSON, without anything heavy imported."""
    code = (
        "import sys, raystream.cli as cli\n"
        "try:\n    cli.main(['strategies', '--json'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'ray', 'torch', 'faiss', 'pyarrow', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [entry["name"] for entry in found["strategies"]] == [*TRAITS, "auto"]
    k_means = next(entry for entry in found["strategies"] if entry["name"] == "k_means")
    assert (k_means["needs"], k_means["candidates"]) == (["score", "embedding"], "10 x budget")
    assert [(arg["name"], arg["default"]) for arg in k_means["args"]] == [("iterations", 20)]


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Every entry has its lines, with needs and defaults."""
    code, out, _ = said(capsys)
    assert code == 0
    assert all(any(line.startswith(name + " ") for line in out.splitlines()) for name in (*TRAITS, "auto"))
    assert "needs score, embedding · takes 13 s · iterations: 20" in out
    assert [entry["name"] for entry in json.loads(said(capsys, "--scores", "--json")[1])["scores"]] == list(SCORES)
    assert [entry["name"] for entry in json.loads(said(capsys, "--kinds", "--json")[1])["kinds"]][: len(KINDS)] == list(KINDS)


def test_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """A strategy, a score or a kind by its name; another name is exit 2, with the nearest."""
    out = said(capsys, "core_set")[1]
    assert "raystream.selection.strategies.core_set:core_set_strategy" in out
    assert "default: 0" in out
    assert "score" in said(capsys, "bald")[1].split()[0]
    assert "a .onnx file" in said(capsys, "onnx")[1]
    code, out, err = said(capsys, "coreset")
    assert (code, out) == (2, "")
    assert "did you mean 'core_set'?" in err
    assert "'bald' is no kind of model" in said(capsys, "bald", "--kinds")[2]
    assert "both given" in said(capsys, "--scores", "--kinds")[2]
