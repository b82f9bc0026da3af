"""Queries over a pool in a real S3: the same rows as from a disk, whatever happens on the way, and errors that say why."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from pools import pool_table
from servers import READER_KEY, READER_SECRET, Proxy, SeaweedFS, free_port

from raystream import Query, run
from raystream.cli import main
from raystream.errors import ModelError, PoolError, QueryError
from raystream.lake import retry
from raystream.model.source import build_network
from raystream.pool import plan_pool, read_unit, remote
from raystream.query import Pool
from raystream.scoring.estimate import estimate
from raystream.scoring.plan import write_plan
from raystream.scoring.worker import Worker

Options = dict[str, str | int | bool]
MakeQuery = Callable[..., Query]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch, s3_keys: None) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.002)


@pytest.fixture
def s3_pool(workplace: Path, s3: pafs.FileSystem, folder: str) -> str:
    """The workplace's pool, copied into the bucket; its URI."""
    for path in (workplace / "pool").rglob("*.parquet"):
        with s3.open_output_stream(f"{folder}/{path.relative_to(workplace)}") as out:
            out.write(path.read_bytes())
    return f"s3://{folder}/pool"


def chosen(query: Query) -> list[tuple[Any, ...]]:
    """Ids, scores and ranks of a selection."""
    table = run(query).selection
    return list(zip(*(table.column(name).to_pylist() for name in ("rank", "rid", "score", "row")), strict=True))


def test_a_pool_in_s3_gives_what_the_same_pool_on_a_disk_gives(make_query: MakeQuery, s3_pool: str, storage: Options) -> None:
    """Weights, labels, filters, kept columns and hive folders included; paths in the result are URIs."""
    extra: dict[str, Any] = {
        "pool__filters": [("year", ">", 2020), ("minutes", "<", 7)],
        "pool__keep": ["url", "year"],
        "pool__labelled": [],
    }
    local = run(make_query(**extra))
    remote = run(make_query(**extra | {"pool__uri": s3_pool.replace("s3://", "s3a://"), "pool__storage": storage}))
    for name in ("rid", "score", "url", "year", "row"):
        assert remote.selection.column(name) == local.selection.column(name)
    assert all(path.startswith(f"{s3_pool}/year=") for path in remote.selection.column("path").to_pylist())
    assert remote.manifest.units_scored == local.manifest.units_scored > 0


def test_scored_units_are_found_again_and_a_rewritten_file_is_not(
    make_query: MakeQuery, s3_pool: str, storage: Options, s3: pafs.FileSystem
) -> None:
    """Another spelling, region or timeout scores nothing anew; a file of the same size with other content is scored again."""
    first = run(make_query(pool__uri=s3_pool, pool__storage=storage))
    assert first.manifest.units_reused == 0
    again = run(make_query(pool__uri=f"{s3_pool}/", pool__storage=storage | {"request_timeout": 30}, select__budget=13))
    assert again.manifest.units_scored == 0
    assert again.manifest.units_reused == first.manifest.units_scored
    name = f"{s3_pool.removeprefix('s3://')}/year=2021/part.parquet"
    table = pq.read_table(name, filesystem=s3, partitioning=None)
    before = s3.get_file_info(name)
    pq.write_table(table.set_column(1, "x", pool_table(300, 300, seed=1).column("x")), name, filesystem=s3, row_group_size=64)
    assert s3.get_file_info(name).size == before.size, "the same size, written within the same second or not: only the ETag tells"
    third = run(make_query(pool__uri=s3_pool, pool__storage=storage, select__budget=14))
    assert third.manifest.units_scored == first.manifest.units_scored // 4
    recorded = {path: version for path, _, version in third.manifest.files}
    assert all(version.startswith("etag:") and "endpoint_override=" in path for path, version in recorded.items())


def test_labels_weights_and_class_names_in_s3(
    make_query: MakeQuery, s3_pool: str, storage: Options, s3: pafs.FileSystem, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labelled rows, weights and class names are read from object storage, too, with the fingerprint of the same files here."""
    monkeypatch.setattr("tempfile.tempdir", str(workplace))
    root = s3_pool.removeprefix("s3://").rpartition("/")[0]
    safetensors.torch.save_file(build_network("user_nets:net", {}).state_dict(), workplace / "w.safetensors")
    (workplace / "classes.txt").write_text("ant\nbee\ncat\ndog\n")
    pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(0, 1200, 2)]}), workplace / "labels.parquet")
    for name in ("w.safetensors", "classes.txt", "labels.parquet"):
        pafs.copy_files(str(workplace / name), f"{root}/side/{name}", destination_filesystem=s3)

    def ask(uri: str, side: str, **more: Any) -> Query:
        names = {"pool__labelled": f"{side}/labels.parquet", "model__weights": f"{side}/w.safetensors"}
        return make_query(pool__uri=uri, model__classes=f"{side}/classes.txt", **names, **more)

    local, remote = run(ask("pool", str(workplace))), run(ask(s3_pool, f"s3://{root}/side", pool__storage=storage))
    assert remote.manifest.fingerprint == local.manifest.fingerprint
    assert remote.manifest.counts.labelled == local.manifest.counts.labelled == 600
    for name in ("rid", "score", "prediction_name"):
        assert remote.selection.column(name) == local.selection.column(name)
    copies = list(workplace.glob("raystream-*/models/*/w.safetensors"))
    run(ask(s3_pool, f"s3://{root}/side", pool__storage=storage, select__budget=3))
    assert list(workplace.glob("raystream-*/models/*/w.safetensors")) == copies, "fetched once"
    assert len(copies) == 1


def after_planning(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something between the plan and the reading."""

    def write_then(*args: Any) -> Any:
        write_plan(*args)
        act()

    monkeypatch.setattr("raystream.steps.write_plan", write_then)


@pytest.mark.parametrize("fault", ["delay", "reset", "cut"])
def test_a_bad_link_changes_nothing(
    fault: str, make_query: MakeQuery, s3_pool: str, through_proxy: Options, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow answers, bodies broken off in the middle and connections cut and refused: the selection is the local one."""
    expected = chosen(make_query())

    def break_it() -> None:
        if fault == "delay":
            proxy.faults.delay = 0.005
        elif fault == "reset":
            proxy.faults.resets, proxy.faults.reset_after = 9, 600
        else:
            proxy.faults.refused = 4
            proxy.cut()

    after_planning(monkeypatch, break_it)
    assert chosen(make_query(pool__uri=s3_pool, pool__storage=through_proxy)) == expected
    assert proxy.faults.resets == proxy.faults.refused == 0, "all faults took place"


def test_broken_bodies_are_counted_and_told(
    make_query: MakeQuery, s3_pool: str, through_proxy: Options, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of the scoring that broke stand in the receipts, in a warning of the manifest, and in the events."""

    score = Worker.score

    def break_it(self: Worker, *given: Any) -> Any:
        # Two units are read at a time, and S3's client asks once more by itself: some must ask again through us.
        proxy.faults.resets, proxy.faults.reset_after = 9, 600
        monkeypatch.setattr(Worker, "score", score)
        return self.score(*given)

    monkeypatch.setattr(Worker, "score", break_it)
    result = run(make_query(pool__uri=s3_pool, pool__storage=through_proxy))
    [warning] = [text for text in result.manifest.warnings if "object storage" in text]
    count = int(warning.split()[0])
    events = [json.loads(line) for line in (result.folder / "workers.jsonl").read_text().splitlines()]
    assert sum(event.get("repeated_reads", 0) for event in events) == count > 0


def test_a_link_that_stays_broken_ends_in_one_sentence(make_query: MakeQuery, s3_pool: str, through_proxy: Options, proxy: Proxy) -> None:
    """After the last attempt the error names the file or pool and what broke, and exits with 3."""
    proxy.faults.refused = 10**6
    proxy.cut()
    with pytest.raises(PoolError, match=r"s3://\S+ can't be listed: .*; run the query again once the storage answers") as caught:
        run(make_query(pool__uri=s3_pool, pool__storage=through_proxy))
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 600


def test_only_wanted_row_groups_and_columns_travel(
    make_query: MakeQuery, through_proxy: Options, proxy: Proxy, s3: pafs.FileSystem, folder: str
) -> None:
    """A filter that keeps 5% of the row groups reads at most 10% of the bytes, counted at the proxy."""
    rng = np.random.default_rng(0)
    table = pool_table(20_000).append_column("day", pa.array(np.repeat(np.arange(20), 1000)))
    table = table.append_column("ballast", pa.array([rng.bytes(64) for _ in range(20_000)]))
    pq.write_table(table, f"{folder}/p.parquet", filesystem=s3, row_group_size=1000)
    size = s3.get_file_info(f"{folder}/p.parquet").size
    query = make_query(pool__uri=f"s3://{folder}/p.parquet", pool__storage=through_proxy, pool__filters=[("day", "==", 7)])
    result = run(query)
    assert result.manifest.counts.scored == 1000
    assert proxy.received < 0.1 * size


@pytest.mark.parametrize("wrong", ["bucket", "secret", "key", "nobody"])
def test_refusals_say_why(
    wrong: str,
    make_query: MakeQuery,
    s3_pool: str,
    storage: Options,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workplace: Path,
) -> None:
    """A missing bucket, wrong keys and no keys: exit 3, one line with the URI and the server's own reason, and no secret."""
    uri = s3_pool
    if wrong == "bucket":
        uri = "s3://no-such-bucket/pool"
    elif wrong == "secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    elif wrong == "key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hunter2-hunter2")
    else:
        storage = storage | {"anonymous": True}
    # The keys are taken when the file system is made, which is kept for equal options.
    query = make_query(pool__uri=uri, pool__storage=storage | {"request_timeout": 60 + len(wrong) + os.getpid() % 100})
    (workplace / "query.yaml").write_text(query.to_yaml())
    with pytest.raises(SystemExit) as ended:
        main(["query", "query.yaml"])
    assert ended.value.code == 3
    told = capsys.readouterr().err.strip().splitlines()[-1]
    reasons = {"bucket": "bucket does not exist", "secret": "signature", "key": "does not exist in our records", "nobody": "Access Denied"}
    assert uri in told
    assert reasons[wrong] in told
    assert "hunter2" not in told
    assert len(told) < 500


def test_an_object_without_permission_or_server(make_query: MakeQuery, s3_pool: str, storage: Options) -> None:
    """What isn't there and a server that doesn't answer are named."""
    with pytest.raises(PoolError, match=r"s3://\S+/nothing does not exist"):
        run(make_query(pool__uri=f"{s3_pool}/nothing", pool__storage=storage))
    dead = storage | {"endpoint_override": f"http://127.0.0.1:{free_port()}"}
    with pytest.raises(PoolError, match=rf"{s3_pool} can't be listed: .*connect"):
        run(make_query(pool__uri=s3_pool, pool__storage=dead))
    with pytest.raises(ModelError, match=r"model.weights s3://\S+/w.safetensors does not exist"):
        run(make_query(pool__storage=storage, model__weights=f"{s3_pool}/w.safetensors"))


@pytest.mark.parametrize("what", ["vanished", "was changed"])
def test_files_that_go_or_change_after_planning(
    what: str, make_query: MakeQuery, s3_pool: str, storage: Options, s3: pafs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between plan and read: the file is named and the exit code 3; under `skip` its units are left out and the rest is chosen from."""
    name = f"{s3_pool.removeprefix('s3://')}/year=2022/part.parquet"

    def meddle() -> None:
        if what == "vanished":
            s3.delete_file(name)
        else:
            pq.write_table(pool_table(300, 600, seed=int(time.time_ns() % 1000) + 1), name, filesystem=s3, row_group_size=64)

    after_planning(monkeypatch, meddle)
    with pytest.raises(PoolError, match=rf"s3://{name} .*{what}") as caught:
        run(make_query(pool__uri=s3_pool, pool__storage=storage))
    assert caught.value.exit_code == 3
    if what == "vanished":
        pq.write_table(pool_table(300, 600), name, filesystem=s3, row_group_size=64)
    result = run(make_query(pool__uri=s3_pool, pool__storage=storage, on_error="skip", max_quarantined=0.25))
    assert any("left out" in warning and name in warning for warning in result.manifest.warnings)
    assert not any(name in path for path in result.selection.column("path").to_pylist())


def test_a_file_that_changes_while_it_is_read(s3_pool: str, storage: Options, s3: pafs.FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of two versions never pass for one unit: whoever read the first ones is told at the end."""
    monkeypatch.setattr(remote, "READ_AHEAD", 1)
    plan = plan_pool(Pool(uri=f"{s3_pool}/year=2022", id="rid", inputs=["x"], storage=storage))
    (unit,) = plan.units
    assert len(unit.row_groups) > 3
    blocks = read_unit(unit, plan.read, 64)
    assert len(next(blocks).rows)
    pq.write_table(pool_table(300, 600, seed=5), unit.file.path.removeprefix("s3://"), filesystem=s3, row_group_size=64)
    with pytest.raises(PoolError, match=r"s3://\S+ was changed after it was listed"):
        list(blocks)


def test_a_plan_with_a_model_in_s3_and_a_store_beside_the_pool(
    make_query: MakeQuery, s3_pool: str, storage: Options, s3: pafs.FileSystem, workplace: Path, folder: str
) -> None:
    """The plan runs the model that lies there; a store in the same kind of storage is reached as the pool is."""
    torch.manual_seed(3)
    safetensors.torch.save_file(build_network("user_nets:net", {}).state_dict(), "w.safetensors")
    with s3.open_output_stream(f"{folder}/w.safetensors") as out:
        out.write(Path("w.safetensors").read_bytes())
    changes: dict[str, Any] = {"pool__uri": s3_pool, "pool__storage": storage, "store__uri": f"s3://{folder}/runs"}
    asked = make_query(**changes, model__weights=f"s3://{folder}/w.safetensors")
    planned = estimate(asked)
    assert planned.seconds is not None
    assert planned.measured_on.endswith("rows scored here")
    result = run(asked)
    assert result.path == f"s3://{folder}/runs/queries/{result.query}/selection.parquet"
    assert estimate(asked).committed


def test_no_secret_is_kept(make_query: MakeQuery, s3_pool: str, storage: Options, workplace: Path) -> None:
    """Nothing that a run leaves in its store holds a key; a query with one in a URI leaves no store at all."""
    run(make_query(pool__uri=s3_pool, pool__storage=storage))
    secrets = [os.environ[name].encode() for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    for path in (workplace / "runs").rglob("*"):
        assert not path.is_file() or not any(secret in path.read_bytes() for secret in secrets), path
    with pytest.raises(QueryError):
        run(make_query(pool__uri=s3_pool.replace("://", "://me:hunter2@"), store__uri="other"))
    assert not any(b"hunter2" in path.read_bytes() for path in (workplace / "other").rglob("*") if path.is_file())


def test_a_reader_may_read(
    make_query: MakeQuery, s3_pool: str, storage: Options, seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right to read and list is enough for a pool."""
    expected = chosen(make_query())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert chosen(make_query(pool__uri=s3_pool, pool__storage=storage | {"connect_timeout": 7})) == expected
