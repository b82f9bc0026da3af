"""Whether what is written somewhere would be read as rows from then on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from raystream.errors import QueryError
from raystream.lake.uri import Location, parse, redacted
from raystream.pool.folders import MAGIC, glob_pattern
from raystream.pool.table_uri import TableUri, is_table, parse_table


def refuse_among(place: str, sources: Mapping[str, Sequence[str]], key: str, written: str = "results.parquet") -> None:
    """Refuse to write among the rows that a query reads: the next one would read results as rows, or find a file replaced.

    Files in a table's folder are no concern, since they aren't the table's until its log says so; a table in a folder of files is one.

    Args:
        place: a file that ends in `.parquet`, a folder, or a table.
        sources: the URIs that the query reads rows from, by their keys: `Query.row_uris`.
        key: the query's key or the option that the place stands in, for messages.
        written: what a folder gets, beside units and tables.

    Raises:
        QueryError: one of the sources would list it.
    """
    table = parse_table(place, key) if is_table(place) else None
    targets: list[Location] = []
    if table is None or table.kind == "delta":
        target = parse(place if table is None else table.name, key)
        file = table is None and target.path.endswith(".parquet")
        targets = [target] if file else [replace(target, path=f"{target.path.rstrip('/')}/{name}") for name in (written, "part-0.parquet")]
    for read, uris in sources.items():
        for uri in uris:
            if is_table(uri):
                found = table is not None and _same_table(parse_table(uri, read)) == _same_table(table)
            else:
                found = any(_lists(uri, target, read) for target in targets)
            if found:
                raise QueryError(
                    f"{key} {redacted(place)} lies in {read} {redacted(uri)}, whose rows would be replaced or joined by what is written "
                    "there; name a place outside of it, or a folder whose name begins with _"
                )


def _same_table(table: TableUri) -> tuple[str, str, str]:
    """What is equal for two URIs of one table."""
    if table.kind == "iceberg":
        return table.kind, table.catalog, table.name
    place = parse(table.name)
    return table.kind, place.scheme, os.path.realpath(place.path) if place.scheme == "file" else place.uri


def _lists(uri: str, file: Location, key: str) -> bool:
    """Whether a file, folder or glob lists a file, as `list_files` does; of what may be a glob or a name, as either of them."""
    pool = parse(uri, key)
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
    pattern = glob_pattern(parts[fixed:], names_too=True) if fixed < len(parts) else None
    return pattern is None or any(pattern.fullmatch("/".join(names[:depth])) for depth in range(1, len(names) + 1))
