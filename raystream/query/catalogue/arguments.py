"""The parameters that entries of the catalogue take, and the import paths by which they name code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Default = bool | int | float | None


@dataclass(frozen=True)
class Arg:
    """A parameter of a strategy or a score.

    Attributes:
        expected: what a value must be, in words.
        accepts: whether a value is that.
        default: the value where the query gives none; None where it follows from something else.
        meaning: what it does, a few words.
        otherwise: what holds where the default is None.
    """

    expected: str
    accepts: Callable[[object], bool]
    default: Default
    meaning: str
    otherwise: str = ""

    @property
    def default_words(self) -> str:
        """The default as a reader of the reference wants it."""
        if self.default is None:
            return self.otherwise
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f"{self.default:,}" if isinstance(self.default, int) else f"{self.default:g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def count(default: int | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a whole number of at least 1."""
    return Arg("a whole number of at least 1", lambda v: _is_count(v, 1), default, meaning, otherwise)


def natural(default: int | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a whole number of at least 0."""
    return Arg("a whole number of at least 0", lambda v: _is_count(v, 0), default, meaning, otherwise)


def positive(default: float | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a number above 0."""
    return Arg("a number above 0", lambda v: _is_number(v) and 0 < v < float("inf"), default, meaning, otherwise)  # type: ignore[operator]


def fraction(default: float | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a number above 0, at most 1."""
    return Arg("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1, default, meaning, otherwise)  # type: ignore[operator]


def share(default: float | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe a number from 0 to 1."""
    return Arg("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1, default, meaning, otherwise)  # type: ignore[operator]


def text(meaning: str, otherwise: str) -> Arg:
    """Describe a name."""
    return Arg("text", lambda v: isinstance(v, str) and bool(v), None, meaning, otherwise)


def flag(default: bool | None, meaning: str, otherwise: str = "") -> Arg:
    """Describe one of true and false."""
    return Arg("true or false", lambda v: isinstance(v, bool), default, meaning, otherwise)


def load(path: str) -> Any:
    """Import the module of `module:name`, and return what stands there under the name."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
