"""Whether anybody answers where a Ray cluster should be: Ray itself asks for over ten minutes. Imports no ray."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from urllib.parse import urlsplit

from raystream.errors import ClusterError

_ANSWER_SECONDS = 10.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How HTTP/2 begins, which Ray speaks: the preface and an empty frame of settings, the kind of frame that also has to come back first."""
_SETTINGS = 4


def check_answers(address: str) -> None:
    """See that the cluster's port takes connections and speaks what Ray speaks; an address that names no host and port is Ray's to judge.

    Args:
        address: `cluster.address`; for `auto`, that of `RAY_ADDRESS`.

    Raises:
        ClusterError: it doesn't.
    """
    named, remedy = address, "correct cluster.address or set it to in_process"
    if address == "auto":
        named, remedy = os.environ.get("RAY_ADDRESS", ""), "correct or unset RAY_ADDRESS, or set cluster.address to in_process"
    place = _host_and_port(named)
    if place is None:
        return
    try:
        _greet(place)
    except OSError as error:
        reason = f"nothing within {_ANSWER_SECONDS:.0f} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ClusterError(f"no Ray cluster answers at {named}: {reason}; see that it runs and lets this machine in, {remedy}") from error


def _greet(place: tuple[str, int]) -> None:
    with socket.create_connection(place, timeout=_ANSWER_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # what is behind it, its certificates decide
        connection.sendall(_GREETING)
        frame = b""
        while len(frame) < 4 and (more := connection.recv(4 - len(frame))):
            frame += more
    if len(frame) < 4 or frame[3] != _SETTINGS:
        raise ConnectionError("what listens there is not Ray (its dashboard has a port of its own)")


def _host_and_port(address: str) -> tuple[str, int] | None:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return None if parts.scheme != "ray" or host is None or port is None else (host, port)


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
