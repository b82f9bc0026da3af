"""A query's page as one file, by the same code as the served one: what `raystream show QUERY --page` writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from raystream.errors import QueryError, StoreError
from raystream.service.batch_rows import CHUNK
from raystream.service.page_files import one_file
from raystream.service.views import Views
from raystream.store.protocol import Store
from raystream.store.queries import find_query, query_folder

PICTURES = 2_000
"""Chosen rows whose pictures or texts the file carries."""
POINTS = 50_000
"""Rows of the pool on its map."""


def static_page(store: Store, name: str) -> bytes:
    """Make the page of a committed query one HTML file that needs nothing but itself.

    Args:
        store: holds the query.
        name: of the query, whole.

    Raises:
        QueryError: there is no such query, or it isn't committed.
        StoreError: the query is damaged.
    """
    views = Views(store, POINTS)
    at = f"queries/{quote(name, safe='')}"
    query, rows = views.query(name), views.rows(name)
    data: dict[str, Any] = {at: query, f"{at}/rows": rows, f"{at}/histogram": views.histogram(name), f"{at}/map": views.map(name)}
    if "missing" not in data[f"{at}/map"]:
        data[f"{at}/map/ids"] = views.map_ids(name)
    for chunk in range(-(-min(len(rows["ids"]), PICTURES) // CHUNK)):
        data[f"{at}/inputs/{chunk}"] = views.inputs(name, chunk)
    return one_file(data, ["query", name], f"{name} · raystream")


def write_page(store: Store, name: str, out: str | None) -> str:
    """Write a query's page; where it is.

    Args:
        store: holds the query.
        name: of the query, or its beginning.
        out: a file of this machine; left out, `page.html` beside the query's selection.

    Raises:
        QueryError: there is no such query.
        StoreError: the query is damaged, or the file can't be written.
    """
    found = find_query(store, name)
    page = static_page(store, found)
    if out is None:
        store.put(f"{query_folder(found)}/page.html", page)
        return store.place(f"{query_folder(found)}/page.html")
    target = Path(out)
    if target.is_dir():
        raise QueryError(f"--out {out} is a folder; name a file, such as {target / 'page.html'}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(page)
        os.replace(temporary, target)
    except OSError as error:
        raise StoreError(f"--out {out} can't be written: {error.strerror}; name another place or free some space") from None
    finally:
        temporary.unlink(missing_ok=True)
    return str(target.absolute())
