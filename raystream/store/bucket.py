"""The store in a bucket: S3, Google Cloud Storage, Azure, or a server that speaks like one of them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import obstore
import pyarrow as pa
import xxhash
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

from raystream.errors import QueryError, StoreError, StoreUnreachable
from raystream.lake import LOCAL, Storage, is_final
from raystream.lake.bucket import HashingWriter, bucket_of
from raystream.lake.ranges import RangeReader
from raystream.lake.retry import ATTEMPTS_BEYOND, FIRST_PAUSE_BEYOND, LASTING, Patience, Place, in_words, is_outage, server_reason
from raystream.lake.uri import parse, redacted
from raystream.store.integrity import damaged, local_copies
from raystream.store.protocol import Entry, StoredFile, WriteBroken

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
        """Return the answer to a request.

        Raises:
            AlreadyExistsError: of a file that was to be written only if absent.
            StoreError: it was refused.
            StoreUnreachable: nothing came back, or it broke off, every time.
        """
        with self.explained(name, what):
            return self._answer(request)

    def if_there(self, request: Callable[[], T], name: str, what: str) -> T | None:
        """Return the answer to a request, None if there is no such file."""

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
            request, self._count, errors=(BaseError, OSError), final=_is_refusal, attempts=ATTEMPTS_BEYOND, first_pause=FIRST_PAUSE_BEYOND
        )

    def _count(self, why: str) -> None:
        self.retries += 1

    @contextmanager
    def explained(self, name: str, what: str) -> Iterator[None]:
        """Turn what obstore raises inside into an error of the store's."""
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
            asked = f"waited for it for {in_words(waited)}" if waited else f"asked {ATTEMPTS_BEYOND} times"
            return StoreUnreachable(f"{text}; {asked}, run again to resume")
        if isinstance(error, FileNotFoundError) and (what != "read" or _NO_BUCKET.search(str(error))):
            return StoreError(f"{text}; make the bucket or correct store.uri")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or is_final(error):
            return StoreError(f"{text}; check the credentials in the environment and what they may do in this bucket")
        return StoreError(text)


def _is_refusal(error: BaseException) -> bool:
    """Tell whether asking again would end the same."""
    text = str(error)
    return isinstance(error, _FINAL) or is_final(error) or any(pattern.search(text) for pattern in (_REFUSED, _ROLE))


PART_BYTES = 8 << 20
"""What is sent at once of a large file; S3 takes 10,000 of them, so 80 GB."""
_PARTS_AT_A_TIME = 4
_WHOLE_BYTES = 1 << 20
"""Files up to this size are read in one request, larger ones by the ranges that are looked at."""


class ObjectStore:
    """A store below `s3://bucket/prefix`, `gs://…` or `abfs://…`; promises what `Store` says.

    Credentials come from the environment of each process and are never part of it. Appended files are held back until
    `flush`, since objects can't grow.

    Args:
        uri: of the bucket, which must exist, and the prefix of all names.
        storage: how to reach it.
        patience: with its server while that is away.

    Raises:
        QueryError: the URI or an option can't be used.
    """

    def __init__(self, uri: str, storage: Storage = LOCAL, patience: Patience = LASTING) -> None:
        location = parse(uri, "store.uri")
        if location.scheme == "file":
            raise QueryError(f"store.uri {uri} is a folder, not object storage")
        self._given, self.storage = uri, storage
        self._shown = redacted(uri).rstrip("/")
        self._bucket: Any = bucket_of(uri, storage)
        self._ask = Requests(self._shown, patience)
        self._guard = threading.Lock()
        self._written: dict[str, StoredFile] = {}
        self._appended: dict[str, bytearray] = {}

    remote = True
    free_bytes = None

    def __repr__(self) -> str:
        return f"ObjectStore({self._shown!r})"

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str, Storage, Patience]]:
        return type(self), (self._given, self.storage, Patience(from_start=True))

    @property
    def uri(self) -> str:
        return self._given

    @property
    def retries(self) -> int:
        """The number of requests of this process that were asked again."""
        return self._ask.retries

    def place(self, name: str) -> str:
        return f"{self._shown}/{name}"

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        found = self._ask.if_there(lambda: obstore.head(self._bucket, name), name, "read")
        return None if found is None else found["size"]

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return [self.size(name) for name in names]

    def read(self, name: str) -> bytes:
        return self._ask(lambda: self._get(name), name, "read")

    def read_if_there(self, name: str) -> bytes | None:
        return self._ask.if_there(lambda: self._get(name), name, "read")

    def _get(self, name: str) -> bytes:
        return obstore.get(self._bucket, name).bytes().to_bytes()

    def _range(self, name: str, start: int, length: int) -> bytes:
        if not length:
            return b""  # no server gives a range of nothing
        return self._ask(lambda: obstore.get_range(self._bucket, name, start=start, length=length).to_bytes(), name, "read")

    def put_if_absent(self, name: str, data: bytes, *, wait: bool = True) -> bool:
        """Write a file whole unless it is there; False if somebody else's is there already.

        The answer to a request that was carried out may get lost, and the request asked again: a file that holds
        exactly `data` therefore counts as one's own. What writers race for names their attempt and differs.
        """
        try:
            self._ask(lambda: self._create(name, data), name, "written")
        except AlreadyExistsError:
            return self.read_if_there(name) == data
        self._verify(name, len(data))
        return True

    def _create(self, name: str, data: bytes) -> None:
        try:
            # In parts, it would be no condition: S3 takes none for them.
            obstore.put(self._bucket, name, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            self._refuse_nothing(name)
            raise

    def _refuse_nothing(self, name: str) -> None:
        """Ask again where a server says that a file is there, and it isn't: another writer was at it, and left nothing."""
        try:
            obstore.head(self._bucket, name)
        except FileNotFoundError:
            raise ConnectionAbortedError("another request for it was under way") from None

    def put(self, name: str, data: bytes) -> None:
        self._ask(lambda: self._replace(name, data), name, "written")

    def _replace(self, name: str, data: bytes) -> None:
        try:
            obstore.put(self._bucket, name, data, use_multipart=False)
        except AlreadyExistsError as error:
            # What a server says of two requests at once, 409, is no answer to this one.
            raise ConnectionAbortedError(str(error)) from None

    def append(self, name: str, data: bytes) -> None:
        if name not in self._appended:
            self._appended[name] = bytearray(self.read_if_there(name) or b"")
        self._appended[name] += data

    def flush(self) -> None:
        for name, data in self._appended.items():
            self.put(name, bytes(data))
        self._appended.clear()

    @contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        try:
            with self._ask.explained(name, "written"):
                opened = obstore.open_writer(self._bucket, name, buffer_size=PART_BYTES, max_concurrency=_PARTS_AT_A_TIME)
                writer = HashingWriter(opened)
                try:
                    with pa.PythonFile(writer, "wb") as file:
                        yield file
                    self._finish(writer, name)
                except BaseException:
                    with suppress(Exception):
                        writer.finish()  # ends the upload; its parts would stay in the bucket for ever
                    self.discard(name)
                    raise
        except StoreUnreachable as error:
            raise WriteBroken(str(error)) from None
        self._verify(name, writer.size)
        with self._guard:
            self._written[name] = StoredFile(name, writer.size, writer.xxh3)

    def _finish(self, writer: HashingWriter, name: str) -> None:
        try:
            writer.finish()
        except (BaseError, OSError):
            # Of an upload that was ended and whose answer got lost, a server says that there is none. Only this writer has the name.
            if self.size(name) != writer.size:
                raise

    def stored(self, name: str) -> StoredFile:
        with self._guard:
            return self._written.pop(name)

    def discard(self, name: str) -> None:
        # Whatever is left is named by no receipt: not worth failing for.
        with suppress(BaseError, OSError):
            obstore.delete(self._bucket, name)

    def remove(self, name: str) -> None:
        self._ask.if_there(lambda: obstore.delete(self._bucket, name), name, "removed")

    def walk(self, *folders: str) -> Iterator[Entry]:
        for folder in folders:
            yield from self._below(folder)

    def _below(self, folder: str) -> Iterator[Entry]:
        pages: Any = None
        last: str | None = None

        def page() -> Any:
            nonlocal pages
            try:
                if pages is None:  # the first time, and on from where it broke
                    pages = iter(obstore.list(self._bucket, f"{folder}/", offset=last))
                return next(pages, None)
            except (BaseError, OSError):
                pages = None
                raise

        while (entries := self._ask(page, folder, "listed")) is not None:
            yield from (Entry(entry["path"], entry["size"], entry["last_modified"].timestamp()) for entry in entries)
            last = entries[-1]["path"] if entries else last

    def discard_folder(self, folder: str) -> None:
        """Do nothing: there are no folders in a bucket."""

    def names(self, folder: str) -> list[str]:
        found = self._ask(lambda: obstore.list_with_delimiter(self._bucket, f"{folder}/"), folder, "listed")
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        # Some servers list the folder itself, as an object of its name.
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths if path.startswith(f"{folder}/"))

    def check_commits(self) -> None:
        name = "format.json"
        present = self.read(name)
        try:
            self._ask(lambda: self._create(name, present), name, "written")
        except AlreadyExistsError:
            return
        raise StoreError(
            f"store {self._shown}: its server let {name} be written a second time although it was there, so two runs could replace each "
            "other's results; use a server that honours If-None-Match"
        )

    def source(self, file: StoredFile) -> pa.NativeFile:
        if file.size <= _WHOLE_BYTES:
            data = self.read(file.name)
            if xxhash.xxh3_128_hexdigest(data) != file.xxh3:
                raise damaged(self.place(file.name))
            return pa.BufferReader(data)
        return pa.PythonFile(RangeReader(lambda start, length: self._range(file.name, start, length), file.size), "r")

    def local(self, file: StoredFile) -> Path:
        return self._local(file, anew=False)

    def is_whole(self, file: StoredFile) -> bool:
        found = self._ask.if_there(lambda: self._beginning(file), file.name, "read")
        if found is None or found[0] != file.size:
            return False
        # Brought here, since whoever asks is going to read it; a copy made earlier would say nothing of the store.
        return self._local(file, anew=True, beginning=found[1]).exists()

    def _beginning(self, file: StoredFile) -> tuple[int, bytes]:
        """Read the size of the whole file as it is now, and its first part."""
        found = obstore.get(self._bucket, file.name, options={"range": (0, max(1, min(PART_BYTES, file.size)))})
        return found.meta["size"], found.bytes().to_bytes()

    def _local(self, file: StoredFile, anew: bool, beginning: bytes = b"") -> Path:
        def content() -> Iterator[bytes]:
            yield beginning
            for start in range(len(beginning), file.size, PART_BYTES):
                yield self._range(file.name, start, min(PART_BYTES, file.size - start))

        return local_copies().path(self._shown, file, content, anew)

    def head(self, file: StoredFile, size: int) -> bytes:
        """Read the first bytes of a file."""
        return self._range(file.name, 0, min(size, file.size))

    def range(self, file: StoredFile, start: int, length: int) -> bytes:
        return self._range(file.name, start, length)

    def _verify(self, name: str, written: int) -> None:
        """Verify an upload: some servers store those of some clients damaged, and say nothing."""
        found = self.size(name)
        if found == written:
            return
        self.discard(name)
        raise StoreError(
            f"store: {self.place(name)} holds {found} bytes, but {written} were written: the server damages uploads; set "
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_required in the environment, or use another server"
        )
