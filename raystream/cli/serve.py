"""`raystream serve` and `raystream token`. Imports are late: `--help` is fast, and the service is an extra."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raystream.cli.upkeep import seconds_of
from raystream.errors import QueryError


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The server's configuration, a YAML file.", show_default=False)
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="The address to listen on; 127.0.0.1 if nothing says otherwise.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="The port to listen on; 8700 if nothing says otherwise.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URI", help="Where queries, scores and requests are kept.")] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="FILE", help="The file of those who may ask; see raystream token.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="PREFIX", help="Where pools, labels and weights may lie; may be given often.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Serve a store's queries over HTTP, until interrupted.

    Queries run as processes of their own, which outlive the server. Without tokens it listens on the loopback address alone.
    """
    try:
        import uvicorn

        from raystream.service.app import create_app
        from raystream.service.config import Config
        from raystream.service.edge import HttpProtocol, log_to_stderr
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "h11", "fastapi", "starlette"):
            raise
        raise QueryError(f"raystream serve needs {error.name}, which is not installed; pip install '.[service]'") from None
    given: dict[str, Any] = {"host": host, "port": port, "tokens": tokens, "allow": allow or None}
    given |= {"store": {"uri": store} if store is not None else None}
    asked = Config.load(config, {key: value for key, value in given.items() if value is not None})
    log_to_stderr()
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(asked),
            host=asked.host,
            port=asked.port,
            http=HttpProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=64 << 10,
            limit_concurrency=1000,
        )
    )
    server.run()
    if not server.started:
        raise QueryError(f"port {asked.port} of {asked.host} can't be listened on; another program may have it, so give --port")


def token(
    scope: Annotated[Literal["read", "submit", "admin"], typer.Option("--scope", metavar="read|submit|admin", help="What it may do.")],
    owner: Annotated[
        str, typer.Option("--owner", metavar="NAME", help="To whom its queries belong; several tokens may share one.")
    ] = "default",
    expires: Annotated[str, typer.Option("--expires", metavar="TIME", help="When it ends, such as 12h or 90d; 0: never.")] = "90d",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a token for the service.

    The token is shown once; the line, which holds its hash alone, is for the server's file of tokens.
    """
    from raystream.service.tokens import new_token

    seconds = seconds_of(expires, "--expires")
    made, line = new_token(owner, scope, datetime.now(UTC) + timedelta(seconds=seconds) if seconds else None)
    print(json.dumps({"token": made, "line": line}) if as_json else f"token  {made}\nline   {line}")
