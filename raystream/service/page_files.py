"""The page's own files: what a server hands out, by name, and the same put together as one file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

STYLES = ("base.css", "page.css")
LIBRARY = "vendor/htm-preact.js"
MODULES = (
    *("preact.js", "format.js", "source.js", "parts.js", "charts.js", "queries.js", "compare.js"),
    *("next_query.js", "gallery.js", "pool_map.js", "query.js", "campaigns.js", "app.js"),
)  # fmt: skip
"""Each comes after those that it imports."""
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8"}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What the served page may do: load its own files, and ask its own server."""


@dataclass(frozen=True)
class PageFile:
    """A file as it is handed out; `etag` is that of its content."""

    data: bytes
    type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """Read all files by their names below `page/`, and the page itself as `index.html`. Nothing else is ever handed out."""
    folder = files("raystream.service").joinpath("page")
    found = {name: folder.joinpath(name).read_bytes() for name in ("index.html", STYLES[1], LIBRARY, *MODULES)}
    found[STYLES[0]] = files("raystream.report").joinpath("templates/style.css").read_bytes()
    return {name: _file(name, data) for name, data in found.items()}


def _file(name: str, data: bytes) -> PageFile:
    return PageFile(data, _TYPES[name[name.rindex(".") :]], f'"{hashlib.sha256(data).hexdigest()[:20]}"')


_IMPORT = re.compile(r'^import .* from "\./[a-z_]+\.js";\n', re.M)
_EXPORT = re.compile(r"^export ", re.M)


def one_file(data: dict[str, Any], home: list[str], title: str) -> bytes:
    """Make the page one file that needs nothing but itself, with the resources that it shows.

    Modules are put one after the other into one script, without what they import of each other: their names are different. A policy in
    the page's head lets these scripts and styles run and nothing else, whatever the data holds.

    Args:
        data: resources by their paths below `page/data/`.
        home: the address of the view to open.
        title: of the page, as text.
    """
    texts = {name: file.data.decode() for name, file in page_files().items()}
    style = "\n".join(texts[name] for name in STYLES)
    library = texts[LIBRARY]
    script = "\n".join(_EXPORT.sub("", _IMPORT.sub("", texts[name])) for name in MODULES)
    inlined = _in_html(json.dumps({"home": home, "data": data}, allow_nan=False, separators=(",", ":"), ensure_ascii=False))
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f'<meta name="robots" content="noindex">\n<title>{_escaped(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{style}</style>\n</head>\n"
    )
    body = (
        '<body class="raystream">\n<div id="app"><p class="waiting">Loading …</p></div>\n'
        f'<script type="application/json" id="raystream-data">{inlined}</script>\n'
        f'<script>{library}</script>\n<script type="module">{script}</script>\n</body>\n</html>\n'
    )
    return (head + body).encode("utf-8", "replace")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _in_html(text: str) -> str:
    """Write JSON that can't end the element that holds it, nor begin a comment."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
