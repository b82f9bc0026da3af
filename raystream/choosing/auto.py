"""`select.strategy: auto`: which strategy the written rule picks for a scored pool, and what the result says of it."""

from __future__ import annotations

from raystream.choosing.labelled import LabelledRows
from raystream.query import Query
from raystream.query.catalogue.auto import AUTO, pick
from raystream.scoring.scored_pool import ScoredPool

PICKED, WHY = "strategy", "strategy_why"
"""The manifest's facts of it."""


def with_strategy(query: Query, pool: ScoredPool, labelled: LabelledRows) -> tuple[Query, dict[str, str]]:
    """Return the query with the strategy that is picked in place of `auto`, and the facts of it; any other query as it is.

    Args:
        query: as asked.
        pool: the scored rows, which know how many classes the model has.
        labelled: the labelled rows.
    """
    if query.select.strategy != AUTO:
        return query, {}
    classes = next((unit.classes for unit in pool.units if unit.classes is not None), 1)
    found = pick(labelled.known, classes, task=query.model.task, embedding=query.needs_embedding, score=pool.score is not None)
    select = query.select.derived(strategy=found.strategy)
    return query.derived(select=select), {PICKED: found.strategy, WHY: found.why}
