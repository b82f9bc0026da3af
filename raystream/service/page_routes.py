"""The page over HTTP: an empty shell for anyone, and what it shows for whoever may read. All routes only read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from threading import Lock
from typing import Annotated, Any

import pyarrow as pa
import xxhash
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

from raystream.errors import QueryError, RaystreamError, StoreUnreachable
from raystream.service.campaign_views import campaigns, loop_view, simulation_view, stream_view
from raystream.service.formats import file_pieces
from raystream.service.page_files import POLICY, page_files
from raystream.service.plain import plain
from raystream.service.views import COMPARED, RecentValues, Views
from raystream.store.protocol import Store

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
