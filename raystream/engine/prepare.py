"""Everything about a query that is known before a row is read: its units, their keys, and which of them are scored."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.engine.job import Task
from raystream.engine.keys import Wanted, differences, identity_digest, query_identity, unit_key
from raystream.engine.manifest import Manifest, query_folder, read_manifest
from raystream.engine.receipt import Receipt, read_receipt
from raystream.engine.store import LocalStore
from raystream.errors import QueryError
from raystream.kinds import kind_of
from raystream.model import class_names, code_hash, fingerprint, input_columns
from raystream.pool import Labelled, PoolPlan, ReadSpec, Unit, has_columns, plan_pool, read_labelled, unsettled
from raystream.query import Query

_NAME_DIGITS = 12
_LOOKUP_THREADS = 16


@dataclass(frozen=True)
class Prepared:
    """A query, resolved against its pool, model and store.

    `tasks` are all units in row order, each under the key that it is or will be stored by; `receipts` has one entry
    a task, None where the unit isn't scored yet.
    """

    query: Query
    store: LocalStore
    pool: PoolPlan
    classes: list[str] | None
    labelled: Labelled | None
    fingerprint: str
    identity: dict[str, str]
    name: str
    tasks: tuple[Task, ...]
    receipts: tuple[Receipt | None, ...]

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
    def missing(self) -> list[Task]:
        """The tasks that are not scored yet."""
        return [task for task, receipt in zip(self.tasks, self.receipts, strict=True) if receipt is None]


def prepare(query: Query) -> Prepared:
    """Resolve a query: list the pool, read its footers, find what is scored already.

    Raises:
        RaystreamError: of any kind; see the errors of the parts.
    """
    store = LocalStore(query.store.uri).open()
    classes = class_names(query.model.classes)
    columns = input_columns(query.model) if query.model.kind == "columns" else tuple(query.pool.inputs)
    digest = fingerprint(query.model)
    masked = [query.model.logits] if query.model.logits else []
    pool = plan_pool(
        query.pool, columns, query.on_error, masked=masked, also=candidates_columns(query), texts=kind_of(query.model.kind).texts
    )
    time.sleep(unsettled(pool.files, time.time_ns()) / 1e9)
    labelled = read_labelled(query.pool.labelled, query.pool.id, pool.read.id_type) if query.pool.labelled else None
    identity = query_identity(query, pool.files, _labelled_parts(query, labelled, pool), classes, digest)
    if ":" in query.select.strategy:
        identity["the strategy's source"] = code_hash(query.select.strategy, "select.strategy")
    tasks, receipts = find_scored(query, store, pool.units, pool.read, digest)
    return Prepared(
        query=query,
        store=store,
        pool=pool,
        classes=classes,
        labelled=labelled,
        fingerprint=digest,
        identity=identity,
        name=query.store.query or identity_digest(identity)[:_NAME_DIGITS],
        tasks=tasks,
        receipts=receipts,
    )


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
    query: Query, store: LocalStore, units: Sequence[Unit], spec: ReadSpec, fingerprint: str
) -> tuple[tuple[Task, ...], tuple[Receipt | None, ...]]:
    """The units' tasks, and the receipts of those that are scored.

    A query that needs less takes what was stored with more: scores beside embeddings, both beside probabilities or samples.
    """
    traits = query.select.traits
    needed = Wanted(query.needs_embedding, traits.probabilities, traits.samples)
    every = (Wanted(*outputs) for outputs in product((False, True), repeat=3))
    richer = [outputs for outputs in every if all(given >= wanted for given, wanted in zip(outputs, needed, strict=True))]

    def look(unit: Unit) -> tuple[Task, Receipt | None]:
        tasks = [Task(unit, unit_key(unit, query, spec, fingerprint, outputs)) for outputs in richer]
        for task in tasks:
            receipt = read_receipt(store, task.key)
            if receipt is not None:
                return task, receipt
        return tasks[0], None

    with ThreadPoolExecutor(_LOOKUP_THREADS) as threads:
        found = list(threads.map(look, units))
    return tuple(task for task, _ in found), tuple(receipt for _, receipt in found)


def write_plan(prepared: Prepared) -> None:
    """Leave the resolved query and its units in the query's folder, for people."""
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
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    prepared.store.put(f"{folder}/query.yaml", prepared.query.to_yaml().encode())
    prepared.store.put(f"{folder}/plan.parquet", buffer.getvalue())
