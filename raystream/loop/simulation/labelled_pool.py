"""A pool of which every label is known, read into memory for a simulation, and the rows that models are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.choosing.constraints import as_costs
from raystream.errors import LabelsError, ModelError, PoolError
from raystream.figures import number_of, shown
from raystream.loop.evaluation import EvaluationRows, ids_in_files, rows_in_files
from raystream.loop.labels import LabelValues
from raystream.loop.pool_rows import PoolRows
from raystream.loop.simulation.rounds import Pool
from raystream.loop.trainers.sklearn_trainer import SklearnTrainer
from raystream.loop.trainers.torch_trainer import TorchTrainer
from raystream.loop.trainers.training import Array, Trainer, TrainingRows, predicted
from raystream.model import class_names, load, with_local_files
from raystream.model.signature import INPUTS
from raystream.pool import Places, check_unique, comparable, list_pool, read_columns_at, read_unit
from raystream.query import Pool as PoolSection
from raystream.query import Query
from raystream.query.catalogue import kind_of
from raystream.query.select import Cost
from raystream.query.simulate import Simulation
from raystream.scoring.batch_reader import preparation
from raystream.scoring.plan import pool_plan
from raystream.selection.hashing import row_hash

_BATCH = 1 << 16
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class LabelledPool:
    """What a simulation plays on.

    Attributes:
        pool: the rows to choose from, and from which a share may be kept to judge by.
        test: rows of files of their own to judge by; None where `loop.evaluate` is a share.
        snapshot: the files of both as they were read, for the simulation's identity.
        warnings: sentences for the user.
    """

    pool: Pool
    test: TrainingRows | None
    snapshot: tuple[tuple[str, int, str], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Read:
    """Rows in their order, and the files that they are of."""

    ids: pa.Array
    inputs: tuple[Array, ...]
    labels: list[Any]
    files: tuple[tuple[str, int, str], ...]
    costs: npt.NDArray[np.float64] | None = None

    def at(self, kept: npt.NDArray[np.bool_]) -> _Read:
        """Return some of the rows."""
        labels = [label for label, ok in zip(self.labels, kept, strict=True) if ok]
        costs = None if self.costs is None else self.costs[kept]
        return _Read(self.ids.filter(pa.array(kept)), tuple(values[kept] for values in self.inputs), labels, self.files, costs)


def read_labelled_pool(simulation: Simulation, trainer: Trainer) -> LabelledPool:
    """Read the pool, and the files of `loop.evaluate`, whole.

    Args:
        simulation: where they are.
        trainer: whose models' embeddings may depend on no label.

    Raises:
        PoolError: rows can't be read, or their ids aren't unique.
        LabelsError: labels that are none, or of one class alone.
    """
    query = simulation.query_with(simulation.trained_model())
    classes = class_names(query.model.classes)
    values = LabelValues(simulation.task, None if classes is None else tuple(classes), isinstance(trainer, TorchTrainer))
    read = _read(query, simulation.pool.derived(label=None, labelled=[], keep=[]), simulation.label, simulation.select.cost)
    check_unique(read.ids, simulation.pool.id or "id")
    others: EvaluationRows | None = None
    files = read.files
    warnings: list[str] = []
    if simulation.loop.evaluate_uris:
        rows_of = PoolRows.of(simulation, query)
        others = rows_in_files(simulation, query, rows_of, values)
        files += tuple(file.identity for file in list_pool(simulation.loop.evaluate_uris, "loop.evaluate", storage=query.pool.options)[0])
        read, warnings = _without(read, ids_in_files(simulation, rows_of))
    kept, more = _sound(read, values, simulation.label)
    known = None if simulation.task == "regression" else values.known([*kept.labels, *(others.labels if others else [])])
    rows = _rows(kept, values, known, query)
    if simulation.task == "classes" and len(np.unique(rows.labels)) < 2:
        raise LabelsError(
            f"pool.label {simulation.label} holds the one class {kept.labels[0]!r}, expected two at least; nothing can be learnt"
        )
    hashes = np.asarray(row_hash(0, _as_numbers(kept.ids)))
    pool = Pool(rows, hashes, *_vectors(simulation, query, trainer, rows), _checked_costs(kept, simulation.select.cost))
    test = None if others is None else _rows(others, values, known, query)
    return LabelledPool(pool, test, files, (*warnings, *more))


def _read(query: Query, section: PoolSection, label: str, cost: Cost | None) -> _Read:
    plan = pool_plan(query, section, [label, *([] if cost is None else [cost.column])])
    prepare = preparation(plan.read)
    files = {file.path: number for number, file in enumerate(dict.fromkeys(unit.file for unit in plan.units))}
    ids, inputs, of, rows = [], [], [], []
    for unit in plan.units:
        for block in read_unit(unit, plan.read, _BATCH, query.cluster.cpus_per_worker, prepare):
            ids.append(block.ids)
            inputs.append(tuple(values.copy() for values in block.inputs))
            of.append(np.full(len(block.rows), files[unit.file.path], dtype=np.int32))
            rows.append(block.rows)
    if not ids:
        raise PoolError("pool.uri holds no row that can be read")
    places = Places(tuple(dict.fromkeys(unit.file for unit in plan.units)), np.concatenate(of), np.concatenate(rows))
    table = read_columns_at(places, plan.keep_schema)
    whole = tuple(np.concatenate(parts) for parts in zip(*inputs, strict=True))
    costs = None if cost is None else as_costs(cost.column, table.column(cost.column))
    return _Read(pa.concat_arrays(ids), whole, table.column(label).to_pylist(), tuple(plan.snapshot), costs)


def _checked_costs(read: _Read, cost: Cost | None) -> npt.NDArray[np.float64] | None:
    """Return what the rows cost, unless it is no cost."""
    if read.costs is None or cost is None:
        return None
    bad = np.flatnonzero(~np.isfinite(read.costs) | (read.costs < 0))
    if len(bad):
        first = ", ".join(map(shown, read.ids.take(pa.array(bad[:_SHOWN])).to_pylist()))
        raise PoolError(
            f"select.cost.column {cost.column} is null, negative or not finite for {number_of(len(bad), 'row')} of the pool, first with "
            f"ids {first}; expected costs of at least 0"
        )
    return read.costs


def _without(read: _Read, ids: Sequence[Any]) -> tuple[_Read, list[str]]:
    """Return the rows that models aren't judged by, and a warning of those that they are."""
    there = pc.is_in(comparable(read.ids), pa.array(sorted(set(ids)), comparable(read.ids).type)).to_numpy(zero_copy_only=False)
    if not there.any():
        return read, []
    return read.at(~there), [f"{number_of(int(there.sum()), 'row')} of the pool are rows of loop.evaluate, too, and are never chosen"]


def _sound(read: _Read, values: LabelValues, label: str) -> tuple[_Read, list[str]]:
    """Return the rows that have a label, as it is kept, and a warning of those that have none."""
    labels = [None if raw is None else values.label_of(raw) for raw in read.labels]
    wrong = [raw for raw, value in zip(read.labels, labels, strict=True) if value is None and raw is not None]
    if wrong:
        shown = ", ".join(map(repr, wrong[:_SHOWN]))
        raise LabelsError(f"{number_of(len(wrong), 'label')} of the pool in column {label} can't be used, first: {shown}; correct them")
    there = np.array([value is not None for value in labels], dtype=bool)
    if not there.any():
        raise LabelsError(f"column {label} of the pool is null in all {len(labels):,} rows, expected labels")
    sound = replace(read, labels=labels)
    if there.all():
        return sound, []
    return sound.at(there), [f"{number_of(int((~there).sum()), 'row')} of the pool without a label in column {label} were left out"]


def _rows(read: _Read | EvaluationRows, values: LabelValues, classes: Sequence[Any] | None, query: Query) -> TrainingRows:
    return TrainingRows(
        read.inputs,
        values.as_numbers(read.labels, classes),
        values.task,
        None if classes is None else tuple(classes),
        query.pool.input_names,
    )


def _vectors(simulation: Simulation, query: Query, trainer: Trainer, rows: TrainingRows) -> tuple[Array | None, Array | None]:
    """Return embeddings that depend on no label: those of all rounds, where there are such, and those of the first batch."""
    section, flat = query.model, _flat(rows.inputs)
    named = trainer.embedding if isinstance(trainer, SklearnTrainer) else section.embedding
    bare = isinstance(trainer, SklearnTrainer) and len(trainer.steps) == 1 and named is None
    if flat is not None and (named == INPUTS or bare):
        return flat, flat
    given = simulation.model.get("weights")
    if isinstance(given, str) and kind_of(section.kind).embedding:
        return None, _embedded(simulation, query, rows)
    return None, flat


def _embedded(simulation: Simulation, query: Query, rows: TrainingRows) -> Array:
    """Return what the model gives with its given weights, before any training."""
    section = with_local_files(query.model.derived(weights=simulation.model["weights"]), query.pool.options)
    model = load(section, embedding=True, names=rows.names)
    found = [
        predicted(model.predict, tuple(values[begin : begin + section.batch_size] for values in rows.inputs), rows.task, embedding=True)
        for begin in range(0, len(rows), section.batch_size)
    ]
    vectors = [part.embedding for part in found if part.embedding is not None]
    if len(vectors) != len(found):
        raise ModelError(f"model.source {section.source} gives no embedding; name one in model.embedding")
    return np.concatenate(vectors)


def _flat(inputs: tuple[Array, ...]) -> Array | None:
    """Return (n, d) float32: numeric inputs side by side; None of texts."""
    if any(values.dtype == object for values in inputs):
        return None
    return np.concatenate([values.reshape(len(values), -1).astype(np.float32) for values in inputs], axis=1)


def _as_numbers(ids: pa.Array) -> npt.NDArray[Any] | list[Any]:
    """Return ids as `row_hash` takes them."""
    return ids.to_numpy() if pa.types.is_integer(ids.type) else list(ids.to_pylist())
