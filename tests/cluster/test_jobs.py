"""Submitting, looking at, following, stopping and fetching jobs, against a job server in memory; one on a real head is slow."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_server_fake import FakeClient

import raystream as rs
from raystream.cluster import jobs
from raystream.cluster.jobs import JobServer
from raystream.errors import ClusterError, QueryError
from raystream.run import score
from raystream.scoring.progress import asked_by
from raystream.store.events import EventLog
from raystream.store.gc import collect
from raystream.store.life import note_job, query_of_job
from raystream.store.local import LocalStore

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]
ADDRESS = "http://head:8265"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The job server that any address leads to."""
    client = FakeClient()
    monkeypatch.setattr(jobs, "_client", lambda url: client)
    monkeypatch.setattr(jobs, "_pause", lambda seconds: None)
    return client


@pytest.fixture
def spec(workplace: Path, make_query: MakeQuery) -> Callable[..., Path]:
    """A query file whose pool and store are absolute, but for what is replaced; sections may be added."""

    def write(*, sections: dict[str, Any] | None = None, **changes: object) -> Path:
        absolute = {"pool__uri": str(workplace / "pool"), "store__uri": str(workplace / "runs"), "cluster": {"workers": 1}}
        given = yaml.safe_load(make_query(**(absolute | changes)).to_yaml())
        (workplace / "query.yaml").write_text(yaml.safe_dump(given | (sections or {})))
        return workplace / "query.yaml"

    return write


def submitted(cli: Cli, *arguments: object) -> dict[str, Any]:
    code, out, err = cli("submit", *arguments, "--address", ADDRESS, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_same_spec_is_one_job_while_it_runs(spec: Callable[..., Path], cli: Cli, fake: FakeClient) -> None:
    """Submitted twice, it is returned; once it ended, the next one has the next number; another key or file is another job."""
    first = submitted(cli, spec())
    again = submitted(cli, spec())
    assert (first["new"], again["new"], again["job"]) == (True, False, first["job"])
    assert fake.sent == 1
    digest, _, number = first["job"].removeprefix("rs-").partition("-")
    assert (len(digest), number) == (16, "0")
    fake.end(first["job"], "FAILED")
    assert submitted(cli, spec())["job"] == f"rs-{digest}-1"
    assert submitted(cli, spec(), "--set", "select.budget=5")["job"] not in (f"rs-{digest}-1", f"rs-{digest}-2")
    Path("user_nets.py").write_text(Path("user_nets.py").read_text() + "\n")
    assert not submitted(cli, spec())["job"].startswith(f"rs-{digest}")


def test_a_job_that_another_submits_this_moment_is_returned(spec: Callable[..., Path], cli: Cli, fake: FakeClient) -> None:
    """The server says that the id exists: it is looked up. A deleted id is passed over; a head that has just started is waited for."""
    job = submitted(cli, spec())["job"]
    kept = fake.list_jobs
    answers = [[], kept()]
    fake.list_jobs = lambda: answers.pop(0) if answers else kept()  # type: ignore[method-assign]
    assert (submitted(cli, spec())["job"], fake.sent) == (job, 1)
    fake.list_jobs = lambda: []  # type: ignore[method-assign]
    assert submitted(cli, spec())["job"] == job[:-1] + "1"
    fake.refusals = ["Request failed with status code 500: No available agent to submit job, please try again later."]
    assert submitted(cli, spec())["job"] == job[:-1] + "2"
    fake.refusals = ["Request failed with status code 500: Traceback\n  File x\nOSError: no room"]
    code, _, err = cli("submit", spec(), "--address", ADDRESS)
    assert (code, "could not take the job: OSError: no room" in err) == (5, True)


def test_what_travels(spec: Callable[..., Path], cli: Cli, fake: FakeClient, workplace: Path) -> None:
    """Sources and what the spec names; no pool, store, environment, history, cache or rows. The job reads the resolved spec."""
    for name in ("weights.safetensors", "notes.txt", ".git/HEAD", "env/pyvenv.cfg", "env/lib/x.py", "__pycache__/a.pyc", "more.parquet",
                 "labels/known.parquet", "labels/other.parquet", "runs/format.json", "runs/units/a", "elsewhere/format.json",
                 "elsewhere/queries/q", "big/a.py", ".env"):  # fmt: skip
        path = workplace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    path = spec(pool__labelled=["labels/known.parquet"], cluster={"address": "10.0.0.1:6379", "workers": 1})
    job = submitted(cli, path, "--set", "seed=7", "--exclude", "big/*")["job"]
    package = fake.packages[job]
    assert set(package) == {
        ".raystream/query.yaml", "query.yaml", "user_nets.py", "weights.safetensors", "notes.txt", "labels/known.parquet"
    }  # fmt: skip
    sent = yaml.safe_load(package[".raystream/query.yaml"])
    assert (sent["seed"], sent["cluster"]) == (7, {"workers": 1})
    assert fake.jobs[job].entrypoint == "python -m raystream.cli query .raystream/query.yaml --json"
    assert fake.resources[job] == {"entrypoint_num_cpus": 1.0, "entrypoint_memory": 2**30}
    assert "@" in fake.runtime_envs[job]["env_vars"]["RAYSTREAM_WHO"]
    assert fake.jobs[job].metadata["store"] == str(workplace / "runs")


LOOP = {"loop": {"oracle": "/lake/labels", "trainer": "torch", "rounds": 2}}
PLAY = {"loop": {"trainer": "torch", "rounds": 2, "oracle": {"column": "label"}, "evaluate": 0.2}, "simulate": {"strategies": ["k_means"]}}


@pytest.mark.parametrize(
    ("sections", "options", "command"),
    [
        ({}, [], "query"),
        ({}, ["--as", "score"], "score"),
        (LOOP, [], "loop"),
        (LOOP, ["--as", "query"], "query"),
        ({"stream": {"budget": 0.1}}, [], "stream"),
        (PLAY, [], "simulate"),
    ],
)
def test_the_specs_sections_say_what_runs(
    spec: Callable[..., Path], cli: Cli, fake: FakeClient, sections: dict, options: list[str], command: str
) -> None:
    """Or `--as` does."""
    changes: dict[str, Any] = {"pool__label": "label"} if sections else {}
    changes |= {"select": {"budget": 5, "strategy": "top_k"}, "pool__label": "label"} if command == "simulate" else {}
    changes |= {"pool__label": None} if command == "stream" else {}
    changes = {key: value for key, value in changes.items() if value is not None}
    job = submitted(cli, spec(sections=sections, **changes), *options)
    assert (job["command"], fake.jobs[job["job"]].entrypoint.split()[3]) == (command, command)


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({"pool__uri": "pool"}, [], "pool.uri pool is relative, but in a job"),
        ({"store__uri": "runs"}, [], "store.uri runs is relative, but in a job"),
        ({}, ["--store", "runs"], "store.uri runs is relative"),
        ({"output": "x.parquet"}, [], "output x.parquet is relative"),
        ({"model__weights": "none.pt"}, [], "model.weights none.pt must travel with the job's working directory"),
        ({"pool__labelled": ["../labels.parquet"]}, [], "pool.labelled ../labels.parquet must travel"),
        ({}, ["--as", "loops"], "--as loops is nothing that a job runs; did you mean 'loop'?"),
        ({}, ["--working-dir", "nowhere"], "--working-dir nowhere is no folder"),
        ({}, ["--set", "select.budget=0"], "select.budget"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    spec: Callable[..., Path], cli: Cli, fake: FakeClient, changes: dict, options: list[str], told: str
) -> None:
    """Exit 2."""
    code, out, err = cli("submit", spec(**changes), *options, "--address", ADDRESS)
    assert (code, out, fake.sent) == (2, "", 0)
    assert told in err


def test_a_working_directory_that_is_too_large_names_its_largest_files(
    spec: Callable[..., Path], cli: Cli, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is packed."""
    monkeypatch.setattr("raystream.cluster.submission.LARGEST", 1000)
    Path("checkpoint.pt").write_bytes(b"x" * 5000)
    code, _, err = cli("submit", spec(), "--address", ADDRESS)
    assert (code, fake.sent) == (2, 0)
    assert "the largest: checkpoint.pt (5.0 kB)" in err or "the largest: checkpoint.pt" in err
    assert "--exclude" in err


@pytest.mark.parametrize(
    ("what", "value", "told"),
    [
        ("rayVersion", "2.9.3", "runs Ray 2.9.3, this machine Ray"),
        ("pythonVersion", "3.9.7", "runs Python 3.9.7, this machine Python"),
    ],
)
def test_another_version_is_refused_before_anything_is_sent(
    spec: Callable[..., Path], cli: Cli, fake: FakeClient, what: str, value: str, told: str
) -> None:
    """Exit 5; a patch of the same version is no other."""
    fake.versions[what] = value
    code, _, err = cli("submit", spec(), "--address", ADDRESS)
    assert (code, fake.sent) == (5, 0)
    assert told in err
    assert "nothing was sent" in err


@pytest.mark.parametrize(
    ("cluster", "options", "told"),
    [
        ({"workers": 2}, ["--cpus", "9"], "room for the job's driver, which needs 9 CPUs and 1"),
        ({"cpus_per_worker": 8}, [], "room for one worker, which needs 8 CPUs"),
        ({"gpus_per_worker": 0.5}, [], "room for one worker, which needs 1 CPUs and 0.5 GPUs"),
    ],
)
def test_a_request_that_no_node_can_meet_is_refused_with_what_is_there(
    spec: Callable[..., Path], cli: Cli, fake: FakeClient, cluster: dict, options: list[str], told: str
) -> None:
    """Dead nodes don't count; two half ones are none; a number of workers is taken at its word, since clusters grow."""
    fake.nodes += [{"state": "DEAD", "resources_total": {"CPU": 64.0, "GPU": 8.0, "memory": 2.0**40}}]
    fake.nodes += [{"state": "ALIVE", "resources_total": {"CPU": 7.0, "memory": 2.0**33}}]
    code, _, err = cli("submit", spec(cluster=cluster), *options, "--address", ADDRESS)
    assert (code, fake.sent) == (5, 0)
    assert told in err
    assert "there are 2 nodes, the largest with 7 CPUs, 0 GPUs" in err
    if not options:
        assert submitted(cli, spec(cluster=cluster | {"workers": 3}))["new"]


def test_following_goes_on_where_a_connection_closed(fake: FakeClient) -> None:
    """All that the job printed is said once, whatever breaks; the end of a connection is not the job's."""
    server = JobServer(ADDRESS, fake, lambda seconds: None)
    text = "".join(f"line {number}\n" for number in range(100))
    fake.jobs["rs-x-0"] = FakeClient().jobs.setdefault(
        "rs-x-0", type("Info", (), {"submission_id": "rs-x-0", "status": "RUNNING", "metadata": {}, "message": "", "start_time": 0})()
    )
    fake.printed["rs-x-0"] = text
    fake.closing = [10, 7, 300, 299]
    said: list[str] = []
    assert server.follow("rs-x-0", said.append).state == "done"
    assert "".join(said) == text


def test_wait_ends_as_the_job_does(spec: Callable[..., Path], cli: Cli, fake: FakeClient) -> None:
    """Its lines go to stderr, its result is part of ours, and so is its exit code."""
    job = submitted(cli, spec())["job"]
    fake.printed[job] = 'scoring\n{"query": "abc", "selection": "/lake/x"}\n'
    code, out, err = cli("submit", spec(), "--address", ADDRESS, "--wait", "--json")
    assert (code, json.loads(out)["result"]["query"], json.loads(out)["state"]) == (0, "abc", "done")
    assert "scoring" in err
    job = submitted(cli, spec())["job"]
    fake.ends_as = "FAILED"
    fake.printed[job] = "raystream: the pool is gone\n"
    real = fake.end
    fake.end = lambda name, status: real(name, status, "Job failed, logs:\nraystream: the pool is gone\n", 3)  # type: ignore[method-assign]
    code, out, err = cli("submit", spec(), "--address", ADDRESS, "--wait")
    assert (code, out.strip()) == (3, f"job {job} failed: the pool is gone")
    assert cli("logs", job, "--address", ADDRESS)[:2] == (0, "raystream: the pool is gone\n")
    assert cli("logs", job, "--address", ADDRESS, "--follow")[0] == 3


def test_stop_waits_for_the_end(spec: Callable[..., Path], cli: Cli, fake: FakeClient) -> None:
    """Stopped once, it is stopped; another time changes nothing; what doesn't end is exit 5."""
    job = submitted(cli, spec())["job"]
    assert cli("stop", job, "--address", ADDRESS)[:2] == (0, f"job {job} stopped\n")
    assert cli("stop", job, "--address", ADDRESS)[0] == 0
    job = submitted(cli, spec())["job"]
    fake.stop_job = lambda name: True  # type: ignore[method-assign]
    code, _, err = cli("stop", job, "--address", ADDRESS)
    assert (code, "was asked to stop and is still running" in err) == (5, True)


def test_status_tells_from_the_store_how_far_it_is(
    spec: Callable[..., Path], cli: Cli, fake: FakeClient, make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the job's id or the query's name; with the head gone, too, if the store is named."""
    job = submitted(cli, spec())["job"]
    told = json.loads(cli("status", job, "--address", ADDRESS, "--json")[1])
    assert (told["state"], told["run"]) == ("running", None)
    assert "can't be seen from here" in told["unseen"]
    with asked_by("ada", job):
        result = rs.run(make_query(store__query="q"))
    told = json.loads(cli("status", job, "--address", ADDRESS, "--json")[1])
    assert (told["state"], told["query"], told["run"]["state"], told["run"]["rows_done"], told["run"]["who"]) == (
        "running", "q", "committed", 1200, "ada"
    )  # fmt: skip
    text = cli("status", job, "--address", ADDRESS)[1]
    assert "rows        1,200 of 1,200" in text
    assert "units       4 of 4" in text
    assert json.loads(cli("status", "q", "--store", "runs", "--json")[1])["state"] == "committed"

    def gone(url: str) -> FakeClient:
        raise ClusterError(f"no job server answers at {url}: Connection refused; see")

    monkeypatch.setattr(jobs, "_client", gone)
    assert cli("status", job, "--address", ADDRESS)[0] == 5
    code, out, err = cli("status", job, "--address", ADDRESS, "--store", result.store.uri, "--json")
    assert (code, json.loads(out)["run"]["state"]) == (0, "committed")
    assert "warning: no job server answers" in err
    assert cli("status", "nothing", "--store", "runs")[0] == 2
    assert cli("status", "rs-nothing-0", "--store", "runs")[0] == 2
    code, _, err = cli("status", job)
    assert (code, "neither --address nor --store is given" in err) == (2, True)


def test_fetch_brings_the_batch(spec: Callable[..., Path], cli: Cli, fake: FakeClient, make_query: MakeQuery, tmp_path: Path) -> None:
    """Of a job that is done; also by its store alone."""
    job = submitted(cli, spec())["job"]
    with asked_by("ada", job):
        result = rs.run(make_query())
        rs.run(make_query())  # which is committed already
    fake.end(job, "SUCCEEDED")
    code, out, err = cli("fetch", job, "--out", tmp_path / "here", "--address", ADDRESS, "--json")
    assert code == 0, err
    assert {Path(file).name for file in json.loads(out)["files"]} == {"selection.parquet", "manifest.json", "query.yaml"}
    assert (tmp_path / "here/selection.parquet").read_bytes() == result.store.read(result.manifest.selection.name)
    assert cli("fetch", job, "--out", tmp_path / "there", "--store", "runs")[0] == 0
    assert cli("fetch", result.query[:5], "--out", tmp_path / "there", "--store", "runs")[0] == 0
    code, _, err = cli("fetch", job, "--out", tmp_path / "here/manifest.json", "--store", "runs")
    assert (code, "can't be written" in err) == (2, True)


def test_fetch_of_what_is_not_done(spec: Callable[..., Path], cli: Cli, fake: FakeClient, make_query: MakeQuery, tmp_path: Path) -> None:
    """A running, a failed, a stopped, an unknown job, and one that leaves nothing: a sentence each."""
    job = submitted(cli, spec())["job"]
    store = LocalStore("runs")
    note_job(store, job, "q")
    score(make_query(store__query="other", pool__uri="pool/year=2020"))
    EventLog(store, "queries/q").append("planned", run=1, rows=100, units=10, rows_todo=60, units_todo=6)
    code, _, err = cli("fetch", job, "--out", tmp_path / "out", "--address", ADDRESS)
    assert (code, f"job {job} is running (40 of 100 rows), so there is nothing to fetch yet" in err) == (5, True)
    fake.end(job, "FAILED", "Job entrypoint command failed with exit code 3, last available logs:\nraystream: the pool is empty\n", 3)
    code, _, err = cli("fetch", job, "--out", tmp_path / "out", "--address", ADDRESS)
    assert (code, "failed, so there is nothing to fetch: the pool is empty; mend that and submit it again" in err) == (5, True)
    fake.end(job, "STOPPED")
    assert "was stopped, so there is nothing to fetch" in cli("fetch", job, "--out", tmp_path / "out", "--address", ADDRESS)[2]
    code, _, err = cli("fetch", "rs-0-0", "--out", tmp_path / "out", "--address", ADDRESS)
    assert (code, f"knows no job rs-0-0 (of raystream's it has {job})" in err) == (2, True)
    fake.end(job, "SUCCEEDED")
    assert cli("fetch", job, "--out", tmp_path / "out", "--address", ADDRESS)[0] == 5  # the store has no result
    scored = submitted(cli, spec(), "--as", "score")["job"]
    fake.end(scored, "SUCCEEDED")
    fake.printed[scored] = '{"query": "other", "rows": 300}\n'
    code, _, err = cli("fetch", scored, "--out", tmp_path / "out", "--address", ADDRESS)
    assert (code, "leaves nothing to fetch" in err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_loops_or_simulations_files_are_those_that_its_result_names(
    spec: Callable[..., Path], cli: Cli, fake: FakeClient, tmp_path: Path
) -> None:
    """What lies in the store, and nothing beside it."""
    job = submitted(cli, spec(sections={"loop": {"oracle": "/lake/labels", "trainer": "torch", "rounds": 2}}, pool__label="label"))["job"]
    store = LocalStore("runs")
    store.put("format.json", b'{"version": 2}')
    store.put("loops/query/report.html", b"the report")
    fake.printed[job] = json.dumps({"report": store.place("loops/query/report.html"), "history": None, "batch": "/etc/passwd"}) + "\n"
    fake.end(job, "SUCCEEDED")
    code, out, _ = cli("fetch", job, "--out", tmp_path / "out", "--address", ADDRESS, "--json")
    assert (code, [Path(file).name for file in json.loads(out)["files"]]) == (0, ["report.html"])
    assert (tmp_path / "out/report.html").read_bytes() == b"the report"


def test_the_query_of_a_job_is_found_in_its_store(make_query: MakeQuery) -> None:
    """Once it is known; of several, the last. It is forgotten with the query."""
    store = LocalStore("runs")
    assert query_of_job(store, "rs-x-0") is None
    with asked_by(None, "rs-x-0"):
        result = rs.run(make_query())
    assert query_of_job(store, "rs-x-0") == result.query
    note_job(store, "rs-x-0", "loop-r1")
    os.utime(store.path("jobs/rs-x-0/loop-r1"), ns=(0, time.time_ns() + 10**10))
    assert query_of_job(store, "rs-x-0") == "loop-r1"
    os.utime(store.path("jobs/rs-x-0/loop-r1"), (0, 0))
    collect(store, older_than=3600.0, delete=True)
    assert query_of_job(store, "rs-x-0") == result.query
    collect(store, drop=[result.query], older_than=-60.0, delete=True)
    collect(store, older_than=-60.0, delete=True)
    assert query_of_job(store, "rs-x-0") is None


class Foreign(BaseHTTPRequestHandler):
    """Answers, but is no Ray."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def foreign() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Foreign)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_where_no_job_server_answers(foreign: str) -> None:
    """Nothing listens, or something else does: exit 5 at once. What is no address of one is exit 2."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ClusterError, match=r"no job server answers at http://127\.0\.0\.1:\d+: Connection refused; see that"):
            JobServer(f"127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(ClusterError, match="no job server"):
        JobServer(foreign)
    for address in ("auto", "ray://head:10001", "local", "http://", "http://head:port"):
        with pytest.raises(QueryError, match="is no job server's, expected that of the cluster's dashboard"):
            JobServer(address)
