"""The first rows of a pool as the model's tensors: what a model is probed with, before it scores a unit.

They are the same for every worker, and each reads them itself: pool rows don't travel, and what the probe decides is decided alike
for the whole query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raystream.errors import ModelError
from raystream.model import Promised, code_hash, is_device_failure, load_preparation
from raystream.pool import OutageError, ReadSpec, Unit, UnreachableError, read_unit
from raystream.pool.reader import Prepare, Prepared
from raystream.query import Query
from raystream.scoring.batch_reader import rows_at_once

PROBE_UNITS = 8
"""From so many units, at most, the rows are taken: they may hold few, or under filters none."""
_FEWEST = 2
"""Rows with which it can be told whether all of them sum to 1 by no chance."""


@dataclass(frozen=True)
class FirstRows:
    """Some rows as the model's inputs, and the units that they are of."""

    inputs: tuple[Any, ...]
    units: tuple[str, ...]


def first_rows(units: Sequence[Unit], spec: ReadSpec, count: int, prepare: Prepare | None, threads: int) -> FirstRows | None:
    """The first clean rows of these units.

    A unit that can't be read, or not on without a bad row, is left at that: what is wrong with it is said when it is scored. Where a
    storage doesn't answer, which has been waited for by then, no other unit is tried.

    Args:
        units: the pool's first, in its order.
        spec: which columns, and what they become.
        count: the most rows; fewer of large images.
        prepare: makes the tensors, where `spec.prepared` says so.
        threads: that decode images.

    Returns:
        at least one row; None if there is none.

    Raises:
        OutageError: the storage of one is away.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    names: list[str] = []
    at_once = rows_at_once(spec, count)
    left = min(count, max(at_once, _FEWEST))
    for unit in units:
        try:
            for rows in read_unit(unit, spec, at_once, threads, prepare):
                parts.append(tuple(values[:left].copy() for values in rows.inputs))
                left -= len(parts[-1][0])
                names.append(unit.name)
                if left <= 0:
                    break
        except OutageError:
            raise  # another worker, at another time, would take other rows
        except UnreachableError:
            break
        except (Exception, SystemExit) as error:  # the user's code may run here
            if is_device_failure(error):
                raise
        if left <= 0:
            break
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return None
    whole = (np.concatenate(values) for values in zip(*parts, strict=True))
    inputs = tuple(values if values.dtype == object else torch.from_numpy(values) for values in whole)
    return FirstRows(inputs, tuple(dict.fromkeys(names)))


def probe(model: Promised, first: FirstRows, *, lenient: bool = False) -> None:
    """Run the model on the first rows, and see that it keeps its promise.

    Args:
        model: just loaded.
        first: the rows.
        lenient: see `Promised.probe`.

    Raises:
        ModelError: it doesn't; with the name of the first unit.
    """
    try:
        model.probe(first.inputs, lenient=lenient)
    except ModelError as error:
        raise ModelError(f"{first.units[0]}: {error}") from error


_KEY = "model.preprocess"


def planned(query: Query) -> Prepared | None:
    """What units are keyed by, if `model.preprocess` names a function.

    Raises:
        ModelError: its module isn't there.
    """
    source = query.model.prepares
    return None if source is None else Prepared(source, code_hash(source, _KEY))


def preparation(spec: ReadSpec) -> Prepare | None:
    """The function itself, if the spec names one.

    Raises:
        ModelError: it can't be imported, or isn't the one that was planned with.
    """
    if spec.prepared is None:
        return None
    found = load_preparation(spec.prepared.source, spec.inputs, spec.names)
    if code_hash(spec.prepared.source, _KEY) != spec.prepared.code:
        raise ModelError(f"{_KEY} {spec.prepared.source} changed while the query was being started; run it again")
    return found
