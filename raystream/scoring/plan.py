"""Everything about a query that is known before a row is read: its units, their keys, and which of them are scored."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from operator import not_
from typing import Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import LabelsError, QueryError
from raystream.model import class_names, code_hash, fingerprint, input_columns, with_local_files
from raystream.pool import (
    Labelled,
    PoolPlan,
    ReadSpec,
    Unit,
    UnitNames,
    Units,
    has_columns,
    list_pool,
    plan_pool,
    read_labelled,
    refuse_among,
)
from raystream.pool.files import settle
from raystream.pool.plan import ListedFiles
from raystream.query import Model, Pool, Query
from raystream.query.catalogue import kind_of
from raystream.scoring.batch_reader import BUFFERS, PROBE_UNITS, planned, row_bytes
from raystream.scoring.class_labels import class_weights_of
from raystream.scoring.job import ScoringJob, UnitTask, importable_folders
from raystream.scoring.output_kinds import FUNCTION, Output, QueryOutputs, UnitKeys, differences, identity_digest, query_identity
from raystream.scoring.scheduler import IN_FLIGHT
from raystream.scoring.score_reduction import Reduction
from raystream.store.calibration import Calibration
from raystream.store.manifest import Manifest
from raystream.store.opening import open_store, store_to_read
from raystream.store.packs import read_receipts
from raystream.store.protocol import Store
from raystream.store.queries import PLAN_OUTPUTS, plan_outputs, query_folder, read_manifest
from raystream.store.receipt_table import Keys, ReceiptTable

LARGE_BATCHES = 1 << 30
_NAME_DIGITS = 12


@dataclass(frozen=True)
class ResolvedQuery:
    """A query, resolved against its pool, model and store.

    Attributes:
        given: the query as it was given; in `query` a temperature that was fitted is a number, and `calibration` says how it came about.
        classes: their names, where the query gives them.
        identity: what the query's name stands for, by part.
        kinds: the outputs that its parameters name.
    """

    query: Query
    given: Query
    store: Store
    pool: PoolPlan
    classes: list[str] | None
    labelled: Labelled | None
    fingerprint: str
    identity: dict[str, str]
    name: str
    kinds: QueryOutputs
    calibration: Calibration | None = None

    @property
    def folder(self) -> str:
        """The query's, in the store."""
        return query_folder(self.name)

    @property
    def committed(self) -> Manifest | None:
        """The manifest, if this very query was committed before.

        Raises:
            QueryError: another query has this name.
        """
        manifest = read_manifest(self.store, self.name)
        if manifest is not None and manifest.identity != self.identity:
            raise QueryError(
                f"store.query {self.name} is taken by another query; it differs in {differences(manifest.identity, self.identity)}; "
                "choose another name"
            )
        return manifest

    @property
    def is_committed(self) -> bool:
        """True if a query of this name is committed, this one or another."""
        return self.store.exists(f"{self.folder}/manifest.json")

    @property
    def warnings(self) -> list[str]:
        """The warnings about it that are known before anything is scored."""
        return [*(self.calibration.warnings if self.calibration else ()), *self.pool.warnings]

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs that the model is run for."""
        return self.kinds.needed()

    @cached_property
    def keys(self) -> UnitKeys:
        """Under which its units are kept, and any others that are read as the pool's are."""
        return UnitKeys(self.query, self.pool.read, self.fingerprint)

    def plan(self, units: Iterable[Unit]) -> ScoringPlan:
        """Find what is there of these units, which are read as the pool's are, and what is missing."""
        return plan_scoring(self.store, self.keys, units, self.outputs)

    @property
    def job(self) -> ScoringJob:
        """The job that workers are given."""
        return job_of(self.query, self.store, self.pool, self.fingerprint, self.outputs)


@dataclass(frozen=True, eq=False)
class ScoringPlan:
    """Units, the keys that they are kept under, and what is there of the outputs that are asked of each.

    Attributes:
        units, keys: in the pool's order.
        outputs: what is asked of each unit.
        found: a table for each of `outputs`; what is computed comes in beside what was there.
        to_compute: (m,) the places of the units that lacked any output when they were looked up.
    """

    units: Units
    keys: Keys
    outputs: tuple[Output, ...]
    found: tuple[ReceiptTable, ...]
    to_compute: np.ndarray

    @property
    def missing(self) -> Tasks:
        """What is to be computed: the outputs that aren't there, of the units that lacked any."""
        return Tasks(self, self.to_compute)


_TASKS_AT_ONCE = 64


class Tasks(Sequence[UnitTask]):
    """What is to be computed of a plan's units at these places, as `told`.

    Those that are asked for in order, and for the first time, are made some at a time, in a third of the time of each alone: nothing
    comes into the plan's tables of a unit before it is handed out.
    """

    def __init__(self, plan: ScoringPlan, places: np.ndarray, told: Callable[[UnitTask], UnitTask] | None = None) -> None:
        self._plan, self.places, self._told = plan, places, told
        # invariant: those that were made and not asked for yet, by index; the first that wasn't made comes next in order
        self._ahead: dict[int, UnitTask] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> UnitTask: ...

    @overload
    def __getitem__(self, index: slice) -> Tasks: ...

    def __getitem__(self, index: int | slice) -> UnitTask | Tasks:
        if isinstance(index, slice):
            return Tasks(self._plan, self.places[index], self._told)
        if index == self._next < len(self):
            self._next = min(index + _TASKS_AT_ONCE, len(self))
            self._ahead |= zip(range(index, self._next), self._made(self.places[index : self._next]), strict=True)
        task = self._ahead.pop(index, None) or self._made(self.places[[index]])[0]
        return task if self._told is None else self._told(task)

    def _made(self, places: np.ndarray) -> list[UnitTask]:
        plan = self._plan
        held = list(zip(*(table.there[places].tolist() for table in plan.found), strict=True))
        lacking = {some: tuple(compress(plan.outputs, map(not_, some))) for some in set(held)}
        return list(map(UnitTask, plan.units.take(places), plan.keys.take(places)[:], map(lacking.__getitem__, held)))


def plan_scoring(store: Store, keys: UnitKeys, units: Iterable[Unit], outputs: tuple[Output, ...]) -> ScoringPlan:
    """Compute the units' keys, and look up the receipts of the outputs that are in the store."""
    table = Units.of(units)
    of = keys.of(table)
    found = read_receipts(store, of, [output.name for output in outputs], UnitNames(table))
    return ScoringPlan(table, of, outputs, found, np.flatnonzero(~np.all([receipts.there for receipts in found], axis=0)))


def job_of(query: Query, store: Store, pool: PoolPlan, fingerprint: str, outputs: tuple[Output, ...]) -> ScoringJob:
    """Make the job for workers that score units of a pool, and others that are read like these."""
    return ScoringJob(
        model=query.model,
        fingerprint=fingerprint,
        read=pool.read,
        store=store.uri,
        outputs=outputs,
        mc_samples=query.acquire.mc_samples or 0,
        seed=query.seed,
        threads=query.cluster.cpus_per_worker,
        skip_bad_rows=query.on_error == "skip",
        max_quarantined=query.max_quarantined,
        import_paths=importable_folders(),
        reduction=Reduction.of(query.model, query.acquire),
        storage=query.pool.options,
        store_storage=store.storage,
        first=tuple(pool.units[:PROBE_UNITS]),
    )


def resolve(
    query: Query, calibration: Calibration | None = None, *, look_only: bool = False, listed: ListedFiles | None = None
) -> ResolvedQuery:
    """Resolve a query: list the pool, read its footers, look at the labelled rows and the model's files.

    Args:
        query: as asked.
        calibration: what was fitted, if `model.temperature` is to be; see `raystream.scoring.calibrate`.
        look_only: make no store where there is none.
        listed: the files to read, and the tables that listed them; left out, all of the pool's.

    Raises:
        RaystreamError: of any kind; see the errors of the parts.
    """
    given, query = query, with_temperature(query, calibration)
    refuse_among(query.store.uri, query.row_uris, "store.uri")
    store = (store_to_read if look_only else open_store)(query.store.uri, query.store_options)
    model = with_local_files(query.model, query.pool.options)
    classes = class_names(model.classes)
    digest = fingerprint(model)
    pool = pool_plan(query, query.pool, candidates_columns(query), listed=listed)
    check_inputs(calibration, pool.read)
    labelled = None
    if query.pool.labelled:
        labelled = read_labelled(query.pool.labelled, query.pool.id, pool.read.id_type, storage=query.pool.options)
        settle(labelled.files)
    identity = query_identity(query, pool.files, _labelled_parts(query, labelled, pool), classes, digest)
    if ":" in query.select.strategy:
        identity["the strategy's source"] = code_hash(query.select.strategy, "select.strategy")
    if pool.read.prepared is not None:
        identity["the source of model.preprocess"] = pool.read.prepared.code
    if calibration is not None:
        identity["the calibration rows"] = calibration.key
    kinds = QueryOutputs(query, class_weights_of(query, classes))
    functions = {output["function"]: output["code"] for output in kinds.needed() if output.kind == FUNCTION}
    if query.acquire.targets:
        files, _ = list_pool(query.acquire.targets, "acquire.targets", storage=query.pool.options)
        identity["the targets' files"] = str([file.identity for file in files])
    identity |= {f"the source of {path}": code for path, code in functions.items()}
    name = query.store.query or identity_digest(identity)[:_NAME_DIGITS]
    return ResolvedQuery(query, given, store, pool, classes, labelled, digest, identity, name, kinds, calibration)


def pool_plan(
    query: Query, pool: Pool, also: Sequence[str] = (), *, labels: bool = False, listed: ListedFiles | None = None
) -> PoolPlan:
    """Plan how a pool is read for the query's model: its own, or calibration and target rows.

    Args:
        query: says what the model takes.
        pool: where the rows are.
        also: further columns that are read for some rows.
        labels: whether these are labelled rows, which may stand in files of text, too.
        listed: see `resolve`.
    """
    model = query.model
    if model.carried:
        # by names, so that a column of single numbers isn't stacked with others, and may stand beside lists
        pool = pool.derived(inputs={f"input {place}": name for place, name in enumerate(input_columns(model))})
    plan = plan_pool(
        pool,
        pool.input_columns,
        query.on_error,
        masked=[column for column in (model.logits, model.samples) if column],
        also=also,
        texts=_texts(model),
        images=model.images,
        prepared=planned(query),
        labels=labels,
        listed=listed,
    )
    settle(plan.files)
    return replace(plan, warnings=(*plan.warnings, *_large_batches(plan, model.batch_size)))


def _large_batches(plan: PoolPlan, batch_size: int) -> tuple[str, ...]:
    """Warn if batches are so large that a worker needs much memory for them; what a user's function makes isn't known yet."""
    rows = min(batch_size, int(plan.units.rows.max(initial=0)))
    batches = BUFFERS * min(IN_FLIGHT, len(plan.units))
    size = 0 if plan.read.prepared else batches * rows * row_bytes(plan.read)
    if size <= LARGE_BATCHES:
        return ()
    return (
        f"a worker holds up to {batches} batches of {rows:,} decoded rows, {size / 2**30:.1f} GiB; a smaller model.batch_size takes less",
    )


def _texts(model: Model) -> Literal["refused", "taken", "expected"]:
    """Say what columns of strings are to the model: of a committee, to all of its members."""
    each = [kind_of(member.kind).texts for member in model.members or [model]]
    return "refused" if "refused" in each else "expected" if "expected" in each else "taken"


def candidates_columns(query: Query) -> list[str]:
    """Name the pool's columns that are read for candidates: those of quotas and of the cost."""
    select = query.select
    columns = [quota.by for quota in select.quotas if quota.by != "prediction"]
    return columns + ([select.cost.column] if select.cost else [])


def _labelled_parts(query: Query, labelled: Labelled | None, pool: PoolPlan) -> list[object]:
    """List what the choice depends on of the labelled rows: their ids, and the files that their embeddings may come from."""
    if labelled is None:
        return []
    if not query.needs_embedding:
        return [labelled.digest]
    enough = [query.model.embedding] if query.model.carried and query.model.embedding else None
    usable = has_columns(labelled.files, pool.read.only(enough).columns)
    return [labelled.digest, *(file.identity for file, ok in zip(labelled.files, usable, strict=True) if ok)]


def write_plan(asked: ResolvedQuery, plan: ScoringPlan, also: Sequence[Output] = ()) -> bytes | None:
    """Leave the query and its units in its folder, for people and for `raystream gc`.

    A plan of the same units that is there stays: another run of the query, which is further on, may have written more into it.

    Args:
        asked: the query.
        plan: its units.
        also: outputs that come after the plan's.

    Returns:
        The plan of other units that this one took the place of, if there was one.
    """
    metadata = {PLAN_OUTPUTS: json.dumps([output.name for output in (*plan.outputs, *also)])}
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, _PLAN.with_metadata(metadata), compression="zstd", write_statistics=False) as writer:
        for start in range(0, len(plan.units), _PLAN_ROWS):
            writer.write_table(_plan_rows(plan, start, start + _PLAN_ROWS))
    _put_if_changed(asked.store, f"{asked.folder}/query.yaml", asked.given.to_yaml().encode())
    name, data = f"{asked.folder}/plan.parquet", buffer.getvalue()
    del buffer
    there = asked.store.read_if_there(name)
    if there is None:
        # its name is on disk at the latest with the manifest's, which lies in the same folder
        if asked.store.put_if_absent(name, data, wait=False):
            return None
        there = asked.store.read_if_there(name)
    if there is not None and _holds(there, plan, json.loads(metadata[PLAN_OUTPUTS])):
        return None
    asked.store.put(name, data)
    return there


def _put_if_changed(store: Store, name: str, data: bytes) -> None:
    """Write a file unless it says just that: to read one takes a tenth of the time."""
    if store.read_if_there(name) != data:
        store.put(name, data)


_PLAN_ROWS = 1 << 14
_COUNTS = ("first_row", "rows", "bytes")
_PLAN = pa.schema({"unit": pa.string(), "key": pa.string(), **dict.fromkeys(_COUNTS, pa.int64()), "scored": pa.bool_()})


def _plan_rows(plan: ScoringPlan, start: int, stop: int) -> pa.Table:
    """Return some units of a plan as they are written; what is scored is what was when they were looked up."""
    units = plan.units[start:stop]
    scored = np.ones(len(units), bool)
    low, high = np.searchsorted(plan.to_compute, [start, stop])
    scored[plan.to_compute[low:high] - start] = False
    names = UnitNames(units)[:]
    return pa.table([names, plan.keys[start:stop], units.first_rows, units.rows, units.bytes, scored], schema=_PLAN)


def _holds(data: bytes, plan: ScoringPlan, outputs: Sequence[str]) -> bool:
    """Tell whether a stored plan says all that this one does, apart from what was scored then."""
    start = 0
    try:
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as found:
            if not set(outputs) <= set(plan_outputs(found.schema_arrow)):
                return False
            for number in range(found.num_row_groups):
                some = found.read_row_group(number, [name for name in _PLAN.names if name != "scored"], use_threads=False)
                stop = start + some.num_rows
                if not some.replace_schema_metadata().equals(_plan_rows(plan, start, stop).drop_columns(["scored"])):
                    return False
                start = stop
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return False  # damaged
    return start == len(plan.units)


def with_temperature(query: Query, calibration: Calibration | None) -> Query:
    """Return the query with the number that was fitted, just as if that had been written instead of the calibration set.

    Raises:
        QueryError: a temperature is to be fitted, and none was.
    """
    if not query.model.calibration_files:
        # nobody reads the label's column then, so that it is none of what the query's name stands for
        return query if query.pool.label is None else query.derived(pool=query.pool.derived(label=None))
    if calibration is None:
        raise QueryError("model.temperature is to be fitted first; run raystream calibrate")
    return query.derived(
        model=query.model.derived(temperature=calibration.temperature),
        pool=query.pool.derived(label=None),
    )


def check_inputs(calibration: Calibration | None, read: ReadSpec) -> None:
    """Refuse a fit on inputs of another shape or dtype than the pool's: the model saw something else.

    Raises:
        LabelsError: they differ.
    """
    if calibration is None:
        return
    pool = read.only(calibration.columns)
    found, expected = (calibration.shapes, calibration.dtypes), ([list(shape) for shape in pool.shapes], list(pool.dtypes))
    if found != expected:
        raise LabelsError(
            f"model.temperature: the columns {', '.join(calibration.columns)} of {calibration.files[0][0]} give the model {found[1]} of "
            f"shapes {found[0]}, expected what the pool's give it, {expected[1]} of shapes {expected[0]}; write them as the pool has them"
        )
