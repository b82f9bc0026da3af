"""`/v1/loops`, `/v1/simulations`, `/v1/streams`: what the store holds of them, to be read by any token."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from raystream.service.callers import Callers
from raystream.service.formats import rows_of
from raystream.service.problems import Described, unknown
from raystream.service.runs import is_name
from raystream.store.protocol import Store
from raystream.store.queries import read_parquet

_described = Described()
_OBJECT = {"type": "object"}


def record_router(store: Store, callers: Callers) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/v1", tags=["records"])
    responses = _described.responses(401, 429)
    content: dict[int | str, dict[str, Any]] = {200: {"description": "The answer", "content": {"application/json": {"schema": _OBJECT}}}}

    def names(request: Request, folder: str) -> JSONResponse:
        callers.of(request, "read")
        return JSONResponse({folder: [{"name": name} for name in store.names(folder) if not name.startswith(".")]})

    @router.get("/loops", responses={**content, **responses})
    def loops(request: Request) -> JSONResponse:
        """The loops of the store."""
        return names(request, "loops")

    @router.get("/loops/{name}", responses={**content, **responses, **_described.responses(404)})
    def loop(request: Request, name: str) -> JSONResponse:
        """The rounds of a loop with their metrics."""
        callers.of(request, "read")
        if not is_name(name) or not store.names(f"loops/{name}"):
            raise unknown(f"loop {name[:100]!r}")
        data = store.read_if_there(f"loops/{name}/history.parquet")
        return JSONResponse({"name": name, "rounds": [] if data is None else rows_of(read_parquet(data))})

    @router.get("/simulations", responses={**content, **responses})
    def simulations(request: Request) -> JSONResponse:
        """The simulations of the store."""
        return names(request, "simulations")

    @router.get("/simulations/{name}", responses={**content, **responses, **_described.responses(404)})
    def simulation(request: Request, name: str) -> JSONResponse:
        """What a simulation found of each strategy."""
        callers.of(request, "read")
        data = store.read_if_there(f"simulations/{name}/summary.parquet") if is_name(name) else None
        if data is None:
            raise unknown(f"simulation {name[:100]!r}")
        return JSONResponse({"name": name, "strategies": rows_of(read_parquet(data))})

    @router.get("/streams", responses={**content, **responses})
    def streams(request: Request) -> JSONResponse:
        """The streams of the store."""
        return names(request, "streams")

    return router
