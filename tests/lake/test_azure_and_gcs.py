"""Whole queries over pools in Azure's and Google's object storage, and with the store there: the same rows as from a disk."""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from emulators import AZURE_ACCOUNT, AZURE_KEY, GoogleWrites, azurite, fake_gcs
from pools import pool_table

from raystream import Query, run
from raystream.errors import ModelError
from raystream.lake import filesystem_of, local_copy, retry, storage_from
from raystream.store.opening import store_at
from raystream.store.result import Result, load_result

pytestmark = pytest.mark.slow
MakeQuery = Callable[..., Query]
Options = dict[str, str | bool]


@dataclass(frozen=True)
class Cloud:
    """A provider's storage: the URI of an empty folder, how pools and the store reach it, and it as a file system."""

    root: str
    pools: Options
    store: Options
    filesystem: pafs.FileSystem

    def path(self, uri: str) -> str:
        """Where the file system has a URI."""
        return uri.partition("://")[2]


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Options]:
    """`pool.storage` for Azurite, in which there is one container."""
    server = azurite(tmp_path_factory.mktemp("azurite"))
    options: Options = {"endpoint_override": f"http://127.0.0.1:{server.port}", "account_name": AZURE_ACCOUNT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_KEY", AZURE_KEY)
        filesystem_of("abfs://lake", storage_from(options))[0].create_dir("lake")
    yield options
    server.close()


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Options, Options]]:
    """`pool.storage` for fake-gcs-server, in which there is one bucket, and `store.storage`."""
    server = fake_gcs(tmp_path_factory.mktemp("gcs"))
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/storage/v1/b", json.dumps({"name": "lake"}).encode())
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request).close()
    before = GoogleWrites(server.port)
    yield tuple({"endpoint_override": f"http://127.0.0.1:{port}", "anonymous": True} for port in (server.port, before.port))
    before.close()
    server.close()


@pytest.fixture(params=["abfs", "gs"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Each provider, with its credentials in the environment and short pauses between attempts."""
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.002)
    for name in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_SAS_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_STORAGE_KEY", AZURE_KEY)
    if request.param == "gs":
        pools, store = request.getfixturevalue("google")
    else:
        pools = store = request.getfixturevalue("azure")
    root = f"{request.param}://lake/{uuid4().hex[:12]}"
    return Cloud(root, pools, store, filesystem_of(root, storage_from(pools))[0])


@pytest.fixture
def pool(cloud: Cloud, workplace: Path) -> str:
    """The workplace's pool, copied there; its URI."""
    for path in (workplace / "pool").rglob("*.parquet"):
        with cloud.filesystem.open_output_stream(f"{cloud.path(cloud.root)}/{path.relative_to(workplace)}") as out:
            out.write(path.read_bytes())
    return f"{cloud.root}/pool"


def selection_of(result: Result) -> bytes:
    """The committed file, byte for byte."""
    return result.store.read(result.manifest.selection.name)


def test_a_pool_there_gives_what_the_same_pool_on_a_disk_gives(make_query: MakeQuery, cloud: Cloud, pool: str) -> None:
    """Filters, hive folders, globs, kept columns and labelled ids included; paths in the result are URIs."""
    labels = {"pool__labelled": ["labels.parquet"]}
    pq.write_table(pool_table(100, 300).select(["rid"]), "labels.parquet")
    extra = {"pool__filters": [("year", ">", 2020), ("minutes", "<", 7)], "pool__keep": ["url", "year"]}
    local = run(make_query(**extra, **labels))
    pafs.copy_files("labels.parquet", f"{cloud.path(cloud.root)}/labels.parquet", destination_filesystem=cloud.filesystem)
    labels = {"pool__labelled": [f"{cloud.root}/labels.parquet"]}
    there = run(make_query(**extra, **labels, pool__uri=f"{pool}/year=*/part.parquet", pool__storage=cloud.pools))
    assert local.manifest.counts.labelled == there.manifest.counts.labelled > 0
    for name in ("rid", "score", "url", "year", "row"):
        assert there.selection.column(name) == local.selection.column(name)
    assert all(path.startswith(f"{pool}/year=") for path in there.selection.column("path").to_pylist())


def test_a_rewritten_file_is_scored_again_and_no_other(make_query: MakeQuery, cloud: Cloud, pool: str) -> None:
    """What was scored is found again; a file of the same size written within the same second is known by its ETag."""
    first = run(make_query(pool__uri=pool, pool__storage=cloud.pools))
    again = run(make_query(pool__uri=pool, pool__storage=cloud.pools, select__budget=13))
    assert (again.manifest.units_scored, again.manifest.units_reused) == (0, first.manifest.units_scored)
    name = f"{cloud.path(pool)}/year=2021/part.parquet"
    table, size = pool_table(300, 300), cloud.filesystem.get_file_info(name).size
    changed = table.set_column(1, "x", pool_table(300, 300, seed=1).column("x"))
    pq.write_table(changed, name, filesystem=cloud.filesystem, row_group_size=64)
    assert cloud.filesystem.get_file_info(name).size == size
    third = run(make_query(pool__uri=pool, pool__storage=cloud.pools, select__budget=14))
    assert third.manifest.units_scored == first.manifest.units_scored // 4
    assert all(version.startswith("etag:") for _, _, version in third.manifest.files)


def test_a_store_there_holds_what_a_folder_holds(make_query: MakeQuery, cloud: Cloud) -> None:
    """The committed selection is the same byte for byte; it is found again, and another query takes its scored units."""
    store = {"store__uri": f"{cloud.root}/runs", "store__storage": cloud.store}
    for changes in ({}, {"select__strategy": "core_set"}):
        here, there = run(make_query(**changes)), run(make_query(**changes, **store))
        assert there.query == here.query
        assert selection_of(there) == selection_of(here)
        assert not run(make_query(**changes, **store)).new
    options = "&".join(f"{name}={str(value).lower() if value is True else value}" for name, value in cloud.store.items())
    assert load_result(f"{cloud.root}/runs?{options}", there.query[:6]).selection.equals(there.selection)


def test_of_many_writers_one_wins_and_large_files_come_whole(cloud: Cloud) -> None:
    """Sixteen racers for one name have one winner, whose bytes are there; a file sent in parts is read as it was written."""
    uri, options = f"{cloud.root}/race", storage_from(cloud.store)
    barrier, wins = threading.Barrier(16), []

    def race(number: int) -> None:
        store = store_at(uri, options)
        barrier.wait()
        if store.put_if_absent("queries/q/manifest.json", bytes([number]) * 10_000):
            wins.append(number)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    store = store_at(uri, options)
    assert store.read("queries/q/manifest.json") == bytes([wins[0]]) * 10_000
    content = os.urandom(20 << 20)
    with store.writing("units/a/x") as file:
        file.write(content)
    stored = store.stored("units/a/x")
    assert store.local(stored).read_bytes() == content
    assert [(entry.name, entry.size) for entry in store.walk("units")] == [("units/a/x", len(content))]


def test_weights_there_are_fetched_as_a_file_or_a_folder(cloud: Cloud, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single object and all below a prefix; what is neither is an error that says so."""
    monkeypatch.setattr("tempfile.tempdir", str(workplace))
    for name in ("net/a.bin", "net/deep/b.bin"):
        with cloud.filesystem.open_output_stream(f"{cloud.path(cloud.root)}/{name}") as out:
            out.write(name.encode())
    options = storage_from(cloud.pools)
    assert Path(local_copy(f"{cloud.root}/net/a.bin", options)).read_bytes() == b"net/a.bin"
    folder = Path(local_copy(f"{cloud.root}/net", options))
    assert {path.name: path.read_bytes() for path in folder.rglob("*.bin")} == {"a.bin": b"net/a.bin", "b.bin": b"net/deep/b.bin"}
    with pytest.raises(ModelError, match="none does not exist"):
        local_copy(f"{cloud.root}/none", options)


@pytest.mark.parametrize("what", ["pool", "store"])
def test_a_missing_bucket_is_named(
    make_query: MakeQuery, cloud: Cloud, what: str, workplace: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    """Exit 3 and one sentence with the URI that says that it isn't there."""
    uri = f"{cloud.root.partition('lake')[0]}no-such-bucket/{what}"
    (workplace / "query.yaml").write_text(
        make_query(**{f"{what}__uri": uri, f"{what}__storage": cloud.pools if what == "pool" else cloud.store}).to_yaml()
    )
    code, _, told = cli("query", "query.yaml")
    assert code == 3
    assert uri in told
    assert any(words in told for words in ("not exist", "Not Found"))


@pytest.mark.parametrize("what", ["pool", "store"])
@pytest.mark.parametrize("secret", ["AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"])
def test_azures_refusal_is_told_without_the_secret(
    make_query: MakeQuery,
    azure: Options,
    what: str,
    secret: str,
    workplace: Path,
    cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong key and a wrong signature: exit 3 at once, the URI and the server's own reason, and nothing of the secret."""
    wrong = {"AZURE_STORAGE_KEY": "aHVudGVyMmh1bnRlcjI=", "AZURE_STORAGE_SAS_TOKEN": "?sv=2020-08-04&sr=c&sp=rl&sig=aHVudGVyMmh1bnRlcjI%3D"}
    monkeypatch.delenv("AZURE_STORAGE_KEY", raising=False)
    monkeypatch.setenv(secret, wrong[secret])
    # The credentials are taken when the file system is made, which is kept for equal options.
    options = azure | {"request_timeout": 60 + len(secret)}
    uri = "abfs://lake/somewhere"
    (workplace / "query.yaml").write_text(make_query(**{f"{what}__uri": uri, f"{what}__storage": options}).to_yaml())
    code, _, told = cli("query", "query.yaml")
    assert code == 3
    assert uri in told
    assert "AuthorizationFailure" in told or "authenticate" in told
    assert "check the" in told
    assert "aHVudGVyMmh1bnRlcjI" not in told
