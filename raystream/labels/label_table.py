"""The one table of labels, and the file that it lies in.

The one table of labels: what people said of rows, whatever the tool, merged so that reading twice changes nothing.

Each row is one annotation, known by its tool and the tool's own name of it. Of several versions of an annotation the one with the
newest `labelled_at` stays, one without a time being the oldest. Two versions of one time that differ are both kept. `raystream` reads the
file as it is, as `pool.labelled` and as a loop's oracle.

Where the table of labels lies: read, merged and written as one step, so that two who add to it at once lose nothing.

On this machine, a lock of the folder keeps others waiting. In a bucket, the new table replaces the one that was read and no other: whoever
comes second reads again.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import LabelsError, QueryError, RaystreamError, StoreError
from raystream.labels.annotation import DELETED, DRAFT, STATES, Id, IdColumn, Label, as_text
from raystream.lake import LOCAL, Location, is_remote, parse, reason, redacted, with_options
from raystream.lake.retry import server_reason

_TIME = pa.timestamp("us", "UTC")
_OLDEST = datetime.min.replace(tzinfo=UTC)
_COLUMNS = ("label", "state", "annotator", "labelled_at", "tool", "tool_id", "query", "rank")
DISAGREEMENT, ANNOTATIONS = "disagreement", "annotations"
"""Columns of a table that was consolidated: the share of annotators that said otherwise, and the annotations themselves."""
_WRITTEN_BY = b"raystream.labels"


@dataclass(frozen=True)
class LabelRow:
    """One row of the table: what one person said of one row of the pool."""

    id: Id
    label: Label | None
    state: str
    annotator: str | None
    labelled_at: datetime | None
    tool: str
    tool_id: str
    query: str | None
    rank: int | None

    @property
    def time(self) -> datetime:
        """When; nothing is older than all."""
        return self.labelled_at or _OLDEST

    @property
    def key(self) -> tuple[Any, ...]:
        """What is the same for all versions of an annotation: its row and the tool's name of it, or, without one, whose it is.

        A draft replaces no answer: it may be dropped later, and which answers are left must not depend on the order.
        """
        return self.tool, as_text(self.id), self.tool_id, "" if self.tool_id else self.annotator, self.state == DRAFT

    @property
    def said(self) -> tuple[Any, ...]:
        """What two versions may differ in."""
        return as_text(self.id), self.state, self.label, self.annotator


@dataclass(frozen=True)
class LabelTable:
    """The annotations of some rows.

    Attributes:
        ids: what ids are.
        task: `model.task` of the queries, by which labels are classes, several classes, numbers or a tool's own JSON.
        rows: sorted by id, tool and the tool's own name, each annotation once.
        voted: where annotations were consolidated, one row an id instead, with the annotations that it came from; else empty.
        disagreement: of each voted row, the share of its annotations that said something else.
        named: whether `model.classes` names the classes, so that labels are texts.
    """

    ids: IdColumn
    task: str
    rows: tuple[LabelRow, ...] = ()
    voted: tuple[LabelRow, ...] = ()
    disagreement: tuple[float, ...] = field(default=())
    named: bool = False

    def merged(self, found: Iterable[LabelRow]) -> LabelTable:
        """Add annotations; in whatever order and however often they are added, the result is the same."""
        newest: dict[tuple[Any, ...], dict[tuple[Any, ...], LabelRow]] = {}
        for row in (*self.rows, *found):
            known = newest.setdefault(row.key, {})
            there = next(iter(known.values()), None)
            if there is not None and row.time != there.time:
                if row.time < there.time:
                    continue
                known.clear()
            same = known.get(row.said)
            known[row.said] = row if same is None or _origin(row) > _origin(same) else same
        rows = sorted(_without_old_drafts([row for known in newest.values() for row in known.values()]), key=_order)
        return replace(self, rows=tuple(rows), voted=(), disagreement=())

    @property
    def shown(self) -> tuple[LabelRow, ...]:
        """The rows that the file has: those voted for, or the annotations themselves."""
        return self.voted or self.rows

    def counts(self) -> dict[str, int]:
        """Count how many rows the file has, in all and by state."""
        rows = self.shown
        return {"rows": len(rows), **{state: sum(row.state == state for row in rows) for state in STATES}}

    def conflicts(self) -> list[Id]:
        """Return ids of which the newest answers, drafts aside, are of one time and differ."""
        newest: dict[Id, tuple[datetime, set[tuple[str, Label | None]]]] = {}
        for row in self.shown:
            if row.state == DRAFT:
                continue
            time, answers = newest.get(row.id, (row.time, set()))
            if row.time > time:
                time, answers = row.time, set()
            if row.time == time:
                answers.add((row.state, row.label))
            newest[row.id] = time, answers
        return [id_ for id_, (_, answers) in newest.items() if len(answers) > 1]

    def to_arrow(self) -> pa.Table:
        """Return the table as it is written."""
        rows = self.shown
        label = _label_type(self.task, [row.label for row in self.rows], self.named)
        columns: dict[str, pa.Array] = {self.ids.name: self.ids.array([row.id for row in rows])}
        columns |= dict(zip(_COLUMNS, _columns(rows, label), strict=True))
        if self.voted:
            by_id: dict[Id, list[LabelRow]] = {}
            for row in self.rows:
                by_id.setdefault(row.id, []).append(row)
            columns[DISAGREEMENT] = pa.array(self.disagreement, pa.float64())
            members = [pa.field(name, type_) for name, type_ in zip(_COLUMNS, _types(label), strict=True)]
            held = [[dict(zip(_COLUMNS, _values(each, label), strict=True)) for each in by_id[row.id]] for row in rows]
            columns[ANNOTATIONS] = pa.array(held, pa.list_(pa.struct(members)))
        table = pa.table(columns)
        return table.replace_schema_metadata({_WRITTEN_BY: self.task.encode()})


def empty(ids: IdColumn, task: str) -> LabelTable:
    """Make a table of no annotations.

    Raises:
        QueryError: the pool's column of ids is named like one of the table's own.
    """
    if ids.name in (*_COLUMNS, DISAGREEMENT, ANNOTATIONS):
        raise QueryError(f"pool.id {ids.name} is what a column of the table of labels is called; rename the pool's column")
    return LabelTable(ids, task)


def parsed_table(data: bytes, place: str, ids: IdColumn, task: str) -> LabelTable:
    """Read the table that a file holds.

    Args:
        data: its content.
        place: where it is, for messages.
        ids: what ids are.
        task: `model.task`.

    Raises:
        QueryError: the file isn't one that `raystream labels` wrote, or is of other ids or another task.
        LabelsError: it can't be read.
    """
    start = empty(ids, task)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise LabelsError(f"--out {place} is there, but is no Parquet file ({reason(error)}); name another place or remove it") from None
    written = (schema.metadata or {}).get(_WRITTEN_BY)
    if written is None or ids.name not in schema.names or any(name not in schema.names for name in _COLUMNS):
        raise QueryError(f"--out {place} is there, but isn't a table of labels of a pool with ids named {ids.name}; name another place")
    if schema.field(ids.name).type != ids.plain or written.decode() != task:
        held = f"ids of {schema.field(ids.name).type} and model.task {written.decode()}"
        raise QueryError(f"--out {place} holds labels for {held}, not for ids of {ids.plain} and model.task {task}; name another place")
    try:
        table = file.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise LabelsError(f"--out {place} is damaged ({reason(error)}); move it away, and read the tool's exports again") from None
    return start.merged(_rows_of(table, ids))


def _rows_of(table: pa.Table, ids: IdColumn) -> Iterator[LabelRow]:
    keys = ids.values(table.column(ids.name))
    if ANNOTATIONS in table.column_names:
        for id_, held in zip(keys, table.column(ANNOTATIONS).to_pylist(), strict=True):
            for each in held:
                yield LabelRow(id_, **(each | {"label": _from_arrow(each["label"])}))
        return
    values = (table.column(name).to_pylist() for name in _COLUMNS)
    for id_, label, *rest in zip(keys, *values, strict=True):
        yield LabelRow(id_, _from_arrow(label), *rest)


def _from_arrow(label: Any) -> Label | None:
    if isinstance(label, list):
        return tuple(label)
    return str(label) if isinstance(label, int) else label


def _without_old_drafts(rows: list[LabelRow]) -> Iterator[LabelRow]:
    """Return the rows without drafts whose author has said more of the row since: tools forget a draft once it is submitted."""
    since: dict[tuple[Any, ...], datetime] = {}
    for row in rows:
        if row.state != DRAFT:
            whose = row.tool, as_text(row.id), row.annotator
            since[whose] = max(since.get(whose, _OLDEST), row.time)
    for row in rows:
        later = since.get((row.tool, as_text(row.id), row.annotator))
        if row.state != DRAFT or later is None or later < row.time:
            yield row


def _origin(row: LabelRow) -> tuple[str, int]:
    """Return what of an annotation that two exports agree on may be missing in one of them."""
    return row.query or "", -1 if row.rank is None else row.rank


def _order(row: LabelRow) -> tuple[Any, ...]:
    return as_text(row.id), row.tool, row.tool_id, row.annotator or "", row.state, str(row.label)


def _label_type(task: str, labels: Sequence[Label | None], named: bool) -> pa.DataType:
    """Find the type of the column: numbers where no query names the classes and all labels are called by theirs.

    Text where they have names, which may be numerals, and are told from places without a doubt.
    """
    if task == "regression":
        return pa.float64()
    if task == "multi_label":
        return pa.list_(pa.string())
    given = [label for label in labels if label is not None]
    numbers = task == "classes" and not named and given and all(isinstance(label, str) and _is_number(label) for label in given)
    return pa.int64() if numbers else pa.string()


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdecimal() and len(label) < 18 and str(int(label)) == label


def _types(label: pa.DataType) -> list[pa.DataType]:
    text = pa.string()
    return [label, text, text, _TIME, text, text, text, pa.int32()]


def _columns(rows: Sequence[LabelRow], label: pa.DataType) -> list[pa.Array]:
    values = [_values(row, label) for row in rows]
    return [pa.array([row[place] for row in values], type_) for place, type_ in enumerate(_types(label))]


def _values(row: LabelRow, label: pa.DataType) -> tuple[Any, ...]:
    said: Any = row.label
    if said is not None and pa.types.is_integer(label):
        said = int(said)
    elif isinstance(said, tuple):
        said = list(said)
    return said, row.state, row.annotator, row.labelled_at, row.tool, row.tool_id, row.query, row.rank


def gone(rows: Iterable[LabelRow], when: datetime) -> list[LabelRow]:
    """Return annotations that were there and are no more."""
    return [replace(row, state=DELETED, label=None, labelled_at=max(when, row.time)) for row in rows if row.state != DELETED]


NAME = "labels.parquet"
"""What a folder gets."""
_ATTEMPTS = 20
Change = Callable[[LabelTable], LabelTable]


def table_place(out: str) -> str:
    """Return the file that `--out` names: itself, or `labels.parquet` in a folder.

    Raises:
        QueryError: it is a place that no table of labels can be at.
    """
    if out.startswith(("delta+", "iceberg:")):
        raise QueryError(f"--out {redacted(out)} is a table of another kind; name a file that ends in .parquet, or a folder")
    location = parse(out, "--out")
    if location.path.endswith(".parquet"):
        return out
    path = Path(location.path)
    if location.scheme == "file" and path.suffix and not path.is_dir():
        raise QueryError(f"--out {out} must end in .parquet or be a folder, since labels are written as Parquet")
    plain, mark, options = out.partition("?") if is_remote(out) else (out, "", "")
    return f"{plain.rstrip('/')}/{NAME}{mark}{options}"


def update_table(place: str, ids: IdColumn, task: str, change: Change) -> LabelTable:
    """Change the table at a place, an empty one where there is none, and write what comes out.

    Args:
        place: as `table_place` gives it.
        ids: what ids are.
        task: `model.task`.
        change: from the table that is there to the one that is to be there; called again if another one was written meanwhile.

    Raises:
        QueryError: what is there is no table of labels, or one of other ids or another task.
        LabelsError: it can't be read.
        StoreError: it can't be written.
    """
    location = parse(place, "--out")
    return _in_folder(Path(location.path), ids, task, change) if location.scheme == "file" else _in_bucket(location, ids, task, change)


def read_table(path: Path, ids: IdColumn, task: str) -> LabelTable:
    """Read the table in a file of this machine; an empty one where there is none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return empty(ids, task)
    except OSError as error:
        raise LabelsError(f"--out {path} can't be read: {error.strerror}; name another place") from None
    return parsed_table(data, str(path), ids, task)


def written(table: LabelTable) -> bytes:
    """Return the table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.to_arrow(), sink)
    return bytes(sink.getvalue().to_pybytes())


def _in_folder(path: Path, ids: IdColumn, task: str, change: Change) -> LabelTable:
    with _alone(path):
        table = change(read_table(path, ids, task))
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(written(table))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            what = error.strerror or reason(error)
            raise StoreError(f"--out {path} can't be written: {what}; name another place or free some space") from None
        finally:
            temporary.unlink(missing_ok=True)
    return table


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes of this machine waiting that change tables in the same folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"--out {path} can't be written: {error.strerror}; name another place") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _in_bucket(location: Location, ids: IdColumn, task: str, change: Change) -> LabelTable:
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError

    from raystream.lake.bucket import bucket_of

    folder, _, name = location.path.rpartition("/")
    storage = with_options(location, LOCAL, "--out")
    bucket: Any = bucket_of(Location(location.scheme, folder, location.account).uri, storage, "--out")
    try:
        for _ in range(_ATTEMPTS):
            mode: Any = "create"
            try:
                found = bucket.get(name)
                known = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
                data, mode = bytes(found.bytes()), {key: value for key, value in known.items() if value is not None}
            except (FileNotFoundError, NotFoundError):
                data = None
            table = change(empty(ids, task) if data is None else parsed_table(data, location.uri, ids, task))
            try:
                bucket.put(name, written(table), mode=mode)
            except (AlreadyExistsError, PreconditionError):
                continue
            return table
    except (BaseError, OSError) as error:
        if isinstance(error, RaystreamError):
            raise
        what = f"--out {location.uri} can't be written: {server_reason(error)}"
        raise StoreError(f"{what}; check the bucket, the options and the credentials in the environment") from None
    raise StoreError(f"--out {location.uri} was changed by others {_ATTEMPTS} times while labels were merged; run it again")
