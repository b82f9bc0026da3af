"""From Python and notebooks: a file's name for a query, rows in memory for a pool, what a result looks like, how far a run is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pools import pool_table

import raystream as rs
from raystream.errors import PoolError, QueryError
from raystream.run import score
from raystream.store.frames import with_rows

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]


def test_a_file_is_taken_for_its_query(make_query: MakeQuery, workplace: Path) -> None:
    """By name or path; what is neither is refused in words."""
    (workplace / "query.yaml").write_text(make_query().to_yaml())
    first = rs.run("query.yaml")
    assert rs.run(workplace / "query.yaml").query == first.query
    with pytest.raises(QueryError, match=r"query is a dict, expected a raystream\.Query, or the path of a YAML file"):
        rs.run({"pool": {}})  # type: ignore[arg-type]


def test_only_public_names_are_listed() -> None:
    """However many rooms have been imported."""
    assert dir(rs) == sorted([*rs.__all__, "__version__"])


class Stream:
    """A frame of another library, known by Arrow's protocol alone."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def frames(table: pa.Table) -> list[Any]:
    """The same rows in other hands, and in other chunks."""
    halves = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    return [table, halves, Stream(table), type("DataFrame", (), {"to_arrow": lambda self: halves})()]


def test_rows_in_memory_are_a_pool(make_query: MakeQuery, workplace: Path) -> None:
    """They choose what the same rows in a file choose; the same rows again, in any hands, are the same query and score nothing."""
    table = pool_table(20_000)
    query = make_query(pool__uri=None, pool__keep=["country"])
    import pyarrow.parquet as pq

    pq.write_table(table, workplace / "same.parquet", row_group_size=16_384)
    from_file = rs.run(make_query(pool__uri="same.parquet", pool__keep=["country"]))
    first = rs.run(query, pool=table)
    columns = [name for name in first.selection.column_names if name != "path"]
    assert first.selection.select(columns).equals(from_file.selection.select(columns))
    for rows in frames(table):
        again = rs.run(query, pool=rows)
        assert (again.query, again.new) == (first.query, False)
    assert len(list((workplace / "runs" / "tables").iterdir())) == 1
    more = rs.run(query.model_copy(update={"select": {"budget": 3, "strategy": "top_k"}}), pool=table)
    assert more.manifest.units_scored == 0
    assert rs.run(query, pool=table.slice(1)).query != first.query
    assert score(query, pool=table).units_scored == 0


def test_pandas_frames(make_query: MakeQuery) -> None:
    """A named index is a column, another one isn't; arrays in cells are lists; a selection becomes a frame again."""
    pandas = pytest.importorskip("pandas")
    table = pool_table(50)
    frame = pandas.DataFrame({"rid": table.column("rid").to_pylist(), "x": [np.float32(row) for row in table.column("x").to_pylist()]})
    query = make_query(pool__uri=None, select__budget=4)
    plain = rs.run(query, pool=frame)
    assert rs.run(query, pool=frame.iloc[::-1].iloc[::-1]).query == plain.query
    assert rs.run(query, pool=table.select(["rid", "x"])).query != plain.query  # lists of any length are another type
    lists = table.column("x").cast(pa.list_(pa.float32()))
    assert rs.run(query, pool=pa.table({"rid": table.column("rid"), "x": lists})).query == plain.query
    indexed = rs.run(query, pool=frame.set_index("rid"))
    assert indexed.selection.column("rid").equals(plain.selection.column("rid"))
    assert list(plain.selection.to_pandas()["rid"]) == plain.selection.column("rid").to_pylist()
    with pytest.raises(PoolError, match=r"this DataFrame can't become columns: .*; give each column values of one type"):
        rs.run(query, pool=pandas.DataFrame({"rid": ["a", 5]}))


def test_what_is_no_table_is_refused(make_query: MakeQuery) -> None:
    """In words; as are frames without rows, and two columns of one name."""
    query = make_query(pool__uri=None)
    lazy = type("LazyFrame", (), {"collect": None})()
    for rows, says in (
        ([1, 2], r"pool is a list, expected a pyarrow\.Table or a pandas or polars DataFrame"),
        (lazy, r"pool is a LazyFrame, .*; collect\(\) it first"),
        (pool_table(5).slice(0, 0), "pool holds 0 rows of 5 columns"),
        (pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), "pool has 2 columns a; rename all but one"),
    ):
        with pytest.raises((QueryError, PoolError), match=says):
            rs.run(query, pool=rows)
    with pytest.raises(QueryError, match=r"pool\.uri is missing from the query"):
        rs.run(query)


def test_views_are_written_as_what_parquet_has(make_query: MakeQuery) -> None:
    """As other libraries give strings."""
    table = pool_table(30)
    views = table.set_column(0, "rid", table.column("rid").cast(pa.string_view()))
    assert rs.run(make_query(pool__uri=None, select__budget=4), pool=views).selection.num_rows == 4


def test_gc_keeps_the_rows_of_committed_queries(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Those of no query go once they are old."""
    result = rs.run(make_query(pool__uri=None, select__budget=4), pool=pool_table(60))
    with_rows(make_query(pool__uri=None), pool_table(61))
    tables = workplace / "runs" / "tables"
    assert len(list(tables.iterdir())) == 2
    assert json.loads(cli("gc", "--json", "--delete")[1])["tables"] == {"count": 0, "bytes": 0}
    for file in tables.iterdir():
        os.utime(file, (0, 0))
    (kept,) = (Path(path) for path, _, _ in result.manifest.files)
    swept = json.loads(cli("gc", "--json", "--delete")[1])
    assert swept["tables"]["count"] == 1
    assert list(tables.iterdir()) == [kept]


def test_a_result_says_what_it_is(make_query: MakeQuery) -> None:
    """In a line, and in notebooks as the report's rows; what the pool holds is text there."""
    result = rs.run(make_query(pool__keep=["url"]))
    assert repr(result) == f"<Result {result.query}: 12 rows by k_means, score margin; new>"
    again = rs.run(make_query(pool__keep=["url"]))
    assert repr(again).endswith(f"; committed {result.manifest.committed}>")
    html = result._repr_html_()
    assert html is not None
    assert str(result.selection.column("rid")[0]) in html.replace("<wbr>", "")
    assert "<script" not in html


class Display:
    """What IPython's display hands out."""

    def __init__(self, content: str) -> None:
        self.shown = [content]

    def update(self, content: str) -> None:
        self.shown.append(content)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Display]:
    """IPython with a kernel, as far as a run asks for it."""
    displays: list[Display] = []

    def display(content: str, display_id: bool) -> Display:
        assert display_id
        displays.append(Display(content))
        return displays[-1]

    ipython, of_display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: type("Shell", (), {"kernel": object()})()  # type: ignore[attr-defined]
    of_display.display, of_display.HTML = display, str  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", of_display)
    return displays


def test_a_notebook_shows_how_far_a_run_is(make_query: MakeQuery, notebook: list[Display]) -> None:
    """A line a stage, a bar while units are scored, and nothing when it is done."""
    rs.run(make_query())
    (display,) = notebook
    assert any("Choosing 12 rows by k_means" in shown for shown in display.shown)
    assert any('<progress value="1200" max="1200"' in shown for shown in display.shown)
    assert display.shown[-1] == ""


def test_a_terminal_shows_a_bar(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself where stderr is one, and nothing elsewhere."""
    rs.run(make_query())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    rs.run(make_query(select__budget=3))
    assert "Choosing 3 rows" in capsys.readouterr().err
