"""The URIs of tables: which catalog or folder, and which of its versions."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any, Literal

from raystream.errors import DataError, QueryError, did_you_mean
from raystream.lake import LOCAL, is_remote, parse, redacted, with_options
from raystream.lake.uri import OPTIONS

_FORMS = "iceberg://catalog/namespace.table, delta+s3://bucket/folder or delta+/folder"
_OPTION = {"iceberg": "snapshot_id", "delta": "version"}
_PASSWORD = re.compile(r"://[^/?]*@")
_CONTAINER = re.compile(r"delta\+abfss?://[^/?:@]+@[^/?@]+(?:[/?]|$)")
"""Of Azure, where what stands before the @ is no user."""


@dataclass(frozen=True)
class TableUri:
    """A table that a query names.

    Attributes:
        kind: of the table.
        text: as the query has it.
        catalog: of Iceberg, as pyiceberg's own configuration names it; "" for Delta.
        name: `namespace.table` of Iceberg; the folder of Delta, a path or URI, the latter with its options of object storage.
        version: the snapshot's id or the version that was asked for; None is the newest.
    """

    kind: Literal["iceberg", "delta"]
    text: str
    catalog: str
    name: str
    version: int | None = None

    @property
    def stem(self) -> str:
        """The table without its version, for messages that add another."""
        return OPTIONS.sub("", self.text)


def is_table(uri: str) -> bool:
    """Tell whether a URI names a table rather than files."""
    return uri.startswith(("iceberg:", "delta+"))


def parse_table(uri: str, key: str) -> TableUri:
    """Take a table's URI apart.

    Args:
        uri: one for which `is_table` holds.
        key: the query's key that it stands in, for messages.

    Raises:
        QueryError: it isn't one of the forms, or carries a password.
    """
    if _PASSWORD.search(uri) and not _CONTAINER.match(uri):
        raise QueryError(f"{key} holds a user or password before @; take it out of the URI, credentials come from the environment")
    kind: Literal["iceberg", "delta"] = "iceberg" if uri.startswith("iceberg:") else "delta"
    found = OPTIONS.search(uri)
    place = uri[: found.start()] if found else uri
    options = found[1].split("&") if found else []
    remote = kind == "delta" and is_remote(place.removeprefix("delta+"))
    own = [option for option in options if not remote or option.partition("=")[0] == _OPTION[kind]]
    version = _version(kind, "&".join(own), uri, key) if own else None
    if kind == "delta":
        folder = place.removeprefix("delta+")
        if not folder.removeprefix("file://"):
            raise QueryError(f"{key} {redacted(uri)} names no folder; expected {_FORMS}")
        others = [option for option in options if option not in own]
        if remote:
            folder += f"?{'&'.join(others)}" if others else ""
            with_options(parse(folder, key), LOCAL, key)  # refuses what isn't an option, and secrets
        return TableUri("delta", uri, "", folder, version)
    catalog, _, name = place.removeprefix("iceberg://").partition("/")
    if not place.startswith("iceberg://") or not catalog or not re.fullmatch(r"[^./]+(\.[^./]+)+", name):
        raise QueryError(f"{key} {redacted(uri)} is not a table; expected {_FORMS}")
    return TableUri("iceberg", uri, catalog, name, version)


def package(module: str, table: TableUri, key: str, error: type[DataError]) -> Any:
    """Import a module of the extra that this kind of table needs.

    Raises:
        DataError: of the kind given: it isn't installed, or its import fails.
    """
    try:
        return importlib.import_module(module)
    except ImportError as failure:
        name = module.partition(".")[0]
        missing = isinstance(failure, ModuleNotFoundError) and (failure.name or "").partition(".")[0] == name
        reason = "which is not installed" if missing else f"whose import failed: {str(failure).strip().partition(chr(10))[0]}"
        raise error(f"{key} {table.text} needs {name}, {reason}; pip install 'raystream[{table.kind}]'") from None


def _version(kind: str, text: str, uri: str, key: str) -> int:
    given = dict(option.partition("=")[::2] for option in text.split("&"))
    value = given.pop(_OPTION[kind], None)
    for option in given:
        raise QueryError(f"{key} {redacted(uri)}: {option} is not an option of such a table{did_you_mean(option, [_OPTION[kind]])}")
    if value is None or not re.fullmatch(r"[0-9]{1,19}", value):
        raise QueryError(f"{key} {redacted(uri)}: {_OPTION[kind]} is {value!r}, expected a whole number")
    return int(value)
