"""The Parquet files under files, folders, globs and hive layouts, local or in object storage.

What raystream itself writes must not lie among them, or it would be read as rows from then on.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from raystream.errors import PoolError, QueryError
from raystream.figures import number_of
from raystream.lake import LOCAL, Location, Storage, filesystem_of, is_final, own_reason, parse, reason, redacted, with_options
from raystream.lake.retry import is_no_folder, retried
from raystream.lake.table_uri import TableUri, is_table, parse_table
from raystream.lake.uri import absolute
from raystream.pool.files import CREDENTIALS_HINT, File, NothingThereError
from raystream.pool.text_files import SUFFIXES, text_format

_EXTENSIONS = (".parquet", ".parq", ".pq")
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
MAGIC = re.compile(r"[*?\[]")


def list_files(uris: Sequence[str], key: str = "pool.uri", storage: Storage = LOCAL, *, texts: bool = False) -> list[File]:
    """Return the Parquet files under files, folders, globs (`*`, `?`, `[..]`, `**`) and URIs, sorted by path, each once.

    Folders are read recursively; names that begin with `_` or `.` and files of other types are left out.

    Args:
        uris: what to list.
        key: the query's key that they stand in, for messages.
        storage: how to reach what isn't on this machine.
        texts: whether files of text are taken, too, as labels are; see `pool.text_files`.

    Raises:
        QueryError: there is no URI, or one is empty or in a place that raystream can't read.
        PoolError: something is missing or refused, nothing was found, or the hive folders of two files have different names.
    """
    if not uris:
        raise QueryError(f"{key} is empty; give a path")
    found: dict[str, File] = {}
    for uri in uris:
        empty = True
        for file in _list_one(uri, key, storage, texts):
            empty = False
            known = found.get(file.path)
            if known is None or len(file.partitions) > len(known.partitions):
                found[file.path] = file
        if empty:
            what = "file of labels" if texts else "Parquet file"
            raise NothingThereError(f"{key} {absolute(uri)} holds no {what}; expected names that end in {', '.join(_extensions(texts))}")
    files = [found[path] for path in sorted(found)]
    _same_partition_names(files, key)
    return files


def _extensions(texts: bool) -> tuple[str, ...]:
    return (*_EXTENSIONS, *SUFFIXES) if texts else _EXTENSIONS


def _list_one(uri: str, key: str, storage: Storage, texts: bool) -> Iterator[File]:
    location = parse(uri, key)
    storage = with_options(location, storage, key)
    filesystem, path = filesystem_of(location.uri, storage, key)
    try:
        yield from (
            _file(info, root, location, storage)
            for info, root in _infos(filesystem, path, key, absolute(uri), location.scheme == "file", texts)
        )
    except (pa.ArrowInvalid, OSError) as error:
        if location.scheme == "file":
            raise PoolError(f"{key} {uri} can't be listed: {reason(error)}") from None
        hint = CREDENTIALS_HINT if is_final(error) else "run the query again once the storage answers"
        raise PoolError(f"{key} {absolute(uri)} can't be listed: {reason(own_reason(filesystem, path, error))}; {hint}") from None


def _infos(filesystem: pafs.FileSystem, path: str, key: str, shown: str, local: bool, texts: bool) -> Iterator[tuple[pafs.FileInfo, str]]:
    """Yield the Parquet files of a path or pattern, each with the root below which hive folders count; what is there is no pattern."""
    parts = path.split("/")
    wild = [i for i, part in enumerate(parts) if MAGIC.search(part)]
    if wild and not _is_there(filesystem, path):
        fixed = next((i for i in wild if not _is_there(filesystem, "/".join(parts[: i + 1]))), len(parts))
        root = "/".join(parts[:fixed]) or "/"
        infos = _all_below(filesystem, root)
        if infos is None:
            raise NothingThereError(f"{key} {shown}: {'the folder ' if fixed < len(parts) else ''}{root} does not exist")
        yield from ((info, root) for info in _wanted(infos, root, _extensions(texts), glob_pattern(parts[fixed:])))
        return
    # Object storage tells why it refuses when asked for a list, but not when asked for one object.
    infos = None if local and filesystem.get_file_info(path).type == pafs.FileType.File else _all_below(filesystem, path)
    if infos is not None:
        _refuse_tables(infos, f"{key} {shown}")
        wanted = list(_wanted(infos, path, _extensions(texts)))
        if not wanted and not texts and (held := _instead(infos)):
            raise PoolError(f"{key} {shown} holds no Parquet file but {held}; expected Parquet: docs/columns.md shows how to write it")
        yield from ((info, path) for info in wanted)
        return
    info = retried(lambda: filesystem.get_file_info(path))
    if info.type != pafs.FileType.File:
        raise NothingThereError(f"{key} {shown} does not exist; expected a Parquet file, a folder or a pattern")
    if not texts and (what := text_format(path)):
        raise PoolError(
            f"{key} {shown} is {what}, which is taken for labels alone; expected Parquet; docs/columns.md shows how to write it"
        )
    yield info, path


def _is_there(filesystem: pafs.FileSystem, path: str) -> bool:
    """Tell whether a path with `*`, `?` or brackets is the name of something; what can't be found out is found out by listing."""
    try:
        return bool(retried(lambda: filesystem.get_file_info(path)).type != pafs.FileType.NotFound)
    except OSError:
        return False


def _all_below(filesystem: pafs.FileSystem, root: str) -> list[pafs.FileInfo] | None:
    """List what lies below a folder; None if there is no such folder."""
    try:
        return list(retried(lambda: filesystem.get_file_info(pafs.FileSelector(root, recursive=True))))
    except OSError as error:
        if not is_no_folder(error):
            raise
        return None


def _refuse_tables(infos: Sequence[pafs.FileInfo], where: str) -> None:
    """Raise PoolError if a folder holds a table, whose files also hold rows that it has deleted or replaced."""
    for info in infos:
        folder, log, _ = f"{info.path}/".partition("/_delta_log/")
        if log:
            raise PoolError(
                f"{where} holds a Delta table in {folder}, with rows that it may have deleted; name it by its URI with delta+ before it, "
                "or its files by a pattern"
            )
        if info.path.endswith(".metadata.json") and "/metadata/" in info.path:
            folder = info.path.rpartition("/metadata/")[0]
            raise PoolError(
                f"{where} holds an Iceberg table in {folder}, with rows that it may have deleted; name it by its catalog, "
                "iceberg://catalog/namespace.table, or its files by a pattern"
            )


def _wanted(
    infos: Sequence[pafs.FileInfo], root: str, extensions: tuple[str, ...], pattern: re.Pattern[str] | None = None
) -> Iterator[pafs.FileInfo]:
    """Yield the files with these extensions that a folder or a pattern in it stands for."""

    def wanted(info: pafs.FileInfo) -> bool:
        names = info.path[len(root) :].strip("/").split("/")
        if info.type != pafs.FileType.File or not info.path.endswith(extensions) or any(n.startswith(("_", ".")) for n in names):
            return False
        # A pattern that matches a folder stands for all that is in it.
        return pattern is None or any(pattern.fullmatch("/".join(names[:depth])) for depth in range(1, len(names) + 1))

    return (info for info in infos if wanted(info))


def _instead(infos: Sequence[pafs.FileInfo]) -> str:
    """Say what a folder without Parquet holds that may be meant; empty if nothing of the kind."""
    kinds = [
        "image" if info.path.lower().endswith(_IMAGES) else f"{what} file"
        for info in infos
        if info.type == pafs.FileType.File and ((what := text_format(info.path)) or info.path.lower().endswith(_IMAGES))
    ]
    return " and ".join(number_of(count, kind) for kind, count in Counter(kinds).most_common())


def _file(info: pafs.FileInfo, root: str, location: Location, storage: Storage) -> File:
    folders = info.path[len(root) :].strip("/").split("/")[:-1]
    pairs = (folder.partition("=") for folder in folders)
    keys = [(unquote(name), None if value == _NULL_PARTITION else unquote(value)) for name, equals, value in pairs if equals and name]
    return File(location.at(info.path), info.size, str(info.mtime_ns), tuple(keys), storage=storage)


def glob_pattern(parts: Iterable[str], names_too: bool = False) -> re.Pattern[str]:
    """Make a regular expression for the parts of a glob; `**` stands for any number of folders, with `names_too` each also for itself."""
    pattern = ""
    for part in parts:
        if part == "**":
            pattern += "(?:[^/]+/)*"
            continue
        text = re.sub(r"\[[!^]?\]?[^\]]*\]|.", lambda m: _glob_piece(m[0]), part, flags=re.DOTALL)
        pattern += f"(?:{text}|{re.escape(part)})/" if names_too else f"{text}/"
    # A trailing `**` matches a folder's whole content, every other part ends without the slash.
    return re.compile(pattern.removesuffix("/") if not pattern.endswith(")*") else pattern + "[^/]+", re.DOTALL)


def _glob_piece(piece: str) -> str:
    if piece == "*":
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if len(piece) > 1:
        inside = piece[1:-1].replace("\\", "\\\\").replace("[", "\\[")
        return f"[^/{inside[1:]}]" if inside.startswith(("!", "^")) else f"[{inside}]"
    return re.escape(piece)


def _same_partition_names(files: Sequence[File], key: str) -> None:
    first: File | None = None
    for file in files:
        if not file.partitions:
            continue
        first = first or file
        names, expected = (sorted(name for name, _ in f.partitions) for f in (file, first))
        if names != expected or len(set(names)) != len(names):
            raise PoolError(
                f"{key}: the hive folders of {file.path} are named {', '.join(names)}, those of {first.path} {', '.join(expected)}; "
                "expected the same names for every file"
            )


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
    """Reduce a table's URI to what is equal for two URIs of one table."""
    if table.kind == "iceberg":
        return table.kind, table.catalog, table.name
    place = parse(table.name)
    return table.kind, place.scheme, os.path.realpath(place.path) if place.scheme == "file" else place.uri


def _lists(uri: str, file: Location, key: str) -> bool:
    """Tell whether a file, folder or glob lists a file, as `list_files` does; of what may be a glob or a name, as either of them."""
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
