"""What a query asks of a unit beyond the scores that every unit holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raystream.errors import QueryError, did_you_mean
from raystream.model import code_hash
from raystream.query import Query

_EGL_CLASSES = 10


@dataclass(frozen=True)
class Asked:
    """Further scores, and how they are made; all of it changes a unit's outputs, and so its key.

    Attributes:
        gradients: `egl` and `badge_norm`.
        bias: whether the last layer has one; None: look.
        egl_classes: how many of the likeliest classes count in `egl_parameters`; None: it isn't asked for.
        functions: the user's own, as import path and hash of its code, sorted.
        class_weights: a weight for each class, or pairs of class and weight, the others being 1; None: no score is weighted. Classes are
            indices, or where only the model knows their names, these.
    """

    gradients: bool = False
    bias: bool | None = None
    egl_classes: int | None = None
    functions: tuple[tuple[str, str], ...] = ()
    class_weights: tuple[float, ...] | tuple[tuple[int | str, float], ...] | None = None

    def key_parts(self, gradients: bool) -> dict[str, Any]:
        """What a unit's key holds of it; nothing where nothing is asked for.

        Args:
            gradients: whether the unit holds those scores, asked for or not.
        """
        parts = {
            "gradients": [self.bias] if gradients else None,
            "egl_parameters": self.egl_classes,
            "acquisition_functions": self.functions or None,
            "class_weights": self.class_weights,
        }
        return {name: value for name, value in parts.items() if value is not None}


def asked_of(query: Query, classes: Sequence[str] | None) -> Asked:
    """What a query asks for, its functions' sources hashed and its classes' names looked up.

    Raises:
        QueryError: a class is unknown.
        ModelError: a function's module isn't there.
    """
    acquire = query.acquire
    return Asked(
        gradients=query.needs_gradients,
        bias=acquire.args.get("bias"),
        egl_classes=acquire.args.get("egl_classes", _EGL_CLASSES) if "egl_parameters" in acquire.asked else None,
        functions=tuple(sorted((path, code_hash(path, "acquire")) for path in acquire.asked if ":" in path)),
        class_weights=_weights(acquire.class_weights, classes, query.names_classes),
    )


def _weights(
    given: dict[int | str, float] | list[float] | None, classes: Sequence[str] | None, named_later: bool
) -> tuple[float, ...] | tuple[tuple[int | str, float], ...] | None:
    if given is None:
        return None
    if isinstance(given, list):
        if classes is not None and len(given) != len(classes):
            raise QueryError(f"acquire.class_weights holds {len(given)} weights, but model.classes names {len(classes)} classes")
        return tuple(given)
    if classes is None and named_later:
        return tuple(sorted((str(key), weight) for key, weight in given.items()))
    weights: dict[int, float] = {}
    for key, weight in given.items():
        index = _index(key, classes)
        if index in weights:
            raise QueryError(f"acquire.class_weights names class {index} twice, once by its name; give it one weight")
        weights[index] = weight
    return tuple(sorted(weights.items()))


def _index(key: int | str, classes: Sequence[str] | None) -> int:
    if isinstance(key, str) and classes is not None and key in classes:
        return list(classes).index(key)
    if isinstance(key, str) and not key.isdigit():
        raise QueryError(f"acquire.class_weights names class {key!r}, which is not one of model.classes{did_you_mean(key, classes or ())}")
    index = int(key)
    if index < 0 or (classes is not None and index >= len(classes)):
        most = f"0 to {len(classes) - 1}" if classes is not None else "0 or more"
        raise QueryError(f"acquire.class_weights names class {index}, expected {most}, or a name in model.classes")
    return index
