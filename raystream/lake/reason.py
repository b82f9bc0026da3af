"""What a storage says when it refuses: one line, without secrets."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.fs as pafs

_SECRETS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN",
)  # fmt: skip
_FINAL = re.compile(
    "NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|EXPIRED_TOKEN|"
    "InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|AccessDenied|NoSuchBucket|NoSuchKey|INVALID_CLIENT_TOKEN_ID|"
    "AuthorizationFailure|AuthorizationPermissionMismatch|AuthenticationFailed|ContainerNotFound|ResourceNotFound|"
    r"MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|PERMISSION_DENIED|UNAUTHENTICATED|HTTP status (?:401|403|404)\b"
)
_OUTAGE = re.compile(
    r"(?:status(?: code)?:?|Azure Error: \[[^]]*\]) (?:408|429|5(?!0[157])\d\d)\b|HTTP error: |NETWORK_CONNECTION|"
    "SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT|"
    r"Status\((?:UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL|ABORTED)\b|Error while sending request"
)
"""What obstore and Arrow's S3, Google and Azure say of servers that are busy, broken or gone, and of connections that break."""
_OUTAGES = frozenset(
    {
        errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
        errno.ENOTCONN, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EREMOTEIO, errno.ENOLINK, errno.ESHUTDOWN,
    }
)  # fmt: skip
"""What a network file system says while its server is away. A full disk is none: nothing but its owner mends that."""
_SHORT = re.compile(
    r"status(?: code)?:? (\d+(?: [A-Z][\w ]*)?)|curlCode: \d+, ([^;]+)|CURL error \[\d+\]=([^;]+?)(?: error_info|$)|HTTP error: ([^\n]*)"
)
_NO_FOLDER = re.compile(r"(?:No such file or directory|Cannot use file) '")
_SIGNED = re.compile(r"""(https?://[^\s?'"]*)\?[^\s'"]*""")
"""URLs that end in options; Azure's hold the shared signature, sorted otherwise than in the environment."""

_CODE, _MESSAGE = (re.compile(f"<{tag}>([^<]*)</{tag}>") for tag in ("Code", "Message"))
_QUERY = re.compile(r"\?[^\s)]*")


def reason(error: BaseException) -> str:
    """The first line of an error of Arrow's or of a storage, without its full stop and without any secret of the environment."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    text = _SIGNED.sub(r"\1", text)
    text = re.sub(r" \(Request ID: [^)]*\)", "", text).rstrip(". ")
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, f"<{name}>")
    return text


def server_reason(error: BaseException) -> str:
    """What a server said, or what became of the connection, by obstore or deltalake; no options of URLs, which may be signatures."""
    text = str(error).partition("\n\nDebug source")[0]
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code:
        text = f"{code[1]}: {message[1].strip().splitlines()[0]}" if message and message[1].strip() else code[1]
    return reason(ValueError(_QUERY.sub("", " ".join(text.split()))))[:300]


def is_final(error: BaseException) -> bool:
    """Whether asking again would end the same: what is asked for isn't there, or not for us."""
    return isinstance(error, FileNotFoundError | PermissionError) or is_no_folder(error) or _FINAL.search(str(error)) is not None


def is_outage(error: BaseException) -> bool:
    """Whether a server or a network is away for now: to ask again in a while may end otherwise."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _OUTAGES
    return _OUTAGE.search(str(error)) is not None


def is_no_outage(error: BaseException) -> bool:
    """The contrary, of file systems: whatever else they say, they say again."""
    return not is_outage(error)


def in_short(error: BaseException) -> str:
    """The few words of an error that tell one outage from another."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = _SHORT.search(str(error).partition("\n")[0])
    return next(words.strip() for words in found.groups() if words) if found else reason(error)[:120]


def is_no_folder(error: BaseException) -> bool:
    """Whether a listing failed because nothing is there or a file is, for which Arrow's Google file system has an error of no kind."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or _NO_FOLDER.match(str(error)) is not None


def own_reason(filesystem: pafs.FileSystem, path: str, error: OSError) -> OSError:
    """The error, or what the storage says to a listing beside the path: to the question for one object it gives no reason."""
    if "No response body" not in str(error):
        return error
    import pyarrow.fs as pafs

    try:
        filesystem.get_file_info(pafs.FileSelector(path.rpartition("/")[0] or path))
    except OSError as told:
        return told
    return error
