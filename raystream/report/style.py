"""The one stylesheet of all pages and charts, and the templates that use it."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

STYLE = Markup(files("raystream.report").joinpath("templates/style.css").read_text(encoding="utf-8"))


def templates() -> Environment:
    """Return the templates; what they show is escaped, and a name that isn't there is an error."""
    made = Environment(
        loader=PackageLoader("raystream.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["breakable"] = breakable
    return made


_BREAKS = re.compile(r"(?<=[/_.:#|,;=&?])(?![/_.:#|,;=&?\s]|$)(?:(?<!\d[.,])|(?!\d))")


def breakable(words: str) -> list[str]:
    """Words, or an id, in the parts between which a line may end: after what separates parts of a name, not within a number."""
    return _BREAKS.split(words) if words else []
