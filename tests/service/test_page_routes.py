"""The page over HTTP: an open shell, data for whoever may read, errors that say what is wrong, and one file of the same code."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

import raystream as rs
from raystream import Query
from raystream.service.page_routes import LIBRARY, MODULES, POLICY, STYLES, one_file, page_files, page_router, static_page
from raystream.store.opening import existing_store

EVIL = "</script><script>alert(1)</script><!--"


@pytest.fixture
def client(make_query: Callable[..., Query]) -> TestClient:
    """A server of the page over a store with the committed queries q and r; whoever says so may read."""
    rs.run(make_query(store__query="q"))
    rs.run(make_query(store__query="r", select__strategy="top_k"))
    app = FastAPI()

    def caller(request: Request) -> None:
        if request.headers.get("authorization") != "Bearer right":
            raise HTTPException(401, "who are you?")

    store = existing_store("runs")
    app.include_router(page_router(lambda: store, caller))
    return TestClient(app, headers={"Authorization": "Bearer right"})


PATHS = ["queries", "campaigns", "compare?query=q&query=r"] + [
    f"queries/q{part}" for part in ("", "/rows", "/histogram", "/map", "/map/ids", "/inputs/0", "/row/0", "/near/0", "/selection.parquet")
]


def test_the_shell_is_open_and_the_data_is_not(client: TestClient) -> None:
    """Without a token there is a page with nothing in it; every resource asks for one, also those that aren't there."""
    shell = client.get("/", headers={"Authorization": ""})
    assert shell.status_code == 200
    assert "q" not in re.findall(r"[\w-]+", shell.text.partition("<body")[2])
    for path in [*PATHS, "queries/nope", "loops/x", "simulations/x", "streams/x"]:
        assert client.get(f"/page/data/{path}", headers={"Authorization": ""}).status_code == 401, path


def test_every_resource_is_json_that_browsers_keep(client: TestClient) -> None:
    """Each with an ETag by which it isn't sent twice, never taken for another type."""
    for path in PATHS:
        answer = client.get(f"/page/data/{path}")
        assert answer.status_code == 200, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "private, no-cache"
        if not path.endswith(".parquet"):
            json.loads(answer.text, parse_constant=pytest.fail)
        again = client.get(f"/page/data/{path}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), path


def test_the_selection_comes_as_its_file(client: TestClient, tmp_path: Path) -> None:
    """Byte by byte."""
    Path("got.parquet").write_bytes(client.get("/page/data/queries/q/selection.parquet").content)
    assert pq.read_table("got.parquet").equals(pq.read_table("runs/queries/q/selection.parquet"))


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("queries/nope", 404, "has no query nope"),
        ("queries/nope/rows", 404, "has no query nope"),
        ("queries/..%2F..%2Fetc/rows", 404, ""),
        ("queries/q/row/12", 404, "ranks are 0 to 11"),
        ("queries/q/near/-1", 404, "ranks are 0 to 11"),
        ("queries/q/row/x", 422, ""),
        ("queries/q/row/99999999999999999999999", 404, "ranks are 0 to 11"),
        ("queries/q/inputs/99999999999999999999999", 200, '"items":{}'),
        ("queries/q/inputs/-1", 200, '"items":{}'),
        ("compare?query=q", 404, "expected 2 to 8"),
        ("compare", 422, ""),
        ("loops/nope", 404, "no loop 'nope'"),
        ("simulations/..", 404, ""),
        ("streams/nope", 404, "no stream 'nope'"),
    ],
)
def test_what_isnt_there_is_said(client: TestClient, path: str, status: int, says: str) -> None:
    """By RFC 9457, in a sentence."""
    answer = client.get(f"/page/data/{path}")
    assert answer.status_code == status
    assert says in answer.text


def test_a_damaged_store_is_no_defect(client: TestClient) -> None:
    """It is said what is damaged, and the other queries are shown."""
    Path("runs/queries/q/manifest.json").write_text("{}")
    answer = client.get("/page/data/queries/q")
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert "is damaged" in answer.json()["detail"]
    states = {line["name"]: line["state"] for line in client.get("/page/data/queries").json()["queries"]}
    assert states == {"q": "damaged", "r": "committed"}


def test_only_the_page_s_own_files_are_handed_out(client: TestClient) -> None:
    """By a list of names; nothing of the file system."""
    for name, file in page_files().items():
        answer = client.get("/" if name == "index.html" else f"/page/{name}", headers={"Authorization": ""})
        assert (answer.status_code, answer.content) == (200, file.data)
        assert answer.headers["content-security-policy"] == POLICY
        assert client.get(f"/page/{name}", headers={"If-None-Match": file.etag}).status_code == 304
    for name in ("../page_routes.py", "..%2Fpage_routes.py", "vendor/LICENSE-htm", "vendor/..%2Findex.html", "nope.js"):
        assert client.get(f"/page/{name}").status_code == 404, name


def test_the_page_needs_no_inline_script_nor_much_room() -> None:
    """No script, style or handler stands in its markup; all files together have less than 250 KB, libraries with their licences."""
    index = page_files()["index.html"].data.decode()
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", index)
    assert not re.findall(r"https?:", index)
    assert sum(len(file.data) for file in page_files().values()) < 250_000
    vendor = Path(rs.__file__).parent / "service/page/vendor"
    assert {"LICENSE-htm", "LICENSE-preact"} <= {path.name for path in vendor.iterdir()}
    for name, file in page_files().items():
        if name.endswith(".js"):
            assert not re.search(rb"\beval\(|new Function|innerHTML =|dangerouslySetInnerHTML=", file.data) or name == LIBRARY, name


def test_modules_can_stand_in_one_script() -> None:
    """Each comes after those that it imports, and no two have a name in common, so that imports can be left out."""
    seen: dict[str, str] = {}
    for name in MODULES:
        text = page_files()[name].data.decode()
        for needed in re.findall(r'from "\./([a-z_]+\.js)";', text):
            assert MODULES.index(needed) < MODULES.index(name), (name, needed)
        own = re.findall(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", text, re.M)
        for word in own:
            assert word not in seen, f"{word} is in {seen[word]} and {name}"
            seen[word] = name
    assert set(page_files()) == {"index.html", LIBRARY, *STYLES, *MODULES}


def test_no_module_waits_for_another_to_name_it() -> None:
    """The page names all that its first module imports, so that they come at the same time."""
    index = page_files()["index.html"].data.decode()
    assert set(re.findall(r'(?:href|src)="page/(\w+\.js)"', index)) == set(MODULES)


def test_one_file_holds_all_and_lets_nothing_else_run() -> None:
    """Whatever the data holds, it stays data: the scripts that run are those whose hashes stand in the policy."""
    page = one_file({"a": {"id": EVIL}}, ["query", EVIL], EVIL).decode()
    head, _, body = page.partition("<body")
    assert "<script" not in head
    inlined = re.search(r'<script type="application/json" id="raystream-data">(.*?)</script>', body, re.S)
    assert inlined is not None
    assert json.loads(inlined[1]) == {"home": ["query", EVIL], "data": {"a": {"id": EVIL}}}
    scripts = re.findall(r'<script(?: type="module")?>(.*?)</script>', body, re.S)
    assert len(scripts) == 2
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in head
    assert not re.search(r"^(import|export) ", scripts[1], re.M)
    assert not re.findall(r'(?:src|href)="(?!data:,)', page.replace(scripts[0], "").replace(scripts[1], ""))


def test_a_query_as_one_file(client: TestClient, cli: Callable[..., Any]) -> None:
    """It holds what the server would send, under the same paths; the command writes it beside the selection or where it is told."""
    page = static_page(existing_store("runs"), "q").decode()
    inlined = re.search(r'id="raystream-data">(.*?)</script>', page, re.S)
    assert inlined is not None
    data = json.loads(inlined[1])["data"]
    assert set(data) == {f"queries/q{part}" for part in ("", "/rows", "/histogram", "/map", "/map/ids", "/inputs/0")}
    for path in ("queries/q/rows", "queries/q/map/ids", "queries/q/inputs/0"):
        assert data[path] == client.get(f"/page/data/{path}").json()
    code, out, _ = cli("show", "q", "--page", "--store", "runs", "--json")
    assert code == 0
    assert Path(json.loads(out)["page"]).read_bytes().startswith(b"<!doctype html>")
    code, _, _ = cli("show", "q", "--page", "--out", "made/q.html", "--store", "runs")
    assert code == 0
    assert Path("made/q.html").is_file()
    assert [path.name for path in Path("made").iterdir()] == ["q.html"]
    for arguments, words in (
        (("show", "q", "--out", "x.html"), "give --page"),
        (("show", "--page"), "name it"),
        (("show", "q", "--page", "--out", "made"), "is a folder"),
        (("show", "nope", "--page"), "has no query nope"),
    ):
        code, _, err = cli(*arguments, "--store", "runs")
        assert code == 2
        assert words in err
