"""A file written to object storage piece by piece: there, whole, when the block ends, and untouched if it ends in an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow as pa

from raystream.errors import RaystreamError, StoreError
from raystream.lake import LOCAL, Storage, parse, with_options
from raystream.lake.reason import server_reason

PART_BYTES = 16 << 20
"""What is sent at once; S3 takes 10,000 of them, so 160 GB."""
_PARTS_AT_A_TIME = 4


@contextmanager
def uploading(uri: str, storage: Storage = LOCAL, key: str = "output") -> Iterator[pa.NativeFile]:
    """A file to write to; what the URI named before stays until the new one is whole.

    Args:
        uri: of an object, remote.
        storage: how to reach it; the URI's own options come first.
        key: the query's key or the option that the URI stands in, for messages.

    Raises:
        QueryError: the URI or an option can't be used.
        StoreError: it can't be written.
    """
    import obstore
    from obstore.exceptions import BaseError

    from raystream.lake.bucket import bucket_of
    from raystream.store.bucket_files import HashingWriter

    location = parse(uri, key)
    folder, _, name = location.path.rpartition("/")
    bucket: Any = bucket_of(replace(location, path=folder).uri, with_options(location, storage, key), key)
    try:
        # Left by an error, the writer ends the upload without an object.
        with obstore.open_writer(bucket, name, buffer_size=PART_BYTES, max_concurrency=_PARTS_AT_A_TIME) as sink:
            writer = HashingWriter(sink)
            with pa.PythonFile(writer, "wb") as file:
                yield file
        written = obstore.head(bucket, name)["size"]
    except (BaseError, OSError) as error:
        if isinstance(error, RaystreamError):
            raise
        what = f"{key} {location.uri} can't be written: {server_reason(error)}"
        raise StoreError(f"{what}; check the bucket, the options and the credentials in the environment") from None
    if written != writer.size:
        raise StoreError(f"{key} {location.uri} holds {written} bytes, but {writer.size} were written: the server damages uploads")
