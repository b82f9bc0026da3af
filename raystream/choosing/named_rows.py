"""The rows that a query names by their ids: those it wants, those it doesn't, those it wants more of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import QueryError
from raystream.pool import comparable
from raystream.pool.id_hashes import id_blocks
from raystream.query import Id, Select
from raystream.scoring.scored_pool import ScoredPool

_SHOWN = 3


@dataclass(frozen=True)
class Named:
    """Rows of the scored pool, int64, each in the order of the query: `must_include`, `exclude` and `similar_to`."""

    must_include: np.ndarray
    exclude: np.ndarray
    similar_to: np.ndarray
    warnings: tuple[str, ...]


def find_named(select: Select, pool: ScoredPool, labelled: np.ndarray) -> Named:
    """Look up the ids that `select` names.

    Args:
        select: of the query.
        pool: its scored rows.
        labelled: (n,) bool, which of them are labelled.

    Raises:
        QueryError: an id of `must_include` or `similar_to` isn't in the pool, or one of `must_include` is labelled already.
    """
    must, absent = _rows(pool, select.must_include)
    _refuse(absent, "must_include", len(select.must_include))
    done = [id_ for id_, row in zip(select.must_include, must, strict=True) if labelled[row]]
    if done:
        raise QueryError(f"select.must_include names {_shown(done)}, already labelled; remove it")
    similar, absent = _rows(pool, select.similar_to)
    _refuse(absent, "similar_to", len(select.similar_to))
    exclude, absent = _rows(pool, select.exclude)
    warnings = [f"{len(absent)} of {len(select.exclude)} ids of select.exclude are not in the pool: {_shown(absent)}"] if absent else []
    return Named(np.asarray(list(dict.fromkeys(must.tolist())), dtype=np.int64), exclude, similar, tuple(warnings))


def _refuse(absent: Sequence[Id], key: str, count: int) -> None:
    if absent:
        raise QueryError(
            f"{len(absent)} of {count} ids of select.{key} are not in the pool after its filters: {_shown(absent)}; correct or remove them"
        )


def _shown(ids: Sequence[Id]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", .." if len(ids) > _SHOWN else "")


def _rows(pool: ScoredPool, ids: Sequence[Id]) -> tuple[np.ndarray, list[Id]]:
    """The rows of the ids that are there, and the ids that are not."""
    if not ids:
        return np.empty(0, dtype=np.int64), []
    type_ = comparable(pa.array([], pool.ids.type)).type
    usable = [_as_type(id_, type_) for id_ in ids]
    wanted = pc.drop_null(pa.array(usable, type_))
    of: dict[object, int] = {}
    for start, block in id_blocks(pool.ids):
        known = comparable(block)
        there = np.asarray(pc.indices_nonzero(pc.is_in(known, value_set=wanted)))
        of |= zip(known.take(pa.array(there)).to_pylist(), (start + there).tolist(), strict=True)
    rows = [of.get(value) if value is not None else None for value in usable]
    absent = [id_ for id_, row in zip(ids, rows, strict=True) if row is None]
    return np.asarray([row for row in rows if row is not None], dtype=np.int64), absent


def _as_type(value: Id, type_: pa.DataType) -> int | str | bytes | None:
    """The id as the pool has it; None if it can't be one."""
    if pa.types.is_integer(type_):
        try:
            return int(pa.scalar(value if isinstance(value, int) else None, type_).as_py())
        except (pa.ArrowInvalid, OverflowError, TypeError):
            return None
    text = str(value)
    return text.encode() if pa.types.is_large_binary(type_) else text
