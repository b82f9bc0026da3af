"""Webhooks: tells addresses of the server's configuration what became of queries, signed, each event at least once.

A message is the event as JSON. Its header `X-Raystream-Signature` is `t=<seconds>,v1=<hex>`: the HMAC-SHA256 of `<seconds>.<body>` under
the address's secret. How far each address was told is kept in the store, so that whichever server has the queue goes on from there.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from raystream.errors import QueryError, RaystreamError
from raystream.service.config import Hook
from raystream.store.events import EventLog
from raystream.store.protocol import Store

_SECONDS = 10.0
_PAUSES = (5.0, 30.0, 300.0)
"""Between tries of one message, the last of which is given up after the last pause."""
_log = logging.getLogger("raystream.service")

Send = Callable[[str, bytes, Mapping[str, str]], int]


class Webhooks:
    """Tells every address what it has not been told yet; one `step` at a time.

    Args:
        hooks: the addresses.
        log: the service's.
        store: where it is kept how far each was told.
        send: posts a body with headers to an address, and returns the answer's status.
        now: seconds since the epoch.

    Raises:
        QueryError: the variable of a secret isn't set.
    """

    def __init__(
        self, hooks: Sequence[Hook], log: EventLog, store: Store, send: Send | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._log, self._store, self._send, self._now = log, store, send or post, now
        self._hooks = [(hook, _secret(hook), f"service/hooks/{hashlib.sha256(hook.url.encode()).hexdigest()[:16]}") for hook in hooks]
        self._told: dict[str, int] = {}
        self._tries: dict[str, tuple[int, float]] = {}
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Have a `step` done in a thread of its own, unless one is at it: an address that is slow holds up no query."""
        if self._hooks and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._go, name="raystream-webhooks", daemon=True)
            self._thread.start()

    def _go(self) -> None:
        try:
            self.step()
        except RaystreamError as error:
            _log.warning("webhooks can't be served for now: %s", error)
        except Exception:
            _log.exception("a defect of raystream's in the webhooks")

    def step(self) -> None:
        """Tell each address what came since; one that doesn't answer is tried again later, and holds up no other."""
        for hook, secret, place in self._hooks:
            if self._tries.get(place, (0, 0.0))[1] > self._now():
                continue
            if place not in self._told:
                known = self._store.read_if_there(place) or b"0"
                self._told[place] = int(known) if known.isdigit() else 0
            for event in self._log.read(self._told[place]):
                if event["kind"] in hook.kinds and not self._tell(hook, secret, place, event):
                    break
                self._told[place] = event["n"]
                self._store.put(place, str(event["n"]).encode())

    def _tell(self, hook: Hook, secret: bytes, place: str, event: Mapping[str, object]) -> bool:
        """Tell an event, and return whether it is done with: told, or given up."""
        body = json.dumps(event).encode()
        headers = {"content-type": "application/json", "x-raystream-signature": signature(secret, body, int(self._now()))}
        try:
            status = self._send(hook.url, body, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, told = 0, f"{type(error).__name__}"
        else:
            told = f"status {status}"
        if 200 <= status < 300:
            self._tries.pop(place, None)
            return True
        count = self._tries.get(place, (0, 0.0))[0]
        if count >= len(_PAUSES):
            _log.error("webhook %s was not told event %s: %s, tried %s times", urlsplit(hook.url).hostname, event["n"], told, count + 1)
            self._tries.pop(place, None)
            return True
        self._tries[place] = (count + 1, self._now() + _PAUSES[count])
        return False


def signature(secret: bytes, body: bytes, seconds: int) -> str:
    """Compute what proves that a message is this server's and recent."""
    return f"t={seconds},v1={hmac.new(secret, f'{seconds}.'.encode() + body, hashlib.sha256).hexdigest()}"


def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Post to an address, and return the status. Redirects are not followed; addresses of metadata services are not asked.

    Raises:
        OSError: it can't be reached, or its name leads to a link-local address.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    # the address that was looked at is the one that is connected to: a name may lead elsewhere the next time
    address = checked_address(host, port)
    plain = socket.create_connection((address, port), timeout=_SECONDS)
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if parts.scheme == "https" else plain
    try:
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, dict(headers))
        return connection.getresponse().status
    finally:
        connection.close()


def checked_address(host: str, port: int) -> str:
    """Return the first address of a name.

    Raises:
        OSError: there is none, or one of them is link-local, where clouds keep their metadata, or no host's at all.
    """
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        inner = getattr(address, "ipv4_mapped", None) or address
        if inner.is_link_local or inner.is_multicast or inner.is_unspecified or text in _METADATA:
            raise OSError(f"{host} leads to {text}, which is not asked")
    return found[0]


_METADATA = ("fd00:ec2::254", "100.100.100.200")


def _secret(hook: Hook) -> bytes:
    found = os.environ.get(hook.secret)
    if not found:
        raise QueryError(f"webhooks.secret names the environment variable {hook.secret}, which is not set; set it to a random text")
    return found.encode()
