"""Who asks: by a bearer token, or, for the page, by a session cookie with a CSRF header for whatever changes something."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from fastapi import Request

from raystream.service.edge import SAFE
from raystream.service.problems import Problem
from raystream.service.tokens import LOCAL, Caller, Scope, Tokens, csrf_of

COOKIE = "raystream_session"
CSRF_HEADER = "x-csrf-token"
_FAILURES = 10
"""Wrong tokens that an address may send at once; then one a second."""


class Callers:
    """Finds out who asks.

    Args:
        tokens: of those who may; None where whoever reaches the server may do everything.
        now: the time.
    """

    def __init__(self, tokens: Tokens | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._tokens, self._now = tokens, now
        self._lock = threading.Lock()
        self._failed: dict[str, tuple[float, float]] = {}

    @property
    def open(self) -> bool:
        """Whether nobody needs a token."""
        return self._tokens is None

    def of(self, request: Request, scope: Scope) -> Caller:
        """Find who asks, provided that they may.

        Raises:
            Problem: 401, nobody known asks; 403, they may not; 429, too many wrong tokens came from there.
        """
        if self._tokens is None:
            caller: Caller | None = LOCAL
        else:
            caller = self._known(request, self._tokens)
        if caller is None:
            raise Problem(401, "give a valid token: Authorization: Bearer rs_…", headers={"www-authenticate": 'Bearer realm="raystream"'})
        request.state.caller = caller
        if not caller.may(scope):
            raise Problem(403, f"this needs a token of scope {scope}, yours has {caller.scope}")
        return caller

    def of_token(self, token: str, request: Request) -> Caller:
        """Find who holds a token that came in a body.

        Raises:
            Problem: 401, nobody; 429, too many wrong ones came from there.
        """
        caller = LOCAL if self._tokens is None else self._checked(token, self._tokens, request)
        if caller is None:
            raise Problem(401, "the token is not valid", headers={"www-authenticate": 'Bearer realm="raystream"'})
        return caller

    def _known(self, request: Request, tokens: Tokens) -> Caller | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme:
            return self._checked(token.strip(), tokens, request) if scheme.lower() == "bearer" else None
        token = request.cookies.get(COOKIE, "")
        caller = self._checked(token, tokens, request) if token else None
        if caller is not None and request.method not in SAFE:
            sent = request.headers.get(CSRF_HEADER, "")
            if not hmac.compare_digest(sent.encode(), csrf_of(token).encode()):
                raise Problem(403, "a session needs the header X-CSRF-Token for this, with what GET /v1/session gives")
        return caller

    def _checked(self, token: str, tokens: Tokens, request: Request) -> Caller | None:
        address = request.client.host if request.client else ""
        now = self._now()
        seconds = now.timestamp()
        with self._lock:
            count, since = self._failed.get(address, (0.0, seconds))
            count = max(0.0, count - (seconds - since))
        caller = tokens.caller(token, now)
        if caller is not None:
            return caller
        with self._lock:
            if len(self._failed) > 10_000:
                self._failed.clear()
            self._failed[address] = (min(count + 1, _FAILURES + 1), seconds)
        if count >= _FAILURES:
            raise Problem(429, "too many wrong tokens came from this address; wait a second", headers={"retry-after": "1"})
        return None
