"""Places and options for obstore, which writes only if absent, and as texts by name for deltalake; `filesystem` has them for pyarrow.

A bucket's objects also as files for pyarrow to write piece by piece; `ranges` reads them at any place.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import xxhash

from raystream.errors import QueryError, StoreError
from raystream.lake.filesystem import with_options
from raystream.lake.reach import check_reach
from raystream.lake.retry import CLIENT_FIRST_PAUSE, CLIENT_LONGEST_PAUSE, CLIENT_RETRIES, CLIENT_SECONDS, reason
from raystream.lake.uri import LOCAL, Location, Storage, parse

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

_RETRY: Any = {
    "max_retries": CLIENT_RETRIES,
    "backoff": {"init_backoff": timedelta(seconds=CLIENT_FIRST_PAUSE), "max_backoff": timedelta(seconds=CLIENT_LONGEST_PAUSE), "base": 2},
    "retry_timeout": timedelta(seconds=CLIENT_SECONDS),
}


def bucket_of(uri: str, storage: Storage = LOCAL, key: str = "store.uri") -> S3Store | GCSStore | AzureStore:
    """Make obstore's store for a remote URI, with the URI's path as its prefix; ask no server but, as `filesystem_of`, for a region.

    Raises:
        QueryError: the URI or an option can't be used.
        StoreError: of what it takes to ask, such as credentials, only a part is given.
    """
    from obstore.exceptions import BaseError

    location = parse(uri, key)
    storage = with_options(location, storage, key)
    client: dict[str, Any] = {"allow_http": storage.plain_http or (endpoint_of(location, storage) or "").startswith("http://")}
    if storage.connect_timeout:
        client["connect_timeout"] = timedelta(seconds=storage.connect_timeout)
    if storage.request_timeout:
        client["timeout"] = timedelta(seconds=storage.request_timeout)
    shared: dict[str, Any] = {"prefix": location.key or None, "client_options": client, "retry_config": _RETRY}
    if storage.anonymous:
        shared["skip_signature"] = True
    try:
        if location.scheme == "s3":
            return _s3(location, storage, shared)
        return _gcs(location, storage, shared) if location.scheme == "gs" else _azure(location, storage, shared)
    except ValueError as error:
        raise QueryError(f"{key} {location.uri} can't be used: {reason(error)}") from None
    except (BaseError, OSError) as error:
        raise StoreError(f"{key} {location.uri} can't be reached: {reason(error)}; set all that it takes in the environment") from None


def _s3(location: Location, storage: Storage, options: dict[str, Any]) -> S3Store:
    from obstore.store import S3Store

    if region := region_of(location, storage):
        options["region"] = region
    if storage.host:
        options["endpoint"] = endpoint_of(location, storage)
    return S3Store(location.bucket, virtual_hosted_style_request=storage.virtual_addressing, **options)


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_PLACES = ("AWS_REGION", "AWS_DEFAULT_REGION", *_ENDPOINTS)


def endpoint_of(location: Location, storage: Storage) -> str | None:
    """Return the URL of a server that isn't the provider's own: the storage's, else that of the environment."""
    if not storage.host:
        return next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None) if location.scheme == "s3" else None
    # With virtual addressing, obstore wants the bucket in the endpoint; pyarrow puts it there by itself.
    host = f"{location.bucket}.{storage.host}" if location.scheme == "s3" and storage.virtual_addressing else storage.host
    return f"{_scheme(storage)}://{host}"


def region_of(location: Location, storage: Storage) -> str | None:
    """Return the region of an S3 bucket, asked for unless it or an endpoint is given; None leaves it to the environment."""
    if storage.region or storage.host or any(os.environ.get(name) for name in _PLACES):
        return storage.region
    import pyarrow.fs as pafs

    try:
        return str(pafs.resolve_s3_region(location.bucket))
    except OSError:
        return None  # the first request says what is wrong


def _gcs(location: Location, storage: Storage, options: dict[str, Any]) -> GCSStore:
    from obstore.store import GCSStore

    if storage.host:
        options["base_url"] = f"{_scheme(storage)}://{storage.host}"
    if storage.anonymous:
        # Left unsigned, obstore would still ask the machine's role for a token before it writes.
        options["credential_provider"] = _nobody
    return GCSStore(location.bucket, **options)


def _nobody() -> Any:
    return {"token": "", "expires_at": None}


def _azure(location: Location, storage: Storage, options: dict[str, Any]) -> AzureStore:
    from obstore.store import AzureStore

    account = storage.account_name or os.environ.get("AZURE_STORAGE_ACCOUNT")
    if account:
        options["account_name"] = account
    if storage.host:
        options["endpoint"] = f"{_scheme(storage)}://{storage.host}/{account}"
    # The variables' names are those of Azure's own tools, which `filesystem` reads, too.
    if secret := os.environ.get("AZURE_STORAGE_KEY"):
        options["account_key"] = secret
    elif token := os.environ.get("AZURE_STORAGE_SAS_TOKEN"):
        options["sas_key"] = token.removeprefix("?")
    return AzureStore(location.bucket, **options)


def _scheme(storage: Storage) -> str:
    return "http" if storage.plain_http else "https"


def delta_place(uri: str, storage: Storage = LOCAL, key: str = "pool.uri") -> tuple[str, dict[str, str]]:
    """Return a table's folder as deltalake takes it, and its `storage_options`, which may hold secrets: never keep or show them.

    Raises:
        QueryError: the URI or an option can't be used, or this process may not reach it.
    """
    location = parse(uri, key)
    check_reach(location, key)
    if location.scheme == "file":
        return location.path, {}
    storage = with_options(location, storage, key)
    endpoint = endpoint_of(location, storage)
    retries = {"max_retries": str(CLIENT_RETRIES), "retry_timeout": f"{CLIENT_SECONDS:g}s"}
    options = {**retries, "allow_http": _text((endpoint or "").startswith("http://"))}
    if storage.connect_timeout:
        options["connect_timeout"] = f"{storage.connect_timeout}s"
    if storage.request_timeout:
        options["timeout"] = f"{storage.request_timeout}s"
    more: dict[str, str | None] = {}
    if location.scheme == "s3":
        more = {"aws_region": region_of(location, storage), "aws_endpoint": endpoint}
        more["aws_virtual_hosted_style_request"] = _text(storage.virtual_addressing)
        more["aws_skip_signature"] = "true" if storage.anonymous else None
    elif location.scheme == "gs":
        more = {"google_base_url": endpoint, "google_skip_signature": "true" if storage.anonymous else None}
    else:
        account = storage.account_name or os.environ.get("AZURE_STORAGE_ACCOUNT")
        sas = os.environ.get("AZURE_STORAGE_SAS_TOKEN", "").removeprefix("?")
        more = {"azure_storage_account_name": account, "azure_storage_endpoint": endpoint and f"{endpoint}/{account}"}
        more["azure_storage_account_key"] = os.environ.get("AZURE_STORAGE_KEY")
        more["azure_storage_sas_token"] = sas if not more["azure_storage_account_key"] else None
        more["azure_skip_signature"] = "true" if storage.anonymous else None
    return location.uri, options | {name: value for name, value in more.items() if value}


def _text(value: bool) -> str:
    return str(value).lower()


class HashingWriter:
    """Passes on what is written and knows its size and hash."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._digest = xxhash.xxh3_128()
        self.size = 0
        self.closed = False

    @property
    def xxh3(self) -> str:
        """The XXH3 hash of all that was written."""
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        # A copy: parts are sent later, from where they lie, and whoever writes may fill the same buffer again meanwhile.
        self._writer.write(bytes(content))
        self._digest.update(content)
        self.size += len(content)
        return len(content)

    def flush(self) -> None:
        """Do nothing: a part is sent when it is full."""

    def close(self) -> None:
        """Send nothing yet: whoever writes may be leaving because of an error."""
        self.closed = True

    def finish(self) -> None:
        """Send the rest; the file is there, whole, when this returns."""
        self._writer.close()
