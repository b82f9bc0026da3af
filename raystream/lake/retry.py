"""Asking again: what breaks now and then is repeated, and an outage is waited for. The one policy of all remote storage and servers.

A failure is one of three. What is *final* ends the same however often it is asked. An *outage* (a connection that breaks, a server
that is busy or broken, a network file system that doesn't answer) passes, so it is waited for with growing pauses, which is said
once. Anything else is asked a few times. What a storage said when it refused is told in one line, without secrets.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from raystream.errors import RaystreamError

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
    """Return the first line of an error of Arrow's or of a storage, without its full stop and without any secret of the environment."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    text = _SIGNED.sub(r"\1", text)
    text = re.sub(r" \(Request ID: [^)]*\)", "", text).rstrip(". ")
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, f"<{name}>")
    return text


def server_reason(error: BaseException) -> str:
    """Return what a server said, or what became of the connection, by obstore or deltalake; no URLs' options, which may be signatures."""
    text = str(error).partition("\n\nDebug source")[0]
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code:
        text = f"{code[1]}: {message[1].strip().splitlines()[0]}" if message and message[1].strip() else code[1]
    return reason(ValueError(_QUERY.sub("", " ".join(text.split()))))[:300]


def is_final(error: BaseException) -> bool:
    """Tell whether asking again would end the same: what is asked for isn't there, or not for us."""
    return isinstance(error, FileNotFoundError | PermissionError) or is_no_folder(error) or _FINAL.search(str(error)) is not None


def is_outage(error: BaseException) -> bool:
    """Tell whether a server or a network is away for now: to ask again in a while may end otherwise."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _OUTAGES
    return _OUTAGE.search(str(error)) is not None


def is_no_outage(error: BaseException) -> bool:
    """Tell the contrary, of file systems: whatever else they say, they say again."""
    return not is_outage(error)


def in_short(error: BaseException) -> str:
    """Return the few words of an error that tell one outage from another."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = _SHORT.search(str(error).partition("\n")[0])
    return next(words.strip() for words in found.groups() if words) if found else reason(error)[:120]


def is_no_folder(error: BaseException) -> bool:
    """Tell whether a listing failed as nothing is there or a file is, for which Arrow's Google file system has an error of no kind."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or _NO_FOLDER.match(str(error)) is not None


def own_reason(filesystem: pafs.FileSystem, path: str, error: OSError) -> OSError:
    """Return the error, or what the storage says to a listing beside the path: to the question for one object it gives no reason."""
    if "No response body" not in str(error):
        return error
    import pyarrow.fs as pafs

    try:
        filesystem.get_file_info(pafs.FileSelector(path.rpartition("/")[0] or path))
    except OSError as told:
        return told
    return error


ATTEMPTS = 6
FIRST_PAUSE = 0.1
"""Seconds; each pause is about twice the one before: three seconds in all."""
LONGEST_PAUSE = 30.0
OUTAGE_SECONDS = 600.0
"""How long an outage is waited for: longer than a server takes to fail over, shorter than a night of idle machines."""

CLIENT_RETRIES = 5
"""Of one request, by obstore or deltalake, whose connection broke or whose server was busy; pyarrow's S3 is told to repeat nothing."""
CLIENT_FIRST_PAUSE, CLIENT_LONGEST_PAUSE, CLIENT_SECONDS = 0.1, 5.0, 120.0
"""Of these: 0.1 s to 3 s of waiting in all. Left to itself, deltalake asks a server that is down for three minutes."""
GOOGLE_SECONDS = 10.0
"""The same of pyarrow's Google client, which takes no number of times; left to itself, it asks a dead server for a quarter of an hour."""
ATTEMPTS_BEYOND = 3
"""Of what such a client has given up on: obstore doesn't ask again for a body that broke off, for one."""
FIRST_PAUSE_BEYOND = 0.2
"""Seconds."""

_Result = TypeVar("_Result")
_log = logging.getLogger("raystream")
_ended = threading.Event()
_guard = threading.Lock()
# invariant: name of a place -> how many threads of this process wait for it, and since when
_waiting: dict[str, tuple[int, float]] = {}


def stop_waiting() -> None:
    """Have whoever waits for an outage to pass give up now, and nobody wait from here on: the program is ending."""
    _ended.set()


def wait_again() -> None:
    """Undo `stop_waiting`, for a program that begins anew in the same process."""
    _ended.clear()


def is_ending() -> bool:
    """Tell whether the program is ending, since a signal asked it to."""
    return _ended.is_set()


def pause(seconds: float) -> bool:
    """Wait; whether to give up instead of asking again."""
    return _ended.wait(seconds)


@dataclass(frozen=True)
class Patience:
    """A limit to how long an outage is waited for.

    Attributes:
        seconds: since it began; 0 asks the few times of any other failure.
        from_start: whether a place that has not answered yet is waited for, too: whoever says so knows that it is there.
        pause: waits, and says whether to give up; left out, `raystream.lake.retry.pause`.
        clock: seconds.
    """

    seconds: float = OUTAGE_SECONDS
    from_start: bool = False
    pause: Callable[[float], object] | None = None
    clock: Callable[[], float] = time.monotonic

    def gives_up_after(self, seconds: float) -> bool:
        """Pause for about so long. Workers that failed together must not ask again together."""
        return bool((self.pause or pause)(seconds * (0.5 + random.random())))


BRIEF = Patience(0.0)
"""For the first look at a place: whoever misspelt its name should hear of it in seconds."""
LASTING = Patience()
"""For what has been listed or read before."""


def ignore(why: str) -> None:
    """Do nothing, for those who don't count what was asked again."""


def retried(
    call: Callable[[], _Result],
    note: Callable[[str], None] = ignore,
    *,
    patience: Patience = BRIEF,
    place: str = "storage",
    errors: tuple[type[BaseException], ...] = (OSError,),
    final: Callable[[BaseException], bool] = is_final,
    attempts: int = ATTEMPTS,
    first_pause: float | None = None,
) -> _Result:
    """Return what `call` returns; call it again while it fails for a reason that may pass.

    Args:
        call: may be carried out twice.
        note: told the reason each time that it is repeated.
        patience: with outages.
        place: what is asked, for people.
        errors: that it may fail with; our own errors are never repeated, since whoever raised them has been patient.
        final: whether one of them would be the same again.
        attempts: for what is neither final nor an outage.
        first_pause: seconds.

    Raises:
        OSError: or another of `errors`, of the last attempt, or at once where asking again would end the same.
    """
    began: float | None = None
    attempt, said, answered = 0, False, False
    length = FIRST_PAUSE if first_pause is None else first_pause
    try:
        while True:
            attempt += 1
            try:
                result = call()
                answered = True
                return result
            except errors as error:
                if isinstance(error, RaystreamError):
                    raise
                if final(error):
                    answered = True  # if only that there is no such thing
                    raise
                now = patience.clock()
                began = now if began is None else began
                left = patience.seconds - (now - began) if is_outage(error) else 0.0
                if attempt >= attempts and left <= 0:
                    raise
                if attempt >= attempts and not said:
                    said = True
                    _begin_waiting(place, began, f"{in_short(error)}; waiting for it, for up to {in_words(patience.seconds)}")
                note(reason(error))
                if patience.gives_up_after(min(length, LONGEST_PAUSE, left if left > 0 else LONGEST_PAUSE)):
                    raise
                length *= 2
    finally:
        if said:
            _end_waiting(place, patience.clock(), answered)


def on_disk(call: Callable[[], _Result], place: str, patience: Patience = LASTING) -> _Result:
    """Call `retried` for a file system of this machine: what one says is final, unless its server is away."""
    return retried(call, patience=patience, place=place, final=is_no_outage)


class Place:
    """A storage as one process asks it: once it has answered, it is waited for.

    Args:
        name: for people.
        patience: with it.
    """

    def __init__(self, name: str, patience: Patience = LASTING) -> None:
        self.name = name
        self._patience = patience
        self._known = patience.from_start

    @property
    def patience(self) -> Patience:
        """With it as it is known now."""
        return self._patience if self._known else replace(self._patience, seconds=0.0)

    def ask(
        self,
        call: Callable[[], _Result],
        note: Callable[[str], None] = ignore,
        *,
        errors: tuple[type[BaseException], ...] = (OSError,),
        final: Callable[[BaseException], bool] = is_final,
        attempts: int = ATTEMPTS,
        first_pause: float | None = None,
    ) -> _Result:
        """Call `retried` with as much patience as the place deserves."""

        def refused(error: BaseException) -> bool:
            known = final(error)
            self._known = self._known or known
            return known

        result = retried(
            call, note, patience=self.patience, place=self.name, errors=errors, final=refused, attempts=attempts, first_pause=first_pause
        )
        self._known = True
        return result


def _begin_waiting(place: str, now: float, why: str) -> None:
    with _guard:
        count, since = _waiting.get(place, (0, now))
        _waiting[place] = count + 1, since
    if not count:
        _log.warning("%s doesn't answer: %s", place, why)


def _end_waiting(place: str, now: float, answered: bool) -> None:
    with _guard:
        count, since = _waiting.pop(place)
        if count > 1:
            _waiting[place] = count - 1, since
    if count == 1 and answered:
        _log.warning("%s answers again, after %s", place, in_words(now - since))


def in_words(seconds: float) -> str:
    """Write a length of time for people."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
