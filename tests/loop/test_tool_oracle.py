"""Loops whose oracle is a labelling tool: each row has one task whatever happens, and the history is that of labels out of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from campaigns import DyingStore, Killed, answer, asked, history, make_loop, simulated, write_pool
from cvat_fake import FakeCvat
from label_batches import PNG
from label_studio_fake import FakeLabelStudio, Fault

from raystream import ActiveLearningLoop
from raystream.errors import QueryError
from raystream.labels.server import Server, ServerError
from raystream.lake.retry import Patience
from raystream.store.opening import open_store

Cli = Callable[..., tuple[int, str, str]]
CONFIG = (
    '<View><Text name="text" value="$text"/><Choices name="label" toName="text">'
    '<Choice value="0"/><Choice value="1"/><Choice value="2"/><Choice value="3"/></Choices></View>'
)
SHORT = {"loop__rounds": 2, "loop__control": 0.34}
"""Two rounds of six rows, two of these for control."""


@pytest.fixture
def truth(tmp_path: Path) -> dict[str, int]:
    """The classes of the pool's rows by their ids."""
    return write_pool(tmp_path, text=[f"row {i} <b>ü</b>" for i in range(120)])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLabelStudio]:
    """A server with project 1, whose outages nobody sleeps through."""
    monkeypatch.setattr("raystream.labels.oracle.LASTING", Patience(60.0, pause=lambda seconds: None))
    server = FakeLabelStudio().start()
    server.projects[1] = {"id": 1, "label_config": CONFIG}
    yield server
    server.stop()


def tool_loop(folder: Path, fake: FakeLabelStudio, **changes: Any) -> Any:
    oracle = {"tool": "label_studio", "url": fake.url, "project": 1, "show": "text"}
    return make_loop(folder, loop__oracle=oracle, **SHORT | changes)


def step(loop: Any, fake: FakeLabelStudio, **more: Any) -> Any:
    return ActiveLearningLoop(loop, token=fake.token, **more).step()


def annotate(fake: FakeLabelStudio, truth: dict[str, int]) -> None:
    """Label every task that nobody labelled yet, as the person behind the tool does."""
    for task in fake.tasks.values():
        if not task["annotations"]:
            fake.annotate(task, str(truth[task["data"]["raystream_id"]]))


def to_its_end(loop: Any, fake: FakeLabelStudio, truth: dict[str, int]) -> None:
    """Go on and label until the loop ends."""
    for _ in range(10):
        if step(loop, fake).state != "waiting":
            return
        annotate(fake, truth)
    raise AssertionError("the loop doesn't end")


def tasks_of(fake: FakeLabelStudio) -> list[str]:
    return sorted(task["data"]["raystream_id"] for task in fake.tasks.values())


def test_a_loop_asks_by_the_tool_and_reads_from_it(tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio) -> None:
    """Each round's batch is pushed with its control rows; the history is that of a loop whose labels stand in the pool."""
    loop = tool_loop(tmp_path, fake)
    state = step(loop, fake)
    assert (state.state, state.missing, tasks_of(fake)) == ("waiting", 6, sorted(asked(state)))
    assert f"label them at {fake.url}/projects/1 and run this again" in state.reason
    assert [task["data"].get("raystream_why") for task in fake.tasks.values()] == ["", "", "", "", "control", "control"]
    assert {task["data"]["text"] for task in fake.tasks.values()} == {f"row {int(id_[1:])} <b>ü</b>" for id_ in asked(state)}
    assert not any(task.get("predictions") for task in fake.imported)  # a model that knows nothing has no opinion
    annotate(fake, truth)
    second = step(loop, fake)
    assert [len(task.get("predictions", [])) for task in fake.imported[6:]] == [1, 1, 1, 1, 0, 0]
    assert (second.round, second.labels, len(fake.tasks)) == (2, 6, 12)
    imports = [path for _, path, _ in fake.seen if path.endswith("/import")]
    assert step(loop, fake).missing == 6
    assert [path for _, path, _ in fake.seen if path.endswith("/import")] == imports
    annotate(fake, truth)
    assert step(loop, fake).state == "finished"
    ActiveLearningLoop(simulated(tmp_path, store__uri=str(tmp_path / "other"), **SHORT)).step()
    assert history(loop) == history(simulated(tmp_path, store__uri=str(tmp_path / "other"), **SHORT))


def test_what_is_to_be_said_of_a_batch_is_a_warning(tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio) -> None:
    """Where the project hides the predictions that were pushed, whoever brought them there hears of it, once."""
    loop = tool_loop(tmp_path, fake)
    fake.projects[1]["model_version"] = "another"
    hidden = "project 1 doesn't show the predictions that were pushed"
    assert not any(hidden in warning for warning in step(loop, fake).warnings)
    annotate(fake, truth)
    assert [hidden in warning for warning in step(loop, fake).warnings].count(True) == 1
    assert not any(hidden in warning for warning in step(loop, fake).warnings)


def test_what_people_skip_and_remove_closes_a_round(tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio) -> None:
    """Skipped rows and removed tasks are answers, drafts are none; removed tasks are not made again, and no row comes back."""
    loop = tool_loop(tmp_path, fake)
    batch = asked(step(loop, fake))
    tasks = list(fake.tasks.values())
    for task in tasks[:3]:
        fake.annotate(task, str(truth[task["data"]["raystream_id"]]))
    fake.annotate(tasks[3], None, skip=True)
    del fake.tasks[tasks[4]["id"]]
    fake.draft(tasks[5], "1")
    assert (step(loop, fake).missing, len(fake.tasks)) == (1, 5)
    fake.annotate(tasks[5], "1")
    state = step(loop, fake)
    assert (state.round, state.rows[0]["labels"]) == (2, 4)
    assert not set(asked(state)) & set(batch)
    assert len(fake.tasks) == 5 + 6


def test_labels_of_others_count_if_they_are_of_the_pool(tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio, cli: Cli,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """What was pushed by hand out of the same store is learnt from first; the same ids of another pool, or of no query, are left alone."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", fake.token)
    (tmp_path / "elsewhere").mkdir()
    write_pool(tmp_path / "elsewhere", text=["t"] * 120)
    for name, folder in (("by-hand", tmp_path), ("foreign", tmp_path / "elsewhere")):
        spec = {
            "pool": {"uri": str(folder / "pool"), "id": "rid"},
            "model": {"kind": "columns", "logits": "x"},
            "select": {"strategy": "top_k", "budget": 4},
            "cluster": {"address": "in_process"},
            "store": {"uri": str(tmp_path / "runs"), "query": name},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(spec))
        assert cli("query", str(tmp_path / f"{name}.json"))[0] == 0
        pushed = cli("export", name, "--store", str(tmp_path / "runs"), "--to", "label_studio", "--show", "text", "--push",
                     f"{fake.url}/projects/1")  # fmt: skip
        assert pushed[0] == 0, pushed[2]
    fake.add(1, {"text": "somebody's own"})
    for task in fake.tasks.values():
        fake.annotate(task, str(truth.get(task["data"].get("raystream_id", ""), 0)))
    state = step(tool_loop(tmp_path, fake), fake)
    assert [(row["round"], row["labels"]) for row in state.rows] == [(0, 4)]
    assert any("5 annotations are of rows that this loop's pool doesn't hold" in warning for warning in state.warnings)


def test_a_lost_reply_and_an_outage_leave_one_task_a_row(tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio) -> None:
    """Whether the import was carried out or not; where the server stays away, the next call goes on where this one ended."""
    fake.faults = [
        Fault("POST", "/import", carried_out=False, status=502),
        Fault("POST", "/import", carried_out=True, status=None),
        Fault("GET", "/api/tasks", carried_out=False, status=502, times=2),
    ]
    loop = tool_loop(tmp_path, fake)
    assert sorted(asked(step(loop, fake))) == tasks_of(fake)
    assert not any(fault.times for fault in fake.faults)
    annotate(fake, truth)
    fake.faults = [Fault("POST", "/import", carried_out=False, status=400)]
    with pytest.raises(ServerError, match="refuses with 400"):
        step(loop, fake)
    to_its_end(loop, fake, truth)
    assert (len(tasks_of(fake)), len(set(tasks_of(fake)))) == (12, 12)


def interrupted(loop: Any, fake: FakeLabelStudio, truth: dict[str, int], **more: Any) -> bool:
    """Play a loop until it is killed or ends; whether it was killed."""
    try:
        while step(loop, fake, **more).state == "waiting":
            annotate(fake, truth)
    except Killed:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_to_the_store(tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio, after: bool) -> None:
    """Before or just after each: the history, the batches and the tasks of the undisturbed loop, each task once."""
    expected = tool_loop(tmp_path, fake, store__uri=str(tmp_path / "whole"))
    to_its_end(expected, fake, truth)
    tasks, count = tasks_of(fake), 0
    while True:
        count += 1
        fake.tasks.clear()
        loop = tool_loop(tmp_path, fake, store__uri=str(tmp_path / f"killed-{count}"))
        open_store(loop.store.uri)
        if not interrupted(loop, fake, truth, store=DyingStore(loop.store.uri, count, after=after)):
            break
        to_its_end(loop, fake, truth)
        assert (history(loop), tasks_of(fake)) == (history(expected), tasks), count
    assert count > 20


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_request(
    tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Before or just after each request to the server, of reads and writes alike."""
    expected = tool_loop(tmp_path, fake, store__uri=str(tmp_path / "whole"))
    to_its_end(expected, fake, truth)
    tasks, count, left = tasks_of(fake), 0, [0]
    request = Server._request

    def dying(self: Server, *args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Killed
        found = request(self, *args)
        if left[0] == 0:
            raise Killed
        return found

    monkeypatch.setattr(Server, "_request", dying)
    while True:
        count += 1
        fake.tasks.clear()
        loop = tool_loop(tmp_path, fake, store__uri=str(tmp_path / f"killed-{count}"))
        left[0] = count
        if not interrupted(loop, fake, truth):
            break
        left[0] = 0
        to_its_end(loop, fake, truth)
        assert (history(loop), tasks_of(fake)) == (history(expected), tasks), count
    assert count > 10


def test_the_command_takes_the_token_from_the_environment(
    tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one nothing is asked or scored; with a wrong one neither, and it is not shown; the loop's file keeps none."""
    (tmp_path / "small.yaml").write_text(tool_loop(tmp_path, fake).to_yaml())
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    code, _, stderr = cli("loop", str(tmp_path / "small.yaml"))
    assert (code, "set LABEL_STUDIO_API_KEY" in stderr, stderr.count("\n")) == (2, True, 1)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong-token")
    code, _, stderr = cli("loop", str(tmp_path / "small.yaml"))
    assert (code, "refuses the token (401)" in stderr, "wrong-token" in stderr) == (3, True, False)
    assert not (tmp_path / "runs" / "queries").exists()
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", fake.token)
    code, printed, stderr = cli("loop", str(tmp_path / "small.yaml"), "--json")
    assert (code, json.loads(printed)["state"]) == (0, "waiting"), stderr
    assert not any(fake.token in path.read_text(errors="replace") for path in (tmp_path / "runs").rglob("*") if path.is_file())


def test_what_people_could_not_see_is_refused_before_a_row_is_chosen(tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio) -> None:
    """Vectors alone, a column that isn't there, a project that isn't there."""
    oracle = {"tool": "label_studio", "url": fake.url, "project": 1}
    for given, words in (
        (oracle, "neither texts nor pictures"),
        (oracle | {"show": "y"}, "loop.oracle.show y holds neither"),
        (oracle | {"show": "txt"}, r"loop.oracle.show txt is no column of the pool; did you mean 'text'"),
    ):
        with pytest.raises(QueryError, match=words):
            step(make_loop(tmp_path, loop__oracle=given), fake)
    with pytest.raises(ServerError, match="refuses with 404"):
        step(make_loop(tmp_path, loop__oracle=oracle | {"show": "text", "project": 9}), fake)
    assert not fake.tasks
    assert not (tmp_path / "runs" / "queries").exists()


def test_a_server_may_move_in_the_middle_and_the_project_may_not(tmp_path: Path, truth: dict[str, int], fake: FakeLabelStudio) -> None:
    """The address and what is shown are no part of what a loop is."""
    step(tool_loop(tmp_path, fake), fake)
    moved = {"tool": "label_studio", "url": fake.url.replace("127.0.0.1", "localhost"), "project": 1, "show": "rid"}
    state = ActiveLearningLoop(make_loop(tmp_path, loop__oracle=moved, **SHORT), token=fake.token).step()
    assert (state.missing, len(fake.tasks)) == (6, 6)
    with pytest.raises(QueryError, match=r"differs in loop\.oracle"):
        step(make_loop(tmp_path, loop__oracle=moved | {"project": 2}, **SHORT), fake)


@pytest.mark.parametrize(
    ("oracle", "words"),
    [
        ({"tool": "label_studio", "url": "http://localhost:8080"}, "loop.oracle.project is missing"),
        ({"tool": "label_studio", "project": 7}, "loop.oracle.url is missing"),
        ({"tool": "prodigy", "url": "http://localhost:8080"}, "loop.oracle.tool is 'prodigy', expected label_studio or cvat"),
        ({"tool": "cvat", "url": "http://localhost:8080", "project": 3}, "a task of its own in CVAT"),
        ({"tool": "cvat", "url": "http://a:secret@localhost:8080"}, "loop.oracle.url holds credentials"),
        ({"tool": "cvat", "url": "localhost:8080"}, "loop.oracle.url is localhost:… or no URL"),
        ({"tool": "cvat", "url": "http://localhost", "token": "x"}, "loop.oracle.token is not a key"),
        ({"folder": "x"}, "{tool: label_studio, url: …, project: 7}, or {column: name}"),
    ],
)
def test_an_oracle_that_can_not_be(tmp_path: Path, oracle: dict[str, Any], words: str) -> None:
    """Said when the file is read, and no secret with it."""
    with pytest.raises(QueryError) as refused:
        make_loop(tmp_path, loop__oracle=oracle)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)


def test_an_export_of_a_round_holds_its_control_rows(tmp_path: Path, truth: dict[str, int], cli: Cli) -> None:
    """By the query's name; what comes back of a control row has its rank, and is none that the query never chose."""
    loop = make_loop(tmp_path, pool__keep=["text"], **SHORT)
    batch = asked(ActiveLearningLoop(loop).step())
    store, out = str(tmp_path / "runs"), str(tmp_path / "batch.jsonl")
    code, printed, stderr = cli("export", "small-r1", "--store", store, "--to", "jsonl", "--out", out, "--json")
    assert (code, json.loads(printed)["rows"]) == (0, 6), stderr
    rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert [row["raystream_id"] for row in rows] == batch
    assert [row["raystream_why"] for row in rows[4:]] == ["control", "control"]
    Path(out).write_text("".join(json.dumps(row | {"label": str(truth[row["raystream_id"]])}) + "\n" for row in rows))
    labels = str(tmp_path / "labels.parquet")
    code, printed, stderr = cli("labels", out, "--from", "jsonl", "--store", store, "--out", labels, "--json")
    assert (code, json.loads(printed)["unknown_ids"]) == (0, 0), stderr
    found = pq.read_table(labels)
    assert dict(zip(found.column("rid").to_pylist(), found.column("rank").to_pylist(), strict=True)) == {
        id_: rank for rank, id_ in enumerate(batch)
    }


CHOSEN_IN_ROUND_1 = (
    ("classes", ["2", "1", "0", "9"], 'choice="single', ["2", "1", "0", "9"]),
    ("multi_label", ["cat", "dog"], 'choice="multiple"', ["cat", "dog"]),
    ("regression", None, "<Number", []),
)


@pytest.mark.parametrize(("task", "classes", "says", "names"), CHOSEN_IN_ROUND_1, ids=[each[0] for each in CHOSEN_IN_ROUND_1])
def test_people_are_asked_what_the_loop_asks(
    tmp_path: Path, truth: dict[str, int], cli: Cli, task: str, classes: Any, says: str, names: list[str]
) -> None:
    """The first batch is chosen by a model that knows neither task nor classes; an export of it offers those of the loop all the same."""
    ridge = {"loop__train": {"estimator": "sklearn.linear_model:Ridge"}, "select": {"strategy": "random", "budget": 6}}
    model = {"task": task} | ({} if classes is None else {"classes": classes})
    loop = make_loop(tmp_path, model=model, loop__evaluate=None, **(ridge if task == "regression" else {}))
    ActiveLearningLoop(loop).step()
    store, out = str(tmp_path / "runs"), tmp_path / "out"
    code, _, err = cli("export", "small-r1", "--store", store, "--to", "label_studio", "--out", out, "--show", "text")
    assert code == 0, err
    config = (out / "label_config.xml").read_text()
    assert says in config, config
    assert re.findall('value="([^"$]+)"', config) == names


def test_an_estimator_that_met_some_classes_offers_all(tmp_path: Path, truth: dict[str, int], cli: Cli) -> None:
    """Those that the loop names; of a loop that names none, those that it met, and that there may be others."""
    said = {}
    for name, classes in (("named", ["0", "1", "2", "never"]), ("unnamed", None)):
        loop = make_loop(tmp_path, loop__name=name, loop__evaluate=None, **({} if classes is None else {"model": {"classes": classes}}))
        first = asked(ActiveLearningLoop(loop).step())
        answer(tmp_path, f"{name}.csv", [(id_, ("0", "1")[place % 2]) for place, id_ in enumerate(first)])
        ActiveLearningLoop(loop).step()
        out = tmp_path / name
        code, _, err = cli("export", f"{name}-r2", "--store", tmp_path / "runs", "--to", "label_studio", "--out", out, "--show", "text")
        assert code == 0, err
        said[name] = re.findall('Choice value="([^"]+)"', (out / "label_config.xml").read_text()), "complete them" in err
    assert said == {"named": (["0", "1", "2", "never"], False), "unnamed": (["0", "1"], True)}


def test_a_loop_by_cvat_has_a_task_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures go there once however often the loop is called; tags, skips and removed frames close the rounds."""
    monkeypatch.setattr("raystream.labels.oracle.LASTING", Patience(60.0, pause=lambda seconds: None))
    truth = write_pool(tmp_path, image=[PNG] * 120)
    fake = FakeCvat()
    fake.start()
    try:
        oracle = {"tool": "cvat", "url": fake.url, "show": "image"}
        loop = make_loop(tmp_path, loop__oracle=oracle, model__classes=["0", "1", "2"], **SHORT)
        batches = []
        for number in (1, 2):
            state = step(loop, fake)
            assert f"label them at {fake.url}/tasks/{number}" in state.reason
            assert step(loop, fake).missing == 6
            batches.append(asked(state))
            assert (len(fake.tasks), len(fake.tasks[number]["frames"])) == (number, 6)
            ids = {label["name"]: label["id"] for label in fake.labels[number]}
            frames = range(6) if number == 1 else range(4)
            fake.tasks[number]["tags"] = [
                {"id": frame, "frame": frame, "label_id": ids[str(truth[batches[-1][frame]])], "source": "manual", "attributes": []}
                for frame in frames
            ]
        assert step(loop, fake).missing == 2
        fake.tasks[2]["deleted"], fake.tasks[2]["state"] = [5], "completed"
        state = step(loop, fake)
        assert (state.state, [row["labels"] for row in state.rows]) == ("finished", [6, 10])
        assert not set(batches[0]) & set(batches[1])
    finally:
        fake.stop()
