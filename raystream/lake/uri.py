"""URIs, and the options of the storage that they name.

Paths and URIs: which storage they name, what lies there, and how they may be shown.

Of a table, also which version was read.

The options of object storage: where it is and how to talk to it, never who asks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from raystream.errors import QueryError, did_you_mean

_SECRETS = {
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "secret_access": "AWS_SECRET_ACCESS_KEY",
    "access_key": "AWS_ACCESS_KEY_ID",
    "session_token": "AWS_SESSION_TOKEN",
    "security_token": "AWS_SESSION_TOKEN",
    "account_key": "AZURE_STORAGE_KEY",
    "sas": "AZURE_STORAGE_SAS_TOKEN",
    "connection_string": "AZURE_STORAGE_KEY",
    "service_account": "GOOGLE_APPLICATION_CREDENTIALS",
    "access_token": "GOOGLE_APPLICATION_CREDENTIALS",
    "credential": "AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_KEY or GOOGLE_APPLICATION_CREDENTIALS",
    "password": "AWS_SECRET_ACCESS_KEY",
    "signature": "AWS_SECRET_ACCESS_KEY",
    "secret": "AWS_SECRET_ACCESS_KEY",
    "token": "AWS_SESSION_TOKEN",
    "key": "AWS_SECRET_ACCESS_KEY",
}
"""Parts of names that stand for secrets -> the variable that carries them; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A way to reach object storage; holds no secret, hashes, and travels to workers.

    Attributes:
        region: of the bucket; left out, it is asked for.
        endpoint_override: `host:port` or a URL, of a server that isn't the provider's own.
        scheme: http or https; left out, that of the endpoint, else https.
        anonymous: send no credentials at all.
        virtual_addressing: put the bucket into the host's name.
        account_name: of Azure, where the URI doesn't name it.
        connect_timeout: seconds.
        request_timeout: seconds without an answer.
    """

    region: str | None = None
    endpoint_override: str | None = None
    scheme: str | None = None
    anonymous: bool = False
    virtual_addressing: bool = False
    account_name: str | None = None
    connect_timeout: int | None = None
    request_timeout: int | None = None

    @property
    def plain_http(self) -> bool:
        """True if nothing is encrypted on the way."""
        return self.scheme == "http" or (self.scheme is None and (self.endpoint_override or "").startswith("http://"))

    @property
    def host(self) -> str | None:
        """The endpoint without its scheme."""
        return self.endpoint_override.rpartition("://")[2].rstrip("/") if self.endpoint_override else None

    @property
    def place(self) -> str:
        """The options that decide which bytes lie under a URI: the endpoint, and the account; empty by default."""
        parts = [("endpoint_override", self.host), ("account_name", self.account_name)]
        return "&".join(f"{name}={value}" for name, value in parts if value)


LOCAL = Storage()
"""No option at all: what paths of this machine need."""

_KINDS = {name: bool if name in ("anonymous", "virtual_addressing") else int if name.endswith("timeout") else str for name in (
    field.name for field in fields(Storage)
)}  # fmt: skip


def storage_from(options: Mapping[str, Any], key: str = "pool.storage") -> Storage:
    """Return the options as a value, checked.

    Args:
        options: names to values, as the query or a URI's question mark gives them; the latter are all strings.
        key: where they stand, for messages.

    Raises:
        QueryError: an option is unknown, of the wrong kind, or a secret, which belongs into the environment.
    """
    return Storage(**{name: _checked(name, value, key) for name, value in options.items()})


def _checked(name: str, given: Any, key: str) -> Any:
    value: Any = given
    where = _named(key, name)
    if name not in _KINDS:
        refuse_secret(name, key)
        raise QueryError(f"{where} is not an option of object storage{did_you_mean(name, _KINDS)}")
    kind = _KINDS[name]
    if isinstance(value, str) and kind is bool and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and kind is int and value.isdecimal():
        value = int(given)
    if type(value) is not kind or (isinstance(value, int) and kind is int and value <= 0) or value == "":
        expected = {bool: "true or false", int: "a positive number of seconds", str: "a text"}[kind]
        shown = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
        raise QueryError(f"{where} is {shown}, expected {expected}")
    if name == "scheme" and value not in ("http", "https"):
        raise QueryError(f"{where} is {value!r}, expected http or https")
    if name == "endpoint_override" and "@" in str(value):
        raise QueryError(f"{where} holds credentials; remove them and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return value


def _named(key: str, name: str) -> str:
    """Name `pool.storage.region`, or what it is called behind a URI: `option region`."""
    return f"{key} {name}" if key.endswith("option") else f"{key}.{name}"


def refuse_secret(name: str, key: str) -> None:
    """Raise QueryError if an option's name sounds like a secret; its value is not looked at."""
    plain = name.lower().replace("-", "_")
    for part, variable in _SECRETS.items():
        if part in plain:
            where = _named(key, name)
            raise QueryError(f"{where} is a secret, which queries don't hold; remove it and set the environment variable {variable}")


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCHEMES = {"s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs", "file": "file"}
OPTIONS = re.compile(r"\?([^/?]*=.*)", re.DOTALL)
"""A question mark is an option's only before `name=`; elsewhere it is a glob's, or part of a key."""
_SECRET = re.compile(r"(?:secret|token|password|credential|signature|access_key|account_key|\bsig)[\w-]*=", re.IGNORECASE)
_DOT = re.compile(r"%2e", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")
_LOGIN = re.compile(r"[^/\s:@]+:[^@\s]*@")
_NAMED = re.compile(r"((?:secret|token|password|credential|signature|access_key|account_key)[\w-]*(?:=|%3D))[^&\s]*", re.IGNORECASE)
_MEANT = re.compile(r"(?:s3[an]?|gc?s|abfss?|iceberg|delta)[:/]", re.IGNORECASE)
_ANY = re.compile(r"(?:delta\+)?[A-Za-z][A-Za-z0-9+.-]*://|delta\+")


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file system.

    Attributes:
        scheme: file, s3, gs or abfs.
        path: as `pyarrow.fs` wants it: absolute on this machine, else `bucket/key` without a slash at either end.
        account: of Azure, where the URI names it.
        options: those that stood behind the URI's question mark.
    """

    scheme: str
    path: str
    account: str | None = None
    options: tuple[tuple[str, str], ...] = field(default=())

    @property
    def uri(self) -> str:
        """The one way to write this place: the absolute path, or a URI with neither options nor credentials."""
        return self.at(self.path)

    @property
    def bucket(self) -> str:
        """The first part of a remote path."""
        return self.path.partition("/")[0]

    @property
    def key(self) -> str:
        """The rest of a remote path."""
        return self.path.partition("/")[2]

    def at(self, path: str) -> str:
        """Write another path of the same file system as a path or a URI."""
        if self.scheme == "file":
            return path
        bucket, slash, key = path.partition("/")
        host = f"{bucket}@{self.account}.dfs.core.windows.net" if self.account else bucket
        return f"{self.scheme}://{host}{slash}{key}"


def is_relative(uri: str) -> bool:
    """Tell whether a path or URI, also of a table, depends on the current folder."""
    path = uri.removeprefix("delta+")
    return not _SCHEME.match(path) and not os.path.isabs(os.path.expanduser(path))


def is_remote(uri: str) -> bool:
    """Tell whether a URI names object storage rather than a path of this machine."""
    match = _SCHEME.match(uri)
    return match is not None and match[1].lower() != "file"


def is_like_a_uri(text: str) -> bool:
    """Tell whether a path that isn't one of a URI's forms may have been meant as one."""
    return text != text.strip() or _MEANT.match(text) is not None


def redacted(uri: str) -> str:
    """Return a URI, of a table too, as messages may show it: without user, password and options, however it is misspelt."""
    scheme = _ANY.match(uri)
    if scheme is None:
        return _NAMED.sub(r"\1…", _LOGIN.sub("…@", uri)) if is_like_a_uri(uri) else uri
    options = OPTIONS.search(uri)
    plain = uri[: options.start()] if options else uri.partition("?")[0] if _asks_secret(uri) else uri
    rest = plain[scheme.end() :]
    if scheme[0] == "delta+":
        return scheme[0] + redacted(rest)
    host = rest.partition("/")[0]
    if scheme[0].lower().removeprefix("delta+") in ("abfs://", "abfss://") and _is_container(plain):
        return plain
    if ":" in host or "@" in host:
        # A password may hold a slash, so that a host is all that ends before the last @.
        rest = rest.rpartition("@")[2] if "@" in rest else f"{host.partition(':')[0]}:…"
    return scheme[0] + _NAMED.sub(r"\1…", rest)


def absolute(uri: str) -> str:
    """Return a path or URI, of a table too, as results print it: `redacted`, and a path of this machine from its root on."""
    if uri.startswith("delta+"):
        return f"delta+{absolute(uri.removeprefix('delta+'))}"
    return redacted(uri) if _ANY.match(uri) or is_like_a_uri(uri) else os.path.abspath(os.path.expanduser(uri))


def parse(uri: str, key: str = "pool.uri") -> Location:
    """Understand a path or URI: `s3:// s3a:// gs:// gcs:// abfs:// abfss:// file://`, or a plain path.

    Args:
        uri: options such as `?region=eu-central-1&endpoint_override=localhost:8333` may follow a remote one.
        key: the query's key that it stands in, for messages.

    Raises:
        QueryError: it is empty, of another scheme, names no bucket, or holds credentials or options of no form.
    """
    match = _SCHEME.match(uri)
    if not match or match[1].lower() == "file":
        return Location("file", _local_path(uri, key))
    given = match[1].lower()
    scheme = _SCHEMES.get(given)
    if scheme is None:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise QueryError(f"{key} {redacted(uri)}: {given}:// is not a storage that raystream reads; expected a path or {known}")
    options = OPTIONS.search(uri)
    pairs = [pair.partition("=") for pair in options[1].split("&")] if options else []
    for name, _, _ in pairs:
        refuse_secret(name, f"{key} {redacted(uri)}: option") if name not in ("account_name",) else None
    if any(not name or not equals or "?" in value for name, equals, value in pairs) or (not options and _asks_secret(uri)):
        raise QueryError(f"{key} {redacted(uri)} is followed by what are no options; expected ?name=value&name=value")
    rest = uri[match.end() : options.start() if options else None]
    host, _, path = rest.partition("/")
    account = None
    if scheme == "abfs" and _is_container(uri):
        host, _, domain = host.partition("@")
        account = domain.partition(".")[0]
    if "@" in host or (":" in host and "@" in path):
        raise QueryError(f"{key} {redacted(uri)} holds credentials; remove them from the URI and set {_VARIABLES[scheme]} instead")
    if not host:
        raise QueryError(f"{key} {redacted(uri)} names no bucket; expected {given}://bucket/path")
    if not _BUCKET.fullmatch(host):
        raise QueryError(f"{key} {redacted(uri)} names no bucket: expected letters, digits, dots, hyphens and underscores after {given}://")
    path = path.strip("/")
    # Libraries take %2e for a dot and leave control characters out, so that what is no .. here would be one there.
    if {".", ".."} & {_DOT.sub(".", part) for part in path.split("/")} or _CONTROL.search(path):
        raise QueryError(
            f"{key} {redacted(uri)} has . or .. between slashes, or control characters, which storages read in different ways; write the "
            "path without"
        )
    return Location(scheme, f"{host}/{path}" if path else host, account, tuple((name, unquote(value)) for name, _, value in pairs))


def located(uri: str, key: str = "pool.uri") -> Location:
    """Return the place of a file as listings and tables write it: all that stands behind the bucket is its key, question marks too."""
    match = _SCHEME.match(uri)
    if not match:
        return Location("file", uri)
    host, slash, path = uri[match.end() :].partition("/")
    bucket = parse(match[0] + host, key)
    return replace(bucket, path=bucket.path + slash + path)


def _asks_secret(uri: str) -> bool:
    """Tell whether behind a question mark stands an option that sounds like a secret."""
    start = uri.find("?")
    return start >= 0 and _SECRET.search(uri, start) is not None


_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_KEY",
}


def _is_container(uri: str) -> bool:
    """Tell whether what stands before the @ is a container of Azure's, not a user."""
    host = uri.partition("://")[2].partition("/")[0]
    user, at, domain = host.partition("@")
    return bool(at) and ":" not in user and "@" not in domain


def _local_path(uri: str, key: str) -> str:
    if _SCHEME.match(uri):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise QueryError(f"{key} {redacted(uri)} names a host; expected a local path such as file:///data/pool")
        uri = unquote(uri[len("file://") + len(parts.netloc) :])
    elif (scheme := uri.partition(":")[0].lower()) in _SCHEMES and scheme != "file":
        raise QueryError(f"{key} begins with {scheme}: but not {scheme}://; expected {scheme}://bucket/path")
    elif uri.startswith("file:/"):
        uri = unquote(uri.removeprefix("file:"))  # as Hadoop writes it
    if not uri.strip():
        raise QueryError(f"{key} is empty; give a path")
    if uri != uri.strip():
        raise QueryError(f"{key} begins or ends with a blank; remove it")
    return os.path.abspath(os.path.expanduser(uri))


@dataclass(frozen=True)
class TableVersion:
    """The version of a table that was read: the table's URI in the query, its own identity, and the snapshot's id or the version."""

    uri: str
    table: str
    version: int
