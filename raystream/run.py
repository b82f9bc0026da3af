"""Runs a query: plan, score, select, commit. The one path that every front end takes.

What a run takes is imported when a query runs: describing one must not wait for torch and pyarrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raystream.query import Query

if TYPE_CHECKING:
    from raystream.choosing.verify import Verified
    from raystream.scoring.calibrate import Fitted
    from raystream.scoring.estimate import Estimate
    from raystream.scoring.progress import Reporter
    from raystream.store.protocol import Store
    from raystream.store.result import Result, Scores


def run(query: Query, *, reporter: Reporter | None = None, may_score: bool = True) -> Result:
    """Choose the query's batch and commit it. The same query again returns what is committed and changes nothing.

    `query.output` is written after the commit, and by the same query again if it isn't there then.

    Args:
        query: what to read, score and choose.
        reporter: told how far it is; silent if left out.
        may_score: whether units that aren't in the store may be scored; False is `raystream select`.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream import steps

    return steps.run(query, reporter or _silent(), may_score)


def score(query: Query, *, reporter: Reporter | None = None) -> Scores:
    """Score the query's pool, and labelled rows outside it, and choose nothing; a query over it later scores nothing.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream import steps

    return steps.score(query, reporter or _silent())


def plan(query: Query) -> Estimate:
    """What a query would read and write, and about how long it takes; what can't end well is refused as it would be before scoring.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream import steps

    return steps.plan(query)


def calibrate(query: Query, *, reporter: Reporter | None = None) -> Fitted:
    """Fit the query's temperature on its labelled rows and keep it; a query that asks for the same one scores none of them again.

    Raises:
        QueryError: the query gives the temperature as a number.
        RaystreamError: see `raystream.errors` for the kinds.
    """
    from raystream import steps

    return steps.calibrate(query, reporter or _silent())


def verify(store: Store, name: str, *, reporter: Reporter | None = None) -> Verified:
    """Derive a committed selection again from the store, and compare it; see `raystream.choosing.verify`."""
    from raystream import steps

    return steps.verify(store, name, reporter or _silent())


def _silent() -> Reporter:
    from raystream.scoring.progress import Silent

    return Silent()
