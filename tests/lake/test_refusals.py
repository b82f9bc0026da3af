"""What a storage refuses, through the command line: exit 3, the URI, the server's own reason, and no secret."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from servers import PARTIAL_KEY, PARTIAL_SECRET, READER_KEY, READER_SECRET

from raystream import Query
from raystream.lake import retry

MakeQuery = Callable[..., Query]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch, s3_keys: None) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.002)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2-session")


class _Expired(BaseHTTPRequestHandler):
    """Says to whatever is asked that the token is too old, and, as some servers do, what it was."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("x-amz-security-token", "")
        body = f"<Error><Code>ExpiredToken</Code><Message>The provided token {token} has expired.</Message></Error>".encode()
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(400)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer


@pytest.fixture
def expired() -> Iterator[Any]:
    """A server for which every token is too old."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Expired)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def refused(cli: Cli, query: Query, uri: str, *more: str) -> str:
    """What the command line says of a query, provided that it is one sentence with the URI, exit 3, and holds no secret."""
    Path("query.yaml").write_text(query.to_yaml())
    code, out, told = cli("query", "query.yaml", *more)
    assert code == 3, told
    assert uri in told
    assert len(told.strip().splitlines()[-1]) < 500
    for secret in ("hunter2", PARTIAL_SECRET, READER_SECRET):
        assert secret not in told + out
    return told


def test_an_expired_token_of_the_pool(make_query: MakeQuery, cli: Cli, expired: Any) -> None:
    """The server's word for it is told; it isn't asked again and again."""
    options = {"endpoint_override": f"http://127.0.0.1:{expired.server_port}", "region": "us-east-1"}
    told = refused(cli, make_query(pool__uri="s3://lake/pool", pool__storage=options), "s3://lake/pool")
    assert "expired" in told
    assert "check the name, the options of storage, and the credentials" in told
    assert len(expired.asked) <= 2


def test_an_expired_token_of_the_store(make_query: MakeQuery, cli: Cli, expired: Any) -> None:
    """The same of the store."""
    options = {"endpoint_override": f"http://127.0.0.1:{expired.server_port}", "region": "us-east-1"}
    told = refused(cli, make_query(store__uri="s3://lake/runs", store__storage=options), "s3://lake/runs")
    assert "ExpiredToken" in told
    assert "check the credentials" in told
    assert len(expired.asked) <= 2


def test_weights_under_an_expired_token(make_query: MakeQuery, cli: Cli, expired: Any) -> None:
    """And of the model's weights."""
    options = {"endpoint_override": f"http://127.0.0.1:{expired.server_port}", "region": "us-east-1"}
    told = refused(cli, make_query(model__weights="s3://lake/w.safetensors", pool__storage=options), "s3://lake/w.safetensors")
    assert "expired" in told


def test_one_object_that_may_not_be_read(
    make_query: MakeQuery,
    cli: Cli,
    s3: pafs.FileSystem,
    folder: str,
    storage: dict[str, Any],
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All may be listed and the first be read: the object that may not is named."""
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    data = (workplace / "pool/year=2020/part.parquet").read_bytes()
    for name in ("open.parquet", "secret.parquet"):
        with s3.open_output_stream(f"{folder}/{name}") as out:
            out.write(data)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", PARTIAL_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PARTIAL_SECRET)
    options = storage | {"request_timeout": 211}  # a file system of its own: keys are taken when it is made
    told = refused(cli, make_query(pool__uri=f"s3://{folder}", pool__storage=options), f"s3://{folder}/secret.parquet")
    assert "ACCESS_DENIED" in told or "Access Denied" in told or "AccessDenied" in told
    assert "open.parquet" not in told
    skipping = make_query(pool__uri=f"s3://{folder}/open.parquet", pool__storage=options)
    Path("query.yaml").write_text(skipping.to_yaml())
    assert cli("query", "query.yaml")[0] == 0, "the other one may be read by the same keys"


@pytest.mark.parametrize("wrong", ["writing", "bucket", "secret", "key"])
def test_a_store_that_may_not_be_written(
    wrong: str, make_query: MakeQuery, cli: Cli, folder: str, storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that may only read, a missing bucket, a wrong secret and an unknown key: before anything is scored."""
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    uri = "s3://no-such-bucket/runs" if wrong == "bucket" else f"s3://{folder}/runs"
    if wrong == "writing":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    elif wrong != "bucket":
        monkeypatch.setenv({"secret": "AWS_SECRET_ACCESS_KEY", "key": "AWS_ACCESS_KEY_ID"}[wrong], "hunter2-hunter2")
    told = refused(cli, make_query(store__uri=uri, store__storage=storage), uri)
    reasons = {"writing": "AccessDenied", "bucket": "NoSuchBucket", "secret": "SignatureDoesNotMatch", "key": "InvalidAccessKeyId"}
    assert reasons[wrong] in told
