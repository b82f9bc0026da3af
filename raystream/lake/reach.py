"""Keeps a process within some places: whatever it lists or opens in the lake must lie below them, links followed.

A run of the service is confined to what the server's configuration allows, whatever symbolic links or a table's metadata lead to. It can't
be undone: the process is one query's, and ends with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from raystream.errors import QueryError
from raystream.lake.uri import Location, parse

_places: tuple[Location, ...] | None = None


def confine(places: Sequence[str]) -> None:
    """Have this process list and open nothing in the lake but what lies below these paths and URIs, from now on.

    Raises:
        QueryError: a place is none.
    """
    global _places
    found = tuple(parse(place, "a place that is allowed") for place in places)
    _places = found if _places is None else tuple(place for place in found if lies_below(place, _places))


def check_reach(location: Location, key: str) -> None:
    """Refuse a place that this process may not reach.

    Raises:
        QueryError: it lies elsewhere.
    """
    if _places is not None and not lies_below(location, _places):
        raise QueryError(f"{key} leads to a place that this server doesn't allow; name one below the prefixes that it does")


def lies_below(location: Location, places: Sequence[Location]) -> bool:
    """Tell whether a place is one of these or lies below it; on this machine, where links lead."""
    return any(_is_below(location, place) for place in places)


def _is_below(location: Location, place: Location) -> bool:
    if (location.scheme, location.account) != (place.scheme, place.account):
        return False
    inner, outer = location.path.rstrip("/"), place.path.rstrip("/")
    if location.scheme == "file":
        inner, outer = os.path.realpath(location.path), os.path.realpath(place.path)
    return inner == outer or inner.startswith(f"{outer.rstrip('/')}/")
