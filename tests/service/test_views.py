"""What the page shows, as data: lists, rows, maps, comparisons; and that looking changes nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import logits_and_embeddings, pool_table

import raystream as rs
from raystream import Query
from raystream.errors import QueryError
from raystream.service.formats import ids, plain
from raystream.service.pool_sample import CHOSEN, LABELLED, pool_sample
from raystream.service.views import Views, differences, iso
from raystream.store.events import EventLog
from raystream.store.opening import existing_store

EVIL = '<script>alert("1")</script>'


def as_json(data: Any) -> Any:
    """As a browser has it; what JSON has no form for is an error."""
    return json.loads(json.dumps(data, allow_nan=False))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def views(make_query: Callable[..., Query], workplace: Path) -> Callable[..., tuple[Views, rs.Result]]:
    """Runs a query over the tests' pool; the views of its store, and its result."""

    def run(name: str = "q", **changes: Any) -> tuple[Views, rs.Result]:
        result = rs.run(make_query(store__query=name, **changes))
        return Views(existing_store("runs")), result

    return run


def test_the_list_holds_every_query_and_follows_the_store(views: Callable[..., Any], workplace: Path) -> None:
    """Committed, running, failed ones, each with what is known of it; a second look sees what happened since."""
    shown, _ = views("first", select__strategy="core_set")
    store = shown.store
    for name in ("going", "broken"):
        store.put(f"queries/{name}/query.yaml", b"pool: {uri: 's3://key:secret@lake/images'}\nselect: {budget: 7}\n")
        log = EventLog(store, f"queries/{name}")
        run = log.append("started", host="elsewhere", process=1, who="mira")
        log.append("planned", run=run, rows=100, units=4, rows_todo=100, units_todo=4)
        log.append("progress", run=run, rows=100, rows_done=25, units=4, units_done=1, rate=5.0, seconds_left=15.0, workers=1)
    log.append("failed", run=run, error=EVIL, exit_code=3)
    store.put("queries/going/token-0", b"the driver is here")
    found = {line["name"]: line for line in as_json(shown.queries())["queries"]}
    assert {name: line["state"] for name, line in found.items()} == {"first": "committed", "going": "running", "broken": "failed"}
    assert found["first"]["strategy"] == "core_set"
    assert found["first"]["chosen"] == 12
    assert (found["going"]["done"], found["going"]["rows"], found["going"]["seconds_left"], found["going"]["who"]) == (
        25,
        100,
        15.0,
        "mira",
    )
    assert found["going"]["budget"] == 7
    assert "secret" not in json.dumps(found)
    assert found["broken"]["error"] == EVIL
    (workplace / "runs/queries/first/manifest.json").write_text("{}")
    views("second", seed=1)
    again = {line["name"]: line["state"] for line in shown.queries()["queries"]}
    assert again == {"first": "damaged", "going": "running", "broken": "failed", "second": "committed"}


def test_looking_changes_nothing_in_the_store(views: Callable[..., Any], workplace: Path) -> None:
    """Not a byte, not even where a copy of the selection is missing that a run would make anew."""
    shown, result = views()
    result.folder.joinpath("selection.parquet").unlink()
    before = files(workplace / "runs")
    for part in (shown.query, shown.rows, shown.histogram, shown.map, shown.map_ids):
        as_json(part("q"))
    as_json([shown.queries(), shown.inputs("q", 0), shown.row("q", 0), shown.near("q", 0)])
    assert files(workplace / "runs") == before


def test_rows_are_those_of_the_selection(views: Callable[..., Any]) -> None:
    """The columns for people, the ids as text; values that JSON has no form for are null or text."""
    shown, result = views(pool__keep=["country", "url"])
    data = as_json(shown.rows("q"))
    table = result.selection
    assert data["ids"] == table.column("rid").to_pylist()
    assert data["kept"] == ["country", "url"]
    for name in ("score", "gain", "represents", "why", "prediction", "country"):
        assert data["columns"][name] == [plain(value) for value in table.column(name).to_pylist()]
    assert not {"turn", "probability", "path", "row"} & set(data["columns"])  # the file has them
    assert b"why,turn,probability," in base64.b64decode(data["csv"].partition(",")[2])
    assert base64.b64decode(data["ids_file"].partition(",")[2]).decode().split() == data["ids"]


def test_values_that_are_no_numbers_of_a_browser_come_as_text() -> None:
    """Integers beyond 2^53, bytes, NaN, dates."""
    assert plain([2**53, -(2**60), 1.5, float("nan"), float("-inf"), b"\x01\xff", np.float32(0.5)]) == [
        str(2**53), str(-(2**60)), 1.5, None, None, "01ff", 0.5,
    ]  # fmt: skip
    assert ids(pa.array([2**60, 1])) == [str(2**60), "1"]
    assert ids(pa.array([b"\x0f"])) == ["0f"]


def test_the_map_has_every_row_once_where_it_lies(views: Callable[..., Any], workplace: Path) -> None:
    """All rows of a small pool, in the plane of their largest variance; the chosen last by rank, labelled ones marked."""
    labelled = [f"r{i:06d}" for i in range(0, 1200, 100)]
    pq.write_table(pa.table({"rid": labelled}), workplace / "labelled.parquet")
    shown, result = views(pool__labelled=["labelled.parquet"])
    data = as_json(shown.map("q"))
    named = shown.map_ids("q")["ids"]
    assert sorted(named) == [f"r{i:06d}" for i in range(1200)]
    kind = np.frombuffer(base64.b64decode(data["kind"]), np.uint8)
    assert named[-12:] == result.selection.column("rid").to_pylist()
    assert (kind[-12:] == CHOSEN).all()
    assert {named[i] for i in np.flatnonzero(kind == LABELLED)} == set(labelled)
    assert data["ranks"] == list(range(12))
    assert data["whole"]
    # against numpy: the two leading right singular vectors of the centred embeddings, whatever their sign
    _, embeddings = logits_and_embeddings(pa.concat_tables([pool_table(300, 300 * file) for file in range(4)]))
    x = embeddings.numpy().astype(np.float64)
    _, _, axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    wanted = (x - x.mean(axis=0)) @ axes[:2].T
    order = np.argsort(named)
    for drawn, true in (("x", wanted[:, 0]), ("y", wanted[:, 1])):
        values = np.frombuffer(base64.b64decode(data[drawn]), "<u2").astype(np.float64)[order]
        middle = (values > 0) & (values < 65535)  # the farthest thousandth lies on the edge
        assert middle.mean() > 0.99
        assert abs(np.corrcoef(values[middle], true[middle])[0, 1]) > 0.9999


def test_a_large_pool_is_sampled_with_all_chosen_and_labelled(views: Callable[..., Any], workplace: Path) -> None:
    """Of 1,200 rows about 100, evenly spaced, and the marked ones whatever the spacing."""
    labelled = [f"r{i:06d}" for i in (1, 2, 3, 700)]
    pq.write_table(pa.table({"rid": labelled}), workplace / "labelled.parquet")
    _, result = views(pool__labelled=["labelled.parquet"])
    sample = pool_sample(result, 100)
    assert not isinstance(sample, str)
    assert not sample.whole
    named = sample.ids
    assert len(named) == len(set(named))
    assert 100 <= len(named) <= 100 + 12 + 4
    assert set(labelled) | set(result.selection.column("rid").to_pylist()) <= set(named)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_rows_near_a_chosen_one_are_those_that_it_represents(views: Callable[..., Any], metric: str) -> None:
    """Of a whole pool, as many as the selection counts, the chosen row itself aside; and by brute force the right ones."""
    shown, result = views(select__strategy="core_set", select__candidates="all", select__metric=metric)
    _, embeddings = logits_and_embeddings(pa.concat_tables([pool_table(300, 300 * file) for file in range(4)]))
    x = embeddings.numpy().astype(np.float16).astype(np.float64)
    if metric == "cosine":
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    chosen = [int(id_[1:]) for id_ in result.selection.column("rid").to_pylist()]
    nearest = np.square(x[:, None] - x[chosen][None]).sum(axis=2).argmin(axis=1)
    for rank, count in enumerate(result.selection.column("represents").to_pylist()):
        data = as_json(shown.near("q", rank))
        others = {f"r{i:06d}" for i in np.flatnonzero(nearest == rank)} - set(result.selection.column("rid").to_pylist())
        assert data["total"] == len(others)
        assert set(data["ids"]) <= others
        assert abs(count - 1 - data["total"]) <= 1  # ties, and rows equal to the chosen one
        assert data["distances"] == sorted(data["distances"])


def test_comparing_says_what_differs_and_what_is_shared(views: Callable[..., Any], make_query: Callable[..., Query]) -> None:
    """By key, defaults counted as given; shared rows by brute force."""
    shown, first = views("a")
    second = rs.run(make_query(store__query="b", select__strategy="top_k", select__budget=20))
    data = as_json(shown.compare(["a", "b"]))
    keys = {row["key"]: row["values"] for row in data["differences"]}
    assert keys["select.strategy"] == ["k_means", "top_k"]
    assert keys["select.budget"] == [12, 20]
    assert not [key for key in keys if key.startswith(("store", "cluster", "pool", "model"))]
    batches = [set(result.selection.column("rid").to_pylist()) for result in (first, second)]
    assert data["overlap"] == [[12, len(batches[0] & batches[1])], [len(batches[0] & batches[1]), 20]]
    assert set(data["in_all"]) == batches[0] & batches[1]
    assert data["queries"][1]["certificate"] is None
    for names in (["a"], ["a", "a"], ["a", "nope"], list("abcdefghij")):
        with pytest.raises(QueryError):
            shown.compare(names)


def test_differences_are_of_keys_that_differ() -> None:
    """Lists are values, an empty one is none."""
    one, two = {"select": {"budget": 1, "quotas": []}, "store": {"uri": "a"}}, {"select": {"budget": 2}, "store": {"uri": "b"}}
    assert differences([one, two]) == [{"key": "select.budget", "values": [1, 2]}]


def test_a_query_without_embeddings_says_why_there_is_no_map(views: Callable[..., Any]) -> None:
    """Everything else is shown."""
    shown, _ = views(select__strategy="top_k")
    assert "no embeddings" in shown.map("q")["missing"]
    assert shown.map_ids("q") == {"ids": []}
    assert "no embeddings" in shown.near("q", 0)["missing"]
    assert "pool" in shown.histogram("q")


@pytest.mark.parametrize("name", ["", ".", "..", "../q", "a/b", "a\\b", "nope", "q\0", EVIL])
def test_names_that_are_no_query_are_refused(views: Callable[..., Any], name: str) -> None:
    """None of them leaves the queries' folder."""
    shown, _ = views()
    with pytest.raises(QueryError):
        shown.rows(name)
    with pytest.raises(QueryError):
        shown.near("q", 12)


def test_a_query_that_was_dropped_and_asked_again_is_another(views: Callable[..., Any], cli: Callable[..., Any]) -> None:
    """Nothing of the first is shown under the name of the second."""
    shown, first = views()
    before = shown.rows("q")["ids"], shown.version("q")
    assert cli("gc", "--store", "runs", "--drop", "q", "--delete")[0] == 0
    views(select__strategy="random", seed=5)
    assert shown.rows("q")["ids"] != before[0]
    assert shown.version("q") != before[1]
    assert before[0] == first.selection.column("rid").to_pylist()


def test_times_have_one_form() -> None:
    """That of manifests and that of events, so that they sort together."""
    assert iso("2026-11-29 04:49:10 UTC") == iso("2026-11-29T04:49:10.250+00:00") == "2026-11-29T04:49:10Z"
    assert iso("2026-11-29T05:49:10+01:00") == "2026-11-29T04:49:10Z"
    assert iso("") is iso(None) is iso("no time") is None


def test_texts_come_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 450 rows by their ranks; the last chunk holds what is left, one beyond it nothing."""
    (tmp_path / "pool").mkdir()
    table = pa.table({"name": [f"t{i}" for i in range(500)], "text": [f"text {i} {EVIL}" for i in range(499)] + [" \n"]})
    pq.write_table(table, tmp_path / "pool" / "a.parquet", row_group_size=64)
    (tmp_path / "short_text_nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(4, 3))\n\n"
        "def lengths(batch):\n    import numpy as np\n"
        "    return np.array([[len(text), text.count('1'), 1, 2] for text in batch.column('text').to_pylist()], np.float32)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = rs.run(
        rs.Query(
            pool=rs.Pool(uri=str(tmp_path / "pool"), id="name", inputs=["text"]),
            model=rs.Model(source="short_text_nets:net", preprocess="short_text_nets:lengths"),
            select=rs.Select(strategy="random", budget=450, must_include=["t499"]),
            store=rs.Store(uri=str(tmp_path / "runs"), query="q"),
            cluster=rs.Cluster(address="in_process"),
        )
    )
    shown = Views(existing_store(str(tmp_path / "runs")))
    named = result.selection.column("name").to_pylist()
    sizes = []
    for chunk in range(10):
        data = shown.inputs("q", chunk)
        sizes.append(len(data["items"]))
        assert all(text == (f"text {named[rank][1:]} {EVIL}" if named[rank] != "t499" else " \n") for rank, text in data["items"].items())
    assert sizes == [50] * 9 + [0]
    assert shown.row("q", 449)["text"] == f"text {named[449][1:]} {EVIL}"
    blank = shown.row("q", named.index("t499"))
    assert blank["note"] == "Its text is blank."
    assert "text" not in blank
    assert shown.row("q", named.index("t499") + 1)["text"].startswith("text ")
