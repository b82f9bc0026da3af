"""The service on Ray Serve, as `raystream serve` has it: `serve run jobs.serve:app`, with the configuration that RAYSTREAM_SERVE names.

The configuration, `serve.yaml` unless told otherwise, is read where the command is given, and its relative paths begin in that folder,
which the replica's machine must have, too. One replica, since one server of a store schedules at a time; many requests at once, since each
open stream of events is one. Queries run on the same cluster. Serve's port is open to whoever reaches it, and Ray's own token doesn't
protect it: there must be tokens.
"""

import os
from collections.abc import Callable

import ray
from fastapi import FastAPI

from raystream.errors import QueryError
from raystream.service.app import create_app
from raystream.service.config import Config

try:
    from ray import serve
except ImportError as error:
    raise SystemExit(f"jobs/serve.py needs Ray Serve ({error}); pip install 'ray[serve]'") from None


def builder(config: Config, folder: str) -> Callable[[], FastAPI]:
    """What makes the application on the replica, whose environment and folder are not those of the command."""
    if config.tokens is None:
        raise QueryError("the configuration names no tokens, but Serve's port is open to whoever reaches it; make some by raystream token")
    given = config.model_dump(mode="json")

    def build() -> FastAPI:
        os.chdir(folder)
        # `auto` is this cluster for the queries' processes; else they would start a Ray of their own beside it
        os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        return create_app(Config(**given))

    return build


try:
    build = builder(Config.load(os.environ.get("RAYSTREAM_SERVE", "serve.yaml"), {}), os.getcwd())
except QueryError as error:
    raise SystemExit(str(error)) from None
app = serve.deployment(num_replicas=1, max_ongoing_requests=1000)(serve.ingress(build)()).bind()
