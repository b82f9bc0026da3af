"""`raystream.Client` against a server in this process: results as here, errors as here, nothing asked twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from served import Served, query

import raystream as rs
from raystream.errors import DataError, QueryError
from raystream.service.client import Client, ServiceError, document

pytestmark = pytest.mark.usefixtures("workplace")


class Proxy(ThreadingHTTPServer):
    """Hands requests to an application in this process; drops, or answers by itself, those that it is told to.

    Attributes:
        faults: for the next requests, in order: None lets one through, `drop` loses the answer, a status is answered at once.
    """

    def __init__(self, served: Served) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.served = served
        self.faults: list[str | int | None] = []
        self.seen: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    def do(self) -> None:
        server = self.server
        assert isinstance(server, Proxy)
        server.seen.append(f"{self.command} {self.path}")
        fault = server.faults.pop(0) if server.faults else None
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("retry-after", "7")
            self.end_headers()
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection", "content-length")}
        answer = server.served.client.request(self.command, self.path, headers=headers, content=body)
        if fault == "drop":
            return
        self.send_response(answer.status_code)
        for name in ("content-type", "retry-after"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = do

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def proxy(workplace: Path) -> Iterator[Proxy]:
    server = Proxy(Served())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def client_of(proxy: Proxy, waited: list[float] | None = None) -> Client:
    known = [] if waited is None else waited
    return Client(f"http://127.0.0.1:{proxy.server_port}", proxy.served.token("a"), wait=known.append)


def test_a_result_is_the_local_one(proxy: Proxy) -> None:
    """Its table, its manifest, what it prints; where its files lie is the server's address. Asked again it is not new."""
    asked = rs.Query(**query(), cluster={"address": "in_process"}, store={"uri": "mine"})
    client = client_of(proxy)
    proxy.served.play(client.submit(asked))
    result = client.result(proxy.served.runs.of_owner("a")[0][1])
    local = rs.run(asked)
    assert result.selection.replace_schema_metadata(None).equals(local.selection.replace_schema_metadata(None))
    assert (result.query, result.manifest.counts, result.new) == (local.query, local.manifest.counts, True)
    assert result.summary()["rows"] == 12
    assert result.path == f"{client.url}/v1/queries/{result.query}/selection"
    again = client.submit(asked)
    proxy.served.play(again)
    assert not client.result(again).new or client.result(again).manifest == result.manifest


def test_what_breaks_off_is_asked_again_and_once(proxy: Proxy) -> None:
    """Lost answers, and servers that say to come back: one run, after the pauses that were asked for."""
    waited: list[float] = []
    client = client_of(proxy, waited)
    proxy.faults = ["drop", 503, None]
    run = client.submit(query())
    assert len(proxy.seen) == 3
    assert [run] == [run for _, run in proxy.served.runs.of_owner("a")]
    assert waited == [0.5, 7.0]
    proxy.served.play(run)
    proxy.faults = [503, "drop"]
    events = list(client.events(run))
    assert [event["kind"] for event in events][:3] == ["queued", "started", "named"]
    assert len({json.dumps(event) for event in events}) == len(events)
    proxy.faults = [502] * 6
    with pytest.raises(ServiceError) as error:
        client.state(run)
    assert error.value.status == 502


def test_errors_are_those_of_a_local_run(proxy: Proxy) -> None:
    """A wrong query before it is sent on, a pool that lacks a column once it ran, a token that is none."""
    client = client_of(proxy)
    with pytest.raises(QueryError, match="budget"):
        client.submit(query(select__budget=0))
    run = client.submit(query(pool__id="nope"))
    proxy.served.play(run)
    with pytest.raises((DataError, QueryError), match="nope"):
        client.result(run)
    with pytest.raises(ServiceError, match="token"):
        Client(client.url, "rs_x").state(run)
    with pytest.raises(ServiceError) as error:
        client.state("nothing")
    assert error.value.status == 404
    for wrong in ("127.0.0.1:8700", "ftp://x", "", "http://"):
        with pytest.raises(QueryError, match="url"):
            Client(wrong)


def test_a_query_leaves_its_cluster_and_store_at_home(tmp_path: Path) -> None:
    """From a file, an object or a mapping; a name of its own goes along."""
    whole = rs.Query(**query(), cluster={"workers": 3}, store={"uri": "here", "query": "mine"})
    (tmp_path / "query.yaml").write_text(whole.to_yaml())
    for given in (whole, tmp_path / "query.yaml", str(tmp_path / "query.yaml")):
        assert document(given) == {**query(), "store": {"query": "mine"}}
