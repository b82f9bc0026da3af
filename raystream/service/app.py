"""The application: everything that a server answers, as one ASGI app for uvicorn, Ray Serve or a test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from raystream import __version__
from raystream.errors import RaystreamError
from raystream.service.config import Config
from raystream.service.edge import Described, Edge, FieldError, Metrics, Problem, answer, store_problem, wrong_fields
from raystream.service.page_routes import page_router
from raystream.service.policy import Policy, read_json
from raystream.service.query_routes import query_router
from raystream.service.runs import Runs
from raystream.service.scheduler import RunScheduler
from raystream.service.streams import Deciders, record_router
from raystream.service.tokens import COOKIE, Caller, Callers, Tokens, csrf_of
from raystream.service.webhooks import Webhooks
from raystream.store.opening import open_store
from raystream.store.protocol import Store

_log = logging.getLogger("raystream.service")
_described = Described()


def create_app(config: Config, *, schedules: bool = True) -> FastAPI:
    """Make the application of a server.

    Args:
        config: what it serves.
        schedules: whether it starts runs that wait; without, it only answers.

    Raises:
        RaystreamError: the store or the tokens can't be used.
    """
    tokens = Tokens(config.tokens) if config.tokens is not None else None
    store = open_store(config.store.uri, config.store.options)
    policy, metrics, callers = Policy(config), Metrics(), Callers(tokens)
    runs = Runs(store, config.limits)
    hooks = Webhooks(config.webhooks, runs.log, store)
    scheduler = RunScheduler(runs, config, metrics, also=hooks.begin)
    deciders = Deciders(config, store, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if schedules:
            scheduler.start()
        deciders.load(stays=True)
        try:
            yield
        finally:
            if schedules:
                scheduler.stop()
            deciders.close()

    app = FastAPI(
        title="raystream",
        version=__version__,
        description="Which rows of this lake should be labelled next?",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.deciders = deciders
    app.include_router(deciders.router(callers))  # first, as it is asked most: routes are compared one by one
    app.include_router(query_router(runs, policy, config, callers, scheduler, metrics))
    app.include_router(record_router(store, callers))
    _add_own_routes(app, runs, callers, metrics)
    _add_page(app, store, callers)
    app.add_exception_handler(Problem, answer)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(RequestValidationError, _of_parameters)
    app.add_exception_handler(RaystreamError, _of_store)
    direct = deciders.direct(callers)
    app.add_middleware(Edge, limits=config.limits, host=config.host, hosts=config.hosts, metrics=metrics, direct=direct)
    return app


def _add_own_routes(app: FastAPI, runs: Runs, callers: Callers, metrics: Metrics) -> None:
    @app.get("/healthz", response_model=dict[str, str], tags=["server"], responses=_described.responses(503))
    def healthz() -> dict[str, str]:
        """Whether the server answers and its store can be read."""
        try:
            there = runs.store.exists("format.json")
        except RaystreamError:
            there = False
        if not there:
            raise Problem(503, "the store can't be read", headers={"retry-after": "5"})
        return {"status": "ok", "version": __version__}

    @app.get(
        "/metrics",
        response_class=Response,
        tags=["server"],
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_described.responses(401, 429)},
    )
    def figures(request: Request) -> Response:
        """Figures for Prometheus."""
        callers.of(request, "read")
        return Response(metrics.text({"raystream_runs": runs.counts()}), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    def description(request: Request) -> JSONResponse:
        callers.of(request, "read")
        if app.openapi_schema is None:
            app.openapi_schema = _described_app(app)
        return JSONResponse(app.openapi_schema)

    body = {"required": True, "content": {"application/json": {"schema": _SESSION}}}

    @app.post(
        "/v1/session",
        response_model=dict[str, str],
        tags=["server"],
        openapi_extra={"requestBody": body},
        responses=_described.responses(400, 401, 403, 413, 415, 422, 429),
    )
    async def begin_session(request: Request, response: Response) -> dict[str, str]:
        """Let a browser in by a cookie; `csrf` goes into the header X-CSRF-Token of whatever changes something."""
        given = read_json(await request.body())
        token = given.get("token") if isinstance(given, dict) else None
        if not isinstance(token, str) or set(given) != {"token"}:
            raise wrong_fields([FieldError("token", "token is missing or no text; expected {\"token\": \"rs_…\"} and nothing else")])
        caller = callers.of_token(token, request)
        if not callers.open:
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, token, max_age=12 * 3600, httponly=True, samesite="strict", secure=secure, path="/")
        return _session(caller, token)

    @app.get("/v1/session", response_model=dict[str, str], tags=["server"], responses=_described.responses(401, 429))
    def session(request: Request) -> dict[str, str]:
        """Who is asking, and the CSRF token of their session."""
        return _session(callers.of(request, "read"), request.cookies.get(COOKIE, ""))

    @app.delete("/v1/session", status_code=204, tags=["server"], responses=_described.responses(403))
    def end_session(response: Response) -> None:
        """Forget the session's cookie."""
        response.delete_cookie(COOKIE, path="/")


_SESSION = {"type": "object", "required": ["token"], "properties": {"token": {"type": "string"}}, "additionalProperties": False}


def _session(caller: Caller, token: str) -> dict[str, str]:
    return {"owner": caller.owner, "scope": caller.scope, "csrf": csrf_of(token)}


def _add_page(app: FastAPI, store: Store, callers: Callers) -> None:
    """Serve the page. Its data are of all of a store, whoever asked for what, so that they need the scope for that."""

    def caller(request: Request) -> Caller:
        return callers.of(request, "admin")

    app.include_router(page_router(lambda: store, caller))


def _described_app(app: FastAPI) -> dict[str, Any]:
    """Return the description, with how callers are let in; what FastAPI adds for bodies that it reads itself is not ours."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = found.setdefault("components", {})
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    components.get("schemas", {}).pop("HTTPValidationError", None)
    components.get("schemas", {}).pop("ValidationError", None)
    for path, operations in found["paths"].items():
        for operation in operations.values():
            if path != "/healthz":
                operation.setdefault("security", [{"token": []}])
    return found


async def _of_framework(request: Request, error: Exception) -> Response:
    """Answer for what starlette itself refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    return Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()


async def _of_parameters(request: Request, error: Exception) -> Response:
    """Answer for parts of an address that can't be what they stand for."""
    assert isinstance(error, RequestValidationError)
    found = [FieldError(".".join(str(part) for part in one["loc"][1:]), str(one["msg"])) for one in error.errors()]
    return wrong_fields(found).response()


async def _of_store(request: Request, error: Exception) -> Response:
    """Answer for what the store can't give."""
    assert isinstance(error, RaystreamError)
    return store_problem(request, error).response()
