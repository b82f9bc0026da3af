"""Whether what is written somewhere would be read as rows of a pool from then on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from raystream.errors import QueryError
from raystream.lake.uri import Location, parse, redacted
from raystream.pool.folders import MAGIC, glob_pattern
from raystream.pool.table_uri import is_table


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
    target = parse(place, key)
    if not target.path.endswith(".parquet"):
        target = replace(target, path=f"{target.path.rstrip('/')}/{written}")
    found = next((uri for uri in uris if not is_table(uri) and _lists(uri, target)), None)
    if found is not None:
        raise QueryError(
            f"{key} {redacted(place)} lies in pool.uri {redacted(found)}, whose files would be replaced or joined by what is written "
            "there; name a place outside of it, or a folder whose name begins with _"
        )


def _lists(uri: str, file: Location) -> bool:
    """Whether a file, folder or glob lists a file, as `list_files` does."""
    pool = parse(uri)
    if (pool.scheme, pool.account) != (file.scheme, file.account):
        return False
    parts = pool.path.split("/")
    fixed = next((i for i, part in enumerate(parts) if MAGIC.search(part)), len(parts))
    root, path = "/".join(parts[:fixed]) or "/", file.path
    if pool.scheme == "file":
        root, path = os.path.realpath(root), os.path.realpath(path)
    if path == root:
        return True
    if not path.startswith(f"{root.rstrip('/')}/"):
        return False
    names = path[len(root) :].strip("/").split("/")
    if any(name.startswith(("_", ".")) for name in names):
        return False
    pattern = glob_pattern(parts[fixed:]) if fixed < len(parts) else None
    return pattern is None or any(pattern.fullmatch("/".join(names[:depth])) for depth in range(1, len(names) + 1))
