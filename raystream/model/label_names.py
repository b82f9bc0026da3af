"""Which of the named classes a label means that a person wrote.

Files of text lose what was text in them: a CSV column of ratings becomes numbers, one of `true` and `false` truth values. So where a name
is a numeral, numbers are matched with the names by value, never as places among them: of classes `1` to `5`, the number 1 is the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

_NUMERAL = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_TRUTH = {"false": False, "true": True}


class LabelNames:
    """Finds the places of labels among the names of classes.

    Attributes:
        numerals: whether any name is a numeral, so that numbers are names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._count = len(names)
        self._places = {name: place for place, name in enumerate(names)}
        self._numbers = _once([(Decimal(name), place) for place, name in enumerate(names) if _NUMERAL.fullmatch(name)])
        self._truths = _once([(_TRUTH[name.lower()], place) for place, name in enumerate(names) if name.lower() in _TRUTH])
        self.numerals = bool(self._numbers)

    def place(self, label: Any) -> int | None:
        """Return the place of the class that a label means; None where it is no class, or may be several.

        Args:
            label: a name; a number, which is a name's value where any name is a numeral, else a place; a truth value, which is the name
                `true` or `false`, else 1 or 0.
        """
        if isinstance(label, str):
            return self._places.get(label)
        if isinstance(label, bool):
            return self._truths.get(label) if self._truths else self.place(int(label))
        if not isinstance(label, int | float | Decimal) or not math.isfinite(label):
            return None
        if self._numbers:
            same = self._places.get(str(label))
            return same if same is not None else self._numbers.get(Decimal(str(label)))
        return int(label) if label == int(label) and 0 <= label < self._count else None


def _once(pairs: Sequence[tuple[Any, int]]) -> dict[Any, int | None]:
    """Return places by what names stand for; None for what several stand for, such as `1` and `01`."""
    found: dict[Any, int | None] = {}
    for value, place in pairs:
        found[value] = None if value in found else place
    return found
