"""A tool's server as one client asks it: a token that goes to no other host, what is read asked for again, what is written never blindly.

A write has three outcomes: done, refused, *unknown*, where the reply was lost. `write` says which, and whoever writes looks before writing
again.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from raystream.errors import DataError, QueryError, RaystreamError
from raystream.lake.retry import BRIEF, Patience, Place

TOKENS = {"label_studio": "LABEL_STUDIO_API_KEY", "cvat": "CVAT_ACCESS_TOKEN"}
"""The tools that have an API here, and the variables of the environment in which commands find the token of their user."""
_TIMEOUT = 120.0
"""Seconds without an answer; what is asked for at once takes a server a few."""
_UNAUTHORISED = (401, 403)
_UNKNOWN = (408, 425, 429, 500, 502, 503, 504)
"""What says nothing of whether a write was carried out, or asks for patience."""


class ServerError(DataError):
    """A labelling tool's server refuses, or doesn't answer."""


class LostReplyError(ServerError):
    """Whether a write was carried out isn't known: the connection broke, or something between us and the server gave up."""


class _StatusError(OSError):
    """An answer that is no success; its text is what `raystream.lake.reason` tells outages by."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP status {status}")
        self.status, self.body = status, body

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.body)


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect within the server alone, since the token goes with it."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        here, there = urlsplit(req.full_url), urlsplit(newurl)
        if (here.scheme, here.netloc) != (there.scheme, there.netloc):
            raise ServerError(
                f"{here.scheme}://{here.netloc} redirects to another host, {there.scheme}://{there.netloc}, which gets no token of yours; "
                "give that URL if it is the server"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass(frozen=True)
class Token:
    """What a server knows its user by; `repr` hides it."""

    secret: str

    def __repr__(self) -> str:
        return "Token(…)"

    @property
    def is_refresh(self) -> bool:
        """Whether it is a JSON web token, from which short-lived ones are got, rather than one that is sent itself."""
        return self.secret.count(".") == 2


class Server:
    """One server.

    Args:
        url: its address; a path below it belongs to it.
        token: of its user.
        patience: with outages once it has answered.
        name: of the tool, for messages.
        bearer: whether the token itself is sent as a bearer's, whatever it looks like.
    """

    def __init__(self, url: str, token: Token, patience: Patience = BRIEF, name: str = "Label Studio", *, bearer: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise QueryError(f"{name}'s server {_shown(url)} is no URL; expected http://host:port or https://host")
        if parts.username or parts.password or parts.query:
            raise QueryError(f"{name}'s server {_shown(url)} holds credentials or options; give the token in the environment alone")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._token, self._name, self._bearer = token, name, bearer
        self._access: str | None = None
        self._place = Place(self.url, patience)
        self._opener = urllib.request.build_opener(_SameHost)

    def read(self, path: str, key: str | None = None, **query: Any) -> Any:
        """Return what a GET gives, asked for again while the server is away.

        Args:
            path: below the server's address.
            key: that the answer must have.
            query: parameters.

        Raises:
            ServerError: it refuses, stays away, or is another program.
        """
        address = path + (f"?{urlencode(query)}" if query else "")
        found = self._answered(lambda: self._place.ask(lambda: self._authorised("GET", address, None), final=_is_refusal), address)
        if key is not None and (not isinstance(found, Mapping) or key not in found):
            raise ServerError(f"{self.url}{path} doesn't answer as {self._name} does: no {key} in it; check the URL")
        return found

    def write(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """Send a POST, PATCH or DELETE once, and return what it gives.

        Args:
            method: of HTTP.
            path: below the server's address.
            body: sent as JSON, bytes as they are.
            headers: further ones, such as the type of those bytes.

        Raises:
            LostReplyError: whether it was carried out isn't known.
            ServerError: it was refused.
        """
        try:
            return self._authorised(method, path, body, headers)
        except _StatusError as error:
            if error.status in _UNKNOWN:
                raise LostReplyError(f"{self.url}{path} answered with {error.status}") from None
            raise self._refused(path, error) from None
        except (OSError, http.client.HTTPException) as error:
            raise LostReplyError(f"{self.url}{path} broke off: {_told(error)}") from None

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Take what is found in an answer to be of another shape for the server's fault.

        Raises:
            ServerError: it was.
        """
        try:
            yield
        except RaystreamError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = str(error) if isinstance(error, ValueError) else f"an answer has another shape ({type(error).__name__}: {error})"
            raise ServerError(f"{self.url} doesn't answer as {self._name} does: {what}; check its version") from error

    def _answered(self, ask: Callable[[], Any], path: str) -> Any:
        try:
            return ask()
        except _StatusError as error:
            raise self._refused(path, error) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.url} doesn't answer: {_told(error)}; check the URL and whether {self._name} runs there") from None

    def _authorised(self, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
        """Send one request with the token; a short-lived one is renewed once if it has expired."""
        fresh = self._access is None
        try:
            return self._request(method, path, body, {**(headers or {}), "Authorization": self._header()})
        except _StatusError as error:
            if error.status != 401 or self._bearer or not self._token.is_refresh or fresh:
                raise
            self._access = None
            return self._request(method, path, body, {**(headers or {}), "Authorization": self._header()})

    def _header(self) -> str:
        if self._bearer:
            return f"Bearer {self._token.secret}"
        if not self._token.is_refresh:
            return f"Token {self._token.secret}"
        if self._access is None:
            found = self._request("POST", "/api/token/refresh/", {"refresh": self._token.secret}, {})
            self._access = str(found["access"])
        return f"Bearer {self._access}"

    def _request(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Any:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Accept": "application/json", **headers}, method=method)
        if data is not None and not request.has_header("Content-type"):
            request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as reply:
                content = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                raise _StatusError(error.code, _beginning(error)) from None
        except urllib.error.URLError as error:
            raise error.reason if isinstance(error.reason, OSError) else ConnectionError(str(error.reason)) from None
        except http.client.HTTPException as error:
            raise ConnectionResetError(f"the reply was cut off ({type(error).__name__})") from None
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise ServerError(f"{self.url}{path} doesn't answer as {self._name} does: no JSON; check the URL") from None

    def _refused(self, path: str, error: _StatusError) -> ServerError:
        told = f": {error.body}" if error.body else ""
        if error.status in _UNAUTHORISED:
            kind = "" if self._bearer else f", which looks like {'a personal access' if self._token.is_refresh else 'a legacy'} token"
            return ServerError(
                f"{self.url} refuses the token ({error.status}){kind}{told}; copy it again from the account's page, or make another one "
                "if it has expired or was revoked, and see that it may do this"
            )
        return ServerError(f"{self.url}{path} refuses with {error.status}{told}; check the project and the rights of the token")


def _is_refusal(error: BaseException) -> bool:
    """Tell whether to ask again would end the same."""
    return isinstance(error, _StatusError) and error.status not in _UNKNOWN


def _beginning(error: urllib.error.HTTPError) -> str:
    """Return the first words of what a server says of a refusal, of JSON its detail."""
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    if isinstance(found, dict):
        text = str(found.get("detail") or found.get("validation_errors") or text)
    return " ".join(text.split())[:300]


def _told(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}" if parts.scheme else url.partition("?")[0]
