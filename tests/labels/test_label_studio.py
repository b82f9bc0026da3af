"""Label Studio by its API, against a server that drops replies, answers 502, redirects and has work done on it meanwhile."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_queries import CLASSES, commit_query
from label_studio_fake import FakeLabelStudio, Fault

from raystream.errors import QueryError
from raystream.labels.batch import read_batch
from raystream.labels.collect import LabelQueries
from raystream.labels.label_studio import LabelStudio
from raystream.labels.oracle import ToolOracle
from raystream.labels.server import ServerError, Token
from raystream.labels.tools.label_studio import label_config
from raystream.lake.retry import Patience
from raystream.store.result import Result, load_result

Cli = Callable[..., tuple[int, str, str]]
ROWS = 300
"""More than a page, and more than one import takes."""
PATIENT = Patience(60.0, pause=lambda seconds: None)
LOST_AFTER = [Fault("POST", "/import", carried_out=True, status=None), Fault("POST", "/import", carried_out=True, status=502)]
LOST_BEFORE = [Fault("POST", "/import", carried_out=False, status=None), Fault("POST", "/import", carried_out=False, status=503)]


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("committed")
    texts = [f"row {i} <b>ünï</b>\r\n\u2028=1 {'😀' * (i % 3)}" for i in range(ROWS + 20)]
    commit_query(folder, pa.array([f"id/{i} ü" for i in range(ROWS + 20)]), ROWS, texts)
    return folder


@pytest.fixture
def first(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A committed query of 300 rows with ids of text, in a store of the test's own below the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(committed / "runs", "runs")
    return load_result("runs", "first")


@pytest.fixture
def fake() -> Iterator[FakeLabelStudio]:
    server = FakeLabelStudio().start()
    yield server
    server.stop()


def client(fake: FakeLabelStudio, project: int | None = None) -> LabelStudio:
    return LabelStudio(fake.url if project is None else f"{fake.url}/projects/{project}/data", Token(fake.token), patience=PATIENT)


def batch(result: Result):  # type: ignore[no-untyped-def]
    return read_batch(result, CLASSES, "text")


def assert_each_once(fake: FakeLabelStudio, result: Result) -> None:
    """Every row of the batch has one task, with its text as the pool has it."""
    found = {task["data"]["raystream_id"]: task["data"]["text"] for task in fake.tasks.values()}
    assert len(found) == len(fake.tasks)
    assert found == {item.id: item.text for item in batch(result).items}


def test_two_pushes_leave_what_one_leaves(fake: FakeLabelStudio, first: Result) -> None:
    """The project is made, all tasks are there, and the second push creates nothing; predictions go with their confidence."""
    pushed = client(fake).push(batch(first), first.store)
    assert (pushed.rows, pushed.created, pushed.removed, pushed.notes) == (ROWS, ROWS, 0, ())
    again = client(fake).push(batch(first), first.store)
    assert (again.rows, again.created, again.project) == (ROWS, 0, pushed.project)
    assert len(fake.projects) == 1
    assert_each_once(fake, first)


@pytest.mark.parametrize("faults", [LOST_AFTER, LOST_BEFORE, LOST_BEFORE + LOST_AFTER], ids=["after", "before", "both"])
def test_lost_replies_leave_each_task_once(faults: list[Fault], fake: FakeLabelStudio, first: Result) -> None:
    """Whether the import was carried out or not when the connection broke or something answered 502: each row once."""
    more = [
        Fault("POST", "^/api/projects/$", carried_out=True, status=None),
        Fault("GET", "/api/tasks", carried_out=False, status=502, times=3),
        Fault("GET", "/api/projects", carried_out=False, status=None, times=2),
    ]
    fake.faults = [Fault(f.method, f.path, f.carried_out, f.status) for f in faults] + more
    pushed = client(fake).push(batch(first), first.store)
    assert not any(fault.times for fault in fake.faults)
    assert (pushed.rows, len(fake.projects)) == (ROWS, 1)
    assert_each_once(fake, first)


def test_two_pushes_at_once_leave_each_task_once(fake: FakeLabelStudio, first: Result) -> None:
    """Another push that sees the same rows missing creates them, too: the later copies go, those that somebody works on stay."""
    other = client(fake)
    rows = batch(first).items
    project = client(fake)._project_for(batch(first))["id"]

    def meanwhile() -> None:
        for task in [task for task in other_tasks if task["data"]["raystream_id"] in {item.id for item in rows[:40]}]:
            fake.add(project, task["data"])
        fake.annotate(fake.tasks[min(fake.tasks)], "cat")

    from raystream.labels.tools.label_studio import tasks

    other_tasks = tasks(batch(first), inline=True)
    fake.during_import = meanwhile
    pushed = other.push(batch(first), first.store)
    assert (pushed.rows, pushed.removed) == (ROWS, 40)
    assert_each_once(fake, first)
    assert sum(len(task["annotations"]) for task in fake.tasks.values()) == 1


def test_a_server_that_takes_and_keeps_nothing_is_given_up(fake: FakeLabelStudio, first: Result) -> None:
    """Not asked for ever: exit 3 says how many tasks are missing."""
    fake.faults = [Fault("POST", "/import", carried_out=False, status=502, times=1000)]
    with pytest.raises(ServerError, match=r"300 of 300 tasks could not be created"):
        client(fake).push(batch(first), first.store)


def test_what_people_did_comes_back_with_its_state(fake: FakeLabelStudio, first: Result, tmp_path: Path) -> None:
    """250 labelled, 20 skipped, 10 drafts, 5 removed, one edited after the first pull and one annotation removed: exactly these, twice."""
    pushed = client(fake).push(batch(first), first.store)
    tasks = list(fake.tasks.values())
    for number, task in enumerate(tasks[:250]):
        fake.annotate(task, CLASSES[number % 3])
    for task in tasks[250:270]:
        fake.annotate(task, None, skip=True)
    for task in tasks[270:280]:
        fake.draft(task, "cat")
    for task in tasks[280:285]:
        del fake.tasks[task["id"]]
    queries = LabelQueries(first.store, None, lambda _: CLASSES)

    def pull() -> pa.Table:
        collected = client(fake, pushed.project).pull("labels.parquet", first.store, queries)
        assert (collected.unknown_ids, collected.conflicts, collected.notes) == (0, 0, ())
        return pq.read_table("labels.parquet")

    table = pull()
    expected = {"labelled": 250, "skipped": 20, "draft": 10, "deleted": 5}
    assert Counter(table.column("state").to_pylist()) == expected
    chosen = first.selection.column("rid").to_pylist()
    labels = dict(zip(table.column("rid").to_pylist(), table.column("label").to_pylist(), strict=True))
    assert all(labels[task["data"]["raystream_id"]] == CLASSES[number % 3] for number, task in enumerate(tasks[:250]))
    assert set(labels) <= set(chosen)
    assert pull().equals(table)
    edited = tasks[0]["annotations"][0]
    edited |= {"updated_at": "2026-03-02T12:00:00Z"}
    edited["result"][0]["value"]["choices"] = ["dog"]
    tasks[1]["annotations"].clear()
    fake.annotate(tasks[270], "dog")
    tasks[270]["drafts"].clear()
    table = pull()
    assert Counter(table.column("state").to_pylist()) == expected | {"deleted": 6, "draft": 9}
    labels = dict(zip(table.column("rid").to_pylist(), table.column("label").to_pylist(), strict=True))
    assert labels[tasks[0]["data"]["raystream_id"]] == "dog"
    assert labels[tasks[1]["data"]["raystream_id"]] is None
    assert pull().equals(table)
    again = client(fake).push(batch(first), first.store)
    assert (again.rows, again.created) == (295, 0)
    assert again.notes == ("5 tasks were removed from the project since they were pushed, and stay so",)


def test_the_oracle_of_a_loop(fake: FakeLabelStudio, first: Result) -> None:
    """Asked twice, each row has one task; the answers are the table of labels, those of removed tasks included."""
    fake.projects[1] = {"id": 1, "label_config": label_config(batch(first))}
    oracle = ToolOracle(client(fake, 1), first.store, lambda _: False, CLASSES, "text")
    for _ in range(2):
        assert oracle.ask(first) == (f"{fake.url}/projects/1", ())
    assert_each_once(fake, first)
    assert oracle.answers(["first"]) == (None, [])
    fake.annotate(fake.tasks[1], "dog")
    del fake.tasks[2]
    answers, notes = oracle.answers(["first"])
    assert answers is not None
    assert (notes, sorted(zip(answers.column("state").to_pylist(), answers.column("rank").to_pylist(), strict=True))) == (
        [],
        [("deleted", 1), ("labelled", 0)],
    )
    with pytest.raises(QueryError, match="names no project"):
        ToolOracle(client(fake), first.store, lambda _: False).ask(first)


def test_an_answer_of_another_shape_is_the_servers_fault(fake: FakeLabelStudio, first: Result) -> None:
    """A time that is none, and a result that is no list: which annotation is the newest can't be told, and no traceback is shown."""
    fake.projects[1] = {"id": 1, "label_config": label_config(batch(first))}
    oracle = ToolOracle(client(fake, 1), first.store, lambda _: False, CLASSES, "text")
    oracle.ask(first)
    done = fake.annotate(fake.tasks[1], "dog", time="soon")
    with pytest.raises(ServerError, match=r"doesn't answer as Label Studio does: 'soon' is no time"):
        oracle.answers(["first"])
    done |= {"updated_at": None, "created_at": None, "result": "dog"}
    with pytest.raises(ServerError, match="an answer has another shape"):
        oracle.answers(["first"])


@pytest.mark.slow
def test_ten_thousand_tasks_in_pages(fake: FakeLabelStudio, first: Result) -> None:
    """No request asks for more than a page or brings more than an import's rows, however many tasks there are."""
    fake.projects[1] = {"id": 1, "label_config": label_config(batch(first))}
    for number in range(10_000):
        fake.add(1, {"text": "t", "raystream_id": f"other {number}", "raystream_query": "other"})
    pushed = client(fake, 1).push(batch(first), first.store)
    assert (pushed.rows, pushed.created, len(fake.tasks)) == (ROWS, ROWS, 10_000 + ROWS)
    listings = [path for method, path, _ in fake.seen if path == "/api/tasks"]
    assert len(listings) == 100 + 103


def test_tasks_that_go_while_they_are_listed_hide_no_others(fake: FakeLabelStudio, first: Result) -> None:
    """A task that is removed moves one of a later page to one that was seen: it is found all the same."""
    pushed = client(fake).push(batch(first), first.store)
    listed = fake.seen.copy()
    seen: list[int] = []
    ask = fake.answer

    def answer(method: str, path: str, *rest: Any) -> tuple[int, Any]:
        found = ask(method, path, *rest)
        if path == "/api/tasks" and not seen:
            seen.append(1)
            del fake.tasks[min(fake.tasks)]
        return found

    fake.answer = answer  # type: ignore[method-assign]
    assert {task["id"] for task in client(fake).tasks(pushed.project)} == set(fake.tasks)
    assert len(fake.seen) - len(listed) == 6


def test_an_export_as_a_file_and_a_pull_are_one(fake: FakeLabelStudio, first: Result) -> None:
    """The same annotations, read by both ways into one table, are there once."""
    pushed = client(fake).push(batch(first), first.store)
    for task in list(fake.tasks.values())[:9]:
        fake.annotate(task, "cat")
    queries = LabelQueries(first.store, None, lambda _: CLASSES)
    client(fake, pushed.project).pull("labels.parquet", first.store, queries)
    table = pq.read_table("labels.parquet")
    Path("export.json").write_text(json.dumps(list(fake.tasks.values())))
    from raystream.labels import collect_labels

    collect_labels("export.json", "label_studio", "labels.parquet", first.store, classes=lambda _: CLASSES)
    assert pq.read_table("labels.parquet").equals(table)


def test_tokens_of_both_kinds(fake: FakeLabelStudio, first: Result) -> None:
    """A personal access token gets short-lived ones, again once they expire; a legacy token is sent itself; neither is ever printed."""
    fake.token, fake.access = "eyJhbGci.eyJ0eXAi.c2ln", "short-1"
    server = client(fake)
    server.push(batch(first), first.store)
    fake.access = "short-2"
    assert server.push(batch(first), first.store).created == 0
    sent = {authorization for _, path, authorization in fake.seen if "token" not in path}
    assert sent == {"Bearer short-1", "Bearer short-2"}
    assert fake.token not in repr(server.server._token)


@pytest.mark.parametrize(("token", "kind"), [("wrong", "a legacy token"), ("a.b.c", "a personal access token")])
def test_a_token_that_is_refused_says_its_kind(
    token: str, kind: str, fake: FakeLabelStudio, first: Result, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 3, one sentence, and the token stays hidden."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    code, _, stderr = cli("export", "first", "--to", "label_studio", "--push", fake.url, "--show", "text")
    assert (code, stderr.count("\n")) == (3, 1)
    assert f"refuses the token (401), which looks like {kind}" in stderr
    assert token not in stderr


def test_no_token_follows_a_redirect_to_another_host(
    fake: FakeLabelStudio, first: Result, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other server isn't asked at all; a redirect within the host is followed."""
    other = FakeLabelStudio().start()
    try:
        fake.redirect_to = other.url
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", fake.token)
        code, _, stderr = cli("export", "first", "--to", "label_studio", "--push", fake.url, "--show", "text")
        assert (code, other.seen) == (3, [])
        assert f"redirects to another host, {other.url}, which gets no token of yours" in stderr
    finally:
        other.stop()


def test_the_round_trip_by_the_command_line(fake: FakeLabelStudio, first: Result, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Push, label, pull, with the token from the environment."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", fake.token)
    code, printed, stderr = cli("export", "first", "--to", "label_studio", "--push", fake.url, "--show", "text", "--json")
    assert code == 0, stderr
    page = json.loads(printed)["url"]
    fake.annotate(fake.tasks[1], "dog")
    code, printed, stderr = cli("labels", "--from", "label_studio", "--pull", page, "--out", "l.parquet", "--json")
    assert code == 0, stderr
    summary = json.loads(printed)
    assert list(summary) == ["rows", "labelled", "skipped", "draft", "rejected", "deleted", "unknown_ids", "conflicts", "out"]
    assert (summary["rows"], summary["labelled"]) == (1, 1)
    code, _, stderr = cli("labels", "--from", "label_studio", "--pull", fake.url, "--out", "l.parquet")
    assert (code, "names no project" in stderr) == (2, True)


def test_a_project_that_is_labelled_otherwise_is_refused(fake: FakeLabelStudio, first: Result) -> None:
    """One without the control, one that lacks a class, one that isn't there: said before anything is created."""
    fake.projects = {
        1: {"id": 1, "label_config": '<View><Text name="t" value="$text"/><Choices name="x" toName="t"/></View>'},
        2: {"id": 2, "label_config": '<View><Text name="text" value="$text"/><Choices name="label"><Choice value="cat"/></Choices></View>'},
    }
    for project, words in (
        (1, "expected a control named label"),
        (2, r"lacks 2 of the query's 3 classes, first: 'dog'"),
        (3, "refuses with 404"),
    ):
        with pytest.raises(ServerError, match=words):
            client(fake, project).push(batch(first), first.store)
    assert not fake.tasks


def test_a_project_whose_interface_has_other_names_is_used(fake: FakeLabelStudio, first: Result) -> None:
    """Predictions go to what it calls the text; one to a name that isn't there would make the server refuse the whole import."""
    fake.projects[1] = {"id": 1, "label_config": label_config(batch(first)).replace('name="text"', 'name="t1"')}
    client(fake, 1).push(batch(first), first.store)
    assert {task["predictions"][0]["result"][0]["to_name"] for task in fake.imported} == {"t1"}
    assert {task["predictions"][0]["score"] for task in fake.imported} == {item.confidence for item in batch(first).items}


@pytest.mark.parametrize("tool", ["label_studio", "cvat"])
@pytest.mark.parametrize("answer", [{"status": "ok"}, [], 3])
def test_another_program_behind_the_url_is_no_defect(
    tool: str, answer: Any, fake: FakeLabelStudio, first: Result, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers JSON of its own to everything: exit 3, in one sentence."""
    fake.answer = lambda *_: (200, answer)  # type: ignore[method-assign]
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "t")
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", "t")
    place = "projects" if tool == "label_studio" else "tasks"
    pushed = ("export", "first", "--to", tool, "--show", "text" if tool == "label_studio" else "image", "--push")
    pulled = ("labels", "--from", tool, "--out", "l.parquet", "--pull")
    for arguments in (pushed, pulled):
        code, _, stderr = cli(*arguments, f"{fake.url}/{place}/7")
        assert (code, stderr.count("\n"), "doesn't answer as" in stderr) == (3, 1, True), stderr


def test_another_stores_query_of_this_name_is_not_taken_for_it(fake: FakeLabelStudio, first: Result) -> None:
    """The same name and ids over other texts: labels of those would become these rows'. Nothing is created, and the way out is said."""
    ours = batch(first)
    theirs = replace(ours, items=tuple(replace(item, text=f"{item.text}, not ours", rank=item.rank + 1) for item in ours.items[:7]))
    client(fake).push(theirs, first.store)
    for project, way in ((None, "push to a project of your own"), (1, "push without a project")):
        with pytest.raises(ServerError, match=f"projects/1 .raystream first. holds tasks of another query named first, 7 rows.*{way}"):
            client(fake, project).push(ours, first.store)
    assert len(fake.tasks) == 7
    again = replace(theirs, items=tuple(replace(item, text=str(item.rank)) for item in theirs.items))
    assert client(fake).push(again, first.store).created == 0  # another column of the same rows


def test_all_rounds_predictions_are_of_one_version(fake: FakeLabelStudio, first: Result) -> None:
    """A project shows those of one version alone, at first that of its first prediction: every model's are of the same."""
    later = replace(batch(first), query="later", model="another model")
    for each in (batch(first), later):
        client(fake, 1 if fake.projects else None).push(each, first.store)
    assert len(fake.imported) == 2 * ROWS
    assert {task["predictions"][0]["model_version"] for task in fake.imported} == {"raystream"}


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        ({"model_version": "", "show_collab_predictions": True}, False),
        ({"model_version": "raystream", "show_collab_predictions": True}, False),
        ({"model_version": "their backend", "show_collab_predictions": True}, True),
        ({"model_version": "raystream", "show_collab_predictions": False}, True),
    ],
)
def test_a_project_that_hides_the_predictions_says_so(
    settings: dict[str, Any], hidden: bool, fake: FakeLabelStudio, first: Result
) -> None:
    """It shows those of another model or none; that is its owner's choice, and so it stays."""
    fake.projects[1] = {"id": 1, "label_config": label_config(batch(first)), **settings}
    notes = client(fake, 1).push(batch(first), first.store).notes
    assert any("doesn't show the predictions that were pushed: choose raystream" in note for note in notes) == hidden
    unpredicted = replace(batch(first), items=tuple(replace(item, prediction=None) for item in batch(first).items))
    assert client(fake, 1).push(unpredicted, first.store).notes == ()


def test_a_place_where_no_server_is(first: Result) -> None:
    """Seconds, not minutes; what isn't Label Studio says so."""
    with pytest.raises(ServerError, match=r"doesn't answer: .*; check the URL"):
        LabelStudio("http://127.0.0.1:1", Token("x"), patience=Patience(0.0, pause=lambda seconds: None)).push(batch(first), first.store)
