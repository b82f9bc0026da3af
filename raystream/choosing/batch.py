"""From a scored pool to the selection: candidates, the strategy, and the table with the reason for each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raystream.choosing.auto import with_strategy
from raystream.choosing.candidates import CandidateRows, Named, find_candidates, find_named
from raystream.choosing.constraints import BatchLimits, PoolColumns, exceeded, how_met, in_query, read_limits, refuse_empty, words_of_query
from raystream.choosing.derived import results_over
from raystream.choosing.holding import Actors, held_embeddings, memory_of
from raystream.choosing.labelled import LabelledRows
from raystream.choosing.row_hashes import hashes_of
from raystream.errors import QueryError
from raystream.imports import find
from raystream.query import Query
from raystream.query.acquire import column_of
from raystream.scoring.scored_pool import ScoredPool, holds_column
from raystream.selection import Candidates, Chosen, Rows, Shards, Strategy, choose
from raystream.selection.strategy import Kept
from raystream.store.manifest import Certificate, SelectionRounds
from raystream.store.receipts import SAMPLES


@dataclass(frozen=True)
class ChosenBatch:
    """A chosen batch and what its manifest says of it."""

    selection: pa.Table
    eligible: int
    candidates: int
    passes: int
    certificate: Certificate | None
    warnings: tuple[str, ...]
    facts: dict[str, float | int | str]
    rounds: SelectionRounds | None


def choose_batch(query: Query, columns: PoolColumns, labelled: LabelledRows, actors: Actors, *, anew: bool = False) -> ChosenBatch:
    """Choose the query's batch among the rows that aren't labelled; its embeddings may be held by selection actors.

    Args:
        query, columns, labelled: what is asked, the scored pool with its columns, and the labelled rows.
        actors: hold embeddings that are too many for this process.
        anew: compute clusters and neighbour graphs, too, which the store may keep.

    Raises:
        QueryError: the query's own numbers leave none of the candidates, or a minimum that can't be met.
    """
    pool = columns.pool
    query, picked_by_rule = with_strategy(query, pool, labelled)
    named = find_named(query.select, pool.ids, labelled.mask)
    with words_of_query():
        candidates = find_candidates(query, columns, labelled, named)
    rows = candidates.rows
    count = len(pool) if rows is None else len(rows)
    limits = read_limits(query.select, columns, rows)
    with held_embeddings(query, pool, rows, actors) as held, words_of_query():
        kept = None if anew or held.shards is None else results_over(pool, rows, query.select.metric)
        chosen = _choose(query, pool, labelled, named, candidates, limits, held.shards, kept)
    rounds = None if held.rounds is None else held.rounds.record
    if not len(chosen.rows):
        refuse_empty(query.select, limits, chosen, count, candidates.limited)
    picked = chosen.rows if rows is None else rows[chosen.rows]
    certificate = None
    if chosen.certificate is not None:
        over = "pool" if count == candidates.eligible else "candidates"
        certificate = Certificate(chosen.certificate["radius"] or 0.0, chosen.certificate["lower_bound"], over)
    warnings = [*named.warnings, *exceeded(limits, chosen)]
    if len(picked) < query.select.budget:
        so_many = f", since {int(labelled.mask.sum()):,} of {len(pool):,} are labelled" if not count else ""
        reason = in_query(chosen.note or "") or f"no more than {count} are eligible{so_many}"
        were = "row was" if len(picked) == 1 else "rows were"
        warnings.append(f"{len(picked)} {were} chosen for a budget of {query.select.budget}: {reason}")
    table = selection_table(query, columns, picked, chosen)
    facts = dict(chosen.facts) | picked_by_rule | how_met(query.select, limits, chosen, len(named.must_include))
    if candidates.repeats:
        facts["exact_repeats"] = int(facts.get("exact_repeats", 0)) + candidates.repeats
    return ChosenBatch(table, candidates.eligible, count, chosen.passes, certificate, tuple(warnings), facts, rounds)


def selection_table(query: Query, columns: PoolColumns, picked: np.ndarray, chosen: Chosen) -> pa.Table:
    """Make the ranked table of a selection; its columns are part of the public contract."""
    pool = columns.pool
    more, score = _stored_columns(query, pool, picked), query.acquire.column
    places = pool.places(picked)
    table: dict[str, pa.Array | pa.ChunkedArray] = {
        "rank": pa.array(np.arange(len(picked)), pa.int32()),
        query.pool.id or "id": pool.ids_at(picked),
        "score": more.column(score) if score in more.column_names else pa.nulls(len(picked), pa.float32()),
        "gain": _nullable(chosen.gain),
        "distance": pa.nulls(len(picked), pa.float64()) if chosen.distance is None else _nullable(chosen.distance),
        "represents": pa.nulls(len(picked), pa.int64()) if chosen.represents is None else pa.array(chosen.represents, pa.int64()),
        "why": pa.array(chosen.why, pa.string()),
        "turn": pa.array(chosen.turn, pa.int32()),
        "probability": _nullable(chosen.probability),
        "prediction": more.column("prediction") if query.gives_predictions else pa.nulls(len(picked), pa.int32()),
    }
    if columns.classes is not None:
        names = pa.array(columns.classes, pa.string())
        table["prediction_name"] = names.take(table["prediction"].combine_chunks())
    table["confidence"] = more.column("confidence") if query.gives_predictions else pa.nulls(len(picked), pa.float32())
    table |= {name: more.column(name) for name in map(column_of, query.acquire.also) if name in more.column_names}
    if query.pool.keep:
        kept = columns.read(picked, query.pool.keep)
        table |= {name: kept.column(name) for name in query.pool.keep}
    table["path"] = places.paths
    table["row"] = pa.array(places.rows, pa.int64())
    return pa.table(table)


def _choose(
    query: Query,
    pool: ScoredPool,
    labelled: LabelledRows,
    named: Named,
    candidates: CandidateRows,
    limits: BatchLimits,
    shards: Shards | None,
    kept: Kept | None,
) -> Chosen:
    rows, select = candidates.rows, query.select
    given = Candidates(
        score=pool.score if rows is None or pool.score is None else pool.score[rows],
        keys=hashes_of(pool, query.seed, rows) if select.traits.chance else None,
        shards=shards,
        labelled=labelled.embeddings,
        probabilities=Rows(*pool.probabilities(rows, memory_of(query))) if select.traits.probabilities else None,
        labelled_probabilities=labelled.probabilities,
        samples=pool.samples(SAMPLES, rows) if select.traits.samples else None,
        similar_to=pool.embeddings_of(named.similar_to) if select.similar_to else None,
        kept=kept,
    )
    return choose(
        given,
        strategy=users_strategy(select.strategy) if ":" in select.strategy else select.strategy,
        budget=select.budget,
        seed=query.seed,
        metric=select.metric,
        weight=select.weight,
        mix=select.mix,
        terms=select.terms,
        near_duplicates=select.near_duplicates,
        quotas=limits.quotas,
        cost=limits.cost,
        must_include=candidates.must_include,
        drawn=candidates.drawn,
        more=candidates.limited,
        eligible=candidates.eligible,
        others=candidates.others,
        memory=memory_of(query),
        args=select.args,
    )


def _stored_columns(query: Query, pool: ScoredPool, picked: np.ndarray) -> pa.Table:
    names = ["row"]
    if query.gives_scores:
        names += [name for name in query.acquire.columns if holds_column(pool.units, name)]
    if query.gives_predictions:
        names += ["prediction", "confidence"]
    return pool.columns_at(picked, names)


def _nullable(values: np.ndarray) -> pa.Array:
    """Return the values with null in place of NaN."""
    return pa.array(values, pa.float64(), from_pandas=True)


def users_strategy(source: str) -> Strategy:
    """Import the function `module:attribute` that `select.strategy` names.

    Raises:
        QueryError: it can't be imported, or isn't a function.
    """
    found = find(source, "select.strategy")
    if not callable(found):
        raise QueryError(f"select.strategy {source} is no function; expected one from (Candidates, Request) to Picked")
    strategy: Strategy = found
    return strategy
