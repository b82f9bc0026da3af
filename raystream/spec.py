"""Reads a query file: YAML, and the keys that the command line replaces in it. What the keys mean is the query's affair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from raystream.errors import QueryError


def read_spec(path: str | Path, overrides: Sequence[str]) -> dict[Any, Any]:
    """Read the sections of a query file, with `section.key=value` overrides applied.

    Raises:
        QueryError: the file can't be read, isn't YAML, or holds no sections; an override isn't of that form.
    """
    path = Path(path).absolute()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise QueryError(f"query file {path} can't be read: {reason}") from None
    data = _parse(text, str(path))
    if not isinstance(data, dict):
        held = "nothing" if data is None else f"a {'list' if isinstance(data, list) else 'single value'}"
        raise QueryError(f"query file {path} holds {held}, expected sections such as pool:, model: and select:")
    return overridden(data, overrides)


def overridden(data: dict[Any, Any], overrides: Sequence[str]) -> dict[Any, Any]:
    """Return the sections, which are changed, with `section.key=value` overrides applied.

    Raises:
        QueryError: an override isn't of that form.
    """
    for override in overrides:
        _apply_override(data, override)
    return data


class _Loader(yaml.SafeLoader):
    """YAML without double keys, of which the last one would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        double = next((key for key in keys if keys.count(key) > 1), None)
        if double is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {double!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise QueryError(f"{where}{line} isn't YAML: {getattr(error, 'problem', None) or error}") from None


def _apply_override(data: dict[Any, Any], override: str) -> None:
    """Replace a key, or with nothing or null behind the equals sign remove it."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise QueryError(f"--set {override!r} is not of the form section.key=value")
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = data.get(section)
        if inner is None:
            inner = data[section] = {}
        if not isinstance(inner, dict):
            raise QueryError(f"--set {key}: {section} is not a section of the query")
        data = inner
    value = _parse(text, f"--set {key}")
    if value is None:
        data.pop(last, None)
    else:
        data[last] = value
