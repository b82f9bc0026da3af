"""Links into buckets that whoever has them may open for a while: written only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from raystream.errors import QueryError, StoreError
from raystream.labels.batch import Batch
from raystream.lake import is_remote, parse, storage_from, with_options
from raystream.lake.bucket import bucket_of
from raystream.lake.retry import server_reason

LONGEST = 7 * 24 * 3600.0
"""Seconds; no provider signs for longer."""


def presigned(batch: Batch, seconds: float, options: Mapping[str, Any]) -> Batch:
    """Sign the links of a batch into buckets.

    Args:
        batch: whose pictures are links.
        seconds: for which they open.
        options: of the object storage, as `pool.storage` has them.

    Raises:
        QueryError: there is no link to sign, or the time is longer than any provider signs for.
        StoreError: the credentials in the environment can't sign.
    """
    import obstore
    from obstore.exceptions import BaseError

    if not 0 < seconds <= LONGEST:
        raise QueryError("--presign must be more than 0 and at most 7d, since no provider signs for longer")
    if not any(item.url and is_remote(item.url) and not item.url.startswith(("http:", "https:")) for item in batch.items):
        raise QueryError(f"--presign signs links into buckets, such as s3://…, but column {batch.column} holds none; leave it out")
    storage = storage_from(options)
    items, buckets = [], {}
    for item in batch.items:
        if not item.url or item.url.startswith(("http:", "https:")) or not is_remote(item.url):
            items.append(item)
            continue
        location = parse(item.url, f"column {batch.column}")
        root = replace(location, path=location.bucket, options=())
        try:
            if root.uri not in buckets:
                buckets[root.uri] = bucket_of(root.uri, with_options(location, storage, "pool.storage"), f"column {batch.column}")
            items.append(replace(item, url=str(obstore.sign(buckets[root.uri], "GET", location.key, timedelta(seconds=seconds)))))
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, QueryError | StoreError):
                raise
            raise StoreError(f"{location.uri} can't be signed: {server_reason(error)}; set the credentials in the environment") from None
    return replace(batch, items=tuple(items))
