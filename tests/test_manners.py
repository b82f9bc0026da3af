"""Small manners: values of the pool's in messages and tables, other people's words, pipes that are closed, what is listed and how."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import pool_table

import raystream as rs
from raystream.cli import commands
from raystream.cli.terminal import reporting
from raystream.errors import PoolError, QueryError
from raystream.figures import of_columns, quoted, several, shown
from raystream.lake.uri import absolute
from raystream.query import Acquire, Model, Select
from raystream.report.text import rows_as_text

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]


@given(st.text() | st.binary() | st.integers(), st.integers(3, 100))
def test_values_are_shown_on_one_line(value: object, longest: int) -> None:
    """However long, whatever characters: printable, no longer than asked, and whole where there is room."""
    for text in (shown(value, longest), quoted(value, longest)):
        assert len(text) <= longest
        assert text.isprintable()
    whole = shown(value, 10_000)
    assert shown(value, len(whole) or 3) == whole


def test_values_by_example() -> None:
    """Beginning and end stay; line breaks and directions are written out; bytes are hexadecimal."""
    assert shown("a" * 100) == "a" * 40 + "…" + "a" * 39
    assert shown("two\nlines\u202e") == "two\\nlines\\u202e"
    assert shown(b"\x00\xff") == "00ff"
    assert several(["a\nb", 2, 3, 4]) == "'a\\nb', 2, 3, .."


def test_long_ids_are_cut_in_messages_and_tables(make_query: MakeQuery, workplace: Path) -> None:
    """Ids of many lines and 300 characters don't fill the screen."""
    long = "line\n" * 60
    table = pool_table(4).set_column(0, "rid", pa.array([long, long, "c", "d"]))
    pq.write_table(table, workplace / "long.parquet")
    with pytest.raises(PoolError) as caught:
        rs.run(make_query(pool__uri="long.parquet", select__budget=1))
    assert "first: line\\nline" in str(caught.value)
    assert "…" in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(QueryError, match=r"not in the pool after its filters: 'line\\n.*…"):
        rs.run(make_query(select__must_include=[long]))
    text = rows_as_text(pa.table({"rank": [0], "rid": [long], "why": [""]}), 10)
    assert len(text.splitlines()) == 2
    assert max(map(len, text.splitlines())) < 60


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        (Select, {"budget": True}, "select.budget is true, expected a whole number"),
        (Select, {"budget": 0}, "select.budget is 0, expected a number above 0"),
        (Select, {"budget": 2.5}, "select.budget is 2.5, expected a whole number"),
        (Select, {"budget": 2, "candidates": False}, "select.candidates is false, expected a whole number or all"),
        (Select, {"budget": 2, "cost": {"column": "c", "budget": False}}, "select.cost.budget is false, expected a number"),
        (Select, {"budget": 2, "mix": True, "strategy": "diverse"}, "select.mix is true, expected a number"),
        (Select, {"budget": 2, "quotas": {"by": "c", "max": 1}}, 'select.quotas is {"by": "c", "max": 1}, expected a list'),
        (Select, {"budget": 2, "must_include": [True]}, "select.must_include.0 is true, expected an id, text or a whole number"),
        (Model, {"source": "a:b", "preprocess": {"size": 224}}, "model.preprocess.size is 224, expected a list, such as [224, 224]"),
        (
            Model,
            {"source": "a:b", "preprocess": {"size": [224]}},
            "model.preprocess.size is [224], expected one value more, such as [224, 224]",
        ),
        (Model, {"source": "a:b", "temperature": False}, "model.temperature is false, expected a number or text or a list"),
        (Model, {"source": "a:b", "args": [1]}, "model.args is [1], expected keys with values"),
        (Acquire, {"class_weights": {"a": True}}, "acquire.class_weights is true, expected a number or a list"),
        (rs.Pool, {"uri": 5}, "pool.uri is 5, expected text or a list"),
        (rs.Pool, {"uri": "p", "keep": None}, "pool.keep is null, expected a list"),
        (rs.Cluster, {"gpus_per_worker": True}, "cluster.gpus_per_worker is true, expected a number or auto"),
    ],
)  # fmt: skip
def test_wrong_values_are_told_in_the_words_of_a_query_file(part: type, values: dict, says: str) -> None:
    """Not in those of Python or of the library that checks them; true and false are no numbers."""
    with pytest.raises(QueryError) as caught:
        part(**values)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        (Acquire, {"score": "uncertainty"}, "; that is least_confidence, margin or entropy here"),
        (Acquire, {"score": "Uncertainty-Sampling"}, "; that is least_confidence, margin or entropy here"),
        (Acquire, {"score": "ENTROPY"}, "; did you mean 'entropy'?"),
        (Acquire, {"also": ["qbc"]}, "; that is vote_entropy, consensus_entropy or bald here"),
        (Acquire, {"score": "core_set"}, "; core_set is a strategy: select.strategy"),
        (Acquire, {"score": "zzz"}, ", expected badge_norm, bald,"),
        (Select, {"budget": 1, "strategy": "margin"}, "; margin is a score: acquire.score"),
        (Select, {"budget": 1, "strategy": "k-means++"}, "; that is k_means_pp here"),
        (Select, {"budget": 1, "strategy": "coreset"}, "; did you mean 'core_set'?"),
    ],
)
def test_names_that_are_used_elsewhere_lead_to_ours(part: type, values: dict, says: str) -> None:
    """What the literature and other libraries call a score or a strategy, and one taken for the other."""
    with pytest.raises(QueryError) as caught:
        part(**values)
    assert says in str(caught.value)


def test_a_missing_column_lists_those_that_are_there(make_query: MakeQuery) -> None:
    """Also where one of them is near; of many, the first twenty."""
    for changes in ({"pool__inputs": ["pixels"]}, {"pool__keep": ["pixels"]}, {"pool__filters": [["pixels", "==", 1]]}):
        with pytest.raises(PoolError, match=r"; the columns are rid, x, country, url, minutes"):
            rs.run(make_query(**changes))
    with pytest.raises(PoolError, match=r"did you mean 'country'\? The columns are rid, "):
        rs.run(make_query(pool__keep=["contry"]))
    assert of_columns("x", [f"column{i}" for i in range(50)]).endswith("column19 and 30 more")


def test_a_reader_that_goes_away_is_no_error(workplace: Path) -> None:
    """`raystream strategies | head`: exit 0, and nothing on stderr, also when the interpreter flushes what is left."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "raystream.cli", "strategies", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_is_an_error(make_query: MakeQuery, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks while a query runs must not look like success."""

    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError("a server closed it")

    Path("query.yaml").write_text(make_query().to_yaml())
    monkeypatch.setattr(commands, "run", broken)
    code, _, err = cli("query", "query.yaml")
    assert code == 1
    assert "BrokenPipeError" in err


def test_a_list_of_queries_says_what_tells_them_apart(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """The date, how many rows were labelled, and the weights."""
    from safetensors.torch import save_file

    from raystream.model.source import build_network

    save_file(build_network("user_nets:net", {}).state_dict(), workplace / "round-1.safetensors")
    pq.write_table(pool_table(300).select(["rid"]).slice(0, 7), workplace / "labelled.parquet")
    rs.run(make_query(store__query="first"))
    rs.run(make_query(store__query="second", model__weights="round-1.safetensors", pool__labelled=["labelled.parquet"]))
    lines = {line.split()[0]: line for line in cli("show")[1].splitlines()}
    assert lines["query"].split() == ["query", "committed", "labelled", "chosen", "asked"]
    assert lines["second"].endswith("with user_nets:net, round-1.safetensors")
    assert lines["second"].split()[1].startswith("20")
    assert " 7 " in lines["second"]
    assert lines["first"].endswith("with user_nets:net")


def test_paths_that_are_printed_are_absolute(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Wherever the next command is run; URIs are shown without what is secret."""
    Path("query.yaml").write_text(make_query(output="out/chosen.parquet").to_yaml())
    code, out, _ = cli("query", "query.yaml")
    assert code == 0
    places = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.split(" ")[0] in ("selection", "output", "report")]
    assert len(places) == 3
    assert all(Path(place).is_absolute() and Path(place).exists() for place in places)
    assert f"in store {workplace / 'runs'}" in cli("score", "query.yaml")[1]
    assert str(workplace / "nowhere") in cli("show", "--store", "nowhere")[2]
    assert f"query file {workplace / 'none.yaml'} can't be read" in cli("plan", "none.yaml")[2]
    for key in ("pool.uri", "pool.labelled", "model.weights"):
        value = "[gone.parquet]" if key == "pool.labelled" else "gone.parquet"
        assert f"{key} {workplace / 'gone.parquet'} " in cli("plan", "query.yaml", "--set", f"{key}={value}")[2]
    assert absolute("delta+x/t") == f"delta+{workplace / 'x/t'}"
    assert absolute("s3://bucket/a?secret_key=b") == "s3://bucket/a"
    assert absolute("iceberg://lake/ns.t") == "iceberg://lake/ns.t"


@pytest.mark.filterwarnings("always")
def test_warnings_take_a_line_each(make_query: MakeQuery, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a result, and those of libraries, which Python prints with the line of code that gave them."""
    with reporting():
        warnings.warn("the first\nof two", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "raystream: warning: the first of two\n"
    Path("query.yaml").write_text(make_query(select__budget=5000).to_yaml())
    lines = cli("query", "query.yaml")[1].splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  warning ")] == ["warning"]
