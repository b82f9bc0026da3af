"""Which environment variables a storage takes its credentials from, by name alone."""

from __future__ import annotations

import os

from raystream.lake.filesystem import with_options
from raystream.lake.storage import LOCAL, Storage
from raystream.lake.uri import parse

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
    """The variables that would have to be set for a URI and aren't; a machine with a role of its own needs none of them.

    Raises:
        QueryError: the URI or an option can't be used.
    """
    location = parse(uri, key)
    if location.scheme == "file" or with_options(location, storage, key).anonymous:
        return ()
    if any(os.environ.get(name) for name in _INSTEAD[location.scheme]) and not os.environ.get(_ASKED[location.scheme][0]):
        return ()
    return tuple(name for name in _ASKED[location.scheme] if not os.environ.get(name))
