"""Requests to a bucket: asked again within limits, and explained in a line when they fail for good."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)

from raystream.errors import StoreError, StoreUnreachable
from raystream.lake import is_final
from raystream.lake.reason import is_outage, server_reason
from raystream.lake.retry import LASTING, Patience, Place, in_words

ATTEMPTS = 3
"""Of what obstore itself has given up on: it doesn't ask again for a body that broke off, for one."""
FIRST_WAIT = 0.2
"""Seconds before the second attempt; doubled before each further one, see `raystream.lake.retry`."""

_FINAL = (
    FileNotFoundError, PermissionError, AlreadyExistsError, InvalidPathError, NotSupportedError, PermissionDeniedError, PreconditionError,
    UnauthenticatedError, UnknownConfigurationKeyError,
)  # fmt: skip
_REFUSED = re.compile(r"\bstatus:? (?:4(?!08|29)\d\d|501)\b")
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")

_ROLE = re.compile(r"/latest/(?:api/token|meta-data)|metadata\.google\.internal|/computeMetadata/|/metadata/identity")
"""Where obstore asks for the machine's own credentials when the environment holds none."""

T = TypeVar("T")


class Requests:
    """Makes requests to one store.

    Args:
        place: of the store, for people.
        patience: with its server while that is away.

    Attributes:
        retries: requests that were asked again, those that obstore repeats by itself left out.
    """

    def __init__(self, place: str, patience: Patience = LASTING) -> None:
        self._place = Place(place, patience)
        self.retries = 0

    def __call__(self, request: Callable[[], T], name: str, what: str) -> T:
        """The answer to a request.

        Raises:
            AlreadyExistsError: of a file that was to be written only if absent.
            StoreError: it was refused.
            StoreUnreachable: nothing came back, or it broke off, every time.
        """
        with self.explained(name, what):
            return self._answer(request)

    def if_there(self, request: Callable[[], T], name: str, what: str) -> T | None:
        """The answer to a request, None if there is no such file."""

        def asked() -> T | None:
            try:
                return self._answer(request)
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise
                return None

        with self.explained(name, what):
            return asked()

    def _answer(self, request: Callable[[], T]) -> T:
        return self._place.ask(
            request, self._count, errors=(BaseError, OSError), final=_is_refusal, attempts=ATTEMPTS, first_pause=FIRST_WAIT
        )

    def _count(self, why: str) -> None:
        self.retries += 1

    @contextmanager
    def explained(self, name: str, what: str) -> Iterator[None]:
        """What obstore raises inside, as an error of the store's."""
        try:
            yield
        except (AlreadyExistsError, StoreError):
            raise
        except (BaseError, OSError) as error:
            raise self._error(error, name, what) from None

    def _error(self, error: BaseException, name: str, what: str) -> StoreError:
        if _ROLE.search(str(error)):
            return StoreError(
                f"store: {self._place.name}/{name} can't be {what}: the environment holds no credentials, and this machine has no role; "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS or AZURE_STORAGE_KEY"
            )
        text = f"store: {self._place.name}/{name} can't be {what}: {server_reason(error)}"
        if not _is_refusal(error):
            waited = self._place.patience.seconds if is_outage(error) else 0
            asked = f"waited for it for {in_words(waited)}" if waited else f"asked {ATTEMPTS} times"
            return StoreUnreachable(f"{text}; {asked}, run again to resume")
        if isinstance(error, FileNotFoundError) and (what != "read" or _NO_BUCKET.search(str(error))):
            return StoreError(f"{text}; make the bucket or correct store.uri")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or is_final(error):
            return StoreError(f"{text}; check the credentials in the environment and what they may do in this bucket")
        return StoreError(text)


def _is_refusal(error: BaseException) -> bool:
    """Whether asking again would end the same."""
    text = str(error)
    return isinstance(error, _FINAL) or is_final(error) or any(pattern.search(text) for pattern in (_REFUSED, _ROLE))
