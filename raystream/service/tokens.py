"""Who may ask for what: tokens, and who is behind a request.

Tokens: who may ask for what. A file holds their hashes, a line each; the tokens themselves are shown once, when they are made.

    team-a submit 2027-01-31T00:00:00Z sha256:9f86d081…

A line names the owner, to whom queries belong whichever of its tokens asked; the scope; when it ends, or `never`; and the hash.

Who asks: by a bearer token, or, for the page, by a session cookie with a CSRF header for whatever changes something.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fastapi import Request

from raystream.errors import QueryError
from raystream.service.edge import SAFE, Problem

PREFIX = "rs_"
_BYTES = 32
SCOPES = ("read", "submit", "admin")
"""Each holds those before it."""
Scope = Literal["read", "submit", "admin"]
_LINE = re.compile(r"(?P<owner>[A-Za-z0-9][A-Za-z0-9._-]{0,63}) (?P<scope>read|submit|admin) (?P<ends>\S+) sha256:(?P<digest>[0-9a-f]{64})")
_TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Caller:
    """Someone who asks: the owner of their queries, and what they may do."""

    owner: str
    scope: Scope

    def may(self, scope: Scope) -> bool:
        """Tell whether their scope holds this one."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


LOCAL = Caller("local", "admin")
"""Whoever reaches a server without tokens, which listens on the loopback address alone."""


def new_token(owner: str, scope: Scope, ends: datetime | None) -> tuple[str, str]:
    """Make a token, and the line of it for the file.

    Args:
        owner: to whom its queries belong.
        scope: what it may do.
        ends: from when on it is refused; None: never.

    Raises:
        QueryError: the owner's name can't stand in the file.
    """
    if not _OWNER.fullmatch(owner):
        raise QueryError(f"--owner {owner!r}: expected letters, digits, dots, hyphens and underscores, a letter or digit first, 64 at most")
    token = PREFIX + secrets.token_urlsafe(_BYTES)
    until = "never" if ends is None else ends.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return token, f"{owner} {scope} {until} sha256:{_digest(token)}"


@dataclass(frozen=True)
class _TokenLine:
    caller: Caller
    ends: datetime | None
    digest: str


class Tokens:
    """The tokens of a file, which is read again whenever it changed: a line that is removed is refused from then on.

    Raises:
        QueryError: the file can't be read, or a line is none.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser()
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._lines: tuple[_TokenLine, ...] = ()
        self._lines, self._seen = self._read()

    def caller(self, token: str, now: datetime) -> Caller | None:
        """Find who holds a token; None if nobody does, or not any more. A file that is gone or damaged lets nobody in.

        Every line is compared, each in a time that doesn't depend on where it differs.
        """
        digest = _digest(token) if _TOKEN.fullmatch(token) else "0" * 64
        found: _TokenLine | None = None
        for line in self._now():
            if hmac.compare_digest(line.digest, digest):
                found = line
        if found is None or (found.ends is not None and found.ends <= now):
            return None
        return found.caller

    def _now(self) -> tuple[_TokenLine, ...]:
        with self._lock:
            try:
                if _stamp(os.stat(self._path)) != self._seen:
                    self._lines, self._seen = self._read()
            except (OSError, QueryError):
                self._lines, self._seen = (), None
            return self._lines

    def _read(self) -> tuple[tuple[_TokenLine, ...], tuple[int, int, int]]:
        try:
            with self._path.open(encoding="utf-8") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise QueryError(f"tokens {self._path} can't be read: {reason}; make a line by raystream token") from None
        return tuple(line for number, row in enumerate(text.splitlines(), 1) if (line := self._line(row.strip(), number))), stamp

    def _line(self, text: str, number: int) -> _TokenLine | None:
        if not text or text.startswith("#"):
            return None
        match = _LINE.fullmatch(text)
        if match is None:
            raise QueryError(
                f"tokens {self._path}, line {number} is no token's, expected an owner, read, submit or admin, a time or never, and "
                "sha256:…; raystream token prints such a line"
            )
        scope: Scope = match["scope"]  # type: ignore[assignment]
        return _TokenLine(Caller(match["owner"], scope), self._time(match["ends"], number), match["digest"])

    def _time(self, text: str, number: int) -> datetime | None:
        if text == "never":
            return None
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = None
        if found is None or found.tzinfo is None:
            raise QueryError(f"tokens {self._path}, line {number} ends at {text!r}, expected never or a time such as 2027-01-31T00:00:00Z")
        return found


def csrf_of(token: str) -> str:
    """Return what a page that is let in by a cookie has to send along with whatever changes something."""
    return hmac.new(_digest(token).encode(), b"raystream csrf", hashlib.sha256).hexdigest()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


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
