"""The files of a pool, whether they are named as such or by a table, which pins one of its versions and knows what is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pyarrow.fs import FileType

from raystream.errors import PoolError
from raystream.lake import LOCAL, Storage, filesystem_at, located
from raystream.lake.retry import retried
from raystream.lake.table_uri import is_table, parse_table
from raystream.lake.uri import TableVersion
from raystream.pool.files import File, NothingThereError
from raystream.pool.filters import Filters
from raystream.pool.folders import list_files
from raystream.pool.listing import Listed

_THREADS = 32


def list_pool(
    uris: Sequence[str], key: str = "pool.uri", filters: Filters = (), storage: Storage = LOCAL, *, texts: bool = False
) -> tuple[list[File], tuple[TableVersion, ...]]:
    """Return the files under URIs of files, folders, globs and tables, sorted by path, each once.

    Args:
        uris: what to list.
        key: the query's key that they stand in, for messages.
        storage: how to reach what is in object storage; a Delta table's URI and an Iceberg catalog may have options of their own.
        filters: files that a table's partitions and statistics prove to hold no row of these may be left out.
        texts: whether files of text are taken, too, as labels are.

    Returns:
        The files, and for each table the version that was read.

    Raises:
        QueryError: a URI can't be used.
        PoolError: something is missing or can't be read.
    """
    plain = [uri for uri in uris if not is_table(uri)]
    files = {file.path: file for file in list_files(plain, key, storage, texts=texts)} if plain or not uris else {}
    versions: list[TableVersion] = []
    for uri in uris:
        if not is_table(uri):
            continue
        found, version = _list_table(uri, key, filters, storage)
        versions.append(version)
        for file in found:
            known = files.setdefault(file.path, file)
            if known.deletes != file.deletes:
                raise PoolError(
                    f"{key} names {file.path} twice, with different rows deleted; name each table once, and not its files beside it"
                )
    return [files[path] for path in sorted(files)], tuple(versions)


def _list_table(uri: str, key: str, filters: Filters, storage: Storage) -> tuple[list[File], TableVersion]:
    table = parse_table(uri, key)
    if table.kind == "iceberg":
        from raystream.pool.iceberg import list_iceberg

        listing = list_iceberg(table, filters, key, storage)
    else:
        from raystream.pool.delta import list_delta

        listing = list_delta(table, filters, key, storage)
    if not listing.files:
        if listing.pruned:
            raise PoolError(f"no row of {uri} is left after pool.filters, by the table's own statistics; change pool.filters")
        raise NothingThereError(f"{key} {uri} holds no data file in version {listing.version.version}; expected at least one")

    def found(listed: Listed) -> File:
        place = located(listed.path, key)
        size, version = listed.size, ""
        if size is None or place.scheme == "file":
            # Else nothing is asked until the footer is read, which pins the ETag: a table says the size and never replaces a file.
            filesystem, path = filesystem_at(place, listing.storage, key)
            info = retried(lambda: filesystem.get_file_info(path))
            if info.type != FileType.File:
                raise PoolError(f"{key} {uri} lists the file {place.uri}, which isn't there; restore it or read a newer version")
            size, version = info.size, str(info.mtime_ns)
        storage = LOCAL if place.scheme == "file" else listing.storage
        return File(place.uri, size, version, listed.partitions, listed.deletes, listed.file, storage)

    with ThreadPoolExecutor(min(_THREADS, len(listing.files))) as executor:
        return list(executor.map(found, listing.files)), listing.version
