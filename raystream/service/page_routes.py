"""The page: its files, its routes, and all of it as one file.

The page over HTTP: an empty shell for anyone, and what it shows for whoever may read. All routes only read.

The page's own files: what a server hands out, by name, and the same put together as one file.

A query's page as one file, by the same code as the served one: what `raystream show QUERY --page` writes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Annotated, Any
from urllib.parse import quote

import pyarrow as pa
import xxhash
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from raystream.errors import QueryError, RaystreamError, StoreError, StoreUnreachable
from raystream.service.campaign_views import campaigns, loop_view, simulation_view, stream_view
from raystream.service.formats import CHUNK, file_pieces, plain
from raystream.service.views import COMPARED, RecentValues, Views
from raystream.store.protocol import Store
from raystream.store.queries import find_query, query_folder

STYLES = ("base.css", "page.css")
LIBRARY = "vendor/htm-preact.js"
MODULES = (
    *("preact.js", "format.js", "source.js", "parts.js", "charts.js", "queries.js", "compare.js"),
    *("next_query.js", "gallery.js", "pool_map.js", "query.js", "campaigns.js", "app.js"),
)  # fmt: skip
"""Each comes after those that it imports."""
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8"}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What the served page may do: load its own files, and ask its own server."""


@dataclass(frozen=True)
class PageFile:
    """A file as it is handed out; `etag` is that of its content."""

    data: bytes
    type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """Read all files by their names below `page/`, and the page itself as `index.html`. Nothing else is ever handed out."""
    folder = files("raystream.service").joinpath("page")
    found = {name: folder.joinpath(name).read_bytes() for name in ("index.html", STYLES[1], LIBRARY, *MODULES)}
    found[STYLES[0]] = files("raystream.report").joinpath("templates/style.css").read_bytes()
    return {name: _as_file(name, data) for name, data in found.items()}


def _as_file(name: str, data: bytes) -> PageFile:
    return PageFile(data, _TYPES[name[name.rindex(".") :]], f'"{hashlib.sha256(data).hexdigest()[:20]}"')


_IMPORT = re.compile(r'^import .* from "\./[a-z_]+\.js";\n', re.M)
_EXPORT = re.compile(r"^export ", re.M)


def one_file(data: dict[str, Any], home: list[str], title: str) -> bytes:
    """Make the page one file that needs nothing but itself, with the resources that it shows.

    Modules are put one after the other into one script, without what they import of each other: their names are different. A policy in
    the page's head lets these scripts and styles run and nothing else, whatever the data holds.

    Args:
        data: resources by their paths below `page/data/`.
        home: the address of the view to open.
        title: of the page, as text.
    """
    texts = {name: file.data.decode() for name, file in page_files().items()}
    style = "\n".join(texts[name] for name in STYLES)
    library = texts[LIBRARY]
    script = "\n".join(_EXPORT.sub("", _IMPORT.sub("", texts[name])) for name in MODULES)
    inlined = _in_html(json.dumps({"home": home, "data": data}, allow_nan=False, separators=(",", ":"), ensure_ascii=False))
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<meta name="robots" content="noindex">\n<title>{_escaped(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>\n</head>\n"
    )
    body = (
        '<body class="raystream">\n<div id="app"><p class="waiting">Loading …</p></div>\n'
        f'<script type="application/json" id="raystream-data">{inlined}</script>\n'
        f'<script>{library}</script>\n<script type="module">{script}</script>\n</body>\n</html>\n'
    )
    return (head + body).encode("utf-8", "replace")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _in_html(text: str) -> str:
    """Write JSON that can't end the element that holds it, nor begin a comment."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_AGAIN = "private, no-cache"
_STREAM_FILES = 4_096
_LATELY = 1.0
"""Seconds for which a list of queries serves all windows that ask for it."""


class _Lately:
    """What was made a moment ago, for everyone who asks meanwhile."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._at, self._made = -math.inf, dict[str, Any]()

    def get(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with self._lock:
            if time.monotonic() - self._at > _LATELY:
                self._made = make()
                self._at = time.monotonic()
            return self._made


def page_router(store: Callable[[], Store], caller: Callable[..., object]) -> APIRouter:
    """Make the page's routes: `/`, its files below `/page/`, and its data below `/page/data/`.

    Args:
        store: gives the store that is shown.
        caller: a dependency that refuses who may not read; the shell and its files ask for nobody.
    """
    router = APIRouter()
    views: dict[str, Views] = {}
    decisions, lately = RecentValues(_STREAM_FILES), _Lately()

    def shown() -> Views:
        found = store()
        if found.uri not in views:
            views.clear()
            views[found.uri] = Views(found)
        return views[found.uri]

    _add_shell(router)
    pa.array([])  # imports pandas, where it is installed: a quarter of a second, that no view should wait for
    data = APIRouter(prefix="/page/data", dependencies=[Depends(caller)], include_in_schema=False)

    @data.get("/queries")
    def queries(request: Request) -> Response:
        return _answer(request, lambda: lately.get(lambda: shown().queries()))

    @data.get("/compare")
    def compare(request: Request, query: Annotated[list[str], Query(max_length=COMPARED)]) -> Response:
        return _answer(request, lambda: shown().compare(query))

    @data.get("/campaigns")
    def all_campaigns(request: Request) -> Response:
        return _answer(request, lambda: campaigns(shown().store))

    @data.get("/loops/{name}")
    def loop(request: Request, name: str) -> Response:
        return _answer(request, lambda: loop_view(shown().store, name))

    @data.get("/simulations/{name}")
    def simulation(request: Request, name: str) -> Response:
        return _answer(request, lambda: simulation_view(shown().store, name))

    @data.get("/streams/{name}")
    def stream(request: Request, name: str) -> Response:
        return _answer(request, lambda: stream_view(shown().store, name, decisions.get))

    @data.get("/queries/{name}")
    def one_query(request: Request, name: str) -> Response:
        return _answer(request, lambda: shown().query(name))

    for part, make in (("rows", Views.rows), ("histogram", Views.histogram), ("map", Views.map), ("map/ids", Views.map_ids)):
        data.add_api_route(f"/queries/{{name}}/{part}", _of_query(shown, make), methods=["GET"])
    for part, numbered in (("inputs", Views.inputs), ("row", Views.row), ("near", Views.near)):
        data.add_api_route(f"/queries/{{name}}/{part}/{{number}}", _of_row(shown, numbered), methods=["GET"])

    @data.get("/queries/{name}/selection.parquet")
    def selection(request: Request, name: str) -> Response:
        return _guarded(lambda: _file(request, shown(), name))

    router.include_router(data)
    return router


def _add_shell(router: APIRouter) -> None:
    """Add the page and its files."""

    @router.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        return _page_file(request, "index.html")

    @router.get("/page/vendor/{name}", include_in_schema=False)
    def vendored(request: Request, name: str) -> Response:
        return _page_file(request, f"vendor/{name}")

    @router.get("/page/{name}", include_in_schema=False)
    def page_file(request: Request, name: str) -> Response:
        return _page_file(request, name)


def _page_file(request: Request, name: str) -> Response:
    file = page_files().get(name)
    if file is None:
        return _problem(404, "Not found", f"the page has no file {name!r}")
    headers = {**_HEADERS, "ETag": file.etag, "Cache-Control": "no-cache"}
    if _knows(request, file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.type, headers=headers)


def _of_query(shown: Callable[[], Views], make: Callable[[Views, str], dict[str, Any]]) -> Callable[..., Response]:
    def route(request: Request, name: str) -> Response:
        return _answer(request, lambda: make(shown(), name), lambda: shown().version(name))

    return route


def _of_row(shown: Callable[[], Views], make: Callable[[Views, str, int], dict[str, Any]]) -> Callable[..., Response]:
    def route(request: Request, name: str, number: int) -> Response:
        return _answer(request, lambda: make(shown(), name, number), lambda: shown().version(name))

    return route


def _answer(request: Request, make: Callable[[], dict[str, Any]], version: Callable[[], str] | None = None) -> Response:
    """Answer data as JSON with its ETag, which is that of a version where there is one, so that nothing is made for whoever knows it."""

    def answer() -> Response:
        known = version() if version is not None else ""
        etag = f'"{known}"'
        if known and _knows(request, etag):
            return Response(status_code=304, headers={"ETag": etag, "Cache-Control": _AGAIN})
        body = json.dumps(make(), allow_nan=False, separators=(",", ":"), ensure_ascii=False, default=plain).encode("utf-8", "replace")
        etag = etag if known else f'"{xxhash.xxh3_128_hexdigest(body)}"'
        headers = {"ETag": etag, "Cache-Control": _AGAIN, "X-Content-Type-Options": "nosniff"}
        if _knows(request, etag):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    return _guarded(answer)


def _file(request: Request, views: Views, name: str) -> Response:
    path, etag = views.selection(name)
    headers = {"ETag": f'"{etag}"', "Cache-Control": _AGAIN, "X-Content-Type-Options": "nosniff"}
    if _knows(request, f'"{etag}"'):
        return Response(status_code=304, headers=headers)
    return StreamingResponse(file_pieces(path), media_type="application/vnd.apache.parquet", headers=headers)


def _guarded(answer: Callable[[], Response]) -> Response:
    """Return an answer, or what is wrong, by RFC 9457."""
    try:
        return answer()
    except QueryError as error:
        return _problem(404, "Not found", str(error))
    except StoreUnreachable as error:
        return _problem(503, "The store can't be reached", str(error))
    except RaystreamError as error:
        return _problem(409, "The store is damaged", str(error))


def _problem(status: int, title: str, detail: str) -> Response:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    return Response(json.dumps(body), status_code=status, media_type="application/problem+json", headers=headers)


def _knows(request: Request, etag: str) -> bool:
    """Tell whether the browser has this content already."""
    known = request.headers.get("if-none-match", "")
    return etag in [part.strip().removeprefix("W/") for part in known.split(",")]


PICTURES = 2_000
"""Chosen rows whose pictures or texts the file carries."""
POINTS = 50_000
"""Rows of the pool on its map."""


def static_page(store: Store, name: str) -> bytes:
    """Make the page of a committed query one HTML file that needs nothing but itself.

    Args:
        store: holds the query.
        name: of the query, whole.

    Raises:
        QueryError: there is no such query, or it isn't committed.
        StoreError: the query is damaged.
    """
    views = Views(store, POINTS)
    at = f"queries/{quote(name, safe='')}"
    query, rows = views.query(name), views.rows(name)
    data: dict[str, Any] = {at: query, f"{at}/rows": rows, f"{at}/histogram": views.histogram(name), f"{at}/map": views.map(name)}
    if "missing" not in data[f"{at}/map"]:
        data[f"{at}/map/ids"] = views.map_ids(name)
    for chunk in range(-(-min(len(rows["ids"]), PICTURES) // CHUNK)):
        data[f"{at}/inputs/{chunk}"] = views.inputs(name, chunk)
    return one_file(data, ["query", name], f"{name} · raystream")


def write_page(store: Store, name: str, out: str | None) -> str:
    """Write a query's page; where it is.

    Args:
        store: holds the query.
        name: of the query, or its beginning.
        out: a file of this machine; left out, `page.html` beside the query's selection.

    Raises:
        QueryError: there is no such query.
        StoreError: the query is damaged, or the file can't be written.
    """
    found = find_query(store, name)
    page = static_page(store, found)
    if out is None:
        store.put(f"{query_folder(found)}/page.html", page)
        return store.place(f"{query_folder(found)}/page.html")
    target = Path(out)
    if target.is_dir():
        raise QueryError(f"--out {out} is a folder; name a file, such as {target / 'page.html'}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(page)
        os.replace(temporary, target)
    except OSError as error:
        raise StoreError(f"--out {out} can't be written: {error.strerror}; name another place or free some space") from None
    finally:
        temporary.unlink(missing_ok=True)
    return str(target.absolute())
