"""Attacks, a kind each: none of them reads, runs, reaches or learns what it may not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from pools import pool_table
from served import Served, confinement, query

import raystream.service.webhooks as webhooks
from raystream.errors import QueryError
from raystream.lake import filesystem_of
from raystream.lake.reach import confine
from raystream.service.config import Config, Limits
from raystream.service.edge import Edge, Metrics

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def served(workplace: Path) -> Served:
    return Served(allow=["pool", "s3://lake/images", "abfs://c@ours.dfs.core.windows.net/x", "iceberg://lake/ns"])


def paths_of(answer: Any) -> set[str]:
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["path"] for error in answer.json()["errors"]}


@pytest.mark.parametrize("uri", [
    "/etc/passwd", "/", "..", "pool/../..", "pool/../secret", "~", "~root/x", "file:///etc", "file://localhost/etc", "file:/etc", "poolx",
    "pool2/x", "s3://lake/imagesx", "s3://lake/", "s3://lake/images/../other", "s3://other/images", "s3a://other/images",
    "gs://lake/images",
    "s3://lake/images?endpoint_override=169.254.169.254", "s3://lake/images?anonymous=true", "abfs://c@theirs.dfs.core.windows.net/x",
    "http://169.254.169.254/latest/meta-data", "https://example.org/x.parquet", "delta+/etc", "delta+s3://other/t",
    "delta+s3://lake/images?a=b",
    "iceberg://other/ns.table", "iceberg://lake/other.table", "pool/\x00", "s3://lake@169.254.169.254/images", "", " pool", "link/x",
])  # fmt: skip
def test_places_outside_of_what_is_allowed_are_refused(served: Served, uri: str) -> None:
    """However they are written; in each key that names a place, and without a word on whether anything is there."""
    Path("link").symlink_to("/etc")
    Path("pool2").mkdir()
    for sections, path in (
        ({"pool__uri": uri}, "pool.uri"), ({"pool__uri": ["pool", uri]}, "pool.uri"), ({"pool__labelled": [uri]}, "pool.labelled"),
        ({"model__weights": f"{uri}/w.safetensors" if uri else "/w.safetensors"}, "model.weights"),
        ({"model__classes": uri or "/x"}, "model.classes"),
    ):  # fmt: skip
        if path == "model.weights" and uri.startswith(("iceberg:", "delta+")):
            continue
        answer = served.ask("POST", "/v1/queries", json=query(**sections))
        assert path in paths_of(answer), (uri, answer.text)
        assert "No such" not in answer.text
        assert "exist" not in answer.text
    assert "output" in paths_of(served.ask("POST", "/v1/queries", json=query(output=f"{uri}/out.parquet")))
    assert not Path("runs/service/open").exists()


@pytest.mark.parametrize("uri", ["pool", "./pool/year=2020", "pool/*/part.parquet", "s3://lake/images", "s3a://lake/images/x",
                                 "delta+s3://lake/images/t?version=3", "iceberg://lake/ns.table?snapshot_id=5",
                                 "delta+pool/t"])  # fmt: skip
def test_places_that_are_allowed_are_taken(served: Served, uri: str) -> None:
    """Also of tables, at a version."""
    assert served.ask("POST", "/v1/queries", json=query(pool__uri=uri)).status_code == 202


def test_links_that_lead_out_are_not_followed(served: Served) -> None:
    """A file or folder that was linked below an allowed prefix is neither listed nor opened by the run, nor is a model's file."""
    import pyarrow.parquet as pq

    Path("secret").mkdir()
    pq.write_table(pool_table(10, 9000), "secret/part.parquet")
    os.symlink(Path("secret/part.parquet").resolve(), "pool/year=2020/linked.parquet")
    run = served.submit(select__budget=2)
    assert served.play(run) in (2, 3)
    ended = served.runs.ended(run)
    assert ended is not None
    assert (ended.state, ended.query) == ("failed", None)
    assert "secret" not in str(ended.error)
    os.unlink("pool/year=2020/linked.parquet")
    os.symlink(Path("secret").resolve(), "pool/year=2020/folder")
    assert served.play(served.submit(select__budget=3)) in (2, 3)


def test_a_confined_process_stays_so(tmp_path: Path) -> None:
    """What it is confined to later lies within; places are compared whole, part by part."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "ab").mkdir()
    with confinement():
        confine([str(tmp_path / "a"), "s3://bucket/x"])
        for place in (str(tmp_path / "a"), str(tmp_path / "a/b"), "s3://bucket/x/y"):
            filesystem_of(place) if not place.startswith("s3") else None
        for place in (str(tmp_path / "ab"), str(tmp_path), "/", str(tmp_path / "a/../ab")):
            with pytest.raises(QueryError, match="doesn't allow"):
                filesystem_of(place)
        with pytest.raises(QueryError, match="doesn't allow"):
            filesystem_of("s3://bucket/xy")
        confine(["/", str(tmp_path / "a/b")])
        with pytest.raises(QueryError, match="doesn't allow"):
            filesystem_of(str(tmp_path / "a"))
        filesystem_of(str(tmp_path / "a/b"))


@pytest.mark.parametrize(("sections", "path"), [
    ({"model__source": "os:system"}, "model.source"), ({"model__source": "user_nets:drifting"}, "model.source"),
    ({"model__args": {"deep": [{"factory": "subprocess:run"}]}}, "model.args.deep.0.factory"),
    ({"acquire": {"score": "os.path:join"}}, "acquire.score"),
    ({"acquire": {"also": ["os.path:join"]}}, "acquire.also.0"), ({"select__strategy": "os:system"}, "select.strategy"),
    ({"model__preprocess": "os:system"}, "model.preprocess"), ({"model__trust": "pickle"}, "model.trust"),
    ({"model__trust": "safe"}, "model.trust"),
    ({"model__weights": "pool/w.pt"}, "model.weights"), ({"model__weights": "pool/w.pkl"}, "model.weights"),
    ({"model": {"kind": "torchscript", "source": "pool/m.pt"}}, "model.source"),
    ({"model": {"kind": "sklearn", "source": "pool/m.skops"}}, "model.source"),
    ({"model": {"kind": "transformers", "source": "bert-base-uncased"}}, "model.source"),
    ({"model": {"members": [{"source": "user_nets:net"}, {"source": "os:system"}]}}, "model.members.1.source"),
    ({"model": {"members": [{"source": "user_nets:net", "trust": "pickle"}]}}, "model.members.0.trust"),
    ({"cluster": {"address": "ray://10.0.0.1:10001"}}, "cluster"), ({"cluster": {}}, "cluster"),
    ({"store": {"uri": "/tmp/x"}}, "store.uri"),
    ({"store": {"storage": {"region": "x"}}}, "store.storage"),
    ({"pool__storage": {"endpoint_override": "169.254.169.254"}}, "pool.storage"),
    ({"pool__storage": "unknown"}, "pool.storage"), ({"loop": {}}, "loop"), ({"stream": {}}, "stream"),
    ({"select__budgte": 3}, "select.budgte"),
    ({"pool__uri": None}, "pool.uri"), ({"select": 3}, "select"), ({"store": {"query": "../../x"}}, "store.query"),
])  # fmt: skip
def test_what_could_run_or_redirect_is_refused(served: Served, sections: dict[str, Any], path: str) -> None:
    """Named by its field, whatever else is wrong."""
    answer = served.ask("POST", "/v1/queries", json=query(**sections))
    assert path in paths_of(answer), answer.text
    assert {"path", "pointer", "detail"} == set(answer.json()["errors"][0])


def test_all_that_is_wrong_is_said_at_once(served: Served) -> None:
    """So that a body is mended in one go."""
    body = {"pool": {"uri": "pool", "idd": 1}, "model": {"kind": "torch"}, "select": {"budget": 0}, "cluster": {}}
    assert paths_of(served.ask("POST", "/v1/queries", json=body)) == {"cluster", "pool.idd", "model.source", "select.budget"}


def test_ids_and_names_that_look_like_import_paths_are_none(served: Served) -> None:
    """They are compared, and never imported."""
    sections = {"select__must_include": ["os:system"], "select__exclude": ["a.b:c"], "pool__filters": [["country", "==", "os:system"]]}
    assert served.ask("POST", "/v1/queries", json=query(**sections)).status_code == 202


@pytest.mark.parametrize("method_path", ["GET /v1/queries", "POST /v1/queries", "POST /v1/plan", "GET /v1/queries/x",
    "DELETE /v1/queries/x",
                                         "GET /v1/queries/x/selection", "GET /v1/queries/x/report", "GET /v1/queries/x/events",
                                         "GET /metrics",
                                         "GET /v1/loops", "GET /v1/loops/x", "GET /v1/simulations", "GET /v1/streams",
                                         "GET /openapi.json",
                                         "POST /v1/streams/s/decide", "GET /v1/session"])  # fmt: skip
def test_without_a_valid_token_nothing_is_told(served: Served, method_path: str) -> None:
    """401 whatever is asked, before it is looked at; `/healthz` alone is open."""
    method, path = method_path.split()
    basic = {"authorization": f"Basic {served.token('a')}"}
    for header in ({}, {"authorization": "Bearer rs_x"}, basic, {"cookie": "raystream_session=x"}):
        answer = served.ask(method, path, None, headers=header, **({"json": {"x": 1}} if method == "POST" else {}))
        assert answer.status_code == 401, (path, header, answer.text)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        served.client.cookies.clear()
    assert served.ask("GET", "/healthz", None).status_code == 200


def test_scopes_hold_each_other_in_order(served: Served) -> None:
    """Reading asks nothing of the cluster; asking drops nothing."""
    assert served.ask("POST", "/v1/queries", "reader", json=query()).status_code == 403
    assert served.ask("POST", "/v1/plan", "reader", json=query()).status_code == 403
    assert served.ask("GET", "/v1/queries", "reader").status_code == 200
    assert served.ask("DELETE", "/v1/queries/x", "reader").status_code == 403


def test_guessing_tokens_is_slowed_down(served: Served) -> None:
    """After ten wrong ones from an address, wrong ones are 429; right ones are let in all the same."""
    codes = [served.ask("GET", "/v1/queries", None, headers={"authorization": f"Bearer rs_{i}"}).status_code for i in range(20)]
    assert codes[:10] == [401] * 10
    assert 429 in codes[10:]
    assert served.ask("GET", "/v1/queries").status_code == 200


@pytest.mark.parametrize(("body", "status"), [
    (b"[" * 40 + b"]" * 40, 422), (b'{"a":' * 100_000, 422), (b"{", 400), (b'{"a":1,"a":2}', 422), (b'{"a":NaN}', 422),
    (b"\xff\xfe", 400),
    (b'{"a":' + b"9" * 5000 + b"}", 400), (b'"' + b"a" * (1 << 20) + b'"', 413), (b"null", 422), (b"[]", 422), (b"", 400),
])  # fmt: skip
def test_bodies_that_are_built_to_hurt(served: Served, body: bytes, status: int) -> None:
    """Too large, too deep, no JSON, a key twice, numbers that are none: refused before anything is made of them."""
    answer = served.ask("POST", "/v1/queries", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text[:200]
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_of_another_kind_is_refused(served: Served) -> None:
    """A form of another page can send text without being asked back; JSON it can't."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = served.ask("POST", "/v1/queries", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert served.ask("POST", "/v1/queries", json=query(), headers=headers).status_code == 403
    assert served.ask("POST", "/v1/queries", json=query(), headers={"origin": "http://127.0.0.1:8700"}).status_code == 202


def test_a_name_that_was_pointed_here_is_refused(served: Served) -> None:
    """DNS rebinding: a page of another name reaches the loopback address, and nothing of it is served."""
    for host in ("evil.example", "evil.example:8700", "169.254.169.254", "127.0.0.1.evil.example", ""):
        assert served.ask("GET", "/healthz", None, headers={"host": host}).status_code == 421
    for host in ("localhost:8700", "127.0.0.1", "[::1]:8700"):
        assert served.ask("GET", "/healthz", None, headers={"host": host}).status_code == 200


async def exchanged(headers: list[tuple[bytes, bytes]], messages: list[dict[str, Any]], limits: Limits) -> int:
    """What the edge answers to raw ASGI messages; after the last one nothing comes any more."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []
    left = list(messages)

    async def receive() -> Any:
        if left:
            return left.pop(0)
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"127.0.0.1"), *headers]}
    await Edge(app, limits, "127.0.0.1", [], Metrics(), lambda scope, body: None)(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(("headers", "messages", "status"), [
    ([(b"content-length", b"3"), (b"transfer-encoding", b"chunked")], [b"[]"], 400), ([(b"content-length", b"+3")], [b"[]"], 400),
    ([(b"content-length", b"3"), (b"content-length", b"4")], [b"[]"], 400), ([(b"host", b"other")], [b"[]"], 400),
    ([(b"authorization", b"a"), (b"authorization", b"b")], [b"[]"], 400), ([(b"content-length", b"99999999999")], [], 413),
    ([], [b"x" * 600, b"x" * 600], 413), ([], [b"[", b"]"], 200), ([], [], 408),
])  # fmt: skip
def test_requests_that_can_be_read_in_two_ways_or_never_end(headers: Any, messages: list[bytes], status: int) -> None:
    """Smuggling, a length that lies, a body without end, a body that never comes."""
    parts = [{"type": "http.request", "body": part, "more_body": i + 1 < len(messages)} for i, part in enumerate(messages)]
    limits = Limits(body=1000, body_seconds=1)
    kind = [(b"content-type", b"application/json")]
    assert asyncio.run(exchanged([*kind, *headers], parts, limits)) == status


def test_every_answer_carries_the_headers_of_a_strict_page(served: Served) -> None:
    """Also refusals."""
    for path in ("/healthz", "/nothing", "/v1/queries"):
        headers = served.ask("GET", path, None).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert headers["cache-control"] == "no-store"


def test_a_session_changes_nothing_without_its_csrf_token(served: Served) -> None:
    """The cookie is no script's to read and no other page's to send; its token can be revoked as any other."""
    begun = served.ask("POST", "/v1/session", None, json={"token": served.token("a")})
    assert begun.status_code == 200
    cookie = begun.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert served.ask("GET", "/v1/queries", None).status_code == 200
    assert served.ask("POST", "/v1/queries", None, json=query()).status_code == 403
    assert served.ask("POST", "/v1/queries", None, json=query(), headers={"x-csrf-token": "0" * 64}).status_code == 403
    assert served.ask("POST", "/v1/queries", None, json=query(), headers={"x-csrf-token": begun.json()["csrf"]}).status_code == 202
    Path(str(served.config.tokens)).write_text("")
    assert served.ask("GET", "/v1/queries", None).status_code == 401
    assert served.ask("POST", "/v1/session", None, json={"token": served.token("a")}).status_code == 401


def test_values_of_a_pool_are_text_everywhere(served: Served) -> None:
    """HTML in ids and columns comes back as data of JSON and CSV, and a report runs no script."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    evil = "<script>alert(1)</script>"
    table = pool_table(30)
    ids = [f"{evil}{i}" for i in range(30)]
    pq.write_table(table.set_column(0, "rid", pa.array(ids)), "pool/evil.parquet")
    run = served.submit(pool__uri="pool/evil.parquet", pool__keep=["url"], select__budget=3)
    assert served.play(run) == 0
    answer = served.ask("GET", f"/v1/queries/{run}/selection")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["rows"][0]["rid"] in ids
    report = served.ask("GET", f"/v1/queries/{run}/report")
    assert evil not in report.text
    assert "script-src" not in report.headers["content-security-policy"]
    assert "default-src 'none'" in report.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".hidden", "%2e%2e", "x" * 200, "a~b", "\x00", "ü"])
def test_names_never_become_paths(served: Served, name: str) -> None:
    """Of queries, loops, simulations: what isn't a name is there for nobody."""
    from urllib.parse import quote

    for place in ("queries", "loops", "simulations"):
        answer = served.ask("GET", f"/v1/{place}/{quote(name, safe='')}", "root")
        assert answer.status_code == 404, (place, answer.text)


def test_an_answer_does_not_lead_a_webhook_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to a link-local or metadata address isn't asked; a redirect is not followed, as it is no success."""
    for text in ("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200", "0.0.0.0"):
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, found=text, kind=family, **more: [(kind, 1, 6, "", (found, 80))])
        with pytest.raises(OSError, match="not asked"):
            webhooks.post("http://innocent.example/hook", b"{}", {})


def test_webhooks_are_signed_and_told_each_event(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, again until they answer, not past what was told; a server that takes over goes on behind it."""
    monkeypatch.setenv("HOOK", "s3cret")
    config = Config(webhooks=[{"url": "https://x.example/h", "secret": "HOOK", "kinds": ["queued", "stopped"]}])
    statuses, told, now = [302, 500, 200, 200], list[Any](), [1000.0]

    def send(url: str, body: bytes, headers: Any) -> int:
        told.append(json.loads(body)["n"])
        signed = dict(part.split("=") for part in headers["x-raystream-signature"].split(","))
        assert headers["x-raystream-signature"] == webhooks.signature(b"s3cret", body, int(signed["t"]))
        return statuses.pop(0)

    def make() -> webhooks.Webhooks:
        return webhooks.Webhooks(config.webhooks, served.runs.log, served.runs.store, send, lambda: now[0])

    hooks = make()
    run = served.submit()
    for _ in range(3):
        hooks.step()
        hooks.step()
        now[0] += 1000
    assert told == [1, 1, 1]
    served.runs.withdraw(run, "a")
    served.runs.end(run, "stopped")
    make().step()
    assert told == [1, 1, 1, 3]
