"""The service with its store in a bucket: what it answers is what it answers over a folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from pools import pool_table
from served import Served, Server, query, told
from streams import arrive, make_stream
from streams import run as look

import raystream as rs
from raystream.service.edge import Metrics
from raystream.service.process import ProcessTask
from raystream.service.scheduler import RunScheduler

pytestmark = pytest.mark.usefixtures("workplace", "s3_keys")
Options = dict[str, str | int | bool]
OPEN = {"allow": ["pool"], "imports": ["user_nets:net"], "cluster": {"address": "in_process"}}
PARQUET = {"accept": "application/vnd.apache.parquet"}


@pytest.fixture
def serve(folder: str, storage: Options) -> Callable[..., Served]:
    """A server over the test's folder of the bucket."""

    def begin(**config: Any) -> Served:
        return Served(store={"uri": f"s3://{folder}/runs", "storage": storage}, **config)

    return begin


def test_a_query_is_the_same_as_over_a_folder(serve: Callable[..., Served]) -> None:
    """Submitted, run, watched and fetched of the server that was asked, and of another one of the same store."""
    served, second = serve(), serve()
    run = served.submit()
    assert second.runs.state(run) == "queued"
    assert served.play(run) == 0
    state = served.ask("GET", f"/v1/queries/{run}").json()
    assert state["state"] == "committed"
    local = rs.run(rs.Query(**query(), cluster={"address": "in_process"}, store={"uri": "elsewhere"})).selection
    for server in (served, second):
        answer = server.ask("GET", f"/v1/queries/{state['query']}/selection", "root", headers=PARQUET)
        assert pq.read_table(io.BytesIO(answer.content)).replace_schema_metadata(None).equals(local.replace_schema_metadata(None))
        text = server.ask("GET", f"/v1/queries/{run}/selection", "root", headers={"accept": "text/csv"})
        assert pyarrow.csv.read_csv(io.BytesIO(text.content)).column("rid").to_pylist() == local.column("rid").to_pylist()
        assert server.ask("GET", f"/v1/queries/{run}/report", "root").status_code == 200
    events = told(served.ask("GET", f"/v1/queries/{run}/events", "root").text)
    kinds = [event["kind"] for _, event in events]
    assert kinds[:3] == ["queued", "started", "named"]
    assert kinds[-1] == "committed"
    behind = second.ask("GET", f"/v1/queries/{run}/events", "root", headers={"last-event-id": events[3][0]})
    assert told(behind.text) == events[4:]
    page = second.ask("GET", "/page/data/queries", "root").json()["queries"]
    assert [(line["name"], line["state"]) for line in page] == [(state["query"], "committed")]
    assert len(second.ask("GET", f"/page/data/queries/{state['query']}/rows", "root").json()["ids"]) == 12


def test_a_key_asks_once_of_two_servers(serve: Callable[..., Served]) -> None:
    """The first answer, whichever is asked; another body is refused, and who withdraws stops the run."""
    served, second = serve(), serve()
    key = {"idempotency-key": "k-1"}
    first = served.ask("POST", "/v1/queries", json=query(), headers=key).json()["id"]
    for server in (served, second):
        assert server.ask("POST", "/v1/queries", json=query(), headers=key).json()["id"] == first
        assert server.ask("POST", "/v1/queries", json=query(select__budget=3), headers=key).status_code == 422
        assert [run for _, run in server.runs.of_owner("a")] == [first]
    assert served.ask("DELETE", f"/v1/queries/{first}").json()["state"] == "stopped"
    assert served.play(first) == 0
    assert second.runs.state(first) == "stopped"
    assert second.runs.queue() == []


def test_one_of_two_servers_starts_a_run(serve: Callable[..., Served]) -> None:
    """The queue is in the bucket: what one took in another starts, but not what a process of somebody else's holds."""
    served, second = serve(), serve()
    runs = [served.submit(owner, select__budget=budget) for budget, owner in ((2, "a"), (3, "b"))]
    started: list[str] = []

    class Started:
        def __init__(self, task: ProcessTask) -> None:
            started.append(task.run)

        def poll(self) -> int | None:
            return None

    scheduler = RunScheduler(second.runs, second.config, Metrics(), spawn=Started)  # type: ignore[arg-type]
    with served.runs.lease(runs[0]):
        scheduler.step()
        assert started == [runs[1]]
    scheduler.step()
    assert started == [runs[1], runs[0]]


def test_a_stream_decides_in_a_bucket(serve: Callable[..., Served], s3: pafs.FileSystem, folder: str, storage: Options) -> None:
    """What a request's rows get is in the store once it is answered, and another server gives the same answer."""
    arrive("a.parquet", pool_table(20))
    stream = make_stream(store={"uri": f"s3://{folder}/runs", "storage": storage})
    look(stream)
    rows = [{"rid": row["rid"], "x": row["x"]} for row in pool_table(5, 500).to_pylist()]
    answers = []
    for _ in range(2):
        server = serve(streams=["s"])
        server.client.app.state.deciders.load(wait=True)  # type: ignore[attr-defined]
        answer = server.ask("POST", "/v1/streams/s/decide", json={"request_id": "r", "rows": rows})
        assert answer.status_code == 200, answer.text
        answers.append(answer.json()["decisions"])
        server.client.app.state.deciders.close()  # type: ignore[attr-defined]
    assert answers[0] == answers[1]
    files = sorted(file.path for file in s3.get_file_info(pafs.FileSelector(f"{folder}/runs/streams/s/decisions")))
    log = pa.concat_tables([pq.read_table(file, filesystem=s3).replace_schema_metadata(None) for file in files])
    assert log.column("rid").to_pylist()[20:] == [row["rid"] for row in rows]
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_killed_server_of_a_bucket_loses_nothing(folder: str, storage: Options) -> None:
    """As a process: killed while its queries run and begun again, it ends each with the batch of a local run."""
    server = Server({**OPEN, "store": {"uri": f"s3://{folder}/runs", "storage": storage}})
    try:
        server.start()
        client = rs.Client(server.url)
        runs = [client.submit(query(select__budget=budget)) for budget in (2, 3)]
        next(event for event in client.events(runs[0]) if event["kind"] == "started")
        server.kill()
        server.start()
        for budget, run in zip((2, 3), runs, strict=True):
            result = client.result(run)
            local = rs.run(rs.Query(**query(select__budget=budget), cluster={"address": "in_process"}, store={"uri": "elsewhere"}))
            assert result.selection.replace_schema_metadata(None).equals(local.selection.replace_schema_metadata(None))
    finally:
        server.kill()
    assert not Path("runs").exists()
