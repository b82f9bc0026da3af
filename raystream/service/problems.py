"""What the service answers when it can't do what is asked: problem details (RFC 9457), with the path of each field that is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from raystream.query import Query

MEDIA_TYPE = "application/problem+json"
_KEY = re.compile(r"([a-z_]+(?:\.[A-Za-z0-9_-]+)*)(?= |:|,|;|$)")


@dataclass(frozen=True)
class FieldError:
    """What is wrong with a field: its path in the body, such as `select.budget`, empty for the whole of it, and a sentence."""

    path: str
    detail: str

    @property
    def as_json(self) -> dict[str, str]:
        """With the path as a JSON pointer, too."""
        pointer = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in self.path.split(".") if part)
        return {"path": self.path, "pointer": pointer, "detail": self.detail}


class Problem(Exception):
    """A request that isn't served.

    Args:
        status: of the answer.
        detail: one sentence, which the caller may know.
        errors: by field.
        headers: of the answer.
    """

    def __init__(
        self, status: int, detail: str, errors: Sequence[FieldError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, tuple(errors), dict(headers or {})

    def response(self) -> JSONResponse:
        """Make the answer."""
        return JSONResponse(self.body(), self.status, self.headers, MEDIA_TYPE)

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        title = HTTPStatus(self.status).phrase
        found: dict[str, Any] = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return found | ({"errors": [error.as_json for error in self.errors]} if self.errors else {})


def unknown(what: str) -> Problem:
    """Make the answer for what isn't there, or belongs to others: the two look the same."""
    return Problem(404, f"there is no {what}")


def wrong_fields(errors: Sequence[FieldError]) -> Problem:
    """Make the answer for a body that says what can't be."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Problem(422, f"{first.detail}{more}", errors)


def of_sentence(sentence: str) -> FieldError:
    """Say what is wrong, from a sentence about a query, which begins with the key that it is about."""
    match = _KEY.match(sentence)
    path = match[1] if match and match[1].partition(".")[0] in Query.model_fields else ""
    return FieldError(path, sentence)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """Return the answer for a problem, for FastAPI."""
    assert isinstance(error, Problem)
    return error.response()


@dataclass(frozen=True)
class Described:
    """How problems look in the description of the service."""

    schema: dict[str, Any] = field(
        default_factory=lambda: {
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "errors": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["path", "pointer", "detail"],
                        "properties": {name: {"type": "string"} for name in ("path", "pointer", "detail")},
                    },
                },
            },
        }
    )

    def responses(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """Return those of a route."""
        content = {MEDIA_TYPE: {"schema": self.schema}}
        return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
