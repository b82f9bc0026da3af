"""The whole way through a real Label Studio server, which `make label-studio` installs; without it this is skipped."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from campaigns import history, make_loop, simulated, write_pool
from label_queries import CLASSES, commit_query
from PIL import Image

import raystream
from raystream import ActiveLearningLoop
from raystream.labels.annotation import parse
from raystream.labels.server import Server, ServerError, Token
from raystream.labels.tools import TOOLS

SERVER = Path(raystream.__file__).parents[1] / ".label-studio" / "bin" / "label-studio"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
CHROMIUM = shutil.which("chromium")
ROWS = 130
"""More than a page."""
Cli = Callable[..., tuple[int, str, str]]
SECRETS: dict[str, str] = {}
"""What each server signs its tokens with."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SERVER.exists(), reason="needs make label-studio")]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the test's own, with one user and a legacy token."""
    folder = tmp_path_factory.mktemp("label-studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "--no-browser",
        "--internal-host",
        "127.0.0.1",
        "--port",
        str(port),
        "--data-dir",
        str(folder),
        "--username",
        "a@example.org",
    ]
    arguments += ["--password", "not-a-secret", "--user-token", TOKEN, "--enable-legacy-api-token"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "HOME": str(folder),
        "COLLECT_ANALYTICS": "False",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([SERVER, "start", *arguments], stdout=log, stderr=log, env=environment, cwd=folder)
    address, answers = f"http://127.0.0.1:{port}", False
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                answers = urllib.request.urlopen(f"{address}/api/version", timeout=5).status == 200
                break
            except OSError:
                threading.Event().wait(0.5)
        assert answers, "the server doesn't come up"
        SECRETS[address] = next(line for line in (folder / ".env").read_text().splitlines() if line.startswith("SECRET_KEY="))[11:]
        yield address
    finally:
        process.terminate()
        process.wait(30)


def api(url: str, method: str, path: str, body: Any = None) -> Any:
    """What the person behind the tool does, by the server's own API."""
    headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as reply:
        data = reply.read()
    return json.loads(data) if data else None


def as_of(url: str, token: str, **changes: int) -> str:
    """Sign a token anew with other dates in it, as the server itself would have."""

    def coded(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head, payload, _ = token.split(".")
    said = json.loads(base64.urlsafe_b64decode(payload + "==")) | changes
    signed = head.encode() + b"." + coded(json.dumps(said).encode())
    return (signed + b"." + coded(hmac.new(SECRETS[url].encode(), signed, hashlib.sha256).digest())).decode()


def made_token(url: str) -> str:
    """A personal access token, made as on the account's page."""
    for held in api(url, "GET", "/api/token/"):
        api(url, "POST", "/api/token/blacklist/", {"refresh": held["token"]})
    return str(api(url, "POST", "/api/token/")["token"])


def picture(number: int) -> bytes:
    """Noise that a browser takes a moment to decode."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def choice(label: str) -> dict[str, Any]:
    return {"result": [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label]}}]}


class Dropping(BaseHTTPRequestHandler):
    """Passes everything on, and drops the replies to the first writes."""

    target = ""
    left = 2

    def log_message(self, *_: object) -> None:
        pass

    def _pass_on(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "content-length", "connection")}
        request = urllib.request.Request(self.target + self.path, self.rfile.read(size) if size else None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                status, data = reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                status, data = error.code, error.read()
        if self.command == "POST" and Dropping.left:
            Dropping.left -= 1
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _pass_on


def test_the_whole_way(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Pushed twice with replies dropped, each row has one task; what people did comes twice alike, and as the server's own exports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    texts = [f"row {i} <b>ünï</b>\r\n\u2028=1 {'😀' * (i % 3)}" for i in range(ROWS + 10)]
    commit_query(tmp_path, pa.array([f"id/{i} ü" for i in range(ROWS + 10)]), ROWS, texts)
    Dropping.target = url
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Dropping)
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    push = ("export", "first", "--to", "label_studio", "--show", "text", "--json", "--push")
    code, printed, stderr = cli(*push, f"http://127.0.0.1:{proxy.server_address[1]}")
    proxy.shutdown()
    proxy.server_close()
    assert (code, Dropping.left) == (0, 0), stderr
    project = json.loads(printed)["project"]
    page = f"{url}/projects/{project}"
    again = json.loads(cli(*push, page)[1])
    assert (again["rows"], again["created"]) == (ROWS, 0)
    tasks = [
        task
        for number in (1, 2)
        for task in api(url, "GET", f"/api/tasks?project={project}&page={number}&page_size=100&fields=all")["tasks"]
    ]
    assert len({task["data"]["raystream_id"] for task in tasks}) == len(tasks) == ROWS
    assert {task["data"]["text"] for task in tasks} <= set(texts)
    for number, task in enumerate(tasks[:30]):
        api(url, "POST", f"/api/tasks/{task['id']}/annotations/", choice(CLASSES[number % 3]))
    for task in tasks[30:40]:
        api(url, "POST", f"/api/tasks/{task['id']}/annotations/", {"result": [], "was_cancelled": True})
    for task in tasks[40:45]:
        api(url, "POST", f"/api/tasks/{task['id']}/drafts", choice("cat"))
    for task in tasks[45:50]:
        api(url, "DELETE", f"/api/tasks/{task['id']}/")

    def pull() -> pa.Table:
        code, _, stderr = cli("labels", "--from", "label_studio", "--pull", page, "--out", "labels.parquet")
        assert code == 0, stderr
        return pq.read_table("labels.parquet")

    table = pull()
    assert Counter(table.column("state").to_pylist()) == {"labelled": 30, "skipped": 10, "draft": 5, "deleted": 5}
    labels = dict(zip(table.column("rid").to_pylist(), table.column("label").to_pylist(), strict=True))
    assert [labels[task["data"]["raystream_id"]] for task in tasks[:30]] == [CLASSES[number % 3] for number in range(30)]
    assert pull().equals(table)
    [edited] = api(url, "GET", f"/api/tasks/{tasks[0]['id']}/annotations/")
    api(url, "PATCH", f"/api/annotations/{edited['id']}/", choice("dog"))
    [gone] = api(url, "GET", f"/api/tasks/{tasks[1]['id']}/annotations/")
    api(url, "DELETE", f"/api/annotations/{gone['id']}/")
    table = pull()
    labels = dict(zip(table.column("rid").to_pylist(), table.column("label").to_pylist(), strict=True))
    assert [labels[task["data"]["raystream_id"]] for task in tasks[:3]] == ["dog", None, CLASSES[2]]
    assert Counter(table.column("state").to_pylist()) == {"labelled": 29, "skipped": 10, "draft": 5, "deleted": 6}
    for kind, name in (("JSON", "export.json"), ("JSON_MIN", "short.json"), ("CSV", "export.csv"), ("TSV", "export.tsv")):
        whole = api_bytes(url, f"/api/projects/{project}/export?exportType={kind}&download_all_tasks=true")
        Path(name).write_bytes(whole)
        code, _, stderr = cli("labels", name, "--from", "label_studio", "--out", "labels.parquet")
        assert (code, pq.read_table("labels.parquet").equals(table)) == (0, True), (kind, stderr)


def test_a_personal_access_token(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Pushed and pulled with one; what it is exchanged for is renewed when it expires; expired, changed or revoked it is exit 3."""
    monkeypatch.chdir(tmp_path)
    token = made_token(url)
    commit_query(tmp_path, pa.array(range(20)), 3, store={"query": "by-token"})

    def push(secret: str) -> tuple[int, str, str]:
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", secret)
        return cli("export", "by-token", "--to", "label_studio", "--show", "text", "--json", "--push", url)

    code, printed, stderr = push(token)
    assert code == 0, stderr
    page = json.loads(printed)["url"]
    [task, *_] = tasks_of(url, json.loads(printed)["project"])
    api(url, "POST", f"/api/tasks/{task['id']}/annotations/", choice("dog"))
    code, printed, stderr = cli("labels", "--from", "label_studio", "--pull", page, "--out", "labels.parquet", "--json")
    assert (code, json.loads(printed)["labelled"]) == (0, 1), stderr
    past = int(time.time()) - 60
    server = Server(url, Token(token))
    server.read("/api/projects/")
    held = str(server._access)
    server._access = as_of(url, held, exp=past)
    server.read("/api/projects/")
    assert server._access not in (held, as_of(url, held, exp=past))
    server._access = as_of(url, held, exp=past)
    project = server.write("POST", "/api/projects/", {"title": "with a renewed token"})
    assert [each["id"] for each in api(url, "GET", "/api/projects/?page_size=100")["results"] if each["title"] == project["title"]] == [
        project["id"]
    ]
    api(url, "POST", "/api/token/blacklist/", {"refresh": token})
    server._access = as_of(url, held, exp=past)
    with pytest.raises(ServerError, match="refuses the token"):
        server.read("/api/projects/")
    for secret in (token, as_of(url, made_token(url), exp=past), f"{token[:-4]}aaaa"):
        code, printed, stderr = push(secret)
        assert (code, printed, stderr.count("\n")) == (3, "", 1)
        assert "refuses the token (401), which looks like a personal access token" in stderr
        assert secret not in stderr


@pytest.mark.parametrize(
    ("control", "kind", "value", "raw"),
    [
        ('<Choices name="label" toName="text" choice="multiple"><Choice value="cat"/><Choice value="dog"/></Choices>', "choices",
         {"choices": ["cat", "dog"]}, ["cat", "dog"]),
        ('<Number name="label" toName="text"/>', "number", {"number": 2.5}, 2.5),
    ],
)  # fmt: skip
def test_labels_that_are_no_single_class_in_every_export(control: str, kind: str, value: Any, raw: Any, url: str) -> None:
    """Several classes and numbers come back from JSON, JSON-MIN, CSV and TSV, as the server itself writes them."""
    config = f'<View><Text name="text" value="$text"/>{control}</View>'
    project = api(url, "POST", "/api/projects/", {"title": kind, "label_config": config})["id"]
    api(url, "POST", f"/api/projects/{project}/import", [{"data": {"text": "t", "raystream_id": "7", "raystream_query": "q"}}])
    [task] = tasks_of(url, project)
    result = {"from_name": "label", "to_name": "text", "type": kind, "value": value}
    api(url, "POST", f"/api/tasks/{task['id']}/annotations/", {"result": [result]})
    for name in ("JSON", "JSON_MIN", "CSV", "TSV"):
        data = api_bytes(url, f"/api/projects/{project}/export?exportType={name}&download_all_tasks=true")
        suffix = name.lower() if name in ("CSV", "TSV") else "json"
        [found] = TOOLS["label_studio"].read(parse(f"export.{suffix}", data))
        assert (found.id, found.raw, found.state) == ("7", raw, "labelled"), name
        assert found.labelled_at is not None


def test_a_server_that_takes_no_legacy_tokens(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """As Label Studio is by default: exit 3 says what kind of token that is; a personal access token is taken."""
    monkeypatch.chdir(tmp_path)
    commit_query(tmp_path, pa.array(range(20)), 3, store={"query": "no-legacy"})
    person = Server(url, Token(made_token(url)))
    settings = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
    person.write("POST", "/api/jwt/settings", settings)
    try:
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
        code, _, stderr = cli("export", "no-legacy", "--to", "label_studio", "--show", "text", "--push", url)
    finally:
        person.write("POST", "/api/jwt/settings", settings | {"legacy_api_tokens_enabled": True})
    assert (code, stderr.count("\n")) == (3, 1)
    assert "refuses the token (401), which looks like a legacy token" in stderr
    assert TOKEN not in stderr


def tasks_of(url: str, project: int) -> list[dict[str, Any]]:
    found = api(url, "GET", f"/api/tasks?project={project}&page=1&page_size=100&fields=all")["tasks"]
    return sorted(found, key=lambda task: int(task["id"]))


def test_a_loop_of_three_rounds(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """A script plays the annotator: each row has one task, later rounds begin from predictions, the history is that of a simulation."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    truth = write_pool(tmp_path, text=[f"row {i} <b>ünï</b> 😀" for i in range(120)])
    choices = "".join(f'<Choice value="{number}"/>' for number in range(3))
    config = f'<View><Text name="text" value="$text"/><Choices name="label" toName="text">{choices}</Choices></View>'
    project = api(url, "POST", "/api/projects/", {"title": "a loop", "label_config": config})["id"]
    changes: dict[str, Any] = {"loop__control": 0.34, "model__classes": ["0", "1", "2"]}
    oracle = {"tool": "label_studio", "url": url, "project": project, "show": "text"}
    loop = make_loop(tmp_path, loop__oracle=oracle, **changes)
    Path("small.yaml").write_text(loop.to_yaml())

    def step() -> dict[str, Any]:
        code, printed, stderr = cli("loop", "small.yaml", "--json")
        assert code == 0, stderr
        return dict(json.loads(printed))

    for number in (1, 2, 3):
        assert [step()[key] for key in ("state", "round", "missing")] == ["waiting", number, 6]
        assert step()["missing"] == 6
        tasks = tasks_of(url, project)
        assert len({task["data"]["raystream_id"] for task in tasks}) == len(tasks) == 6 * number
        new = tasks[-6:]
        assert [task["data"].get("raystream_why") for task in new] == ["", "", "", "", "control", "control"]
        assert [len(task["predictions"]) for task in new] == ([0] * 6 if number == 1 else [1, 1, 1, 1, 0, 0])
        shown = api(url, "GET", f"/api/projects/{project}/next")  # what the next annotator gets to see
        assert (shown["id"], len(shown["predictions"])) == (new[0]["id"], number > 1)
        for task in new:
            api(url, "POST", f"/api/tasks/{task['id']}/annotations/", choice(str(truth[task["data"]["raystream_id"]])))
    assert step()["state"] == "finished"
    other = simulated(tmp_path, store__uri=str(tmp_path / "other"), **changes)
    ActiveLearningLoop(other).step()
    assert history(loop) == history(other)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
@pytest.mark.parametrize("column", ["text", "image"])
def test_a_labeller_in_a_browser(column: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """What is to be labelled stands there, the prediction is chosen, a key chooses another class, and the next row in rank follows."""
    sync_api = pytest.importorskip("playwright.sync_api")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    texts = [f"row {i}, <b>good</b>\nbut =1+1" for i in range(20)]
    result = commit_query(tmp_path, pa.array(range(20)), 3, texts, [picture(number) for number in range(20)], store={"query": column})
    pushed = json.loads(cli("export", column, "--to", "label_studio", "--show", column, "--json", "--push", url)[1])
    numbers = [str(task["id"]) for task in tasks_of(url, pushed["project"])]
    predicted = result.selection.column("prediction_name").to_pylist()
    wanted = [CLASSES[(CLASSES.index(name) + 1) % 3] for name in predicted]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(f"{url}/user/login", wait_until="domcontentloaded")
        page.fill("input[name=email]", "a@example.org")
        page.fill("input[name=password]", "not-a-secret")
        page.keyboard.press("Enter")
        page.wait_for_url(lambda address: "/user/login" not in address, wait_until="commit")
        page.goto(f"{pushed['url']}/data?labeling=1", wait_until="domcontentloaded")
        for place in (0, 1):
            page.wait_for_function("(number) => document.body.innerText.split('\\n').includes(number)", arg=numbers[place])
            row = result.selection.column("rid").to_pylist()[place]
            if column == "text":
                page.get_by_text(f"row {row}, <b>good</b>").wait_for()
            else:
                page.wait_for_function("() => document.querySelector(\"img[alt='image']\")?.naturalWidth === 60")
            page.locator(f"input[type=radio][name='{predicted[place]}']:checked").wait_for()
            page.screenshot(path=str(tmp_path / f"{column}-{place}.png"))
            page.keyboard.press(str(CLASSES.index(wanted[place]) + 1))
            page.locator(f"input[type=radio][name='{wanted[place]}']:checked").wait_for()
            with page.expect_response(lambda reply: "/annotations" in reply.url and reply.request.method == "POST"):
                page.keyboard.press("Control+Enter")
        browser.close()
    assert cli("labels", "--from", "label_studio", "--pull", pushed["url"], "--out", "labels.parquet")[0] == 0
    table = pq.read_table("labels.parquet")
    assert sorted(zip(table.column("rank").to_pylist(), table.column("label").to_pylist(), strict=True)) == list(enumerate(wanted[:2]))


def api_bytes(url: str, path: str) -> bytes:
    request = urllib.request.Request(url + path, headers={"Authorization": f"Token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return bytes(reply.read())
