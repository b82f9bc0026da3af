"""Whether what is written somewhere would be read as rows of a pool from then on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch

from raystream.errors import QueryError
from raystream.lake.uri import parse, redacted
from raystream.pool.table_uri import is_table

_GLOB = re.compile(r"[*?\[]")


def refuse_in_pool(place: str, uris: Sequence[str], key: str, written: str = "results.parquet") -> None:
    """Refuse to write among the files of a pool: the next query would read them as rows, or find a file of the pool replaced.

    Tables are no concern: what lies in their folders is not theirs until their logs say so.

    Args:
        place: a file that ends in `.parquet`, or a folder.
        uris: of the pool.
        key: the query's key or the option that the place stands in, for messages.
        written: what a folder gets.

    Raises:
        QueryError: the pool would list it.
    """
    if is_table(place):
        return
    target = place if place.endswith(".parquet") else f"{place.rstrip('/')}/{written}"
    found = next((uri for uri in uris if not is_table(uri) and _lists(uri, target, key)), None)
    if found is not None:
        raise QueryError(
            f"{key} {redacted(place)} lies in pool.uri {redacted(found)}, whose files would be replaced or joined by what is written "
            "there; name a place outside of it, or a folder whose name begins with _"
        )


def _lists(uri: str, target: str, key: str) -> bool:
    """Whether a file, folder or glob lists a file, as `list_files` does."""
    pool, file = parse(uri), parse(target, key)
    if (pool.scheme, pool.account) != (file.scheme, file.account):
        return False
    globbed = _GLOB.search(pool.path) is not None
    root = os.path.realpath(pool.path) if pool.scheme == "file" and not globbed else pool.path
    path = os.path.realpath(file.path) if file.scheme == "file" and not globbed else file.path
    if "**" in root:
        return fnmatch(path, root)
    parts, wanted = path.strip("/").split("/"), [part for part in root.strip("/").split("/") if part]
    below = parts[len(wanted) :]
    if len(parts) < len(wanted) or any(name.startswith(("_", ".")) for name in below):
        return False
    return all(fnmatch(part, pattern) if globbed else part == pattern for part, pattern in zip(parts, wanted, strict=False))
