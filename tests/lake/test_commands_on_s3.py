"""The commands with everything in a bucket: stores, tables, scores and outputs; the same answers as with folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pools import pool_table, vectors
from servers import READER_KEY, READER_SECRET, SECRET_KEY, Proxy

import raystream as rs
from raystream.choosing import scores_table as scores_module
from raystream.choosing.scores_table import write_scores
from raystream.errors import PoolError, QueryError, StoreError
from raystream.lake import storage_from
from raystream.lake.filesystem import missing_credentials
from raystream.lake.table_uri import parse_table
from raystream.lake.table_writer import uploading
from raystream.pool.tables import list_pool
from raystream.store.local import LocalStore
from raystream.store.opening import store_at
from raystream.store.queries import stored_units

Options = dict[str, str | int | bool]
MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _keys(s3_keys: None) -> None:
    """Credentials in the environment, as users have them."""


@pytest.fixture
def options(storage: Options) -> str:
    """What follows a URI to reach the server."""
    return "?" + "&".join(f"{name}={value}" for name, value in storage.items())


@pytest.fixture
def delta_options(storage: Options) -> dict[str, str]:
    """The same for deltalake itself."""
    return {"aws_endpoint": str(storage["endpoint_override"]), "aws_region": "us-east-1", "aws_allow_http": "true"}


@pytest.fixture
def said(cli: Cli) -> Callable[..., dict[str, Any]]:
    """A command's JSON, when it goes well."""

    def run(*arguments: object) -> dict[str, Any]:
        code, out, err = cli(*arguments, "--json")
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    return run


def below(s3: pafs.FileSystem, folder: str) -> set[str]:
    """The objects below a folder, without it."""
    infos = s3.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(f"{folder}/") for info in infos if info.type == pafs.FileType.File}


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    """What was chosen, wherever its files lie."""
    return list(zip(*(table.column(name).to_pylist() for name in ("rank", "rid", "score", "row")), strict=True))


def listed(start: int, seed: int = 0) -> pa.Table:
    """300 rows of the tests' pool in the types that tables have."""
    table = pool_table(300, start, seed)
    index = table.schema.get_field_index("x")
    return table.set_column(index, "x", table.column("x").cast(pa.list_(pa.field("element", pa.float32()))))


@pytest.mark.slow
def test_commands_on_a_store_in_a_bucket(
    make_query: MakeQuery, said: Callable, cli: Cli, s3: pafs.FileSystem, folder: str, options: str, storage: Options
) -> None:
    """Query, plan, show, verify, scores and gc answer as they do with a folder; gc removes what it announced, and nothing else."""
    store = f"s3://{folder}/runs{options}"
    Path("query.yaml").write_text(make_query(select__strategy="core_set").to_yaml())
    here, there = said("query", "query.yaml"), said("query", "query.yaml", "--store", store)
    assert there["query"] == here["query"]
    assert there["certificate"] == here["certificate"]
    answers = []
    for out, uri in (("here.parquet", "runs"), ("there.parquet", store)):
        planned = said("plan", "query.yaml", "--store", uri, "--set", "select.budget=5")
        shown = said("show", here["query"][:6], "--store", uri)
        verified = said("verify", here["query"], "--store", uri)
        written = said("scores", here["query"], "--store", uri, "--embeddings", "--out", out)
        table = pq.read_table(written["uri"])
        answers.append((planned["changes"], planned["units_scored"], shown["rows"], shown["new"], verified, table))
    assert answers[0] == answers[1]
    kept = below(s3, f"{folder}/runs")
    said("query", "query.yaml", "--store", store, "--set", "model.args={hidden: 9}", "--set", "store.query=other")
    both = below(s3, f"{folder}/runs")
    dry = said("gc", "--store", store, "--drop", "other", "--older-than", "0")
    assert below(s3, f"{folder}/runs") == both
    assert (dry["deleted"], dry["dropped"], dry["units"]["count"], dry["units_kept"]["count"]) == (False, ["other"], 4, 4)
    assert dry["bytes"] == sum(s3.get_file_info(f"{folder}/runs/{name}").size for name in both - kept)
    assert said("gc", "--store", store, "--drop", "other", "--older-than", "0", "--delete") == dry | {"deleted": True}
    assert below(s3, f"{folder}/runs") == kept


@pytest.mark.slow
def test_gc_does_not_count_what_is_still_there(
    make_query: MakeQuery, said: Callable, cli: Cli, s3: pafs.FileSystem, folder: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may read and list but not remove: a dry run works, --delete is exit 3, and everything is there."""
    store = f"s3://{folder}/runs{options}"
    Path("query.yaml").write_text(make_query(store__query="q").to_yaml())
    said("query", "query.yaml", "--store", store, "--no-report")
    before = below(s3, f"{folder}/runs")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    command = ["gc", "--store", store, "--drop", "q", "--older-than", "0"]
    assert said(*command)["units"]["count"] == 4
    code, out, err = cli(*command, "--delete")
    assert (code, out) == (3, "")
    assert "can't be written" in err  # the file by which the store's clock is asked: nothing is removed by a clock that isn't known
    assert below(s3, f"{folder}/runs") == before


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["changed", "shorter", "gone"])
def test_verify_finds_a_damaged_object(
    make_query: MakeQuery, cli: Cli, s3: pafs.FileSystem, folder: str, storage: Options, options: str, damage: str
) -> None:
    """A byte of stored embeddings changed, cut off, or the object gone: exit 3 and its name, though this process holds a good copy."""
    result = rs.run(make_query(store__uri=f"s3://{folder}/runs", store__storage=storage, select__strategy="core_set"))
    command = ["verify", result.query, "--store", f"s3://{folder}/runs{options}"]
    assert cli(*command)[0] == 0
    name = sorted(name for name in below(s3, f"{folder}/runs") if "embeddings" in name)[0]
    with s3.open_input_file(f"{folder}/runs/{name}") as file:
        data = bytearray(file.read())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        s3.delete_file(f"{folder}/runs/{name}")
    else:
        with s3.open_output_stream(f"{folder}/runs/{name}") as out:
            out.write(bytes(data[:-7] if damage == "shorter" else data))
    code, _, err = cli(*command)
    assert code == 3
    assert (f"{name} is damaged" if damage == "changed" else "1 of the 4 units") in err


def found_by(out: str) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(out)["findings"]}


@pytest.mark.slow
def test_doctor_asks_the_store_and_the_pool(
    make_query: MakeQuery, cli: Cli, workplace: Path, s3: pafs.FileSystem, folder: str, storage: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good keys; a wrong secret; the right to read alone; no keys: each found by a request, named, and never shown."""
    for path in (workplace / "pool").rglob("*.parquet"):
        with s3.open_output_stream(f"{folder}/{path.relative_to(workplace)}") as out:
            out.write(path.read_bytes())
    query = make_query(pool__uri=f"s3://{folder}/pool", pool__storage=storage, store__uri=f"s3://{folder}/runs", store__storage=storage)
    Path("query.yaml").write_text(query.to_yaml())
    before = below(s3, folder)

    def diagnosed() -> tuple[int, dict[str, dict[str, Any]]]:
        code, out, err = cli("doctor", "query.yaml", "--json")
        assert SECRET_KEY not in out + err
        return code, found_by(out)

    code, found = diagnosed()
    assert code == 0
    assert [found[name]["verdict"] for name in ("store", "clock", "credentials", "pool")] == ["ok"] * 4
    assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in found["credentials"]["found"]
    assert below(s3, folder) == before
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-one")
    code, found = diagnosed()
    assert code == 3
    assert [found[name]["verdict"] for name in ("store", "credentials", "pool")] == ["fail", "ok", "fail"]
    assert "SignatureDoesNotMatch" in found["store"]["found"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert [diagnosed()[1][name]["verdict"] for name in ("store", "pool")] == ["fail", "ok"]
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    code, found = diagnosed()
    assert code == 3
    assert found["credentials"]["verdict"] == "warn"
    assert "not set: AWS_SECRET_ACCESS_KEY" in found["credentials"]["found"]


@pytest.mark.parametrize(
    ("uri", "environment", "missing"),
    [
        ("runs", {}, ()),
        ("s3://b/x", {}, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        ("s3://b/x", {"AWS_ACCESS_KEY_ID": "k"}, ("AWS_SECRET_ACCESS_KEY",)),
        ("s3://b/x", {"AWS_WEB_IDENTITY_TOKEN_FILE": "f"}, ()),
        ("s3://b/x?anonymous=true", {}, ()),
        ("gs://b/x", {}, ("GOOGLE_APPLICATION_CREDENTIALS",)),
        ("abfs://c@a.dfs.core.windows.net/x", {"AZURE_STORAGE_SAS_TOKEN": "s"}, ()),
        ("abfs://c@a.dfs.core.windows.net/x", {}, ("AZURE_STORAGE_KEY",)),
    ],
)
def test_missing_credentials_by_name(
    uri: str, environment: dict[str, str], missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the URI's own provider that aren't set; none where nothing is asked for, or another way is given."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert missing_credentials(uri) == missing


@pytest.mark.slow
def test_scores_go_to_a_bucket_and_to_tables_in_it(
    make_query: MakeQuery, said: Callable, s3: pafs.FileSystem, folder: str, options: str, delta_options: dict[str, str],
    workplace: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A file, a folder and a Delta table, written in many pieces and twice: the rows of the local file, each once."""
    monkeypatch.setattr(scores_module, "_GROUP_BYTES", 5000)
    rs.run(make_query(store__query="q", select__strategy="core_set"))
    expected = pq.read_table(said("scores", "q", "--embeddings", "--out", "here.parquet")["uri"])
    for _ in range(2):
        written = said("scores", "q", "--embeddings", "--out", f"s3://{folder}/x.parquet{options}")
    assert written["uri"] == f"s3://{folder}/x.parquet"
    assert written["bytes"] == s3.get_file_info(f"{folder}/x.parquet").size
    with s3.open_input_file(f"{folder}/x.parquet") as file:
        assert pq.read_table(file).equals(expected)
    assert said("scores", "q", "--out", f"s3://{folder}/deep{options}")["uri"] == f"s3://{folder}/deep/scores-q.parquet"
    for _ in range(2):
        assert said("scores", "q", "--embeddings", "--out", f"delta+s3://{folder}/table{options}")["rows"] == 1200
    table = DeltaTable(f"s3://{folder}/table", storage_options=delta_options)
    assert (table.version(), set(table.to_pyarrow_table().column("query_id").to_pylist())) == (1, {"q"})
    assert table.to_pyarrow_table(columns=["rid", "entropy"]).sort_by("rid").equals(expected.select(["rid", "entropy"]).sort_by("rid"))


@pytest.mark.slow
def test_an_upload_is_whole_or_nothing(make_query: MakeQuery, s3: pafs.FileSystem, folder: str, storage: Options, options: str) -> None:
    """What breaks off after several parts leaves the object of before; a unit that can't be read leaves no new one."""
    with s3.open_output_stream(f"{folder}/x.parquet") as out:
        out.write(b"before")
    store = LocalStore("runs")
    committed = rs.run(make_query(store__query="q"))
    with pytest.raises(StoreError, match=r"x\.parquet is there already and was not written by raystream"):
        write_scores(store, "q", f"s3://{folder}/x.parquet{options}")
    with pytest.raises(StoreError, match=r"x\.parquet is there already and was not written by raystream"):
        rs.run(make_query(output=f"s3://{folder}/x.parquet", pool__storage=storage, select__budget=2))
    with pytest.raises(ValueError, match="broke off"), uploading(f"s3://{folder}/x.parquet", storage_from(storage)) as file:  # noqa: PT012
        for _ in range(5):
            file.write(bytes(8 << 20))
        raise ValueError("broke off")
    with s3.open_input_file(f"{folder}/x.parquet") as file:
        assert file.read() == b"before"
    last = store.path(stored_units(store, committed.manifest).outputs[-1].files[0].name)
    last.write_bytes(last.read_bytes()[:-50] + bytes(50))
    for out_uri in (f"s3://{folder}/new.parquet{options}", f"delta+s3://{folder}/new{options}"):
        with pytest.raises(StoreError, match="is damaged"):
            write_scores(store, "q", out_uri)
    assert not [name for name in below(s3, folder) if name.startswith("new.parquet") or "_delta_log" in name]


@pytest.mark.slow
def test_an_output_without_the_right_to_write(
    make_query: MakeQuery, folder: str, storage: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3 with the server's reason; the query is committed all the same."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    for output in (f"s3://{folder}/x.parquet", f"delta+s3://{folder}/x"):
        with pytest.raises(StoreError, match=r"(?s)can't be written.*Denied.*is committed") as refused:
            rs.run(make_query(output=output, pool__storage=storage))
        assert READER_SECRET not in str(refused.value)


@pytest.mark.slow
def test_the_selection_goes_to_a_file_and_a_table_in_a_bucket(
    make_query: MakeQuery, s3: pafs.FileSystem, folder: str, storage: Options, delta_options: dict[str, str]
) -> None:
    """By pool.storage; the same query again changes nothing of the table."""
    result = rs.run(make_query(output=f"s3://{folder}/selection.parquet", pool__storage=storage))
    with s3.open_input_file(f"{folder}/selection.parquet") as file:
        assert rows_of(pq.read_table(file)) == rows_of(result.selection)
    for _ in range(2):
        rs.run(make_query(output=f"delta+s3://{folder}/batches", pool__storage=storage))
    rs.run(make_query(output=f"delta+s3://{folder}/batches", pool__storage=storage, select__budget=3))
    table = DeltaTable(f"s3://{folder}/batches", storage_options=delta_options)
    assert table.version() == 1
    held = table.to_pyarrow_table()
    assert held.num_rows == 15
    assert rows_of(held.filter(pa.compute.field("query_id") == result.query).sort_by("rank")) == rows_of(result.selection)


@pytest.mark.slow
def test_a_delta_pool_in_a_bucket(
    make_query: MakeQuery, said: Callable, s3: pafs.FileSystem, folder: str, storage: Options, options: str,
    delta_options: dict[str, str], workplace: Path,
) -> None:  # fmt: skip
    """Partitions with odd names, a version, options in the query or the URI: the rows of the local table; new files alone are scored."""
    for start in range(0, 900, 300):
        table = listed(start).append_column("part", pa.array([("a b", "ü/%", "c")[start // 300]] * 300))
        write_deltalake(workplace / "delta", table, mode="append", partition_by=["part"])
        write_deltalake(f"s3://{folder}/delta", table, mode="append", partition_by=["part"], storage_options=delta_options)
    kept = {"pool__keep": ["part"], "pool__filters": [("part", "!=", "c")]}
    uri = f"delta+s3://{folder}/delta"
    for changes in ({}, kept):
        here = rs.run(make_query(pool__uri=f"delta+{workplace}/delta", **changes))
        there = rs.run(make_query(pool__uri=uri, pool__storage=storage, **changes))
        assert sorted(rows_of(there.selection), key=lambda row: row[1]) == sorted(rows_of(here.selection), key=lambda row: row[1])
        assert there.manifest.counts == here.manifest.counts
    first = rs.run(make_query(pool__uri=uri, pool__storage=storage))
    new = listed(900).slice(0, 40).append_column("part", pa.array(["c"] * 40))
    write_deltalake(f"s3://{folder}/delta", new, mode="append", storage_options=delta_options)
    Path("query.yaml").write_text(make_query(pool__uri=uri, pool__storage=storage).to_yaml())
    planned = said("plan", "query.yaml")
    assert [planned["changes"][name] for name in ("added", "rewritten", "removed")] == [1, 0, 0]
    second = rs.run(make_query(pool__uri=uri, pool__storage=storage))
    assert (second.manifest.units_scored, second.manifest.units_reused) == (1, first.manifest.units_scored + first.manifest.units_reused)
    old = rs.run(make_query(pool__uri=f"{uri}{options}&version=2"))
    assert (old.manifest.units_scored, old.manifest.tables[0].version) == (0, 2)
    assert rows_of(old.selection) == rows_of(first.selection)
    [added] = {path for path, *_ in second.manifest.files} - {path for path, *_ in first.manifest.files}
    s3.delete_file(added.partition("?")[0].removeprefix("s3://"))
    with pytest.raises(PoolError, match=r"has vanished.*read a newer version"):
        rs.run(make_query(pool__uri=uri, pool__storage=storage, select__budget=4))


@pytest.mark.slow
def test_a_tables_files_are_not_asked_for_before_their_footers(
    folder: str, through_proxy: Options, proxy: Proxy, delta_options: dict[str, str]
) -> None:
    """Listing asks for the log alone: as many requests for 30 files as for 3."""
    counts = []
    for files in (3, 30):
        table = pa.table({"a": range(files), "part": [str(i) for i in range(files)]})
        write_deltalake(f"s3://{folder}/t{files}", table, partition_by=["part"], storage_options=delta_options)
        proxy.reset()
        found, _ = list_pool([f"delta+s3://{folder}/t{files}"], storage=storage_from(through_proxy))
        assert len(found) == files
        counts.append(proxy.requests)
    assert abs(counts[0] - counts[1]) <= 3 < 27


@pytest.fixture
def s3_catalog(workplace: Path, folder: str, storage: Options, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An Iceberg catalog `s3lake` here, whose warehouse is in the bucket."""
    import pyiceberg.catalog
    from pyiceberg.utils.config import Config

    properties = {"URI": f"sqlite:///{workplace}/s3.db", "WAREHOUSE": f"s3://{folder}/warehouse"}
    properties |= {"S3__ENDPOINT": str(storage["endpoint_override"]), "S3__REGION": "us-east-1"}
    for name, value in properties.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__S3LAKE__{name}", value)
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())
    opened = pyiceberg.catalog.load_catalog("s3lake")
    opened.create_namespace("ns")
    yield opened
    opened.engine.dispose()


@pytest.mark.slow
def test_an_iceberg_table_in_a_bucket(make_query: MakeQuery, said: Callable, s3_catalog: Any, storage: Options, workplace: Path) -> None:
    """Read with the catalog's own options, or with pool.storage; written to by `output` and `scores --out`; each row once."""
    table = s3_catalog.create_table("ns.pool", schema=listed(0).schema)
    (workplace / "plain").mkdir()
    for start in (0, 300):
        table.append(listed(start))
        pq.write_table(listed(start), workplace / "plain" / f"{start}.parquet")
    here = rs.run(make_query(pool__uri="plain", select__strategy="top_k"))
    ask: dict[str, Any] = {"pool__uri": "iceberg://s3lake/ns.pool", "select__strategy": "top_k", "output": "iceberg://s3lake/ns.batches"}
    there = rs.run(make_query(**ask))
    assert [row[:3] for row in rows_of(there.selection)] == [row[:3] for row in rows_of(here.selection)]
    assert not rs.run(make_query(**ask, pool__storage=storage)).new
    assert rows_of(s3_catalog.load_table("ns.batches").scan().to_arrow().sort_by("rank")) == rows_of(there.selection)
    for _ in range(2):
        said("scores", there.query, "--out", "iceberg://s3lake/ns.scores")
    assert s3_catalog.load_table("ns.scores").scan().count() == 600


def test_a_delta_uri_with_options() -> None:
    """The version is taken out, what belongs to the storage stays, what belongs to neither, and secrets, are refused."""
    table = parse_table("delta+s3://b/t?region=eu-west-1&version=3&endpoint_override=http://h:1/", "pool.uri")
    assert (table.name, table.version) == ("s3://b/t?region=eu-west-1&endpoint_override=http://h:1/", 3)
    assert parse_table("delta+abfss://c@account.dfs.core.windows.net/t?version=0", "pool.uri").version == 0
    for uri, says in (
        ("delta+s3://b/t?regoin=x", "regoin is not an option"),
        ("delta+s3://b/t?secret_access_key=x", "is a secret"),
        ("delta+s3://me:pw@b/t", "user or password"),
        ("delta+/t?region=x", "region is not an option"),
    ):
        with pytest.raises(QueryError, match=says):
            parse_table(uri, "pool.uri")


def test_a_store_that_refuses_to_remove_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`remove` raises what `discard` swallows; of a file that isn't there neither says anything."""
    import obstore
    from obstore.exceptions import PermissionDeniedError
    from obstore.store import MemoryStore

    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: MemoryStore())
    store = store_at("s3://bucket/runs")
    store.remove("units/nothing")
    store.discard("units/nothing")

    def refuse(bucket: object, name: str) -> None:
        raise PermissionDeniedError("Forbidden")

    monkeypatch.setattr(obstore, "delete", refuse)
    store.discard("units/x")
    with pytest.raises(StoreError, match=r"units/x can't be removed"):
        store.remove("units/x")


@pytest.mark.slow
def test_labels_as_text_and_quarantined_rows_in_a_bucket(
    make_query: MakeQuery, said: Callable, s3: pafs.FileSystem, folder: str, options: str, storage: Options
) -> None:
    """CSV and JSON Lines there mean what the same labels mean in Parquet here, with inputs of their own; rows left out are named there."""
    for place in ("bad.parquet", "own.parquet"):
        table = pool_table(300, 7000) if place == "own.parquet" else pool_table(300)
        x = np.stack(table.column("x").to_pylist()).astype(np.float32)
        x[40] = np.nan
        pq.write_table(table.set_column(1, "x", vectors(x)), place)
    own = pq.read_table("own.parquet").slice(0, 30).select(["rid", "x"])
    stated = {"rid": ["r000001", "r000002", "r000003"], "state": ["labelled", "skipped", "draft"]}
    pq.write_table(pa.table(stated), "stated.parquet")
    pq.write_table(own, "own.parquet")
    with s3.open_output_stream(f"{folder}/labels/a.csv") as out:
        out.write(b"rid,state\n" + b"".join(f"{i},{s}\n".encode() for i, s in zip(*stated.values(), strict=True)))
    with s3.open_output_stream(f"{folder}/labels/b.jsonl") as out:
        out.write("".join(json.dumps(row) + "\n" for row in own.to_pylist()).encode())
    changes = {"pool__uri": "bad.parquet", "on_error": "skip", "select__strategy": "core_set", "select__candidates": "all"}
    Path("here.yaml").write_text(make_query(**changes, pool__labelled=["stated.parquet", "own.parquet"]).to_yaml())
    labels = {"pool__labelled": [f"s3://{folder}/labels{options}"]}
    Path("there.yaml").write_text(make_query(**changes, **labels, store__uri=f"s3://{folder}/runs{options}").to_yaml())
    here, there = said("query", "here.yaml", "--no-report"), said("query", "there.yaml", "--no-report")
    chosen = [pq.read_table(here["selection"]), pq.read_table(there["selection"].removeprefix("s3://"), filesystem=s3)]
    assert rows_of(chosen[0]) == rows_of(chosen[1])
    assert here["counts"] == there["counts"]
    assert here["counts"]["labelled"] == 31
    left_out = pq.read_table(there["quarantined"].removeprefix("s3://"), filesystem=s3)
    assert left_out.equals(pq.read_table(here["quarantined"]))
    assert left_out.column("rid").to_pylist() == ["r000040"]
    said("verify", there["query"], "--store", f"s3://{folder}/runs{options}")
