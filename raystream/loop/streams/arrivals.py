"""What has arrived in a pool: its files as they are now, and when each of them came."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from raystream.lake import Storage, is_remote, parse
from raystream.lake.table_uri import is_table
from raystream.lake.uri import TableVersion
from raystream.loop.streams.log import Arrival
from raystream.pool import File, list_pool
from raystream.pool.files import NothingThereError
from raystream.pool.plan import ListedFiles
from raystream.pool.tables import Added, added_files
from raystream.query import Pool

SETTLING_SECONDS = 2.0
"""For which a file waits: it may still be written, and one that is older may still appear."""


@dataclass(frozen=True)
class PoolListing:
    """A pool at one moment.

    Attributes:
        files: by path.
        tables: that list any of them.
        storage: how to reach these.
    """

    files: dict[str, File]
    tables: tuple[TableVersion, ...]
    storage: Storage

    def new(self, known: Collection[str], now: float) -> tuple[list[Arrival], list[Arrival]]:
        """List what arrived that isn't known yet, in order, and what is too young.

        Args:
            known: paths.
            now: in seconds since the epoch.
        """
        paths = self.files.keys() - known
        added: dict[str, Added] = {}
        for version in self.tables:
            of = {path for path in paths if _lists(self.files[path], version)}
            added |= added_files(version.uri, of, "pool.uri", self.storage) if of else {}
        listed = [self.files[path] for path in paths - added.keys()]
        plain = [Arrival(file.path, file.size, file.version, int(file.version) if file.version.isdigit() else 0) for file in listed]
        young = [arrival for arrival in plain if is_young(arrival, now)]
        found = [arrival for arrival in plain if not is_young(arrival, now)]
        found += [Arrival(path, self.files[path].size, "", of.sequence, of.rewritten) for path, of in added.items()]
        return sorted(found, key=lambda arrival: (arrival.time, arrival.path)), young

    def is_same(self, arrival: Arrival) -> bool:
        """Tell whether a file is still what it was when it arrived; a table's never changes."""
        file = self.files[arrival.path]
        return (file.size, file.version if arrival.version else "") == (arrival.size, arrival.version)

    def of(self, arrivals: Iterable[Arrival]) -> ListedFiles:
        """Return some of the files, as a plan takes them."""
        return [self.files[path] for path in sorted(arrival.path for arrival in arrivals)], self.tables


def is_young(arrival: Arrival, now: float) -> bool:
    """Tell whether a file must wait; one whose time lies further ahead has the time of another clock, which says nothing."""
    return abs(now - arrival.time / 1e9) < SETTLING_SECONDS


def list_arrivals(pool: Pool) -> PoolListing:
    """List a pool to which rows are added; folders may be empty as yet.

    Raises:
        PoolError: something can't be listed, or a folder of this machine isn't there.
    """
    uris = pool.uris
    try:
        files, tables = list_pool(uris, storage=pool.options)
    except NothingThereError:
        uris = [uri for uri in uris if _holds_files(uri, pool)]
        files, tables = list_pool(uris, storage=pool.options) if uris else ([], ())
    return PoolListing({file.path: file for file in files}, tables, pool.options)


def _lists(file: File, version: TableVersion) -> bool:
    return file.table is not None and file.table.name == version.uri


def _holds_files(uri: str, pool: Pool) -> bool:
    """Tell whether there are any yet; a folder of this machine must be there."""
    try:
        list_pool([uri], storage=pool.options)
    except NothingThereError:
        if not is_table(uri) and not is_remote(uri) and not os.path.isdir(parse(uri, "pool.uri").path) and "*" not in uri:
            raise
        return False
    return True
