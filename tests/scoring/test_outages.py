"""Storages that go away for a while, and answers that get lost: nothing is charged, thrown away, or taken for somebody else's."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import MemoryStore

import raystream as rs
from raystream.cluster.actor_pool import PLACING_SECONDS, ActorPool, Placing
from raystream.cluster.connection import worker_count
from raystream.errors import ClusterError, StoreError, StoreUnreachable
from raystream.lake import LOCAL
from raystream.lake.retry import Patience
from raystream.query import Cluster
from raystream.scoring import executor
from raystream.scoring.executor import InProcess
from raystream.scoring.worker import Worker
from raystream.store.local import LocalStore
from raystream.store.opening import store_at
from raystream.store.protocol import Store, WriteBroken

MakeQuery = Callable[..., rs.Query]
DOWN = GenericError("Error performing PUT http://x in 1s, after 5 retries - Server returned non-2xx status code: 503 Service Unavailable")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps; how long everybody would have."""
    found: list[float] = []
    monkeypatch.setattr("raystream.lake.retry.pause", found.append)
    monkeypatch.setattr(InProcess, "pause", lambda self, seconds: found.append(seconds))
    return found


class Flaky:
    """obstore in front of a bucket that is away for some calls.

    Args:
        down: for a call of this name for this file, whether it fails now.
    """

    def __init__(self, down: Callable[[str, str], bool]) -> None:
        import obstore

        self._real, self._down = obstore, down

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(bucket: Any, path: str, *arguments: Any, **options: Any) -> Any:
            if self._down(name, path):
                raise DOWN
            found = real(bucket, path, *arguments, **options)
            return FlakyWriter(found, lambda what: self._down(what, path)) if name == "open_writer" else found

        return call


class FlakyWriter:
    """A file that is sent in parts, and breaks off."""

    def __init__(self, real: Any, down: Callable[[str], bool]) -> None:
        self._real, self._down = real, down

    def write(self, data: bytes) -> None:
        if self._down("write"):
            raise DOWN
        self._real.write(data)

    def close(self) -> None:
        if self._down("close"):
            raise OSError(str(DOWN))
        self._real.close()


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, str], bool]], None]:
    """Have all buckets be one in memory, which is away as it is told."""
    bucket = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: bucket)

    def flaky(down: Callable[[str, str], bool]) -> None:
        monkeypatch.setattr("raystream.store.bucket.obstore", Flaky(down))

    return flaky


def times(count: int, of: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """Down for the first calls of a kind."""
    left, guard = [count], threading.Lock()

    def down(name: str, path: str) -> bool:
        with guard:
            if not of(name, path) or not left[0]:
                return False
            left[0] -= 1
            return True

    return down


def selection_of(result: Any) -> bytes:
    data: bytes = result.store.read(result.manifest.selection.name)
    return data


KINDS = {
    "when a worker starts": lambda name, path: name == "head" and "token-" in path,
    "receipts": lambda name, path: name == "put" and path.endswith("receipt.json"),
    "uploads": lambda name, path: name == "write" and "scores-" in path,
    "the end of uploads": lambda name, path: name == "close" and "embeddings-" in path,
    "everything in units": lambda name, path: path.startswith("units/"),
    "the commit": lambda name, path: path.endswith("manifest.json"),
    "reading the scores": lambda name, path: name == "get" and "scores-" in path,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_outage_costs_no_unit(
    make_query: MakeQuery, away: Any, kind: str, caplog: pytest.LogCaptureFixture, pauses: list[float]
) -> None:
    """Longer than any unit is tried, under `skip`: all are scored, the batch is that of an undisturbed run, and people are told."""
    expected = selection_of(rs.run(make_query(on_error="skip")))
    away(times(60, KINDS[kind]))
    result = rs.run(make_query(on_error="skip", store__uri="s3://bucket/runs", cluster={"address": "in_process", "workers": 2}))
    assert selection_of(result) == expected
    assert (result.manifest.units_scored, result.manifest.warnings) == (4, [])
    events = [json.loads(line) for line in result.store.read(f"queries/{result.query}/workers.jsonl").splitlines()]
    assert not [event for event in events if "error" in event]
    assert sum("doesn't answer: " in message and "503 Service Unavailable" in message for message in caplog.messages) >= 1
    assert pauses


def test_an_outage_beyond_all_patience_ends_the_run_and_the_same_command_goes_on(
    make_query: MakeQuery, away: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under `skip`: exit 3 in a sentence, no smaller batch; what was scored is kept."""
    expected = selection_of(rs.run(make_query()))
    query = make_query(on_error="skip", store__uri="s3://bucket/runs")
    monkeypatch.setattr(executor, "PATIENCE", Patience(0.0, from_start=True))
    receipts: list[str] = []

    def down(name: str, path: str) -> bool:
        if name == "put" and path.endswith("receipt.json"):
            receipts.append(path)
        return len(set(receipts)) > 4 and path.startswith("units/")

    away(down)
    with pytest.raises(StoreUnreachable, match=r"units/\S+ can't be written: .*503 Service Unavailable.*run again to resume") as ended:
        rs.run(query)
    assert ended.value.exit_code == 3
    away(lambda name, path: False)
    result = rs.run(query)
    assert (result.manifest.units_scored, result.manifest.units_reused) == (2, 2)
    assert selection_of(result) == expected


def test_a_run_that_ends_does_not_wait_for_a_worker_that_waits(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed executor's pauses end at once, and say to give up."""
    monkeypatch.undo()
    workers: Any = InProcess(None)  # type: ignore[arg-type]
    workers.close()
    assert workers.pause(3600.0)


@pytest.fixture
def broken_link(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`os.link` as NFS may have it: it is carried out, the answer gets lost, and the second try finds the name taken."""
    real, linked = os.link, list[str]()

    def link(source: Any, target: Any) -> None:
        real(source, target)
        linked.append(str(target))
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source), None, str(target))

    monkeypatch.setattr(os, "link", link)
    return linked


def test_a_link_that_was_made_counts_whatever_is_said_of_it(tmp_path: Path, broken_link: list[str]) -> None:
    """The file that is there is the writer's own; a second writer's content is refused, and nothing else lies around."""
    store = LocalStore(str(tmp_path))
    assert store.put_if_absent("queries/q/manifest.json", b"mine")
    assert not store.put_if_absent("queries/q/manifest.json", b"theirs")
    assert store.read("queries/q/manifest.json") == b"mine"
    assert store.names("queries/q") == ["manifest.json"]


def test_a_rename_that_was_made_counts_whatever_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second try finds nothing to rename; the file that is there says that it is done."""
    real = os.replace

    def replaced(source: Any, target: Any) -> None:
        real(source, target)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source), None, str(target))

    monkeypatch.setattr(os, "replace", replaced)
    store = LocalStore(str(tmp_path))
    store.put("x", b"one")
    store.put("x", b"two")
    assert store.read("x") == b"two"


def test_a_run_on_such_a_file_system_keeps_what_it_wrote(make_query: MakeQuery, broken_link: list[str], workplace: Path) -> None:
    """Every receipt's files are there, the commit is the run's own, and a second query reuses every unit."""
    result = rs.run(make_query())
    assert result.new
    assert any(target.endswith("receipt.json") for target in broken_link)
    again = rs.run(make_query(select__budget=5))
    assert (again.manifest.units_scored, again.manifest.units_reused) == (0, 4)


def test_a_receipt_that_is_ones_own_after_all_keeps_its_files(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a store say that another one won and show one's own receipt, nothing is thrown away."""
    put = LocalStore.put_if_absent

    def lies(self: LocalStore, name: str, data: bytes, **options: Any) -> bool:
        return put(self, name, data, **options) and not name.endswith("receipt.json")

    monkeypatch.setattr(LocalStore, "put_if_absent", lies)
    result = rs.run(make_query())
    assert rs.run(make_query(select__budget=5)).manifest.units_reused == result.manifest.units_scored == 4


def failing(error: OSError, count: int, real: Callable[..., Any]) -> Callable[..., Any]:
    left = [count]

    def call(*arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_shared_folder_that_is_away_is_waited_for(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, listing and writing go on once it is back; beyond all patience it is unreachable, not damaged."""
    store = LocalStore(str(tmp_path), Patience(from_start=True))
    store.put("x", b"content")
    error = OSError(number, os.strerror(number))
    monkeypatch.setattr(Path, "read_bytes", failing(error, 20, Path.read_bytes))
    assert store.read_if_there("x") == b"content"
    monkeypatch.setattr(os, "fsync", failing(error, 20, os.fsync))
    assert store.put_if_absent("y", b"more")
    monkeypatch.setattr(os, "scandir", failing(error, 20, os.scandir))
    assert {entry.name for entry in LocalStore(str(tmp_path), Patience(from_start=True)).walk("")} == {"/x", "/y"}
    monkeypatch.setattr(Path, "stat", failing(error, 10**9, Path.stat))
    with pytest.raises(StoreUnreachable, match=rf"x can't be read: {os.strerror(number)}; run again to resume"):
        LocalStore(str(tmp_path), Patience(0.0)).size("x")


def test_a_full_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> None:
    """It says so at once, and leaves no half of a file."""
    monkeypatch.setattr(os, "fsync", failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, os.fsync))
    with pytest.raises(StoreError, match="No space left on device; free some space and run again"):
        LocalStore(str(tmp_path)).put("x", b"content")
    assert (pauses, list(tmp_path.iterdir())) == ([], [])


def test_a_large_file_that_broke_off_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't be taken up in the middle: whoever writes it begins again."""
    store = LocalStore(str(tmp_path))
    monkeypatch.setattr("raystream.store.local._sync", failing(OSError(errno.EIO, "Input/output error"), 1, lambda path: None))

    def write() -> None:
        with store.writing("units/a/x.arrow") as file:
            file.write(b"content")

    with pytest.raises(WriteBroken):
        write()
    assert store.names("units/a") == []
    write()
    assert store.read("units/a/x.arrow") == b"content"


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`raystream gc` would take all that it doesn't see for gone."""
    store = LocalStore(str(tmp_path))
    store.put("queries/q/manifest.json", b"{}")
    monkeypatch.setattr(os, "scandir", failing(PermissionError(errno.EACCES, "Permission denied"), 9, os.scandir))
    with pytest.raises(StoreError, match="queries can't be read: Permission denied"):
        list(store.walk("queries"))


@pytest.mark.parametrize("where", ["ids", "pool", "store"])
def test_a_unit_whose_disk_goes_away_is_begun_again(
    make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch, where: str, pauses: list[float]
) -> None:
    """A file of the pool, or one that is being written, breaks in the middle: under `skip`, too, it is begun again, uncharged."""
    expected = rs.run(make_query(store__uri="undisturbed")).selection
    error = OSError(errno.EIO, "Input/output error")
    if where != "store":
        real = pq.ParquetFile.iter_batches
        count = [5]

        def batches(self: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
            for batch in real(self, *arguments, **options):
                if count[0] and ("x" in options["columns"]) == (where == "pool"):
                    count[0] -= 1
                    raise error
                yield batch

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", batches)
    else:
        from raystream.store import local as module

        monkeypatch.setattr(module, "_sync", failing(error, 5, module._sync))
    result = rs.run(make_query(on_error="skip"))
    assert result.selection.equals(expected)
    assert (result.manifest.units_scored, result.manifest.warnings) == (4, [])
    assert len(pauses) >= (1 if where == "ids" else 4)  # ids are read by several threads, and all of them anew


def bucket_store(monkeypatch: pytest.MonkeyPatch, put: Callable[..., Any]) -> Store:
    import obstore

    class Asked:
        def __getattr__(self, name: str) -> Any:
            return getattr(obstore, name)

    Asked.put = staticmethod(put)  # type: ignore[attr-defined]
    bucket = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: bucket)
    monkeypatch.setattr("raystream.store.bucket.obstore", Asked())
    return store_at("s3://bucket/runs")


def test_a_conflict_that_left_nothing_is_no_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    """409: somebody else's request was under way and failed. The file isn't there, so it is asked for again, written or replaced."""
    import obstore

    conflicts = [2]

    def put(*arguments: Any, **options: Any) -> None:
        if conflicts[0]:
            conflicts[0] -= 1
            raise AlreadyExistsError("Object at location x already exists: status code: 409 Conflict")
        obstore.put(*arguments, **options)

    store = bucket_store(monkeypatch, put)
    assert store.put_if_absent("queries/q/manifest.json", b"mine")
    assert not store.put_if_absent("queries/q/manifest.json", b"theirs")
    conflicts[0] = 2
    store.put("queries/q/plan.parquet", b"plan")
    assert store.read("queries/q/plan.parquet") == b"plan"


@pytest.mark.usefixtures("own_ray")
def test_what_workers_wait_for_is_said_by_the_driver(make_query: MakeQuery, workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker of another process logs; the line comes out here, and stands among the events."""
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\ndef talking():\n"
            "    import logging\n"
            "    logging.getLogger('raystream').warning('the store %s', 'is away')\n"
            "    return net()\n"
        )
    result = rs.run(make_query(model__source="user_nets:talking", cluster={"workers": 1}))
    assert caplog.messages.count("the store is away") >= 1
    events = [json.loads(line) for line in (result.folder / "workers.jsonl").read_text().splitlines()]
    assert {event["text"] for event in events if event["event"] == "Told"} == {"the store is away"}


NODES = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}]
GONE = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}


@pytest.mark.parametrize(
    ("needed", "free", "says"),
    [
        ({"CPU": 1, "GPU": 2}, {}, "needed GPU: 2 a worker, the cluster has 1"),
        ({"CPU": 8, "GPU": 2}, {}, "needed CPU: 8 a worker, the cluster has 6; GPU: 2 a worker, the cluster has 1"),
        ({"CPU": 3, "GPU": 1}, {}, "none of its 2 nodes has 3 CPUs and 1 GPU"),
        ({"CPU": 1, "GPU": 0.5}, {"CPU": 3.0}, "others hold it, free are CPU: 3 of 6, GPU: 0 of 1"),
        ({"CPU": 2, "GPU": 0}, {"CPU": 1.0}, "others hold it, free are CPU: 1 of 6"),
    ],
)
def test_what_a_cluster_lacks_is_said_after_a_minute(
    needed: dict[str, float], free: dict[str, float], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, by what Ray knows of its nodes, dead ones left out; then it is waited on until the limit, which is exit 5."""
    now = [0.0]
    placing = Placing(needed, lambda: ([*NODES, GONE], free), lambda: now[0])
    for worker in range(2):
        placing.asked(worker)
    now[0] = 59.0
    placing.check()
    assert caplog.messages == []
    for now[0] in (60.0, 61.0, 200.0):
        placing.check()
    assert caplog.messages == [f"the cluster has no room for 2 workers yet: {says}; waiting, for up to 15 minutes"]
    now[0] = PLACING_SECONDS
    with pytest.raises(ClusterError, match=r"no room for a worker of .* within 15 minutes: .*run again to resume") as ended:
        placing.check()
    assert says in str(ended.value)
    assert ended.value.exit_code == 5


def test_a_run_goes_on_with_the_workers_that_have_a_place(caplog: pytest.LogCaptureFixture) -> None:
    """The rest is said and waited for as long as the run takes; the limit counts from when nobody has a place any more."""
    now = [0.0]
    placing = Placing({"CPU": 4}, lambda: (NODES, {"CPU": 1.0}), lambda: now[0])
    placing.asked(0)
    placing.asked(1)
    placing.placed(0)
    now[0] = 5000.0
    placing.check()
    assert caplog.messages == ["the cluster has no room for 1 worker yet: others hold it, free are CPU: 1 of 6; going on with 1"]
    placing.gone(0)
    now[0] = 5000.0 + PLACING_SECONDS - 1
    placing.check()
    now[0] += 1
    with pytest.raises(ClusterError):
        placing.check()
    placing.gone(1)
    placing.check()


@pytest.mark.usefixtures("own_ray")
def test_actors_that_find_no_place_end_the_run(make_query: MakeQuery) -> None:
    """On a real Ray without a GPU: the minute passes, and then the limit, by the clock that is given."""
    now = [0.0]
    workers = ActorPool(None, Cluster(workers=1, gpus_per_worker=1), lambda: now[0])  # type: ignore[arg-type]
    try:
        workers.start_worker(0)
        assert workers.wait(0.01) == []
        now[0] = PLACING_SECONDS
        with pytest.raises(ClusterError, match="needed GPU: 1 a worker, the cluster has 0"):
            workers.wait(0.01)
    finally:
        workers.close()


@pytest.mark.usefixtures("own_ray")
def test_a_ray_of_our_own_does_not_grow() -> None:
    """There is nothing to wait for: exit 5 at once; another cluster may add machines, so a number is taken at its word."""
    cluster = Cluster(workers=1, gpus_per_worker=1)
    assert worker_count(cluster) == 1
    with pytest.raises(ClusterError, match="has room for one worker of 1 CPUs and 1 GPUs"):
        worker_count(cluster, grows=False)


def test_a_worker_starts_in_spite_of_an_outage(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that fails under the user's code or weights is waited for like a store; other failures are the model's."""
    from raystream.scoring import worker

    job: Any = SimpleNamespace(first=(), store="runs", store_storage=LOCAL)
    monkeypatch.setattr(worker, "Worker", failing(OSError(errno.ESTALE, "Stale file handle"), 12, lambda job, patience: (job, patience)))
    assert worker.started(job, Patience())[0] is job  # type: ignore[index]
    monkeypatch.setattr(worker, "Worker", failing(OSError("no such thing"), 1, Worker))
    with pytest.raises(OSError, match="no such thing"):
        worker.started(job, Patience())


def test_lines_of_the_log_reach_stderr_once(capsys: pytest.CaptureFixture[str]) -> None:
    """What eight workers have to say in the same words is said once, on stderr, while a command reports; not afterwards."""
    from raystream.cli.terminal import reporting

    log = logging.getLogger("raystream")
    before = list(log.handlers)
    with reporting():
        for _ in range(8):
            log.warning("%s doesn't answer", "s3://lake")
    assert log.handlers == before
    assert capsys.readouterr().err.count("raystream: s3://lake doesn't answer\n") == 1
