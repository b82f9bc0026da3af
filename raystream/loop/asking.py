"""Choosing the batches of a loop: a query a round, and control rows last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raystream.loop.journal import Asked
from raystream.loop.labels import Answers, Id
from raystream.loop.ledger import TRAIN, Ledger, RoundLabels
from raystream.loop.models import Models
from raystream.loop.pool_rows import KNOW_NOTHING, first_batch
from raystream.loop.trainers.training import seed_of
from raystream.query.catalogue.strategies import AUTO, pick
from raystream.run import run
from raystream.store.result import Result
from raystream.store.rounds import query_of_round

_QUERY = 1
"""The purpose of the seed."""
_OF_ANY_STRATEGY = frozenset({"near_duplicates", "quotas", "cost", "random_share", "memory"})
"""What `select` says that holds for another strategy than its own."""
_NOT_TOLD = "near-duplicates can't be told from texts before a model is trained"


def ask(ledger: Ledger, models: Models, round_: int) -> Asked | None:
    """Choose a round's batch, or find the one that was chosen before; None where no row is left."""
    known = ledger.journal.asked(round_)
    if known is not None:
        return known
    began = time.perf_counter()
    labels = ledger.labels_of(round_ - 1) or RoundLabels.of(Answers(), (), (), ())
    budget = _batch_size(ledger, round_, labels)
    controls, told = ledger.next_controls(round_, ledger.controls_of(budget), labels)
    held = ledger.pool.find(ledger.reserved("evaluate"))
    barred = sorted({*ledger.asked_ids(round_), *ledger.reserved("control"), *held})
    left = ledger.pool.eligible([*barred, *labels.ids])
    result, strategy, why = None, "control", ""
    if left:
        result, strategy, why = _chosen(ledger, models, round_, min(budget - len(controls), left), labels, barred)
    rows = 0 if result is None else result.selection.num_rows
    if not rows and not controls:
        return None
    table = with_controls(ledger, None if result is None else result.selection, controls)
    return ledger.journal.commit_asked(
        Asked(
            round=round_,
            query="" if result is None else result.query,
            strategy=strategy,
            why=why,
            batch=ledger.journal.put_table(round_, "selection", table),
            controls=len(controls),
            warnings=told if result is None else [*told, *result.manifest.warnings],
            seconds=time.perf_counter() - began,
        )
    )


def with_controls(ledger: Ledger, batch: pa.Table | None, controls: Sequence[Id]) -> pa.Table:
    """Return a batch with its control rows, last; nothing says what the model takes these for."""
    if not controls:
        assert batch is not None
        return batch
    places = ledger.pool.find(controls)
    pairs = [places[id_] for id_ in controls]
    first = 0 if batch is None else batch.num_rows
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "rank": pa.array(np.arange(first, first + len(controls)), pa.int32()),
        ledger.pool.id_name: ledger.pool.array(controls),
        "why": pa.array(["control"] * len(controls), pa.string()),
        "turn": pa.array(np.arange(first, first + len(controls)), pa.int32()),
        "probability": pa.nulls(len(controls), pa.float64()),
        "path": pa.array([file.path for file, _ in pairs], pa.string()),
        "row": pa.array([row for _, row in pairs], pa.int64()),
    }
    if ledger.loop.pool.keep:
        kept = ledger.pool.columns(pairs, ledger.loop.pool.keep)
        columns |= {name: kept.column(name) for name in kept.column_names}
    if batch is None:
        return pa.table(columns)
    filled = {name: columns.get(name, pa.nulls(len(controls), batch.schema.field(name).type)) for name in batch.column_names}
    return pa.concat_tables([batch, pa.table(filled).cast(batch.schema)])


def _batch_size(ledger: Ledger, round_: int, labels: RoundLabels) -> int:
    """Return rows of a batch: the start's where nothing is labelled, and no more than the budget of labels has left."""
    loop = ledger.loop
    wanted = loop.start_budget if round_ == 1 and ledger.journal.judged(0) is None else loop.select.budget
    return wanted if loop.loop.budget is None else max(1, min(wanted, loop.loop.budget - labels.count))


def _chosen(ledger: Ledger, models: Models, round_: int, budget: int, labels: RoundLabels, barred: Sequence[Id]) -> tuple[Result, str, str]:
    """Return what the round's query chose, its strategy, and why that one."""
    loop, journal = ledger.loop, ledger.journal
    told = labels.told(ledger.pool.id_name, ledger.pool.id_type, barred)
    known = [] if told is None else [journal.store.place(journal.in_round(round_, journal.put_table(round_, "known", told)))]
    section, embedded, strategy, why = _how(ledger, models, round_, labels)
    untrained = ledger.trained_before(round_) is None
    select = _select(ledger, strategy, budget, untrained)
    if not embedded and select.get("near_duplicates"):
        del select["near_duplicates"]
        why = f"{why}; {_NOT_TOLD}" if why else _NOT_TOLD
    query = loop.query_with(
        section,
        pool=loop.pool.derived(labelled=known, label=None, storage={**loop.store.storage, **loop.pool.storage}),
        select=select,
        store=loop.store.derived(query=query_of_round(loop.name, round_)),
        seed=seed_of(loop.seed, round_, _QUERY),
        **({"acquire": None} if untrained else {}),
    )
    result = run(query, reporter=ledger.reporter)
    if section.get("source") in KNOW_NOTHING:
        result = replace(result, selection=_without_opinions(result.selection))
    return result, strategy, why


def _without_opinions(selection: pa.Table) -> pa.Table:
    """Empty the columns of what a model thinks, which people would be shown as if it were something to go by."""
    for name in ("score", "prediction", "confidence"):
        place = selection.column_names.index(name)
        selection = selection.set_column(place, name, pa.nulls(selection.num_rows, selection.schema.field(place).type))
    return selection.drop_columns([name for name in ("prediction_name",) if name in selection.column_names])


def _select(ledger: Ledger, strategy: str, budget: int, untrained: bool) -> dict[str, Any]:
    """Return the query's section; what is said there of one strategy is not said of another."""
    given = ledger.loop.select
    if strategy == given.strategy:
        select = given.model_dump(exclude_unset=True) | {"budget": budget}
        if isinstance(given.candidates, int):
            select["candidates"] = max(given.candidates, budget)
    else:
        select = given.model_dump(include=set(_OF_ANY_STRATEGY & given.model_fields_set), exclude_unset=True)
        select |= {"budget": budget, "strategy": strategy}
    if untrained:
        # there is no prediction
        select["quotas"] = [quota for quota in select.get("quotas", []) if quota["by"] != "prediction"]
    if untrained or not ledger.loop.scores_rows:
        select |= ledger.loop.without_candidates(strategy)
    return select


def _how(ledger: Ledger, models: Models, round_: int, labels: RoundLabels) -> tuple[dict[str, Any], bool, str, str]:
    """Decide on the model's section, whether it gives an embedding, the strategy, and why that one."""
    loop = ledger.loop
    trained = ledger.trained_before(round_)
    if trained is None:
        first = first_batch(loop, ledger.pool.plan.read)
        return dict(first.model), first.embedded, first.strategy, first.why
    section = models.section(trained)
    rows, said = labels.labelled(TRAIN)
    if loop.select.strategy != AUTO:
        if loop.select.needs_embedding:
            models.check_embedding(trained.round, rows)
        return section, True, loop.select.strategy, ""
    classes = 0 if loop.task == "regression" else len(ledger.values.known(said))
    embedded = models.embeds(trained.round, rows)
    picked = pick(len(rows), classes, task=loop.task, embedding=embedded, score=loop.scores_rows)
    return section, True, picked.strategy, picked.why
