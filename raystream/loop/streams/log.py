"""The log of a stream, and how what was appended to it becomes whole files.

What a stream leaves in the store: what arrived, in which order, and what was decided. Each is put if absent, and never changed.

    streams/<name>/stream.yaml                  as it was begun
    streams/<name>/arrivals/00000001.parquet    files in the order of their arrival, those of one look
    streams/<name>/packs/00000256.parquet       all arrivals up to a look, in one file: an index, made again where it is lost
    streams/<name>/decisions/00000001.parquet   the next rows, each with its decision: of one look, and so many at most
    streams/<name>/log/00000002.open            those of requests that are to be the next file, see `raystream.loop.streams.segment`
    streams/<name>/states/00000001-<digest>.json  all that further decisions depend on; named by the decisions that it comes after
    streams/<name>/events/00000001/             what the workers told that were started by that look

Decisions that are there were made; nothing else was. A file of them holds in its metadata how far it came and the state after it, so that
whoever goes on does so as if nothing had happened.

Gives decisions that a log holds their file: those of requests that were answered by a server that is gone, or by one that isn't.

The log holds rows, scores and decisions. The state after them is that before them gone on with: decisions are a function of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
import yaml

from raystream.errors import PoolError, QueryError, StoreError
from raystream.loop.streams.decided import Decided
from raystream.loop.streams.decisions import StreamState
from raystream.loop.streams.segment import WHOLE, Begun, Record, Segment, beginning, read_segment, seal
from raystream.query.simulate import Stream
from raystream.store.packs import in_threads
from raystream.store.protocol import Store
from raystream.store.queries import parquet_bytes, read_parquet

_SAID = "raystream.stream"
"""In the metadata of decisions: what `Progress` holds, as JSON."""
PACKED_LOOKS = 256
"""Looks whose arrivals are read one by one, at most, before they are packed: half a millisecond each on a disk."""
Ids = TypeVar("Ids", pa.Array, pa.ChunkedArray)
_ARRIVALS = pa.schema(
    [("path", pa.string()), ("size", pa.int64()), ("version", pa.string()), ("time", pa.int64()), ("rewritten", pa.bool_())]
)


@dataclass(frozen=True)
class Arrival:
    """A file that arrived.

    Attributes:
        path: as `File` has it.
        size: bytes.
        version: as listed.
        time: when, in nanoseconds since the epoch; of a table's file, the number of the snapshot that added it.
        rewritten: whether it may hold rows of files that it took the place of, as after a table was compacted.
        look: in which it was found, from 1.
    """

    path: str
    size: int
    version: str
    time: int
    rewritten: bool = False
    look: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a stream has come.

    Attributes:
        parts: files of decisions so far.
        file: the number of the arrival that the next row is of, from 0.
        row: the last row of it that was decided on; -1: none.
        rows: decided on in all.
        seen: of them, those that count.
        chosen: of them, those to be labelled.
        epoch: how many models have scored, from 1; 0 before the first.
        model: the fingerprint of the last.
        state: the file with all else.
    """

    parts: int = 0
    file: int = 0
    row: int = -1
    rows: int = 0
    seen: int = 0
    chosen: int = 0
    epoch: int = 0
    model: str = ""
    state: str = ""


class StreamLog:
    """A stream's files."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self.folder = f"streams/{name}"
        self._last: pa.Schema | None = None

    @property
    def decisions(self) -> str:
        """The folder of the decisions, for people."""
        return self.store.place(f"{self.folder}/decisions")

    def events(self, look: int) -> str:
        """Return the folder of the store for the events of workers that a look started."""
        return f"{self.folder}/events/{look:08d}"

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of the decisions; None before the first."""
        return None if self._last is None else self._last.remove_metadata()

    def begin(self, stream: Stream) -> None:
        """Note the stream, or see that it is the one that was begun under this name.

        Before anything was decided it may be mended in any way; then what arrived is noted anew.

        Raises:
            QueryError: it differs in what may not change in the middle.
        """
        name = f"{self.folder}/stream.yaml"
        data = self.store.read_if_there(name)
        if data is None:
            self.store.put_if_absent(name, stream.to_yaml().encode())
        before = self.stream()
        was, now = before.identity, stream.identity
        changed = [f"{key} ({was.get(key)} then, {now[key]} now)" for key in now if was.get(key) != now[key]]
        if changed and not self.store.names(f"{self.folder}/decisions") and not self._logged():
            for folder in ("packs", "arrivals"):
                for left in reversed(self.store.names(f"{self.folder}/{folder}")):
                    self.store.remove(f"{self.folder}/{folder}/{left}")
            self.store.put(name, stream.to_yaml().encode())
        elif changed:
            raise QueryError(
                f"stream {self.name} was begun with another spec; it differs in {', '.join(changed)}; only the model, cluster, on_error "
                "and stream.follow may change, so put the rest back, or give stream.name another name"
            )

    def stream(self) -> Stream:
        """Read the stream as it was begun.

        Raises:
            StoreError: what is there is damaged.
        """
        name = f"{self.folder}/stream.yaml"
        try:
            return Stream(**dict(yaml.safe_load(self.store.read(name))))
        except (QueryError, TypeError, ValueError, yaml.YAMLError) as error:
            raise self._damaged(name, error) from None

    def arrivals(self, look: int = 0) -> list[Arrival]:
        """Read all that arrived, in order, from one look on."""
        folder = f"{self.folder}/arrivals"
        packed = [] if look else self._packed()
        first = packed[-1].look + 1 if packed else look
        names = [name for name in self.store.names(folder) if name.endswith(".parquet") and _number(name) >= first]
        looks = in_threads(lambda name: self._arrivals(f"{folder}/{name}", _number(name)), names)
        found = packed + [arrival for arrivals in looks for arrival in arrivals]
        if not look and len(names) >= PACKED_LOOKS:
            self._pack(found)
        return found

    def commit_arrivals(self, look: int, arrivals: Sequence[Arrival]) -> None:
        """Note what arrived, unless somebody else has noted a look of this number."""
        self.store.put_if_absent(_numbered(f"{self.folder}/arrivals", look), parquet_bytes(_table(arrivals, _ARRIVALS)))

    def progress(self) -> tuple[Progress, dict[str, Any]]:
        """Return how far the stream has come, and the state that it goes on from, empty at first; older states are forgotten.

        Raises:
            StoreError: what is there is damaged.
        """
        found, state = self.look()
        if found.parts:
            self._discard_states(found.parts - 1)
        return found, state

    def look(self) -> tuple[Progress, dict[str, Any]]:
        """Return what `progress` does, for whoever doesn't go on: nothing is changed.

        Raises:
            StoreError: what is there is damaged.
        """
        names = [name for name in self.store.names(f"{self.folder}/decisions") if name.endswith(".parquet")]
        if not names:
            return Progress(), {}
        name = f"{self.folder}/decisions/{names[-1]}"
        try:
            schema = pq.ParquetFile(pa.BufferReader(self.store.read(name)), pre_buffer=False).schema_arrow
            found = Progress(**json.loads((schema.metadata or {})[_SAID.encode()]))
            data = self.store.read_if_there(name := found.state)
            if data is None:
                raise self._damaged(name, "it is missing")
            state = json.loads(data)
        except StoreError:
            raise
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(name, error) from None
        self._last = schema
        return found, dict(state)

    def commit_decisions(
        self,
        rows: pa.Table,
        progress: Progress,
        state: Mapping[str, Any],
        about: Mapping[str, str] | None = None,
        *,
        logged: bool = False,
    ) -> Progress | None:
        """Commit the next rows' decisions, after which the stream has come so far.

        Args:
            rows: with their decisions.
            progress: after them.
            state: after them.
            about: goes into the file's metadata, too.
            logged: they are those of the log; otherwise nobody may have begun one for this file.

        Returns:
            The progress with the name of its state; None if somebody else's decisions are there already, or in the log.
        """
        if not logged and not self.claim(progress.parts):
            return None
        data = json.dumps(state, separators=(",", ":")).encode()
        name = f"{self.folder}/states/{progress.parts:08d}-{xxhash.xxh3_128_hexdigest(data)}.json"
        self.store.put_if_absent(name, data)
        whole = replace(progress, state=name)
        table = self._as_before(rows)
        written = parquet_bytes(table, {_SAID: json.dumps(vars(whole)), **(about or {})})
        if not self.store.put_if_absent(_numbered(f"{self.folder}/decisions", whole.parts), written):
            return None
        self._last = table.schema
        self._discard_states(whole.parts - 1)
        self._discard_log(whole.parts)
        return whole

    def claim(self, part: int) -> bool:
        """Say that the file of decisions of this number comes whole, which several may; False if somebody has begun a log for it.

        A log that was sealed has given its name away, and has decisions all the same, unless whoever began it was gone before the first.

        Raises:
            StoreError: it is damaged.
        """
        opened, sealed = self._segment(part)
        # invariant: what counts in a sealed log is there before its name can be taken
        return self.store.remote or (self.store.put_if_absent(opened, WHOLE) and not self._sealed(sealed)[1])

    def is_claimed(self, part: int) -> bool:
        """Tell whether somebody said that the file of decisions of this number comes whole, and it isn't there yet."""
        return not self.store.remote and self.store.read_if_there(self._segment(part)[0]) == WHOLE

    def begin_segment(self, part: int, begun: Begun) -> Segment | None:
        """Begin the log of what will be the file of decisions of this number; None if somebody else's are, or will be."""
        opened, sealed = self._segment(part)
        first = beginning(begun)
        if not self.store.put_if_absent(opened, first):
            return None
        if self.store.exists(sealed) or self.store.exists(_numbered(f"{self.folder}/decisions", part)):
            self.store.discard(opened)  # that name was free because all is over there
            return None
        return Segment(Path(self.store.place(opened)), first, begun)

    def unfolded(self) -> tuple[int, Begun, list[Record]] | None:
        """Return what the log holds that is in no file of decisions, and the number of the file that it is to be; None if there is nothing.

        Whoever appended to it finds it sealed.

        Raises:
            StoreError: it is damaged.
        """
        numbers = self._logged()
        if not numbers:
            return None
        part = max(self.parts(), default=0) + 1
        if min(numbers) < part:
            self._discard_log(part - 1)
        opened, sealed = self._segment(part)
        if self.store.read_if_there(opened) not in (None, WHOLE):
            seal(self.store, opened, sealed)
        begun, records = self._sealed(sealed)
        return (part, begun, records) if begun is not None and records else None

    def parts(self) -> list[int]:
        """List the numbers of all files of decisions."""
        return [_number(name) for name in self.store.names(f"{self.folder}/decisions") if name.endswith(".parquet")]

    def part(self, number: int) -> pq.ParquetFile:
        """Open a file of decisions."""
        data = self.store.read(_numbered(f"{self.folder}/decisions", number))
        return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)

    def ids(self) -> pa.ChunkedArray | None:
        """Read the ids of all rows that were decided on; None before the first."""
        folder = f"{self.folder}/decisions"
        names = [name for name in self.store.names(folder) if name.endswith(".parquet")]
        found = in_threads(lambda name: read_parquet(self.store.read(f"{folder}/{name}")).column(0), names)
        return pa.chunked_array([chunk for column in found for chunk in column.chunks], found[0].type) if found else None

    def _packed(self) -> list[Arrival]:
        """Read what the newest pack holds; nothing where there is none, or it is damaged."""
        packs = [name for name in self.store.names(f"{self.folder}/packs") if name.endswith(".parquet")]
        data = self.store.read_if_there(f"{self.folder}/packs/{packs[-1]}") if packs else None
        try:
            return [] if data is None else [Arrival(**row) for row in read_parquet(data).to_pylist()]
        except (pa.ArrowException, OSError, TypeError):
            return []

    def _pack(self, arrivals: Sequence[Arrival]) -> None:
        """Write all that arrived into one file, an index of the looks' own files, which spares whoever comes next to read them."""
        name = _numbered(f"{self.folder}/packs", arrivals[-1].look)
        self.store.put(name, parquet_bytes(_table(arrivals, _ARRIVALS.append(pa.field("look", pa.int64())))))
        for old in self.store.names(f"{self.folder}/packs"):
            if old.endswith(".parquet") and _number(old) < arrivals[-1].look:
                self.store.discard(f"{self.folder}/packs/{old}")

    def ids_as_before(self, ids: Ids) -> Ids:
        """Return the ids, an array or a column, with the type of those before: files that arrive later may be written by other means.

        Raises:
            PoolError: they can't have it.
        """
        if self._last is None or ids.type == self._last.field(0).type:
            return ids
        kind = self._last.field(0).type
        try:
            return ids.cast(kind)
        except (pa.ArrowException, ValueError) as error:
            raise PoolError(
                f"pool.id: the ids that arrived are {ids.type}, those before were {kind} ({error}); "
                "write them as these, or give stream.name another name"
            ) from None

    def _as_before(self, rows: pa.Table) -> pa.Table:
        """Return the rows with the types of those before."""
        if self._last is None or rows.schema.equals(self._last):
            return rows
        ids = self.ids_as_before(rows.column(0))
        return rows.set_column(0, rows.schema.names[0], ids).cast(self.schema)

    @property
    def _log(self) -> str:
        return f"{self.folder}/log"

    def _segment(self, part: int) -> tuple[str, str]:
        return f"{self._log}/{part:08d}.open", f"{self._log}/{part:08d}.sealed"

    def _sealed(self, name: str) -> tuple[Begun | None, list[Record]]:
        """Read a log that was sealed; nothing where there is none."""
        data = self.store.read_if_there(name)
        try:
            return (None, []) if data is None else read_segment(data)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise self._damaged(name, error) from None

    def _discard_log(self, limit: int) -> None:
        """Forget the log of files of decisions up to this one, which are there."""
        for part in self._logged():
            if part <= limit:
                for name in self._segment(part):
                    self.store.discard(name)

    def _logged(self) -> set[int]:
        """List the numbers of the files of decisions that the log has something for, or that are said to come whole."""
        names = [] if self.store.remote else self.store.names(self._log)
        return {_number(name) for name in names if name.endswith((".open", ".sealed"))}

    def _damaged(self, name: str, error: object) -> StoreError:
        return StoreError(f"store: {self.store.place(name)} is damaged ({error}); restore it, or give stream.name another name")

    def _discard_states(self, limit: int) -> None:
        """Forget states of files of decisions before this one; the last but one stays, for whoever reads at this moment."""
        for name in self.store.names(f"{self.folder}/states"):
            number = name.partition("-")[0]
            if number.isdigit() and int(number) < limit:
                self.store.discard(f"{self.folder}/states/{name}")

    def _arrivals(self, name: str, look: int) -> list[Arrival]:
        try:
            table = read_parquet(self.store.read(name)).select(_ARRIVALS.names)
        except (pa.ArrowException, OSError, KeyError) as error:
            if isinstance(error, StoreError):
                raise
            raise self._damaged(name, error) from None
        return [Arrival(**row, look=look) for row in table.to_pylist()]


def _table(arrivals: Sequence[Arrival], schema: pa.Schema) -> pa.Table:
    columns = {field.name: pa.array([getattr(arrival, field.name) for arrival in arrivals], field.type) for field in schema}
    return pa.table(columns, schema)


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def _numbered(folder: str, number: int) -> str:
    return f"{folder}/{number:08d}.parquet"


_REQUESTS = "raystream.requests"
"""In the metadata of decisions: a JSON list of the requests' ids, what was asked, and how many rows each has."""
_log = logging.getLogger("raystream")


def fold(log: StreamLog) -> None:
    """Give what is in the log, and in no file of decisions, its file; whoever appended to it goes on in another.

    Raises:
        StoreError: what is there is damaged, or can't be written.
    """
    while (found := log.unfolded()) is not None:
        part, begun, records = found
        before, saved = log.progress()
        if before.parts != part - 1:
            continue  # somebody else has done it meanwhile
        progress, state = _after(log.stream(), before, saved, begun, records)
        rows = Decided.joined([record.decided for record in records]).in_columns(begun.schema.names[0], begun.schema)
        log.commit_decisions(rows, progress, state, about(record.requests for record in records), logged=True)


def about(said: Iterable[str]) -> dict[str, str]:
    """Write what a file of decisions says in its metadata of the requests whose rows it holds, in their order: `said_of` some at a time."""
    return {_REQUESTS: f"[{','.join(said)}]"}


def requests_of(schema: pa.Schema) -> list[tuple[str, str, int]]:
    """List the requests whose rows a file of decisions holds: ids, what was asked, and how many rows each has."""
    return [(known, asked, rows) for known, asked, rows in json.loads((schema.metadata or {}).get(_REQUESTS.encode(), b"[]"))]


def _after(
    stream: Stream, before: Progress, saved: Mapping[str, Any], begun: Begun, records: Sequence[Record]
) -> tuple[Progress, dict[str, Any]]:
    """Find how far a stream has come after what its log holds, and the state then."""
    state = StreamState.of(stream, begun.classes, saved, begun.model != before.model)
    chosen = before.chosen
    for record in records:
        state.decide(record.decided.scores, record.vectors, None)
        chosen += int(record.decided.chosen.sum())
    after: dict[str, Any] = state.saved
    if state.sampler.labelled != chosen:  # another version or processor may decide otherwise where scores nearly tie
        _log.warning("%s rows were chosen by requests, where %s would be now; what was answered stands", chosen, state.sampler.labelled)
        after["sampler"]["labelled"] = chosen
    rows = sum(len(record.decided) for record in records)
    progress = replace(
        before,
        parts=before.parts + 1,
        rows=before.rows + rows,
        seen=state.sampler.seen,
        chosen=chosen,
        epoch=begun.epoch,
        model=begun.model,
    )
    return progress, after
