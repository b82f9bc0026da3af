"""Where a query's processes are to run, by what the query and the environment say: all that can be told before Ray is imported.

Ray takes a quarter of a second to import, and what it is told by the environment has to stand there before.
"""

from __future__ import annotations

import os
import secrets
import sys


def protect_own_ray() -> None:
    """Give a Ray that this process will start a token of its own, unless the user has settled the matter.

    Left alone, Ray would write a token into the user's home, which changes what later clusters accept.
    """
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def own_ray_wanted(address: str) -> bool:
    """Tell whether `cluster.address` means a Ray of our own: `auto` outside a job and without a cluster in the environment, or `local`."""
    return address == "local" or (address == "auto" and not os.environ.get("RAY_ADDRESS"))


def ray_is_here() -> bool:
    """Tell whether this process is connected to a Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", bool)())
