"""The service on Ray Serve, as `raystream serve` has it: `serve run jobs.serve:app`, with the configuration in `serve.yaml`.

One replica, since one server schedules at a time; many requests at once, since each open stream of events is one. Ray's own token does
not protect Serve's port: the tokens of the configuration do.
"""

import os

from raystream.service.app import create_app
from raystream.service.config import Config

try:
    from ray import serve
except ImportError as error:
    raise SystemExit(f"jobs/serve.py needs Ray Serve ({error}); pip install 'ray[serve]'") from None


def build() -> object:
    """The application, made on the replica."""
    return create_app(Config.load(os.environ.get("RAYSTREAM_SERVE", "serve.yaml"), {}))


app = serve.deployment(num_replicas=1, max_ongoing_requests=1000)(serve.ingress(build)()).bind()
