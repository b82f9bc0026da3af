"""What a loop leaves in the store. Each step is a record, put if absent: of any number of writers one wins, and all go on from it.

    loops/<name>/loop.yaml                    as it was begun
    loops/<name>/history.parquet              a row a round; made of the records, and again when it is lost
    loops/<name>/rounds/0001/asked.json       a batch was chosen: selection-<attempt>.parquet, copied to selection.parquet
    loops/<name>/rounds/0001/closed.json      its labels as they were: labels-<digest>.parquet
    loops/<name>/rounds/0001/trained.json     the model: model-<attempt>/…
    loops/<name>/rounds/0001/judged.json      what it is worth

Round 0 is there where labels were before the first batch. Files that no record names don't exist.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import xxhash

from raystream.errors import QueryError, StoreError
from raystream.loop.labels import Id
from raystream.query.loop import Loop
from raystream.store.protocol import Store
from raystream.store.queries import parquet_bytes, read_parquet
from raystream.store.rounds import round_folder


@dataclass(frozen=True)
class Asked:
    """A batch was chosen.

    Attributes:
        round: its number, from 1.
        query: the query that chose its rows, but for control rows; empty if all are.
        strategy: that chose them.
        why: why that one, where the loop itself chose it.
        batch: the file of the selection.
        controls: how many of its rows, the last ones, are control rows.
        warnings: what is to be said of the choice.
        seconds: that choosing took.
    """

    round: int
    query: str
    strategy: str
    batch: str
    why: str = ""
    controls: int = 0
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Closed:
    """The labels of a round, as they were when it closed.

    Attributes:
        round: its number; 0 for labels that were there before the first.
        digest: of all labels.
        labels: the file of them.
        counts: of rows by what became of them.
    """

    round: int
    digest: str
    labels: str
    counts: dict[str, int]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """The model of a round, or why there is none.

    Attributes:
        model: keys of the query's `model` section, paths of which are names in the round's folder; None without a model.
        classes: what its outputs are called.
        without: why there is no model; empty where there is one.
        predictions: of the sample, by class.
        uncertainty: the mean entropy of the sample as a share of the largest.
    """

    round: int
    model: dict[str, Any] | None = None
    classes: list[Any] | None = None
    without: str = ""
    rows: int = 0
    predictions: list[Any] | None = None
    uncertainty: float | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What a round's model is worth.

    Attributes:
        metrics: on the evaluation set, by column of the history.
        shares: those that are so many rows of so many.
        control: rows right, and rows in all, of the control rows labelled so far; None without any.
        prequential: the same of the previous model, on the control rows that this round labelled.
        left: rows that could still be asked for.
        cost: what all labels cost together; None where the query has no cost.
        classes: how many rows are labelled as each class, by its name.
    """

    round: int
    labels: int
    left: int
    metrics: dict[str, float] = field(default_factory=dict)
    shares: dict[str, list[int]] = field(default_factory=dict)
    control: list[int] | None = None
    prequential: list[int] | None = None
    cost: float | None = None
    classes: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reserved:
    """Rows that were set apart, in the order of their use: for control, to compare models on, to judge them by."""

    control: list[Id]
    sample: list[Id]
    evaluate: list[Id]


_Record = TypeVar("_Record", Asked, Closed, Trained, Judged)


class Journal:
    """A loop's records."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self._known: dict[str, Any] = {}
        self.folder = f"loops/{name}"

    def place(self, name: str) -> str:
        """Return the path or URI of one of the loop's files."""
        return self.store.place(f"{self.folder}/{name}")

    def begin(self, loop: Loop) -> Loop:
        """Note the loop, or see that it is the one that was begun under this name.

        Before anything was asked or learnt it may be mended in any way; then rows are set apart anew.

        Raises:
            QueryError: it differs in what may not change in the middle.
        """
        name = f"{self.folder}/loop.yaml"
        data = self.store.read_if_there(name)
        if data is None:
            self.store.put_if_absent(name, loop.to_yaml().encode())
            data = self.store.read(name)
        try:
            before = Loop(**_yaml(data))
        except (QueryError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"store: {self.store.place(name)} is damaged ({error}); restore it, or give loop.name another name") from None
        changed = [key for key in {**before.identity, **loop.identity} if before.identity.get(key) != loop.identity.get(key)]
        if changed and self.asked(1) is None and self.closed(0) is None:
            for left in self.store.names(self.folder):
                if left.startswith("reserved-"):
                    self.store.remove(f"{self.folder}/{left}")
        elif changed:
            words = [f"{key} ({before.identity.get(key, 'nothing')} then, {loop.identity.get(key, 'nothing')} now)" for key in changed]
            raise QueryError(
                f"loop {self.name} was begun with another spec; it differs in {', '.join(words)}; only rounds, budget, stop and wait may "
                "change, so put the rest back, or give loop.name another name"
            )
        if loop.to_yaml().encode() != data:
            self.store.put(name, loop.to_yaml().encode())
        return before

    def asked(self, round_: int) -> Asked | None:
        """Return the record of a batch, if it was chosen."""
        return self._read(Asked, round_, "asked")

    def closed(self, round_: int) -> Closed | None:
        """Return the record of a round's labels, if it is closed."""
        return self._read(Closed, round_, "closed")

    def trained(self, round_: int) -> Trained | None:
        """Return the record of a round's model, if it is trained."""
        return self._read(Trained, round_, "trained")

    def judged(self, round_: int) -> Judged | None:
        """Return the record of what a round's model is worth, if it was judged."""
        return self._read(Judged, round_, "judged")

    def commit_asked(self, record: Asked) -> Asked:
        """Put the record; what stands there in the end, ours or another's."""
        found = self._commit(record, record.round, "asked")
        self.batch_place(found)
        return found

    def commit_closed(self, record: Closed) -> Closed:
        """Put the record; see `commit_asked`."""
        return self._commit(record, record.round, "closed")

    def commit_trained(self, record: Trained) -> Trained:
        """Put the record; see `commit_asked`."""
        return self._commit(record, record.round, "trained")

    def commit_judged(self, record: Judged) -> Judged:
        """Put the record; see `commit_asked`."""
        return self._commit(record, record.round, "judged")

    def reserved(self, number: int) -> Reserved | None:
        """Return rows that were set apart: the first time, and when further rounds were asked for."""
        data = self.store.read_if_there(f"{self.folder}/reserved-{number:04d}.parquet")
        if data is None:
            return None
        table = read_parquet(data)
        uses, ids = table.column("use").to_pylist(), table.column("id").to_pylist()
        return Reserved(
            *([id_ for id_, use in zip(ids, uses, strict=True) if use == wanted] for wanted in ("control", "sample", "evaluate"))
        )

    def commit_reserved(self, number: int, rows: Reserved, id_type: pa.DataType) -> Reserved:
        """Set rows apart; see `commit_asked`."""
        pairs = [
            (id_, use) for use, ids in (("control", rows.control), ("sample", rows.sample), ("evaluate", rows.evaluate)) for id_ in ids
        ]
        table = pa.table({"id": pa.array([id_ for id_, _ in pairs], id_type), "use": pa.array([use for _, use in pairs], pa.string())})
        self.store.put_if_absent(f"{self.folder}/reserved-{number:04d}.parquet", parquet_bytes(table))
        found = self.reserved(number)
        assert found is not None
        return found

    def put_table(self, round_: int, stem: str, table: pa.Table) -> str:
        """Put a table into a round's folder under a name that its content decides; return the name within the folder."""
        data = parquet_bytes(table)
        name = f"{stem}-{xxhash.xxh3_64_hexdigest(data)}.parquet"
        self.store.put_if_absent(self.in_round(round_, name), data)
        return name

    def read_table(self, round_: int, name: str) -> pa.Table:
        """Read a table of a round's folder."""
        return read_parquet(self.store.read(self.in_round(round_, name)))

    def batch_place(self, asked: Asked) -> str:
        """Say where people find a batch: a copy under a plain name, made again if it is lost."""
        plain = self.in_round(asked.round, "selection.parquet")
        if not self.store.exists(plain):
            self.store.put(plain, self.store.read(self.in_round(asked.round, asked.batch)))
        return self.store.place(plain)

    def put_model(self, round_: int, folder: Path) -> str:
        """Copy a model's files into a round's folder; the name of theirs within it."""
        name = f"model-{uuid.uuid4().hex[:12]}"
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.store.put(self.in_round(round_, f"{name}/{file.relative_to(folder).as_posix()}"), file.read_bytes())
        return name

    def in_round(self, round_: int, name: str) -> str:
        """Name a file of a round, as the store knows it."""
        return f"{round_folder(self.name, round_)}/{name}"

    def put_history(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Write `history.parquet` anew; where it is."""
        self.store.put(f"{self.folder}/history.parquet", parquet_bytes(history_table(rows)))
        return self.place("history.parquet")

    def _read(self, kind: type[_Record], round_: int, name: str) -> _Record | None:
        file = self.in_round(round_, f"{name}.json")
        if file in self._known:  # a record never changes
            return cast(_Record, self._known[file])
        data = self.store.read_if_there(file)
        if data is None:
            return None
        try:
            found = self._known[file] = kind(**json.loads(data))
            return found
        except (TypeError, ValueError):
            raise StoreError(f"store: {self.store.place(file)} is damaged; restore it, or begin the loop anew under another name") from None

    def _commit(self, record: _Record, round_: int, name: str) -> _Record:
        self.store.put_if_absent(self.in_round(round_, f"{name}.json"), json.dumps(asdict(record), default=_plain).encode())
        found = self._read(type(record), round_, name)
        assert found is not None
        return found


_TYPES = {
    "round": pa.int32(),
    "labels": pa.int64(),
    "strategy": pa.string(),
    "query": pa.string(),
    "cost": pa.float64(),
    "control_accuracy": pa.float64(),
    "control_low": pa.float64(),
    "control_high": pa.float64(),
    "seconds_query": pa.float64(),
    "seconds_train": pa.float64(),
}


def history_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return a history, a row a round: metrics are float64, what rules would do is bool."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    kinds = {name: _TYPES.get(name, pa.bool_() if name.startswith("would_stop_") else pa.float64()) for name in columns}
    return pa.table({name: pa.array([row.get(name) for row in rows], kinds[name]) for name in columns})


def _plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's."""
    return value.item()


def _yaml(data: bytes) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(data))
