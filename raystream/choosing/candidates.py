"""The rows that may be chosen, and the numbers that chance goes by.

The candidates of a query: rows ahead by score, rows that it names by their ids, rows drawn at random, enough for every floor.

The scored pool that they come from is read here, and refused where it can't be chosen from.

Numbers for the rows of a pool that depend on the seed and the rows' ids alone: what chance goes by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream.choosing.constraints import PoolColumns
from raystream.choosing.holding import memory_of
from raystream.choosing.labelled import LabelledRows
from raystream.errors import ModelError, PoolError, QueryError
from raystream.figures import several
from raystream.model import check_classes
from raystream.pool import LabelledMarks, UniqueIds, comparable
from raystream.pool.ids import BLOCK_ROWS, Ids, id_blocks, id_bytes, numbered
from raystream.query import Id, Query, Select
from raystream.query.catalogue import AUTO, SAMPLE_SCORES
from raystream.scoring.class_labels import named_classes
from raystream.scoring.output_kinds import EPIG
from raystream.scoring.plan import ResolvedQuery, ScoringPlan
from raystream.scoring.scored_pool import ScoredPool, StoredIds, holds_column, merge
from raystream.scoring.session import one_opinion, refuse_quarantined
from raystream.selection import Rows, draw, random_order, row_hash
from raystream.selection.hashing import bytes_hash
from raystream.selection.prefilter import Ahead, ahead, with_floors
from raystream.selection.strategies.ranking import best
from raystream.store.receipts import EMBEDDINGS
from raystream.store.unit_columns import ScoredUnits
from raystream.store.vectors import fetch


class RowHashes:
    """The hashes of all rows, as their ids come by.

    Args:
        seed: the query's.
        rows: how many there will be.

    Attributes:
        found: (n,) uint64.
    """

    def __init__(self, seed: int, rows: int) -> None:
        self._seed, self.found = seed, np.empty(rows, np.uint64)

    def add(self, row: int, ids: pa.Array) -> None:
        """Take the ids of the rows from this one on; those of nulls are of no use."""
        for start, block in id_blocks(ids):
            if not block.null_count:
                self.found[row + start : row + start + len(block)] = block_hashes(self._seed, block)


def goes_by_all_hashes(query: Query) -> bool:
    """Tell whether those of all rows are certain to be looked at."""
    select, acquire = query.select, query.acquire
    return bool(
        select.random_share or (select.traits.chance and select.candidate_limit is None) or (EPIG in acquire.asked and not acquire.targets)
    )


def hashes_of(pool: ScoredPool, seed: int, rows: np.ndarray | None) -> np.ndarray:
    """Return (m,) uint64 hashes of the rows' ids, in any order; of all rows for None. The seed is the query's."""
    if pool.hashes is not None:
        return pool.hashes if rows is None else np.asarray(pool.hashes[rows])
    if rows is None or (2 * len(rows) > len(pool) and isinstance(pool.ids, StoredIds)):  # each id is read once
        every = RowHashes(seed, len(pool))
        for row, chunk in numbered(pool.ids):
            every.add(row, chunk)
        return every.found if rows is None else np.asarray(every.found[rows])
    found = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), BLOCK_ROWS):
        found[start : start + BLOCK_ROWS] = block_hashes(seed, pool.ids_at(rows[start : start + BLOCK_ROWS]))
    return found


def block_hashes(seed: int, ids: pa.Array) -> np.ndarray:
    """Return (n,) uint64 hashes of some ids, integers or text or bytes; none may be null."""
    return row_hash(seed, ids.to_numpy()) if pa.types.is_integer(ids.type) else bytes_hash(seed, *id_bytes(ids))


@dataclass(frozen=True)
class Named:
    """Rows of the scored pool, int64, each in the order of the query: `must_include`, `exclude` and `similar_to`."""

    must_include: np.ndarray
    exclude: np.ndarray
    similar_to: np.ndarray
    warnings: tuple[str, ...]


def find_named(select: Select, ids: Ids, labelled: np.ndarray) -> Named:
    """Look up the ids that `select` names.

    Args:
        select: of the query.
        ids: of its pool's rows.
        labelled: (n,) bool, which of them are labelled.

    Raises:
        QueryError: an id of `must_include` or `similar_to` isn't in the pool, or one of `must_include` is labelled already.
    """
    must, absent = _rows(ids, select.must_include)
    _refuse(absent, "must_include", len(select.must_include))
    done = [id_ for id_, row in zip(select.must_include, must, strict=True) if labelled[row]]
    if done:
        raise QueryError(f"select.must_include names {several(done)}, already labelled; remove it")
    similar, absent = _rows(ids, select.similar_to)
    _refuse(absent, "similar_to", len(select.similar_to))
    exclude, absent = _rows(ids, select.exclude)
    warnings = [f"{len(absent)} of {len(select.exclude)} ids of select.exclude are not in the pool: {several(absent)}"] if absent else []
    return Named(np.asarray(list(dict.fromkeys(must.tolist())), dtype=np.int64), exclude, similar, tuple(warnings))


def _refuse(absent: Sequence[Id], key: str, count: int) -> None:
    if absent:
        raise QueryError(
            f"{len(absent)} of {count} ids of select.{key} are not in the pool after its filters: {several(absent)}; correct or remove them"
        )


def _rows(of_pool: Ids, ids: Sequence[Id]) -> tuple[np.ndarray, list[Id]]:
    """Find the rows of the ids that are there, and list the ids that are not."""
    if not ids:
        return np.empty(0, dtype=np.int64), []
    type_ = comparable(pa.array([], of_pool.type)).type
    usable = [_as_type(id_, type_) for id_ in ids]
    wanted = pc.drop_null(pa.array(usable, type_))
    of: dict[object, int] = {}
    for start, block in id_blocks(of_pool):
        known = comparable(block)
        there = np.asarray(pc.indices_nonzero(pc.is_in(known, value_set=wanted)))
        of |= zip(known.take(pa.array(there)).to_pylist(), (start + there).tolist(), strict=True)
    rows = [of.get(value) if value is not None else None for value in usable]
    absent = [id_ for id_, row in zip(ids, rows, strict=True) if row is None]
    return np.asarray([row for row in rows if row is not None], dtype=np.int64), absent


def _as_type(value: Id, type_: pa.DataType) -> int | str | bytes | None:
    """Return the id as the pool has it; None if it can't be one."""
    if pa.types.is_integer(type_):
        try:
            return int(pa.scalar(value if isinstance(value, int) else None, type_).as_py())
        except (pa.ArrowInvalid, OverflowError, TypeError):
            return None
    text = str(value)
    return text.encode() if pa.types.is_large_binary(type_) else text


_AT_ONCE = 1 << 20
"""Rows whose scores are compared at a time."""


@dataclass(frozen=True)
class CandidateRows:
    """The candidates.

    Attributes:
        rows: (n,) int64 rows of the pool, ascending; None for all of them.
        must_include, drawn: int64 candidates that are in the batch already; a row may be both. `drawn` is in the order of drawing.
        eligible: how many rows of the pool might have been chosen.
        limited: whether the pre-filter kept some of these out.
        others: whether some of those may be no exact repeats.
        repeats: how many exact repeats it passed over.
    """

    rows: np.ndarray | None
    must_include: np.ndarray
    drawn: np.ndarray
    eligible: int
    limited: bool
    others: bool = False
    repeats: int = 0


def find_candidates(query: Query, columns: PoolColumns, labelled: LabelledRows, named: Named) -> CandidateRows:
    """Decide which rows of the pool are candidates.

    Args:
        query: says how many.
        columns: the scored rows, and the columns of the pool that constraints go by.
        labelled: which of them are labelled, and the embeddings of those.
        named: the rows that the query names.
    """
    pool, select = columns.pool, query.select
    free = ~labelled.mask
    free[named.exclude] = False
    eligible = int(free.sum())
    must = named.must_include
    drawn = _drawn(query, pool, free, len(must))
    given = np.union1d(must, drawn)
    free[given] = False
    left, limit = int(free.sum()), select.candidate_limit
    prefilter = _Prefilter(query, columns, labelled, given)
    if limit is not None and limit < left:
        rows = np.union1d(prefilter.keep(free, limit), given)
    elif left + len(given) == len(pool):
        return CandidateRows(None, must, drawn, eligible, limited=False)
    else:
        free[given] = True
        rows = np.flatnonzero(free)
    limited = len(rows) < left + len(given)
    return CandidateRows(
        rows, np.searchsorted(rows, must), np.searchsorted(rows, drawn), eligible, limited, prefilter.others, prefilter.repeats
    )


class _Prefilter:
    """Which rows are candidates by their scores.

    Attributes:
        others, repeats: see `CandidateRows`; of the last call of `keep`.
    """

    def __init__(self, query: Query, columns: PoolColumns, labelled: LabelledRows, given: np.ndarray) -> None:
        self._columns, self._pool, self._given = columns, columns.pool, given
        self._select, self._memory = query.select, memory_of(query)
        self._covered = labelled.embeddings
        self.others, self.repeats = False, 0

    def keep(self, mask: np.ndarray, limit: int) -> np.ndarray:
        """Return the masked rows that are let through, ascending: the `limit` best by score, and enough of every group with a floor.

        These are the best of the group by score, and where the batch, which `given` are in already, couldn't pay for them, the cheapest.
        """
        every = self._pool.score
        assert every is not None
        if self._select.passes_over_repeats and len(self._given):
            vectors = self._pool.embeddings_of(self._given)
            self._covered = vectors if self._covered is None else np.concatenate([self._covered, vectors])
        first = self._first(lambda count: _best(every, mask, count), int(mask.sum()), limit)
        self.others, self.repeats = first.others, first.passed
        kept = np.sort(first.rows)
        if not any(quota.min is not None for quota in self._select.quotas):
            return kept
        free = np.flatnonzero(mask)
        score = every[free]
        rows = np.concatenate([free, self._given])
        quotas, cost = self._columns.quotas(self._select, rows), self._columns.cost(self._select, rows)
        return with_floors(kept, free, score, quotas, cost, self._first, self._select.budget)

    def _first(self, order: Callable[[int], np.ndarray], total: int, limit: int) -> Ahead:
        """Return the first rows of an order, exact repeats passed over where the choice passes over them."""
        if not self._select.passes_over_repeats:
            return Ahead(order(limit), 0, limit < total)
        kinds = self._kinds if self._select.quotas or self._select.cost is not None else None
        return ahead(order, total, limit, opened=self._opened, covered=self._covered, kinds=kinds)

    def _opened(self, rows: np.ndarray) -> Rows:
        parts, positions = self._pool.embeddings(rows, self._memory)
        fetch(parts)
        return Rows(parts, positions)

    def _kinds(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what quotas and costs tell rows apart by: the rows' groups, a column for each quota, and their costs, if they have any."""
        quotas = self._columns.quotas(self._select, rows) if self._select.quotas else []
        cost = self._columns.cost(self._select, rows)
        groups = np.column_stack([quota.group for quota in quotas]) if quotas else np.empty((len(rows), 0), dtype=np.int32)
        return groups, None if cost is None else cost.column


def _best(score: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """Find the `count` masked rows of the highest scores, highest first, ties to the lower row; a part at a time, without a copy of all."""
    found = np.empty(0, np.int64)
    for start in range(0, len(score), _AT_ONCE):
        block = start + np.flatnonzero(mask[start : start + _AT_ONCE])
        found = np.concatenate([found, block[np.sort(best(score[block], count))]])
        if len(found) >= 2 * count:
            found = found[np.sort(best(score[found], count))]
    rows: np.ndarray = found[best(score[found], count)]
    return rows


def _drawn(query: Query, pool: ScoredPool, eligible: np.ndarray, must: int) -> np.ndarray:
    """Draw the rows of `select.random_share`, in the order of drawing: the first by hash of all that are `eligible`, a mask.

    Rows of `must_include` are among them: those drawn are as good a sample of what is eligible as if nothing else were asked.
    """
    select = query.select
    rows = np.flatnonzero(eligible)
    count = min(round(select.random_share * select.budget), select.budget - must, len(rows))
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    drawn: np.ndarray = rows[random_order(draw(hashes_of(pool, query.seed, rows), "random_share"), count)]
    return drawn


def read_pool(asked: ResolvedQuery, plan: ScoringPlan, units: ScoredUnits, warnings: Sequence[str] = ()) -> ScoredPool:
    """Read the merged pool, and see that it is sound: rows to choose from, unique ids, outputs of one shape.

    Args:
        asked: the query.
        plan: its units.
        units: the outputs of those that aren't left out.
        warnings: why others are.

    Raises:
        DataError: it can't be chosen from.
    """
    query = asked.query
    refuse_quarantined(query, units)
    if not units:
        reason = f": {warnings[0]}" if warnings else ""
        raise PoolError(f"no unit of {', '.join(query.pool.uris)} could be scored{reason}")
    compared = [score for score in query.asked_scores if score in SAMPLE_SCORES]
    lacking = np.flatnonzero((units.rows > 0) & ~units.say("members"))
    if len(lacking) and (compared or query.select.traits.samples):
        way = ", or choose by lcmd, or by core_set with candidates all, without acquire" if query.model.task == "regression" else ""
        raise one_opinion(compared[0] if compared else query.select.strategy, units[int(lacking[0])].unit, way)
    file_of = plan.units.file_of[units.places]
    rows, id_name = int(units.rows.sum()), query.pool.id or "id"
    marks = None if asked.labelled is None else LabelledMarks(asked.labelled, rows)
    hashes = RowHashes(query.seed, rows) if goes_by_all_hashes(query) else None
    with UniqueIds(rows, id_name) as unique:
        watch = [one for one in (unique, marks, hashes) if one is not None]
        pool = merge(asked.store, units, plan.units.files, file_of, id_name, ranking_column(query, units), watch)
        _check(asked, pool, unique)
    return replace(pool, labelled=marks, hashes=None if hashes is None else hashes.found)


def ranking_column(query: Query, units: ScoredUnits) -> str | None:
    """Name the column that rows are ranked by, if they are and it is there once they are scored."""
    return query.acquire.column if query.acquire.score != EPIG and goes_by_score(query, units) else None


def goes_by_score(query: Query, units: ScoredUnits) -> bool:
    """Tell whether rows are ranked by a score; `auto` does without one that the model turned out not to give."""
    return query.needs_score and (query.select.strategy != AUTO or holds_column(units, query.acquire.column))


def flat_scores(query: Query, pool: ScoredPool) -> list[str]:
    """Warn of a score that ranks nothing."""
    if not query.needs_score or pool.score is None or len(pool) < 2:
        return []
    least, most = float(pool.score.min()), float(pool.score.max())
    if least < most:
        return []
    return [f"all {len(pool):,} rows have the same {query.acquire.score}, {least:.4g}, so it ranks nothing; look at the model's outputs"]


def _check(asked: ResolvedQuery, pool: ScoredPool, unique: UniqueIds) -> None:
    query = asked.query
    if not len(pool):
        reasons = [reason for unit in pool.units.with_losses() for reason in unit.reasons]
        first = f"; the first of the rows left out: {reasons[0]}" if reasons else ""
        raise PoolError(f"no row of {', '.join(query.pool.uris)} is left to choose from after pool.filters and on_error{first}")
    unique.check(pool.ids, pool.place)
    named_classes(asked.classes, pool.units)
    classes = next((receipt.classes for receipt in pool.units.of_models() if receipt.classes is not None), None)
    if asked.classes is not None and classes is not None:
        check_classes(asked.classes, classes)
    if query.needs_embedding and not pool.holds(EMBEDDINGS):
        raise ModelError("the model gave no embedding; name the module in model.embedding")
    calibration = asked.calibration
    if calibration is not None and any(receipt.state_hash != calibration.state_hash for receipt in pool.units.of_models()):
        raise ModelError(
            "the model that scored the pool isn't the one that model.temperature was fitted with: the factory does not build the same "
            "model every time; make it deterministic or give model.weights"
        )
