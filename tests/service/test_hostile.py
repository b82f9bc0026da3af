"""What a caller with a token of their own, or with none, can't make of a server: see others' queries, escape, or hold it up."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import uvicorn
from served import Served, confinement, query
from uvicorn.server import ServerState

import raystream as rs
import raystream.service.query_routes as query_routes
import raystream.service.streams as streams
from raystream.errors import QueryError
from raystream.lake import redacted
from raystream.lake.bucket import delta_place
from raystream.lake.reach import confine
from raystream.service.config import Config
from raystream.service.edge import HEAD_SECONDS, HttpProtocol, Metrics, Problem
from raystream.service.formats import csv_pieces, file_pieces, json_pieces
from raystream.service.policy import Policy, _without_doubles, read_json
from raystream.service.query_routes import QueryCalls, _RunOrQuery, _told
from raystream.service.streams import Decider
from raystream.service.tokens import Caller
from raystream.service.webhooks import Webhooks
from raystream.store.opening import open_store

pytestmark = pytest.mark.usefixtures("workplace")

PARTS = ("", "/selection", "/manifest", "/report", "/events")


@pytest.fixture
def served(workplace: Path) -> Served:
    return Served()


def seen(served: Served, asked: str, owner: str) -> list[int]:
    return [served.ask("GET", f"/v1/queries/{asked}{part}", owner).status_code for part in PARTS]


def test_a_name_gives_nobody_anothers_query(served: Served) -> None:
    """Whoever asks another query under a name that is taken sees nothing of the one that has it, nor how the two differ."""
    assert served.play(served.submit("a", store__query="images", select__budget=3)) == 0
    run = served.submit("b", store__query="images", select__budget=4)
    assert served.play(run) == 2
    assert seen(served, "images", "b") == [404] * 5
    assert seen(served, run, "b")[:4] == [200, 409, 409, 409]
    told = served.ask("GET", f"/v1/queries/{run}", "b").json()
    assert told["error"] == "store.query images is taken by another query; choose another name"
    assert "budget" not in served.ask("GET", f"/v1/queries/{run}/events", "b").text
    assert seen(served, "images", "a")[:4] == [200] * 4
    mine = served.submit("a", store__query="images", select__budget=5)
    assert served.play(mine) == 2
    assert "select.budget (3 then, 5 now)" in served.ask("GET", f"/v1/queries/{mine}", "a").json()["error"]
    assert served.ask("DELETE", "/v1/queries/images", "root").status_code == 204
    late = served.submit("b", store__query="images", select__budget=6)
    assert served.play(late) == 2
    assert seen(served, "images", "b") == [404] * 5
    same = served.submit("b", store__query="images", select__budget=3)
    assert served.play(same) == 0
    assert seen(served, "images", "b")[:4] == [200] * 4


def test_a_name_that_another_way_gave_to_another_query_shows_nothing(served: Served) -> None:
    """Somebody's run had it first, and failed; then the operator's own query was committed under it."""
    run = served.submit("b", store__query="images", select__budget=4)
    served.runs.named(run, "images", {"part": "b"})
    served.runs.end(run, "failed", query="images")
    assert seen(served, "images", "b")[:2] == [200, 409]
    rs.run(rs.Query(**query(store={"uri": "runs", "query": "images"}), cluster={"address": "in_process"}))
    for asked in (run, "images"):
        assert seen(served, asked, "b")[1:4] == [409] * 3
    assert seen(served, "images", "root")[1:3] == [200] * 2


def test_a_name_is_one_query_s_before_it_is_committed(served: Served) -> None:
    """Others can't take it over; whoever gave it may mend their query, and the same query asked by others is one."""
    a, b = served.submit("a", select__budget=3), served.submit("b", select__budget=4)
    again = served.submit("a", select__budget=5)
    served.runs.named(a, "images", {"x": "1", "y": "2"})
    with pytest.raises(QueryError, match="taken"):
        served.runs.named(b, "images", {"x": "2"})
    assert (served.runs.query(a), served.runs.query(b), served.runs.of_query("images")) == ("images", None, [a])
    served.runs.named(b, "images", {"y": "2", "x": "1"})
    assert served.runs.of_query("images") == sorted([a, b])
    served.runs.named(again, "images", {"x": "3"})
    assert served.runs.of_query("images") == [again]
    assert seen(served, "images", "b") == [404] * 5


def test_events_name_others_to_admins_alone(served: Served) -> None:
    """Two who asked for the same don't hear of each other, nor where the server runs."""
    run = served.submit("a")
    assert served.submit("b") == run
    assert served.play(run) == 0
    mine, all_of_it = (served.ask("GET", f"/v1/queries/{run}/events", owner).text for owner in ("b", "root"))
    for key in ('"who"', '"host"', '"process"', '"process_began"'):
        assert key not in mine
        assert key in all_of_it


def test_events_tell_no_place_of_the_server_s(served: Served, workplace: Path) -> None:
    """Also in errors that the run itself has logged; a file that is no number's is named as the caller named it."""
    pq.write_table(pa.table({"rid": ["a", "b"], "x": [[float("nan")] * 8] * 2}), "pool/year=2020/part.parquet")
    run = served.submit("a")
    assert served.play(run) == 3
    mine, all_of_it = (served.ask("GET", f"/v1/queries/{run}/events", owner).text for owner in ("a", "root"))
    assert "pool/year=2020/part.parquet" in mine
    assert str(workplace) not in mine
    assert str(workplace) in all_of_it


@pytest.mark.parametrize("uri", ["delta+s3://lake/images/%2e%2e/other", "delta+s3://lake/images/.%2E/other",
                                 "delta+s3://lake/images/.\t./other", "s3://lake/images/\n/x", "FILE:///etc", "file:/etc"])  # fmt: skip
def test_what_other_libraries_read_as_dots_is_refused(uri: str) -> None:
    """deltalake takes %2e for a dot and leaves tabs out; a file's URI is none of the current folder's files, however it is written."""
    served = Served(allow=[".", "s3://lake/images"], outputs=[".", "s3://lake/images"])
    for sections in ({"pool__uri": uri}, {"output": uri}):
        assert served.ask("POST", "/v1/queries", json=query(**sections)).status_code == 422


def test_tables_that_may_be_read_may_not_be_written() -> None:
    """Unless they are among `outputs`, which may hold tables, too; a snapshot of one table is that table's."""
    served = Served(allow=["pool", "iceberg://lake/ns.one"], outputs=["iceberg://lake/batches"])
    for output, status in (("iceberg://lake/ns.one", 422), ("iceberg://lake/batches.b", 202)):
        assert served.ask("POST", "/v1/queries", json=query(output=output)).status_code == status
    for uri, status in (
        ("iceberg://lake/ns.one?snapshot_id=5", 202), ("iceberg://lake/batches.b", 422), ("iceberg://lake/ns.one2", 422),
    ):  # fmt: skip
        assert served.ask("POST", "/v1/queries", json=query(pool__uri=uri)).status_code == status
    assert Policy(served.config).reach() == ["pool"]


def test_a_table_s_folder_is_confined_too(tmp_path: Path) -> None:
    """Its log is read by deltalake, which knows nothing of what is allowed."""
    (tmp_path / "elsewhere").mkdir()
    Path("pool/table").symlink_to(tmp_path / "elsewhere")
    with confinement():
        confine(["pool"])
        assert delta_place("pool/year=2020")[0].endswith("pool/year=2020")
        with pytest.raises(QueryError, match="doesn't allow"):
            delta_place("pool/table")


def test_a_module_that_is_listed_gives_nothing_that_it_imported() -> None:
    """`nets:*` are the names of nets; `nets:os.system` would be any code."""
    served = Served(imports=["user_nets:*", "user_nets:nn.Identity"])
    for source, status in (("user_nets:net", 202), ("user_nets:nn.Identity", 202), ("user_nets:torch.load", 422)):
        assert served.ask("POST", "/v1/queries", json=query(model__source=source)).status_code == status


class Counted(str):
    """A key that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_a_key_that_is_given_twice_is_found_in_one_go() -> None:
    """Among a hundred thousand of them, each compared with all others, it would take a minute."""
    pairs = [(Counted(place), 1) for place in (*range(3000), 2999)]
    with pytest.raises(ValueError, match="'2999' is given twice"):
        _without_doubles(pairs)
    assert Counted.compared < 4 * len(pairs)


def test_texts_are_no_longer_than_a_path() -> None:
    """What they are searched for would take long: a hundred thousand question marks are looked at once each."""
    served = Served()
    long = "s3://b/" + "?" * 100_000
    assert redacted(long) == long
    assert redacted(f"{long}/secret_key=x") == "s3://b/"
    for sections, path in (
        ({"pool__uri": "http://x/" + "secret" * 1000}, "pool.uri"), ({"pool__labelled": ["x", "y" * 5000]}, "pool.labelled.1"),
        ({"select__exclude": ["x" * 4097]}, "select.exclude.0"), ({"model__args": {"a": [{"k" * 5000: 1}]}}, "model.args.a.0"),
    ):  # fmt: skip
        answer = served.ask("POST", "/v1/queries", json=query(**sections))
        assert answer.status_code == 422
        assert [error["path"] for error in answer.json()["errors"]] == [path]
        assert len(answer.text) < 2000


@pytest.mark.parametrize(("body", "status"), [
    (b'{"a": "' + b"[" * 40 + b'"}', 422), (b'{"a\\"' + b"[" * 40 + b'": 1}', 422), (b'{"\\\\": ' + b"[" * 40 + b"]" * 40 + b"}", 413),
    (b"[]," * 40, 400), (b'{"\\ud800": 1}', 422), (b'{"pool": {"uri": "\\udfff"}}', 422),
])  # fmt: skip
def test_depth_counts_outside_of_texts_and_texts_are_unicode(served: Served, body: bytes, status: int) -> None:
    """Brackets in texts are no levels, whatever is escaped before them; half of a surrogate pair can't be answered."""
    answer = served.ask("POST", "/v1/queries", content=body, headers={"content-type": "application/json"})
    nests = "nests" in answer.text
    assert (answer.status_code, nests) == ((422, True) if status == 413 else (status, False)), answer.text


@pytest.mark.parametrize("body", [b'{"a": "\xed\xa0\x80"}', b'{"a": "\xff"}', '{"a": "\\ud800"}'.encode("utf-16"), "[1]".encode("utf-32")])
def test_bodies_are_utf_8_and_nothing_else(body: bytes) -> None:
    """`json` takes UTF-16 as well, where brackets, quotes and escapes are other bytes, and in UTF-8 the bytes of half of a pair."""
    with pytest.raises(Problem) as refused:
        read_json(body)
    assert refused.value.status == 400
    assert read_json('\ufeff{"a": "é"}'.encode()) == {"a": "é"}


def test_a_connection_that_never_ends_a_head_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it sends nothing, or the half of a head; one whose request is at work stays open, and is closed once it waits, too."""
    looks: list[Any] = []
    may_answer, asked = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await may_answer.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(app, http=HttpProtocol, log_config=None, timeout_keep_alive=10**6, lifespan="off")
        config.load()
        state = ServerState()
        later = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda seconds, call, *of: looks.append((call, of)) if seconds == HEAD_SECONDS
                            else later(seconds, call, *of))  # fmt: skip
        speakers: list[HttpProtocol] = []

        def speaker() -> HttpProtocol:
            speakers.append(HttpProtocol(config, state, {}, loop))
            return speakers[-1]

        server = await loop.create_server(speaker, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        def look() -> None:
            due, looks[:] = looks[:], []
            for call, of in due:
                call(*of)

        for sent in (b"", b"GET / HTTP/1.1\r\nHost: x\r\nA: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            while not looks or speakers[-1].conn.trailing_data[0] != sent:
                await asyncio.sleep(0)
            look()
            assert await reader.read() == b""
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asked.wait()
        look()
        look()
        may_answer.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        look()
        assert await reader.read() == b""
        writer.close()
        server.close()

    asyncio.run(talk())


def test_pairs_of_surrogates_are_characters() -> None:
    """As any tool writes what lies beyond the first plane."""
    assert read_json(b'{"\\ud83d\\ude00": "\\\\ud800"}') == {"\U0001f600": "\\ud800"}


def test_methods_that_nobody_knows_are_counted_as_one() -> None:
    """Else each would be kept."""
    metrics = Metrics()
    for place in range(100):
        metrics.answered(f"M{place}", "other", 405, 0.1)
    metrics.answered("GET", "/", 200, 0.1)
    counts = [line for line in metrics.text({}).splitlines() if line.startswith("raystream_requests_total{")]
    assert counts == [
        'raystream_requests_total{method="other",route="other",status="405"} 100',
        'raystream_requests_total{method="GET",route="/",status="200"} 1',
    ]


def test_events_end_with_the_token_however_many_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that says something all the time is no reason not to look again who listens."""
    monkeypatch.setattr(query_routes, "_PING_SECONDS", 0.0)
    monkeypatch.setattr(query_routes, "_LOOK_SECONDS", 0.0)
    news = SimpleNamespace(news=lambda found, after: ([((after[0] + 1, 0), {"kind": "progress"})], False))
    asked = _RunOrQuery("x", "x", None, None)
    left = [None, None]

    def still() -> None:
        if not left:
            raise Problem(401, "revoked")
        left.pop()

    async def parts() -> list[bytes]:
        return [part async for part in _told(news, asked, (0, 0), still)]  # type: ignore[arg-type]

    assert Counter(part[:3] for part in asyncio.run(parts())) == {b"eve": 3, b": \n": 2}


def test_streams_of_events_are_counted_from_when_they_are_asked_for(workplace: Path) -> None:
    """Many at once are no more than may be open; one whose client is gone at once is given back."""
    served = Served(limits={"streams": 1})
    run = served.submit()
    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {served.token('a')}".encode())]
    path = f"/v1/queries/{run}/events"
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}

    async def ask(statuses: list[int], gone: asyncio.Event, enough: asyncio.Event) -> None:
        given = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if given:
                return given.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                if len(statuses) == 8:
                    enough.set()

        whole = scope | {"scheme": "http", "server": ("127.0.0.1", 8700), "client": ("127.0.0.1", 1), "http_version": "1.1"}
        await served.client.app(whole, receive, send)

    async def all_at_once() -> list[int]:
        statuses: list[int] = []
        gone, enough = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(ask(statuses, gone, enough)) for _ in range(8)]
        await enough.wait()
        gone.set()
        await asyncio.gather(*tasks)
        return statuses

    for _ in range(2):
        assert Counter(asyncio.run(all_at_once())) == {200: 1, 429: 7}


def test_a_selection_is_sent_piece_by_piece(tmp_path: Path) -> None:
    """Past the size of a piece: the same JSON, CSV and Parquet, never all of its rows at once; also of no row."""
    path = tmp_path / "selection.parquet"
    for count in (0, 1, 10_000, 25_003):
        table = pa.table(
            {
                "rid": pa.array([f"é,{i}" for i in range(count)], pa.string()),
                "score": np.arange(count) / 7,
                "kept": pa.array([[i, None] for i in range(count)], pa.list_(pa.int64())),
                "raw": pa.array([bytes([i % 256]) for i in range(count)], pa.binary()),
            }
        )
        pq.write_table(table, path, row_group_size=7_000)
        texts = list(json_pieces("q", path))
        rows = [row | {"raw": row["raw"].hex()} for row in table.to_pylist()]
        assert json.loads("".join(texts)) == {"query": "q", "rows": rows}
        assert len(texts) >= 2 + -(-count // 10_000)
        pieces = list(csv_pieces(path))
        as_text = pyarrow.csv.ConvertOptions(column_types={"raw": pa.string()})
        read = pyarrow.csv.read_csv(io.BytesIO(b"".join(pieces)), convert_options=as_text)
        assert read.column_names == table.column_names
        assert read.column("score").to_pylist() == table.column("score").to_pylist()
        assert [json.loads(kept) for kept in read.column("kept").to_pylist()] == table.column("kept").to_pylist()
        assert read.column("raw").to_pylist() == [row["raw"] for row in rows]
        assert len(pieces) >= 1 + -(-count // 10_000)
        assert max(map(len, pieces)) < 1 << 20
        assert b"".join(file_pieces(path)) == path.read_bytes()


def test_one_token_has_one_plan_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that those of another are made meanwhile."""
    queries = QueryCalls(served.runs, Policy(served.config), served.config, None)  # type: ignore[arg-type]
    body, statuses = json.dumps(query()).encode(), list[Any]()

    def plan(owner: str) -> Any:
        try:
            return queries.plan(Caller(owner, "submit"), body)
        except Problem as problem:
            return problem.status

    def spawned(task: Any, **more: Any) -> Any:
        if not statuses:
            statuses.append(plan("a"))
            statuses.append(plan("b"))
        return SimpleNamespace(communicate=lambda timeout: (b'{"plan": {"rows": 3}}', b""), returncode=0)

    monkeypatch.setattr(query_routes, "spawned", spawned)
    assert plan("a") == {"rows": 3}
    assert statuses == [429, {"rows": 3}]
    assert plan("a") == {"rows": 3}


def stream_of(monkeypatch: pytest.MonkeyPatch, decodes: bool) -> tuple[Served, Decider, list[str]]:
    """A server with a stream whose model only says in which thread its rows are read; nothing is decided on."""
    served = Served(streams=["s"])
    deciders = served.client.app.state.deciders  # type: ignore[attr-defined]
    decider, threads = deciders._deciders["s"], list[str]()

    def read(rows: Any) -> Any:
        threads.append(threading.current_thread().name)
        return pa.array([row["rid"] for row in rows]), (np.zeros(600, np.uint8),)

    decider._model = SimpleNamespace(decodes=decodes, read=read, fold=lambda due: None)
    decider._loading = Future()
    decider._loading.set_result(decider._model)
    monkeypatch.setattr(streams, "_WAITING_BYTES", 1000)
    return served, decider, threads


def test_requests_that_wait_take_so_much_memory_at_most(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is told to come back; one that is too large by itself is taken where nothing waits."""
    _, decider, _ = stream_of(monkeypatch, decodes=False)
    body = {"request_id": "r", "rows": [{"rid": "x"}]}
    decider.decide(body)
    with pytest.raises(Problem) as refused:
        decider.decide(body)
    assert (refused.value.status, refused.value.headers) == (429, {"retry-after": "1"})
    monkeypatch.setattr(decider, "_decide", lambda model, batch: decider._tell(batch, [Problem(503, "no")] * len(batch)))
    decider._queue.put(None)
    decider._go(decider._model)  # type: ignore[arg-type]
    monkeypatch.setattr(streams, "_WAITING_BYTES", 100)
    decider.decide(body)


@pytest.mark.parametrize("decodes", [True, False])
def test_pictures_hold_up_nobody_else(workplace: Path, monkeypatch: pytest.MonkeyPatch, decodes: bool) -> None:
    """They are decoded in a thread of their own; what is read at once is not."""
    served, _, threads = stream_of(monkeypatch, decodes)
    monkeypatch.setattr(streams, "_WAITING", 0)  # so that the request is refused once it was read
    answer = served.ask("POST", "/v1/streams/s/decide", json={"request_id": "r", "rows": [{"rid": "x"}]})
    assert answer.status_code == 429
    assert [name.startswith("raystream-read") for name in threads] == [decodes]


def test_a_slow_webhook_holds_up_no_query(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address is told by one thread at a time, for which nobody waits."""
    monkeypatch.setenv("HOOK", "s3cret")
    config = Config(webhooks=[{"url": "https://x.example/h", "secret": "HOOK", "kinds": ["queued"]}])
    served = Served()
    asked, may_answer, told = threading.Event(), threading.Event(), list[int]()

    def send(url: str, body: bytes, headers: Any) -> int:
        asked.set()
        may_answer.wait()
        told.append(json.loads(body)["n"])
        return 200

    hooks = Webhooks(config.webhooks, served.runs.log, open_store("runs"), send)
    served.submit()
    for _ in range(3):
        hooks.begin()
    asked.wait()
    assert told == []
    may_answer.set()
    assert hooks._thread is not None
    hooks._thread.join()
    assert told == [1]
