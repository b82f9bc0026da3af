"""How strangers are kept out of a Ray that we start. Imports no ray: Ray reads these settings when it is imported."""

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
    """Whether `cluster.address` means a Ray of our own: `auto`, and not inside a job or with a cluster in the environment."""
    return address == "auto" and not os.environ.get("RAY_ADDRESS")
