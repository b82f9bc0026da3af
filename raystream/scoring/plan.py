"""Everything about a query that is known before a row is read: its units, their keys, and which of them are scored."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, product
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import LabelsError, QueryError
from raystream.model import class_names, code_hash, fingerprint, input_columns, with_local_files
from raystream.pool import (
    Labelled,
    Places,
    PoolPlan,
    ReadSpec,
    Unit,
    has_columns,
    list_pool,
    plan_pool,
    read_labelled,
    refuse_among,
)
from raystream.pool.settled import settle
from raystream.query import Model, Pool, Query
from raystream.query.catalogue import kind_of
from raystream.scoring.asked import Asked, asked_of
from raystream.scoring.batch_reader import BUFFERS, row_bytes
from raystream.scoring.first_rows import planned
from raystream.scoring.job import Task
from raystream.scoring.keys import UnitKeys, Wanted, differences, identity_digest, query_identity
from raystream.scoring.scheduler import IN_FLIGHT
from raystream.store.calibration import Calibration
from raystream.store.life import SignOfLife
from raystream.store.manifest import Manifest
from raystream.store.opening import open_store, store_to_read
from raystream.store.protocol import Store
from raystream.store.queries import parsed_plan, query_folder, read_manifest
from raystream.store.receipts import Receipt, read_receipts
from raystream.store.requests import in_threads

LARGE_BATCHES = 1 << 30
_NAME_DIGITS = 12
_FEW_LOOKUPS = 64
_REMOTE_NAMES, _LOCAL_NAMES = 1000, 16
"""Names of a folder that are listed in the time of one lookup: in a bucket by one request, on a disk in some microseconds."""


@dataclass(frozen=True)
class Prepared:
    """A query, resolved against its pool, model and store.

    `tasks` are all units in row order, each under the key that it is or will be stored by; `receipts` has one entry
    a task, None where the unit isn't scored yet. `asked` is the query as it was given; in `query` a temperature that was fitted
    is a number, and `calibration` says how it came about. `wanted` is what units are to hold. `life` gives the run's signs of life.
    """

    query: Query
    store: Store
    pool: PoolPlan
    classes: list[str] | None
    labelled: Labelled | None
    fingerprint: str
    identity: dict[str, str]
    name: str
    tasks: tuple[Task, ...]
    receipts: tuple[Receipt | None, ...]
    given: Query
    wanted: Wanted
    asked: Asked
    calibration: Calibration | None = None
    life: SignOfLife | None = None

    def needs(self, tasks: Sequence[Task]) -> None:
        """The run uses these units beside those of its plan: `raystream gc` is told to leave them."""
        if self.life is not None:
            self.life.needs(task.key for task in tasks)

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

    @cached_property
    def missing(self) -> list[Task]:
        """The tasks that are not scored yet."""
        return [task for task, receipt in zip(self.tasks, self.receipts, strict=True) if receipt is None]


def prepare(
    query: Query, calibration: Calibration | None = None, *, look_only: bool = False, life: SignOfLife | None = None
) -> Prepared:
    """Resolve a query: list the pool, read its footers, find what is scored already.

    Args:
        query: as asked.
        calibration: what was fitted, if `model.temperature` is to be; see `raystream.scoring.calibrate`.
        look_only: make no store where there is none.
        life: begins to give signs of life before any unit is looked for, unless the query is committed.

    Raises:
        RaystreamError: of any kind; see the errors of the parts.
    """
    given, query = query, with_temperature(query, calibration)
    refuse_among(query.store.uri, query.row_uris, "store.uri")
    store = (store_to_read if look_only else open_store)(query.store.uri, query.store_options)
    model = with_local_files(query.model, query.pool.options)
    classes = class_names(model.classes)
    digest = fingerprint(model)
    pool = pool_plan(query, query.pool, candidates_columns(query))
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
    asked = asked_of(query, classes)
    if query.acquire.targets:
        files, _ = list_pool(query.acquire.targets, "acquire.targets", storage=query.pool.options)
        identity["the targets' files"] = str([file.identity for file in files])
    identity |= {f"the source of {path}": code for path, code in asked.functions}
    name = query.store.query or identity_digest(identity)[:_NAME_DIGITS]
    if life is not None and not store.exists(f"{query_folder(name)}/manifest.json"):
        life.begin(store, query_folder(name))
    tasks, receipts = find_scored(query, store, pool.units, pool.read, digest, asked)
    return Prepared(
        query=query,
        store=store,
        pool=pool,
        classes=classes,
        labelled=labelled,
        fingerprint=digest,
        identity=identity,
        name=name,
        tasks=tasks,
        receipts=receipts,
        given=given,
        asked=asked,
        wanted=wanted_outputs(query),
        calibration=calibration,
        life=life,
    )


def pool_plan(query: Query, pool: Pool, also: Sequence[str] = (), *, labels: bool = False) -> PoolPlan:
    """How a pool is read for the query's model: its own, or calibration and target rows.

    Args:
        query: says what the model takes.
        pool: where the rows are.
        also: further columns that are read for some rows.
        labels: whether these are labelled rows, which may stand in files of text, too.
    """
    model = query.model
    if model.kind == "columns":
        # by names, so that a column of single numbers isn't stacked with others, and may stand beside lists
        pool = pool.model_copy(update={"inputs": {f"input {place}": name for place, name in enumerate(input_columns(model))}})
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
    )
    settle(plan.files)
    return replace(plan, warnings=(*plan.warnings, *_large_batches(plan, model.batch_size)))


def _large_batches(plan: PoolPlan, batch_size: int) -> tuple[str, ...]:
    """A warning if batches are so large that a worker needs much memory to hold them; what a user's function makes isn't known yet."""
    rows = min(batch_size, max((unit.rows for unit in plan.units), default=0))
    batches = BUFFERS * min(IN_FLIGHT, len(plan.units))
    size = 0 if plan.read.prepared else batches * rows * row_bytes(plan.read)
    if size <= LARGE_BATCHES:
        return ()
    return (
        f"a worker holds up to {batches} batches of {rows:,} decoded rows, {size / 2**30:.1f} GiB; a smaller model.batch_size takes less",
    )


def _texts(model: Model) -> Literal["refused", "taken", "expected"]:
    """What columns of strings are to the model: of a committee, to all of its members."""
    each = [kind_of(member.kind).texts for member in model.members or [model]]
    return "refused" if "refused" in each else "expected" if "expected" in each else "taken"


def wanted_outputs(query: Query) -> Wanted:
    """What the query's units hold beside scores."""
    traits = query.select.traits
    return Wanted(query.needs_embedding, traits.probabilities, query.needs_samples, query.needs_gradients)


def candidates_columns(query: Query) -> list[str]:
    """The pool's columns that are read for candidates: those of quotas and of the cost."""
    select = query.select
    columns = [quota.by for quota in select.quotas if quota.by != "prediction"]
    return columns + ([select.cost.column] if select.cost else [])


def _labelled_parts(query: Query, labelled: Labelled | None, pool: PoolPlan) -> list[object]:
    """What the choice depends on of the labelled rows: their ids, and the files that their embeddings may come from."""
    if labelled is None:
        return []
    if not query.needs_embedding:
        return [labelled.digest]
    enough = [query.model.embedding] if query.model.kind == "columns" and query.model.embedding else None
    usable = has_columns(labelled.files, pool.read.only(enough).columns)
    return [labelled.digest, *(file.identity for file, ok in zip(labelled.files, usable, strict=True) if ok)]


def find_scored(
    query: Query,
    store: Store,
    units: Sequence[Unit],
    spec: ReadSpec,
    fingerprint: str,
    asked: Asked,
    needed: Wanted | None = None,
) -> tuple[tuple[Task, ...], tuple[Receipt | None, ...]]:
    """The units' tasks, and the receipts of those that are scored.

    A query that needs less takes what was stored with more: scores beside embeddings, both beside probabilities, samples or
    scores from gradients. `needed` is what the units are to hold, if it isn't what the query wants.
    """
    needed = needed or wanted_outputs(query)
    keys, others = UnitKeys(query, spec, fingerprint, asked), _richer(query, needed)
    exact = [keys.of(unit, [needed])[0] for unit in units]
    there = _folders(store, len(units) * (1 + len(others)))
    found = dict(zip(exact, read_receipts(store, exact, there), strict=True))
    lacking = [at for at, key in enumerate(exact) if found[key] is None] if others and (there is None or there) else []
    richer = {at: [key for key in keys.of(units[at], others) if there is None or key in there] for at in lacking}
    several = list(chain.from_iterable(richer.values()))
    found |= zip(several, read_receipts(store, several), strict=True)
    chosen = [next((key for key in [key, *richer.get(at, ())] if found[key] is not None), key) for at, key in enumerate(exact)]
    return tuple(Task(unit, key) for unit, key in zip(units, chosen, strict=True)), tuple(found[key] for key in chosen)


def _richer(query: Query, needed: Wanted) -> list[Wanted]:
    """What units may hold that hold all that is needed, and more."""
    several = (outputs for outputs in product((False, True), repeat=4) if query.may_give_gradients or not outputs[3])
    every = (Wanted(*outputs)._replace(logits=needed.logits) for outputs in several)
    enough = (outputs for outputs in every if all(given >= wanted for given, wanted in zip(outputs, needed, strict=True)))
    return [outputs for outputs in enough if outputs != needed]


def _folders(store: Store, lookups: int) -> set[str] | None:
    """The keys of all units that have a folder in the store; None where it takes less to ask for each that is looked for.

    Most units of a new pool aren't there under any of their keys, and a folder lists a thousand in one request.
    """
    if lookups <= _FEW_LOOKUPS:
        return None
    folders = store.names("units")
    if not folders:
        return set()
    first = store.names(f"units/{folders[0]}")
    if lookups < len(folders) * (1 + len(first) / (_REMOTE_NAMES if store.remote else _LOCAL_NAMES)):
        return None
    return set(first).union(*in_threads(lambda folder: store.names(f"units/{folder}"), folders[1:]))


def write_plan(prepared: Prepared, epig: Mapping[str, str] | None = None) -> bytes | None:
    """Leave the query and its units in its folder, for people and for `raystream gc`.

    A plan of the same units that is there stays: another run of the query, which is further on, may have written more into it.

    Args:
        prepared: the query.
        epig: by the key of a unit, the key of its EPIG, if the query asks for that.

    Returns:
        The plan of other units that this one took the place of, if there was one.
    """
    folder = query_folder(prepared.name)
    table = pa.table(
        {
            "unit": [task.unit.name for task in prepared.tasks],
            "key": [task.key for task in prepared.tasks],
            "first_row": pa.array([task.unit.first_row for task in prepared.tasks], pa.int64()),
            "rows": pa.array([task.unit.rows for task in prepared.tasks], pa.int64()),
            "bytes": pa.array([task.unit.bytes for task in prepared.tasks], pa.int64()),
            "scored": [receipt is not None for receipt in prepared.receipts],
        }
    )
    if epig:
        table = table.append_column("epig_key", pa.array([epig.get(task.key) for task in prepared.tasks], pa.string()))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    prepared.store.put(f"{folder}/query.yaml", prepared.given.to_yaml().encode())
    name = f"{folder}/plan.parquet"
    if prepared.store.put_if_absent(name, buffer.getvalue()):
        return None
    there = prepared.store.read_if_there(name)
    if there is not None and _holds(there, table):
        return None
    prepared.store.put(name, buffer.getvalue())
    return there


def _holds(data: bytes, plan: pa.Table) -> bool:
    """Whether a stored plan says all that this one does; what was scored then is none of it."""
    found = parsed_plan(data)
    names = [name for name in plan.column_names if name != "scored"]
    return found is not None and set(names) <= set(found.column_names) and found.select(names).equals(plan.select(names))


def places_in(prepared: Prepared, receipts: Sequence[Receipt], units: np.ndarray, rows: np.ndarray) -> Places:
    """Places by the numbers of their units among the receipts, (n,), and their rows in the file, (n,)."""
    file_of = {task.unit.name: task.unit.file for task in prepared.tasks}
    every = [file_of[receipt.unit] for receipt in receipts]
    files = {file.path: file for file in every}
    numbers = {path: number for number, path in enumerate(files)}
    of = np.array([numbers[file.path] for file in every], dtype=np.int32)
    return Places(tuple(files.values()), of[units], rows)


def with_temperature(query: Query, calibration: Calibration | None) -> Query:
    """The query with the number that was fitted, just as if that had been written instead of the calibration set.

    Raises:
        QueryError: a temperature is to be fitted, and none was.
    """
    if not query.model.calibration_files:
        return query
    if calibration is None:
        raise QueryError("model.temperature is to be fitted first; run raystream calibrate")
    return query.model_copy(
        update={
            "model": query.model.model_copy(update={"temperature": calibration.temperature}),
            "pool": query.pool.model_copy(update={"label": None}),
        }
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
