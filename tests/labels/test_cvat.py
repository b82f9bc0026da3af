"""CVAT by its API, against a server that drops replies and takes its time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cvat_fake import FakeCvat
from label_batches import PNG
from label_queries import CLASSES, commit_query
from label_studio_fake import Fault

from raystream.errors import QueryError
from raystream.labels import collect_labels
from raystream.labels.batch import Batch, read_batch
from raystream.labels.collect import LabelQueries
from raystream.labels.cvat import Cvat
from raystream.labels.server import ServerError, Token
from raystream.lake.retry import Patience
from raystream.store.result import Result, load_result

Cli = Callable[..., tuple[int, str, str]]
PATIENT = Patience(60.0, pause=lambda seconds: None)


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("committed")
    commit_query(folder, pa.array(range(40)), 12)
    return folder


@pytest.fixture
def first(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A committed query of 12 rows with pictures, in a store of the test's own below the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(committed / "runs", "runs")
    return load_result("runs", "first")


@pytest.fixture
def fake() -> Iterator[FakeCvat]:
    server = FakeCvat()
    server.start()
    yield server
    server.stop()


def client(fake: FakeCvat, task: int | None = None) -> Cvat:
    return Cvat(fake.url if task is None else f"{fake.url}/tasks/{task}/jobs/3", Token(fake.token), PATIENT)


def batch(result: Result) -> Batch:
    return read_batch(result, CLASSES, "image")


def assert_whole(fake: FakeCvat, result: Result) -> None:
    """One task, whose pictures are the batch's in the order of the rank."""
    assert list(fake.tasks) == [1]
    expected = [batch(result).file_name(item) for item in batch(result).items]
    assert fake.tasks[1]["frames"] == expected
    assert fake.uploads[1] == dict.fromkeys(expected, PNG)


def test_two_pushes_leave_what_one_leaves(fake: FakeCvat, first: Result) -> None:
    """The task, its labels, its pictures; it is waited for while the server prepares them."""
    fake.looks = 5
    pushed = client(fake).push(batch(first), first.store)
    assert (pushed.rows, pushed.created, pushed.url) == (12, 12, f"{fake.url}/tasks/1")
    assert pushed.notes == ("predictions are not sent to CVAT; export files by --out, and upload annotations.xml to the task",)
    assert [(label["name"], label["type"]) for label in fake.labels[1]] == [(name, "tag") for name in CLASSES]
    assert (client(fake).push(batch(first), first.store).created, client(fake, 1).push(batch(first), first.store).created) == (0, 0)
    assert_whole(fake, first)


def test_another_stores_query_of_this_name_is_not_taken_for_it(fake: FakeCvat, first: Result) -> None:
    """A task of this name with other pictures is nobody's but theirs."""
    ours = batch(first)
    client(fake).push(replace(ours, items=tuple(replace(item, id=f"{item.id}0") for item in ours.items)), first.store)
    with pytest.raises(ServerError, match=r"tasks/1 holds other pictures than those of query first: 12 of 12 are not there"):
        client(fake).push(ours, first.store)


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("status", [None, 502])
def test_lost_replies_leave_one_task(carried_out: bool, status: int | None, fake: FakeCvat, first: Result) -> None:
    """Of making the task, of each upload, of what follows; and reads that are answered by 502."""
    fake.faults = [
        Fault("POST", "^/api/tasks$", carried_out, status),
        Fault("POST", "/data/$", carried_out, status, times=3),
        Fault("GET", "/api/", carried_out=False, status=502, times=2),
    ]
    assert client(fake).push(batch(first), first.store).rows == 12
    assert_whole(fake, first)


def test_what_people_did_comes_back_with_its_state(fake: FakeCvat, first: Result) -> None:
    """Tags by people and by the machine, a removed frame, an untouched one, in an open job; then a completed and a rejected one."""
    client(fake).push(batch(first), first.store)
    task = fake.tasks[1]
    task["assignee"] = {"id": 3, "username": "anna", "url": "u"}
    ids = [label["id"] for label in fake.labels[1]]
    task["tags"] = [{"id": 1, "frame": 0, "label_id": ids[0], "source": "manual", "attributes": []},
                    {"id": 2, "frame": 1, "label_id": ids[1], "source": "auto", "attributes": []}]  # fmt: skip
    task["deleted"] = [2]
    queries = LabelQueries(first.store, None, lambda _: CLASSES)

    def pull() -> dict[int, tuple[str, str | None]]:
        client(fake, 1).pull("l.parquet", first.store, queries)
        table = pq.read_table("l.parquet")
        assert set(table.column("annotator").to_pylist()) == {"anna"}
        return {
            rank: (state, label)
            for rank, state, label in zip(*(table.column(n).to_pylist() for n in ("rank", "state", "label")), strict=True)
        }

    expected = {0: ("labelled", "cat"), 1: ("draft", "dog"), 2: ("deleted", None)}
    assert pull() == expected
    assert pull() == expected
    task["state"] = "completed"
    Path("l.parquet").unlink()
    assert pull() == {0: ("labelled", "cat"), 1: ("labelled", "dog"), 2: ("deleted", None)} | {
        rank: ("skipped", None) for rank in range(3, 12)
    }
    task["state"] = "rejected"
    Path("l.parquet").unlink()
    assert set(pull().values()) == {("rejected", None), ("deleted", None)}


@pytest.mark.parametrize(
    ("column", "frame", "found"),
    [("url", "{0}.jpg", True), ("url", "pictures/{0}.jpg", True), ("shared", "{1}/{2}.jpg", True), ("shared", "{2}.jpg", False)],
)
def test_rows_are_found_by_the_ends_of_their_links(
    column: str, frame: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CVAT names what it fetched; a name that several rows have is no row's, and its label is left out and counted."""
    monkeypatch.chdir(tmp_path)
    result = commit_query(tmp_path, pa.array(range(20)), 20, pool={"keep": [column]})
    name = frame.format(7, 3, 1)
    xml = f'<annotations><image id="0" name="{name}"><tag label="cat" source="manual"/></image></annotations>'
    Path("annotations.xml").write_text(xml)
    collected = collect_labels("annotations.xml", "cvat", "l.parquet", result.store, query="first")
    assert [row.id for row in collected.table.rows] == ([7] if found else [])
    assert collected.unknown_ids == (0 if found else 1)


def test_pictures_that_cvat_cant_read_say_so(fake: FakeCvat, first: Result) -> None:
    """The server's own words, and exit 3; text and links into buckets are refused before anything is made."""
    fake.broken = "cannot identify image file"
    with pytest.raises(ServerError, match=r"can't take its pictures: cannot identify image file; remove the task"):
        client(fake).push(batch(first), first.store)
    fake.tasks.clear()
    for show, words in (("text", "CVAT shows pictures alone"), ("url", "sign them by --presign")):
        with pytest.raises(QueryError, match=words):
            client(fake).push(read_batch(first, CLASSES, show), first.store)
    assert not fake.tasks


def test_the_round_trip_by_the_command_line(fake: FakeCvat, first: Result, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Push, label, pull, with the token from the environment; a wrong one is refused and not shown."""
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", fake.token)
    code, printed, stderr = cli("export", "first", "--to", "cvat", "--push", fake.url, "--show", "image", "--json")
    assert code == 0, stderr
    summary = json.loads(printed)
    assert (summary["tool"], summary["rows"]) == ("cvat", 12)
    fake.tasks[1]["tags"] = [{"id": 1, "frame": 4, "label_id": fake.labels[1][1]["id"], "source": "manual", "attributes": []}]
    code, printed, stderr = cli("labels", "--from", "cvat", "--pull", summary["url"], "--out", "l.parquet", "--json")
    assert (code, json.loads(printed)["labelled"]) == (0, 1), stderr
    assert pq.read_table("l.parquet").column("rank").to_pylist() == [4]
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", "a.b.c")
    code, _, stderr = cli("labels", "--from", "cvat", "--pull", summary["url"], "--out", "l.parquet")
    assert (code, "refuses the token (401)" in stderr, "a.b.c" in stderr) == (3, True, False)
