"""From a scored pool to the selection: candidates, the strategy, and the table with the reason for each row."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raystream.choosing.candidates import CandidateRows, find_candidates, hashes
from raystream.choosing.constraints import Limits, exceeded, how_met, read_limits, refuse_empty
from raystream.choosing.holding import Actors, held_embeddings, memory_of
from raystream.choosing.labelled import LabelledRows
from raystream.choosing.named_rows import Named, find_named
from raystream.choosing.pool_columns import places_of, pool_columns
from raystream.choosing.scored_pool import ScoredPool
from raystream.choosing.wording import in_query, words_of_query
from raystream.errors import QueryError, did_you_mean
from raystream.query import Query
from raystream.query.acquire import column_of
from raystream.scoring.plan import Prepared
from raystream.selection import Candidates, Chosen, Rows, Shards, Strategy, choose
from raystream.store.manifest import Certificate, SelectionRounds


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


def choose_batch(prepared: Prepared, pool: ScoredPool, covered: LabelledRows, actors: Actors) -> Batch:
    """Choose the query's batch among the rows that aren't labelled; its embeddings may be held by selection actors.

    Raises:
        QueryError: the query's own numbers leave none of the candidates, or a minimum that can't be met.
    """
    query = prepared.query
    named = find_named(query.select, pool, covered.mask)
    with words_of_query():
        entered = find_candidates(prepared, pool, covered, named)
    rows = entered.rows
    count = len(pool) if rows is None else len(rows)
    limits = read_limits(prepared, pool, rows)
    with held_embeddings(query, pool, rows, actors) as held, words_of_query():
        chosen = _choose(prepared, pool, covered, named, entered, limits, held.shards)
    rounds = None if held.rounds is None else held.rounds.record
    if not len(chosen.rows):
        refuse_empty(query.select, limits, chosen, count, entered.limited)
    picked = chosen.rows if rows is None else rows[chosen.rows]
    certificate = None
    if chosen.certificate is not None:
        over = "pool" if count == entered.eligible else "candidates"
        certificate = Certificate(chosen.certificate["radius"] or 0.0, chosen.certificate["lower_bound"], over)
    warnings = [*named.warnings, *exceeded(limits, chosen)]
    if len(picked) < query.select.budget:
        labelled = f", since {int(covered.mask.sum()):,} of {len(pool):,} are labelled" if not count else ""
        reason = in_query(chosen.note or "") or f"no more than {count} are eligible{labelled}"
        were = "row was" if len(picked) == 1 else "rows were"
        warnings.append(f"{len(picked)} {were} chosen for a budget of {query.select.budget}: {reason}")
    table = selection_table(prepared, pool, picked, chosen)
    facts = dict(chosen.facts) | how_met(query.select, limits, chosen)
    if entered.repeats:
        facts["exact_repeats"] = int(facts.get("exact_repeats", 0)) + entered.repeats
    return Batch(table, entered.eligible, count, chosen.passes, certificate, tuple(warnings), facts, rounds)


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
    prepared: Prepared,
    pool: ScoredPool,
    covered: LabelledRows,
    named: Named,
    entered: CandidateRows,
    limits: Limits,
    shards: Shards | None,
) -> Chosen:
    query, rows = prepared.query, entered.rows
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
        must_include=entered.must_include,
        drawn=entered.drawn,
        more=entered.limited,
        others=entered.others,
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


def users_strategy(source: str) -> Strategy:
    """The function `module:attribute` that `select.strategy` names.

    Raises:
        QueryError: it can't be imported, or isn't a function.
    """
    name, _, attribute = source.partition(":")
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        raise QueryError(
            f"select.strategy {source}: importing {name} raised {told}; run from the project's folder or fix the module"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        what = "is no function" if found is not None else f"is not in {name}{did_you_mean(attribute, dir(module))}"
        raise QueryError(f"select.strategy {source}: {attribute!r} {what}; expected a function (Candidates, Request) -> Picked")
    strategy: Strategy = found
    return strategy
