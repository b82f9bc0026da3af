"""From a scored pool to the selection: candidates, the strategy, and the table with the reason for each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raystream.engine.constrained import Limits, exceeded, how_met, read_limits, refuse_empty
from raystream.engine.covered import Covered
from raystream.engine.entrants import Entrants, enter, hashes
from raystream.engine.holding import held_embeddings, memory_of
from raystream.engine.manifest import Certificate, SelectionRounds
from raystream.engine.merge import ScoredPool
from raystream.engine.named import Named, find_named
from raystream.engine.pool_columns import places_of, pool_columns
from raystream.engine.prepare import Prepared
from raystream.engine.session import Session
from raystream.engine.users_strategy import users_strategy
from raystream.engine.wording import in_query, words_of_query
from raystream.query import Query
from raystream.query.acquire import column_of
from raystream.selection import Candidates, Chosen, Rows, Shards, choose


@dataclass(frozen=True)
class Batch:
    """A chosen batch and what its manifest says of it."""

    selection: pa.Table
    eligible: int
    candidates: int
    passes: int
    certificate: Certificate | None
    warnings: tuple[str, ...]
    facts: dict[str, float | int | str]
    rounds: SelectionRounds | None


def choose_batch(prepared: Prepared, pool: ScoredPool, covered: Covered, session: Session) -> Batch:
    """Choose the query's batch among the rows that aren't labelled; the session may have to connect to Ray for it.

    Raises:
        QueryError: the query's own numbers leave none of the candidates, or a minimum that can't be met.
    """
    query = prepared.query
    named = find_named(query.select, pool, covered.mask)
    with words_of_query():
        entrants = enter(prepared, pool, covered, named)
    rows = entrants.rows
    count = len(pool) if rows is None else len(rows)
    limits = read_limits(prepared, pool, rows)
    with held_embeddings(query, pool, rows, session) as held, words_of_query():
        chosen = _choose(prepared, pool, covered, named, entrants, limits, held.shards)
    rounds = None if held.rounds is None else held.rounds.record
    if not len(chosen.rows):
        refuse_empty(query.select, limits, chosen, count, entrants.limited)
    picked = chosen.rows if rows is None else rows[chosen.rows]
    certificate = None
    if chosen.certificate is not None:
        over = "pool" if count == entrants.eligible else "candidates"
        certificate = Certificate(chosen.certificate["radius"] or 0.0, chosen.certificate["lower_bound"], over)
    warnings = [*named.warnings, *exceeded(limits, chosen)]
    if len(picked) < query.select.budget:
        labelled = f", since {int(covered.mask.sum()):,} of {len(pool):,} are labelled" if not count else ""
        reason = in_query(chosen.note or "") or f"no more than {count} are eligible{labelled}"
        were = "row was" if len(picked) == 1 else "rows were"
        warnings.append(f"{len(picked)} {were} chosen for a budget of {query.select.budget}: {reason}")
    table = selection_table(prepared, pool, picked, chosen)
    facts = dict(chosen.facts) | how_met(query.select, limits, chosen)
    if entrants.repeats:
        facts["exact_repeats"] = int(facts.get("exact_repeats", 0)) + entrants.repeats
    return Batch(table, entrants.eligible, count, chosen.passes, certificate, tuple(warnings), facts, rounds)


def selection_table(prepared: Prepared, pool: ScoredPool, picked: np.ndarray, chosen: Chosen) -> pa.Table:
    """The ranked table of a selection; its columns are part of the public contract."""
    query = prepared.query
    more = _stored_columns(query, pool, picked)
    places = places_of(prepared, pool, picked)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "rank": pa.array(np.arange(len(picked)), pa.int32()),
        query.pool.id or "id": pool.ids_at(picked),
        "score": more.column(query.acquire.column) if query.gives_scores else pa.nulls(len(picked), pa.float32()),
        "gain": _nullable(chosen.gain),
        "distance": pa.nulls(len(picked), pa.float64()) if chosen.distance is None else _nullable(chosen.distance),
        "represents": pa.nulls(len(picked), pa.int64()) if chosen.represents is None else pa.array(chosen.represents, pa.int64()),
        "why": pa.array(chosen.why, pa.string()),
        "prediction": more.column("prediction") if query.gives_predictions else pa.nulls(len(picked), pa.int32()),
    }
    if prepared.classes is not None:
        names = pa.array(prepared.classes, pa.string())
        columns["prediction_name"] = names.take(columns["prediction"].combine_chunks())
    columns["confidence"] = more.column("confidence") if query.gives_predictions else pa.nulls(len(picked), pa.float32())
    columns |= {name: more.column(name) for name in map(column_of, query.acquire.also) if name in more.column_names}
    if query.pool.keep:
        kept = pool_columns(prepared, pool, picked, query.pool.keep)
        columns |= {name: kept.column(name) for name in query.pool.keep}
    columns["path"] = places.paths
    columns["row"] = pa.array(places.rows, pa.int64())
    return pa.table(columns)


def _choose(
    prepared: Prepared, pool: ScoredPool, covered: Covered, named: Named, entrants: Entrants, limits: Limits, shards: Shards | None
) -> Chosen:
    query, rows = prepared.query, entrants.rows
    select = query.select
    candidates = Candidates(
        score=pool.score if rows is None or pool.score is None else pool.score[rows],
        keys=hashes(pool, query.seed, rows) if select.traits.chance else None,
        shards=shards,
        labelled=covered.embeddings,
        probabilities=Rows(*pool.probabilities(rows, memory_of(query))) if select.traits.probabilities else None,
        labelled_probabilities=covered.probabilities,
        samples=pool.samples(rows) if select.traits.samples else None,
        similar_to=pool.embeddings_of(named.similar_to) if select.similar_to else None,
    )
    return choose(
        candidates,
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
        must_include=entrants.must_include,
        drawn=entrants.drawn,
        more=entrants.limited,
        others=entrants.others,
        memory=memory_of(query),
        args=select.args,
    )


def _stored_columns(query: Query, pool: ScoredPool, picked: np.ndarray) -> pa.Table:
    names = ["row"]
    if query.gives_scores:
        names += query.acquire.columns
    if query.gives_predictions:
        names += ["prediction", "confidence"]
    return pool.columns_at(picked, names)


def _nullable(values: np.ndarray) -> pa.Array:
    """NaN stands for no value."""
    return pa.array(values, pa.float64(), from_pandas=True)
