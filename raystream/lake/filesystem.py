"""From a URI to pyarrow's file system, one for each storage and process.

Which environment variables it takes its credentials from is said by their names alone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from raystream.errors import QueryError
from raystream.lake.reach import check_reach
from raystream.lake.retry import GOOGLE_SECONDS
from raystream.lake.uri import LOCAL, Location, Storage, parse, storage_from

if TYPE_CHECKING:
    import pyarrow.fs as pafs

REMOTE_THREADS = 32
"""Requests at a time: on a link where each takes 20 ms, 2,000 small ones are 1.3 s."""
_AWS_PLACES = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


def filesystem_of(uri: str, storage: Storage = LOCAL, key: str = "pool.uri") -> tuple[pafs.FileSystem, str]:
    """Return the file system that holds a path or URI, and the path there.

    Credentials come from the environment, as each provider's own tools take them; nothing is asked of a server but,
    for S3 without region or endpoint, the bucket's region.

    Args:
        uri: as `parse` takes it.
        storage: how to reach it; the URI's own options come first.
        key: the query's key that it stands in, for messages.

    Raises:
        QueryError: the URI or an option can't be used.
    """
    return filesystem_at(parse(uri, key), storage, key)


def filesystem_at(location: Location, storage: Storage = LOCAL, key: str = "pool.uri") -> tuple[pafs.FileSystem, str]:
    """Call `filesystem_of` for a URI that was taken apart."""
    check_reach(location, key)
    return _filesystem(location.scheme, location.bucket, with_options(location, storage, key)), location.path


def with_options(location: Location, storage: Storage, key: str = "pool.uri") -> Storage:
    """Return the storage that holds for a location: its own options before the given ones; none on this machine."""
    if location.scheme == "file":
        return LOCAL
    own = storage_from(dict(location.options), f"{key} {location.uri}: option")
    changed = {name: getattr(own, name) for name, _ in location.options}
    if location.account:
        changed["account_name"] = location.account
    return replace(storage, **changed)


def _filesystem(scheme: str, bucket: str, storage: Storage) -> pafs.FileSystem:
    if scheme == "file":
        return _local()
    asks_region = scheme == "s3" and not storage.region and not storage.host and not any(os.environ.get(n) for n in _AWS_PLACES)
    return _remote(scheme, bucket if asks_region else None, storage)


@lru_cache(maxsize=1)
def _local() -> pafs.FileSystem:
    import pyarrow.fs as pafs

    return pafs.LocalFileSystem()


@lru_cache(maxsize=64)
def _remote(scheme: str, bucket: str | None, storage: Storage) -> pafs.FileSystem:
    """Make a file system once: it holds the connections; `bucket` is given where its region must be asked for."""
    import pyarrow as pa

    # S3's client opens as many connections as there are threads at the time it is made.
    pa.set_io_thread_count(max(pa.io_thread_count(), REMOTE_THREADS))
    if scheme == "s3":
        return _s3(bucket, storage)
    return _gcs(storage) if scheme == "gs" else _azure(storage)


def _s3(bucket: str | None, storage: Storage) -> pafs.FileSystem:
    import pyarrow.fs as pafs

    region = storage.region
    if bucket:
        try:
            region = pafs.resolve_s3_region(bucket)
        except OSError:
            region = None  # the first request says what is wrong
    options: dict[str, Any] = {
        "region": region,
        "endpoint_override": storage.host,
        "scheme": "http" if storage.plain_http else "https",
        "anonymous": storage.anonymous,
        "force_virtual_addressing": storage.virtual_addressing,
        "connect_timeout": storage.connect_timeout,
        "request_timeout": storage.request_timeout,
        # Asking again is `retry`'s, which counts; the client would do so three times, after a second each.
        "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    }
    return pafs.S3FileSystem(**{name: value for name, value in options.items() if value is not None})


def _gcs(storage: Storage) -> pafs.FileSystem:
    import pyarrow.fs as pafs

    options: dict[str, Any] = {"anonymous": storage.anonymous, "scheme": "http" if storage.plain_http else "https"}
    options["retry_time_limit"] = timedelta(seconds=GOOGLE_SECONDS)
    if storage.host:
        options["endpoint_override"] = storage.host
    return pafs.GcsFileSystem(**options)


def _azure(storage: Storage) -> pafs.FileSystem:
    import pyarrow.fs as pafs

    account = storage.account_name or os.environ.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise QueryError("abfs:// without an account; write abfs://container@account.dfs.core.windows.net/path or give account_name")
    options: dict[str, Any] = {"account_name": account}
    if secret := os.environ.get("AZURE_STORAGE_KEY"):
        options["account_key"] = secret
    elif token := os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
        options["sas_token"] = token
    if storage.host:
        scheme = "http" if storage.plain_http else "https"
        options |= {"blob_storage_authority": storage.host, "dfs_storage_authority": storage.host}
        options |= {"blob_storage_scheme": scheme, "dfs_storage_scheme": scheme}
    return pafs.AzureFileSystem(**options)


_ASKED = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "abfs": ("AZURE_STORAGE_KEY",),
}
_INSTEAD = {
    "s3": ("AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT",),
    "abfs": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_ID"),
}


def missing_credentials(uri: str, storage: Storage = LOCAL, key: str = "store.uri") -> tuple[str, ...]:
    """Return the variables that would have to be set for a URI and aren't; a machine with a role of its own needs none of them.

    Raises:
        QueryError: the URI or an option can't be used.
    """
    location = parse(uri, key)
    if location.scheme == "file" or with_options(location, storage, key).anonymous:
        return ()
    if any(os.environ.get(name) for name in _INSTEAD[location.scheme]) and not os.environ.get(_ASKED[location.scheme][0]):
        return ()
    return tuple(name for name in _ASKED[location.scheme] if not os.environ.get(name))
