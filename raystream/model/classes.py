"""The names of the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from raystream.errors import ModelError, QueryError


def class_names(classes: list[str] | str | None) -> list[str] | None:
    """The names that `model.classes` gives, in the order of the model's outputs; None if it gives none.

    Args:
        classes: the names, or the path of a text file with one name a line, or of a JSON file with a list.

    Raises:
        QueryError: the file can't be read, or the names aren't distinct strings.
    """
    if classes is None:
        return None
    names = _read(classes) if isinstance(classes, str) else list(classes)
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        if name in seen:
            raise QueryError(f"model.classes holds {name!r} twice, at {seen[name]} and {position}; every class needs a name of its own")
        seen[name] = position
    return names


def check_classes(names: Sequence[str] | None, count: int) -> None:
    """Compare the names with the number of the model's outputs.

    Raises:
        ModelError: they differ.
    """
    if names is not None and len(names) != count:
        raise ModelError(f"model.classes names {len(names)} classes, but the model has {count} outputs; name one per output, in order")


def _read(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise QueryError(f"model.classes {path} can't be read: {reason}; give a list of names or a file with one name a line") from None
    if path.endswith(".json") or text.lstrip().startswith("["):
        return _from_json(text, path)
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not all(names):
        raise QueryError(f"model.classes {path}, line {names.index('') + 1} is empty; expected one name a line")
    return names


def _from_json(text: str, path: str) -> list[str]:
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise QueryError(f"model.classes {path}, line {error.lineno} isn't JSON: {error.msg}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise QueryError(f"model.classes {path} holds something else than a list of names")
    return names
