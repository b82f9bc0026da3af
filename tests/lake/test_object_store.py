"""The store in a bucket promises what the one in a folder does: run against a folder, memory, and a real S3 server."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from raystream.errors import QueryError, StoreError, StoreUnreachable, StoreVersionError
from raystream.lake import storage_from
from raystream.lake.bucket import bucket_of
from raystream.store.bucket import Requests
from raystream.store.opening import FORMAT, open_store, prepare_store, store_at
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipts import Receipt, read_receipt, receipt_name

MakeStore = Callable[[], Store]


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeStore:
    """Makes the same store again and again, as each process does."""
    if request.param == "folder":
        return lambda: store_at(str(tmp_path / "runs"))
    if request.param == "memory":
        bucket = MemoryStore()
        monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: bucket)
        return lambda: store_at("s3://bucket")
    request.getfixturevalue("s3_keys")
    uri = f"s3://{request.getfixturevalue('folder')}/prefix"
    options = storage_from(request.getfixturevalue("storage"))
    return lambda: store_at(uri, options)


def test_of_many_writers_one_wins(make: MakeStore) -> None:
    """Sixteen racers put the same name: exactly one is told that it won, and its content is there whole."""
    barrier, wins = threading.Barrier(16), []

    def race(number: int) -> None:
        store = make()
        barrier.wait()
        if store.put_if_absent("queries/q/manifest.json", bytes([number]) * 10_000):
            wins.append(number)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert make().read("queries/q/manifest.json") == bytes([wins[0]]) * 10_000
    assert make().names("queries/q") == ["manifest.json"]


@pytest.mark.parametrize("size", [0, 5, 20 << 20])
def test_a_written_file_is_known_by_size_and_hash(make: MakeStore, size: int) -> None:
    """Both are those of the bytes in the store, however many parts they were sent in."""
    store, content = make(), bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    with store.writing("units/a/x.arrow") as file:
        for start in range(0, size, 3_000_001):
            file.write(content[start : start + 3_000_001])
    stored = store.stored("units/a/x.arrow")
    assert stored == StoredFile("units/a/x.arrow", size, xxhash.xxh3_128_hexdigest(content))
    assert store.read("units/a/x.arrow") == content
    assert store.size("units/a/x.arrow") == size
    assert store.local(stored).read_bytes() == content
    assert store.head(stored, 3) == content[:3]


def test_a_writer_may_fill_its_buffer_again(make: MakeStore) -> None:
    """What was written is what the buffer held then, although large files are sent later and in parts."""
    store, buffer, expected = make(), bytearray(1 << 20), []
    with store.writing("units/a/x.arrow") as file:
        for number in range(40):
            buffer[:] = bytes([number]) * len(buffer)
            expected.append(bytes(buffer))
            file.write(buffer)
    assert store.local(store.stored("units/a/x.arrow")).read_bytes() == b"".join(expected)


@pytest.mark.parametrize("size", [4, 20 << 20])
def test_a_file_that_fails_leaves_nothing(make: MakeStore, size: int) -> None:
    """Half a file is no file, whether some of it was sent or none."""
    store = make()

    def write_half() -> None:
        with store.writing("units/a/x.arrow") as file:
            file.write(bytes(size))
            raise KeyError("model broke")

    with pytest.raises(KeyError):
        write_half()
    assert store.names("units/a") == []


def test_files_come_go_and_are_replaced(make: MakeStore) -> None:
    """`put` replaces, `discard` removes and minds no absence, folders are listed without what lies deeper."""
    store = make()
    assert store.read_if_there("queries/q/plan.parquet") is None
    assert store.size("queries/q/plan.parquet") is None
    assert not store.exists("queries/q/plan.parquet")
    store.put("queries/q/plan.parquet", b"one")
    store.put("queries/q/plan.parquet", b"another")
    store.put("queries/r", b"")
    store.put("queries-of-others", b"")
    assert make().read_if_there("queries/q/plan.parquet") == b"another"
    assert store.names("queries") == ["q", "r"]
    store.discard("queries/q/plan.parquet")
    store.discard("queries/q/plan.parquet")
    assert not store.exists("queries/q/plan.parquet")
    with pytest.raises(StoreError, match=r"queries/q/plan\.parquet can't be read"):
        store.read("queries/q/plan.parquet")


def test_appended_lines_are_all_there_after_a_flush(make: MakeStore) -> None:
    """Those of an earlier process stay."""
    for number in range(2):
        store = make()
        store.append("queries/q/events.jsonl", b"a%d\n" % number)
        store.append("queries/q/events.jsonl", b"b%d\n" % number)
        store.flush()
    assert make().read("queries/q/events.jsonl") == b"a0\nb0\na1\nb1\n"


def test_columns_are_read_from_small_and_large_files(make: MakeStore) -> None:
    """A file that is read in ranges gives the same table as one that is read whole."""
    store = make()
    for rows in (10, 400_000):
        table = pa.table({"id": pa.array(range(rows), pa.int64()), "margin": pa.array([0.5] * rows, pa.float32())})
        with store.writing("units/a/scores.parquet") as file:
            pq.write_table(table, file, use_dictionary=False, compression="none", write_statistics=False)
        stored = store.stored("units/a/scores.parquet")
        assert pq.read_table(store.source(stored), columns=["margin"], partitioning=None) == table.select(["margin"])


def test_a_small_file_that_was_changed_is_damaged(make: MakeStore) -> None:
    """It is read as a whole, and so is found to be of the same size but another content."""
    store = make()
    if not store.remote:
        pytest.skip("a file in a folder is hashed by whoever reads it")
    with store.writing("units/a/scores.parquet") as file:
        file.write(b"0123456789")
    stored = store.stored("units/a/scores.parquet")
    store.put("units/a/scores.parquet", b"0123456780")
    with pytest.raises(StoreError, match=r"units/a/scores\.parquet is damaged: its content is not what was written"):
        store.source(stored)


def test_format_is_written_once_and_checked(make: MakeStore) -> None:
    """A store of this version opens again; a newer or damaged one is refused."""
    prepare_store(make())
    prepare_store(make())
    assert json.loads(make().read("format.json")) == {"version": FORMAT}
    make().put("format.json", json.dumps({"version": FORMAT + 1}).encode())
    with pytest.raises(StoreVersionError, match=f"version {FORMAT + 1}"):
        prepare_store(make())
    make().put("format.json", b"{")
    with pytest.raises(StoreError, match="damaged"):
        prepare_store(make())


def test_a_receipt_counts_only_if_its_files_are_whole(make: MakeStore) -> None:
    """A unit whose scores are gone or cut short is not scored."""
    proof = Receipt(
        key="ab" * 32, output="scores-0", unit="p#rg0", rows=3, positions="0", file=StoredFile("units/ab/scores.parquet", 5, "0"),
        columns=("id",), width=None, members=None, classes=4, batch_size=32, state_hash="s", quarantined=0, quarantine_reasons=(),
        bytes_read=1, seconds=0.1,
    )  # fmt: skip
    store = make()
    store.put_if_absent(receipt_name(proof.key, proof.output), proof.to_json())
    assert read_receipt(store, proof.key, proof.output) is None
    store.put("units/ab/scores.parquet", b"12345")
    assert read_receipt(store, proof.key, proof.output) == proof
    store.put("units/ab/scores.parquet", b"1234")
    assert read_receipt(store, proof.key, proof.output) is None


class Careless:
    """obstore, as a server that ignores If-None-Match, or damages what it is sent, has it behave."""

    def __init__(self, real: Any, *, ignores: bool = False, cuts: bool = False, loses_answers: int = 0) -> None:
        self._real, self._ignores, self._cuts, self.loses_answers = real, ignores, cuts, loses_answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def put(self, bucket: Any, name: str, data: bytes, **options: Any) -> None:
        if self._ignores:
            options.pop("mode", None)
        self._real.put(bucket, name, data[:-1] if self._cuts else data, **options)
        if self.loses_answers:
            self.loses_answers -= 1
            raise ConnectionResetError("the answer got lost")


def careless(monkeypatch: pytest.MonkeyPatch, **faults: Any) -> Store:
    import obstore

    bucket = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: bucket)
    monkeypatch.setattr("raystream.store.bucket.obstore", Careless(obstore, **faults))
    monkeypatch.setattr("raystream.store.bucket.FIRST_PAUSE_BEYOND", 0.001)
    return store_at("s3://bucket/runs")


def test_a_server_that_lets_a_second_writer_win_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs could replace each other's results: exit 3, before anything is scored."""
    store = careless(monkeypatch, ignores=True)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"s3://bucket/runs: its server let format\.json be written a second time"):
            prepare_store(store)


def test_a_server_that_damages_uploads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored is not what was written: the error names the variable that helps, and nothing is left."""
    store = careless(monkeypatch, cuts=True)
    with pytest.raises(StoreError, match=r"holds 2 bytes, but 3 were written.*AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        store.put_if_absent("queries/q/manifest.json", b"abc")
    assert store.names("queries/q") == []


@pytest.mark.parametrize("lost", [1, 2])
def test_a_writer_whose_answer_got_lost_still_wins(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """Asked again, the server says that the file is there: it is the writer's own. Somebody else's is not."""
    store = careless(monkeypatch, loses_answers=lost)
    assert store.put_if_absent("queries/q/manifest.json", b"mine")
    assert not store.put_if_absent("queries/q/manifest.json", b"theirs")
    assert store.read("queries/q/manifest.json") == b"mine"
    assert store.retries >= 1  # type: ignore[attr-defined]


def test_a_server_that_never_answers_is_asked_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one that a unit is tried again for."""
    store = careless(monkeypatch, loses_answers=99)
    with pytest.raises(StoreUnreachable, match=r"can't be written: the answer got lost; asked 3 times, run again to resume"):
        store.put("queries/q/plan.parquet", b"x")


def test_a_damaged_copy_is_not_mapped(make: MakeStore) -> None:
    """Content that isn't what the receipt says is refused when it is brought here."""
    store = make()
    store.put("units/a/x.arrow", b"damaged")
    if not hasattr(store, "retries"):
        return  # a folder's files are mapped where they lie
    with pytest.raises(StoreError, match=r"units/a/x\.arrow is damaged"):
        store.local(StoredFile("units/a/x.arrow", 7, "0"))


def test_stores_travel_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickled store is its URI and options; neither that nor its repr holds a key."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    store = store_at("s3a://bucket/runs/", storage_from({"region": "eu-central-1"}))
    data = pickle.dumps(store)
    assert b"secret" not in data
    assert b"AKIA" not in data
    assert "secret" not in repr(store)
    again = pickle.loads(data)
    assert (again.uri, again.storage) == (store.uri, store.storage)
    assert again.place("format.json").endswith("://bucket/runs/format.json")


def test_options_of_a_folder_are_refused() -> None:
    """They would change nothing."""
    with pytest.raises(QueryError, match="is a folder"):
        store_at("runs", storage_from({"region": "eu-central-1"}))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            GenericError("Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 5s - HTTP error"),
            "the environment holds no credentials",
        ),
        (
            GenericError("Client error with status 400 Bad Request: <Error><Code>ExpiredToken</Code><Message>Too old.</Message></Error>"),
            r"ExpiredToken: Too old; check the credentials",
        ),
        (GenericError("Server error status 501: <Code>NotImplemented</Code>\n\nDebug source:\nmuch more"), r"NotImplemented$"),
    ],
)
def test_what_will_not_change_is_asked_once(error: Exception, says: str) -> None:
    """Missing or expired credentials and what a server can't do are refused at once, in a line."""
    asked = []

    def request() -> None:
        asked.append(1)
        raise error

    with pytest.raises(StoreError, match=says) as caught:
        Requests("s3://bucket/runs")(request, "format.json", "written")
    assert not isinstance(caught.value, StoreUnreachable)
    assert len(asked) == 1


def test_signatures_in_urls_are_not_shown() -> None:
    """An Azure URL carries one; the line that says why a request failed doesn't."""

    def request() -> None:
        raise GenericError("Error performing GET https://a.blob.core.windows.net/c/x?sv=2024&sig=very-secret - HTTP error (status 403)")

    with pytest.raises(StoreError) as caught:
        Requests("abfs://c@a.dfs.core.windows.net")(request, "x", "read")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("way", ["option", "variable"])
def test_our_options_become_obstores(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Endpoint, region and addressing reach obstore under its own names, from the options or from AWS's variables."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    if way == "variable":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
        assert bucket_of("s3://b/p").client_options["allow_http"] == "true"
        return
    options = {"endpoint_override": "http://minio:9000", "region": "eu-central-1", "virtual_addressing": True, "request_timeout": 7}
    store = bucket_of("s3a://b/p/q", storage_from(options))
    assert (store.prefix, store.config["bucket"], store.config["region"]) == ("p/q", "b", "eu-central-1")
    assert store.config["endpoint"] == "http://b.minio:9000"
    assert store.client_options["allow_http"] == "true"
    assert bucket_of("s3://b/p", storage_from({"region": "eu-central-1"})).client_options["allow_http"] == "false"
    assert bucket_of("gs://b/p", storage_from({"endpoint_override": "http://fake:4443"})).config["base_url"] == "http://fake:4443"
    azure = bucket_of("abfs://c@account.dfs.core.windows.net/p", storage_from({"endpoint_override": "http://azurite:10000"}))
    assert azure.config["account_name"] == "account"
    assert azure.config["endpoint"] == "http://azurite:10000/account"


@pytest.mark.slow
def test_what_a_server_refuses_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, folder: str, storage: dict[str, Any], s3_keys: None
) -> None:
    """No bucket, wrong keys, keys that may only read: exit 3, the URI, the server's reason, and no secret."""
    from servers import READER_KEY, READER_SECRET, SECRET_KEY

    options = storage_from(storage)

    def refused(uri: str) -> str:
        with pytest.raises(StoreError) as caught:
            open_store(uri, options)
        assert caught.value.exit_code == 3
        message = str(caught.value)
        assert uri in message
        assert "\n" not in message
        assert not any(secret in message for secret in (SECRET_KEY, READER_SECRET, "wrong-secret"))
        return message

    assert "NoSuchBucket" in refused("s3://no-such-bucket/runs")
    open_store(f"s3://{folder}/refusals", options)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert "AccessDenied" in refused(f"s3://{folder}/refusals")
    assert "AccessDenied" in refused(f"s3://{folder}/other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert "SignatureDoesNotMatch" in refused(f"s3://{folder}/refusals")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "InvalidAccessKeyId" in refused(f"s3://{folder}/refusals")
