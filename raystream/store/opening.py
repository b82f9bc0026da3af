"""Open the store that a URI names, and hold it to what every store promises."""

from __future__ import annotations

import json
import os
from typing import TypeVar

from raystream.errors import QueryError, StoreError, StoreVersionError
from raystream.lake import LOCAL, Storage, is_remote, parse, redacted
from raystream.lake.retry import LASTING, Patience
from raystream.lake.uri import absolute
from raystream.store.local import LocalStore
from raystream.store.protocol import Store

_Result = TypeVar("_Result")


FORMAT = 2
"""The version of what this raystream writes; a store of another one is refused."""


def store_at(uri: str, storage: Storage = LOCAL, patience: Patience = LASTING) -> Store:
    """Return the store that a URI names.

    Args:
        uri: a folder, or `s3://bucket/prefix`, `gs://`, `abfs://`.
        storage: options of the object storage, as `pool.storage` has them.
        patience: with a server that is away.

    Raises:
        QueryError: no store can be there, or the options aren't for it.
    """
    if is_remote(uri):
        from raystream.store.bucket import ObjectStore

        return ObjectStore(uri, storage, patience)
    if storage != LOCAL:
        raise QueryError(f"store.storage is for object storage, but store.uri {uri} is a folder; remove it")
    return LocalStore(uri, patience)


def open_store(uri: str, storage: Storage = LOCAL) -> Store:
    """Open the store that a URI names, and make it if it isn't there yet.

    Raises:
        StoreError: it can't be written, or its server breaks the promise of `put_if_absent`.
        StoreVersionError: it was written by a newer raystream.
    """
    store = store_at(uri, storage)
    prepare_store(store)
    return store


def store_to_read(uri: str, storage: Storage = LOCAL) -> Store:
    """Open the store that a URI names, left as it is, whether or not it is there.

    Raises:
        StoreVersionError: it was written by a newer raystream.
    """
    store = store_at(uri, storage)
    check_version(store)
    return store


def existing_store(uri: str, storage: Storage = LOCAL) -> Store:
    """Open the store that a URI names, left as it is.

    Raises:
        QueryError: raystream has written none there.
        StoreVersionError: it was written by a newer raystream.
    """
    store = store_at(uri, storage)
    if not check_version(store):
        raise QueryError(f"{absolute(uri)} is no store of raystream's: it holds no format.json; see --store")
    return store


def refuse_in_store(place: str, store_uri: str, key: str) -> None:
    """Refuse to write into a store what isn't part of it: `raystream gc` takes what no query names for leftovers.

    Args:
        place: a file, a folder or a table.
        store_uri: of the store.
        key: the query's key or the option that the place stands in, for messages.

    Raises:
        QueryError: the place is the store or lies in it.
    """
    if place.startswith("iceberg:") or place == "delta+":
        return  # no folder, or none yet
    target, store = parse(place.removeprefix("delta+"), key), parse(store_uri, "store.uri")
    if (target.scheme, target.account) != (store.scheme, store.account):
        return
    inner, outer = (os.path.realpath(p) if target.scheme == "file" else p.rstrip("/") for p in (target.path, store.path))
    if inner == outer or inner.startswith(f"{outer.rstrip('/')}/"):
        raise QueryError(
            f"{key} {redacted(place)} lies in the store {redacted(store_uri)}, which holds scored units and queries alone; name a place "
            "outside of it"
        )


def prepare_store(store: Store) -> None:
    """Write `format.json` unless it is there, and check what is there; see `open_store`."""
    if store.read_if_there("format.json") is None:
        store.put_if_absent("format.json", json.dumps({"version": FORMAT}).encode())
    check_version(store)
    store.check_commits()


def check_version(store: Store) -> bool:
    """Tell whether the store is there; refuse one of another version."""
    data = store.read_if_there("format.json")
    if data is None:
        return False
    try:
        version = json.loads(data)["version"]
        newer, older = version > FORMAT, version < FORMAT
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"store {store.uri}: format.json is damaged; expected {{'version': {FORMAT}}}") from None
    if newer:
        raise StoreVersionError(
            f"store {store.uri} has version {version}, this raystream reads {FORMAT}; use a newer raystream or another store.uri"
        )
    if older:
        raise StoreError(
            f"store {store.uri} has version {version}, an older layout than {FORMAT}, which this raystream reads; set another store.uri "
            "and run the queries again, or read it with the raystream that wrote it"
        )
    return True
