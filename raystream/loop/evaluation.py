"""The rows that a loop's models are judged by: labelled, never trained on, never chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystream.choosing.candidates import block_hashes
from raystream.errors import LabelsError, PoolError
from raystream.loop.labels import Id, LabelValues, read_answers
from raystream.loop.pool_rows import PoolRows, stacked
from raystream.loop.trainers.training import Array
from raystream.pool import File, Places, has_columns, list_pool, read_columns_at, read_unit
from raystream.pool.files import open_parquet, schema_of
from raystream.pool.labelled_ids import LABELLED, labelled_rows
from raystream.query import Pool, Query
from raystream.query.loop import Loop
from raystream.scoring.batch_reader import preparation
from raystream.scoring.plan import pool_plan
from raystream.selection.hashing import draw

_BATCH = 256


@dataclass(frozen=True, eq=False)
class EvaluationRows:
    """Rows to judge by.

    Attributes:
        ids: empty where the files don't say.
        inputs: what the model sees of them.
        labels: as `LabelValues` keeps them.
        unknown: how many rows were left out, whose labels are none.
    """

    ids: list[Id]
    inputs: tuple[Array, ...]
    labels: list[Any]
    unknown: int = 0


def ids_in_files(loop: Loop, pool: PoolRows) -> list[Id]:
    """Return the ids of the rows to judge by, as far as their files say."""
    found: list[Id] = []
    for file in _files(loop):
        with open_parquet(file) as parquet:
            named = pool.id_name in schema_of(file, parquet).names
        if named:
            answers = read_answers(
                [file.path], pool.id_name, pool.id_type, loop.label, LabelValues(), loop.pool.options, key="loop.evaluate"
            )
            found += [*answers.by_id, *answers.conflicts, *(id_ for id_, _ in answers.unknown)]
    return found


def rows_in_files(loop: Loop, query: Query, pool: PoolRows, values: LabelValues) -> EvaluationRows:
    """Return the rows of the files that `loop.evaluate` names: what the model sees stands in them, or in the pool under the same ids.

    Raises:
        LabelsError: they can't be read, or no label of theirs can be used.
    """
    files = _files(loop)
    if not all(has_columns(files, pool.plan.read.columns)):
        return _by_id(loop, pool, values)
    section = Pool(uri=loop.loop.evaluate_uris, inputs=loop.pool.inputs, storage=loop.pool.storage)
    try:
        plan = pool_plan(query, section, [loop.label], labels=True)
    except PoolError as error:
        raise LabelsError(f"loop.evaluate: {str(error).removeprefix('pool.uri ')}") from None
    spec, prepare = plan.read, preparation(plan.read)
    rows: list[tuple[Array, ...]] = []
    pairs: list[tuple[File, int]] = []
    for unit in plan.units:
        kept = labelled_rows(unit.file)
        for read in read_unit(unit, spec, _BATCH, pool.threads, prepare):
            for at, row in enumerate(read.rows.tolist()):
                if kept is None or row in kept:
                    rows.append(tuple(values_[at].copy() if values_.ndim > 1 else values_[at] for values_ in read.inputs))
                    pairs.append((unit.file, row))
    raw = read_columns_at(Places.of_pairs(pairs), plan.keep_schema).column(loop.label).to_pylist() if pairs else []
    return _sound([], rows, [values.label_of(value) for value in raw], loop)


def rows_in_pool(
    pool: PoolRows, places: Mapping[Id, tuple[File, int]], ids: Sequence[Id], labels: Sequence[Any], loop: Loop
) -> EvaluationRows:
    """Return rows of the pool itself, with their labels."""
    held = [(id_, label) for id_, label in zip(ids, labels, strict=True) if id_ in places]
    inputs, sound = pool.inputs([places[id_] for id_, _ in held])
    rows = [tuple(values[i] for values in inputs) for i in range(int(sound.sum()))]
    kept = [pair for pair, ok in zip(held, sound, strict=True) if ok]
    return _sound([id_ for id_, _ in kept], rows, [label for _, label in kept], loop)


def drawn_share(pool: PoolRows, column: str, share: float, seed: int, values: LabelValues) -> list[Id]:
    """Return a share of the pool, of each class in its share, drawn by hash: what a simulation judges by."""
    by_class: dict[Any, list[Id]] = {}
    for ids, labels in pool.labels(column):
        for id_, raw in zip(ids, labels, strict=True):
            label = values.label_of(raw)
            if label is not None:
                by_class.setdefault(label if values.task == "classes" else None, []).append(id_)
    chosen: list[Id] = []
    for ids in by_class.values():
        order = np.argsort(draw(block_hashes(seed, pool.array(ids)), "evaluate"), kind="stable")
        chosen += [ids[i] for i in order[: round(share * len(ids))]]
    if not chosen:
        raise LabelsError(f"loop.evaluate is {share:g} of the pool, which is no row of any class; raise it")
    return sorted(chosen)


def _by_id(loop: Loop, pool: PoolRows, values: LabelValues) -> EvaluationRows:
    uris = loop.loop.evaluate_uris
    answers = read_answers(uris, pool.id_name, pool.id_type, loop.label, values, loop.pool.options, key="loop.evaluate")
    ids = [id_ for id_, answer in answers.by_id.items() if answer.state == LABELLED]
    places = pool.find(ids)
    if not places:
        raise LabelsError(
            f"loop.evaluate {', '.join(uris)} holds neither the input columns ({', '.join(pool.plan.read.inputs)}) nor ids of the pool; "
            "give rows with their inputs"
        )
    return rows_in_pool(pool, places, ids, [answers.by_id[id_].label for id_ in ids], loop)


def _files(loop: Loop) -> list[File]:
    try:
        return list_pool(loop.loop.evaluate_uris, "loop.evaluate", storage=loop.pool.options, texts=True)[0]
    except PoolError as error:
        raise LabelsError(str(error)) from None


def _sound(ids: list[Id], rows: list[tuple[Array, ...]], labels: list[Any], loop: Loop) -> EvaluationRows:
    kept = [i for i, label in enumerate(labels) if label is not None]
    if not kept:
        raise LabelsError(f"loop.evaluate {', '.join(loop.loop.evaluate_uris)} holds no row with a label that can be used")
    named = [ids[i] for i in kept] if ids else []
    return EvaluationRows(named, stacked([rows[i] for i in kept]), [labels[i] for i in kept], len(labels) - len(kept))
