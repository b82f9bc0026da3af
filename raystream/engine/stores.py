"""What every store promises, and which store a URI names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from raystream.engine.store import FORMAT, Entry, LocalStore, StoredFile, WriteBroken
from raystream.errors import DataError, QueryError, StoreError, StoreVersionError
from raystream.lake import LOCAL, Storage, is_remote, parse, redacted
from raystream.lake.retry import LASTING, Patience, retried

_AGAIN_SECONDS = 1.0
"""Before broken work is begun again, at first."""
_Result = TypeVar("_Result")


class Store(Protocol):
    """What the engine asks of a store; `LocalStore` says the same of a folder, `ObjectStore` of a bucket.

    Stores are cheap to make and can be pickled; they touch nothing until they are asked something.
    """

    @property
    def uri(self) -> str:
        """Where it is, without secrets: another process that is given it and `storage` has the same store."""

    @property
    def storage(self) -> Storage:
        """Options of the file system, without secrets."""

    @property
    def remote(self) -> bool:
        """Whether each request takes its time, so that it is worth making many at once."""

    def place(self, name: str) -> str:
        """The path or URI of a file, for people and for `--json`."""

    def exists(self, name: str) -> bool: ...

    def size(self, name: str) -> int | None:
        """Size in bytes, or None if there is no such file."""

    def read(self, name: str) -> bytes: ...

    def read_if_there(self, name: str) -> bytes | None: ...

    def put_if_absent(self, name: str, data: bytes, *, wait: bool = True) -> bool:
        """Write a file whole unless it is there; False if somebody else's is there already."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file whole, in place of any that is there. For what only informs: plans, events, reports."""

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a file; there at the latest after `flush`."""

    def flush(self) -> None:
        """See that all that was appended is in the store."""

    def writing(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        """A large file to write piece by piece: whole when the block ends, gone if it ends in an error."""

    def stored(self, name: str) -> StoredFile:
        """What a receipt says of a file that has been written."""

    def discard(self, name: str) -> None:
        """Remove a file that no receipt names, if it is there; in a bucket, whatever is left by that is not worth failing for."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there, or raise StoreError."""

    def walk(self, folder: str) -> Iterator[Entry]:
        """Every file below a folder of the store, those that are removed meanwhile left out; in no particular order."""

    def discard_folder(self, folder: str) -> None:
        """Remove a folder that is empty; one that isn't stays."""

    def names(self, folder: str) -> list[str]:
        """The entries of a folder of the store, sorted; empty if there is none."""

    def check_commits(self) -> None:
        """Refuse a store that can't be written, or that lets a second writer win."""

    def source(self, file: StoredFile) -> Any:
        """What pyarrow reads a Parquet file of the store from."""

    def head(self, file: StoredFile, size: int) -> bytes:
        """The first bytes of a file."""

    def range(self, file: StoredFile, start: int, length: int) -> bytes:
        """Some bytes of a file."""

    def local(self, file: StoredFile) -> Path:
        """A file of this machine with the content of one of the store, to be mapped; brought here if it must be."""

    def is_whole(self, file: StoredFile) -> bool:
        """Whether the store holds what was written, by reading all of it; where that can't be found, StoreError says why."""


class _Again(ConnectionError):
    """What broke in the middle and is to be done from the beginning."""

    def __init__(self, cause: DataError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _is_broken(error: DataError) -> bool:
    return isinstance(error, WriteBroken)


def unbroken(
    store: Store,
    work: Callable[[], _Result],
    patience: Patience = LASTING,
    broken: Callable[[DataError], bool] = _is_broken,
    place: str | None = None,
) -> _Result:
    """What some work gives that writes files piece by piece, done again if a storage went away in the middle, and is back.

    Args:
        store: that it writes to.
        work: leaves nothing behind when it fails.
        patience: with storages that are away.
        broken: whether the work failed by an outage that it didn't wait for itself.
        place: what it needs, for people; left out, the store.

    Raises:
        DataError: of the work, in the end.
    """

    def attempt() -> _Result:
        try:
            return work()
        except DataError as error:
            if not broken(error):
                raise
            store.exists("format.json")  # which waits until the store answers
            raise _Again(error) from None

    place = place or store.place("").rstrip("/")
    try:
        return retried(attempt, patience=patience, place=place, errors=(_Again,), first_pause=_AGAIN_SECONDS)
    except _Again as again:
        raise again.cause from None


def store_at(uri: str, storage: Storage = LOCAL, patience: Patience = LASTING) -> Store:
    """The store that a URI names.

    Args:
        uri: a folder, or `s3://bucket/prefix`, `gs://`, `abfs://`.
        storage: options of the object storage, as `pool.storage` has them.
        patience: with a server that is away.

    Raises:
        QueryError: no store can be there, or the options aren't for it.
    """
    if is_remote(uri):
        from raystream.engine.object_store import ObjectStore

        return ObjectStore(uri, storage, patience)
    if storage != LOCAL:
        raise QueryError(f"store.storage is for object storage, but store.uri {uri} is a folder; remove it")
    return LocalStore(uri, patience)


def open_store(uri: str, storage: Storage = LOCAL) -> Store:
    """The store that a URI names, made if it isn't there yet.

    Raises:
        StoreError: it can't be written, or its server breaks the promise of `put_if_absent`.
        StoreVersionError: it was written by a newer raystream.
    """
    store = store_at(uri, storage)
    prepare_store(store)
    return store


def store_to_read(uri: str, storage: Storage = LOCAL) -> Store:
    """The store that a URI names, left as it is, whether or not it is there.

    Raises:
        StoreVersionError: it was written by a newer raystream.
    """
    store = store_at(uri, storage)
    check_version(store)
    return store


def existing_store(uri: str, storage: Storage = LOCAL) -> Store:
    """The store that a URI names, left as it is.

    Raises:
        QueryError: raystream has written none there.
        StoreVersionError: it was written by a newer raystream.
    """
    store = store_at(uri, storage)
    if not check_version(store):
        raise QueryError(f"{redacted(uri)} is no store of raystream's: it holds no format.json; see --store")
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
    """Whether the store is there; one of a newer version is refused."""
    data = store.read_if_there("format.json")
    if data is None:
        return False
    try:
        version = json.loads(data)["version"]
        newer = version > FORMAT
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"store {store.uri}: format.json is damaged; expected {{'version': {FORMAT}}}") from None
    if newer:
        raise StoreVersionError(
            f"store {store.uri} has version {version}, this raystream reads up to {FORMAT}; use a newer raystream or another store.uri"
        )
    return True
