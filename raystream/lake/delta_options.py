"""The same places and options for deltalake, which takes them as texts by name; `bucket` has them for obstore."""

from __future__ import annotations

import os

from raystream.lake.bucket import RETRIES, endpoint_of, region_of
from raystream.lake.filesystem import with_options
from raystream.lake.storage import LOCAL, Storage
from raystream.lake.uri import parse


def delta_place(uri: str, storage: Storage = LOCAL, key: str = "pool.uri") -> tuple[str, dict[str, str]]:
    """A table's folder as deltalake takes it, and its `storage_options`, which may hold secrets: never keep or show them.

    Raises:
        QueryError: the URI or an option can't be used.
    """
    location = parse(uri, key)
    if location.scheme == "file":
        return location.path, {}
    storage = with_options(location, storage, key)
    endpoint = endpoint_of(location, storage)
    # Left out, a server that is down is asked for three minutes.
    options = {"max_retries": str(RETRIES), "retry_timeout": "120s", "allow_http": _text((endpoint or "").startswith("http://"))}
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
