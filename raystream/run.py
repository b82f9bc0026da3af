"""Runs a query: plan, score, select, commit. The one path that every front end takes.

What a run takes is imported when a query runs: describing one must not wait for torch and pyarrow.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystream.errors import QueryError
from raystream.imports import uncollected
from raystream.query import Query

if TYPE_CHECKING:
    from raystream.choosing.verify import Verified
    from raystream.scoring.calibrate import QueryCalibration
    from raystream.scoring.estimate import Estimate
    from raystream.scoring.progress import Reporter
    from raystream.store.protocol import Store
    from raystream.store.recorded import Recorded
    from raystream.store.result import Result, Scores

Asked = Query | str | PathLike[str]
"""A query, or the YAML file that holds it; also the manifest of a committed query, or its folder, which is that query again."""


def run(query: Asked | Recorded, *, pool: Any = None, reporter: Reporter | None = None, may_score: bool = True) -> Result:
    """Choose the query's batch and commit it. The same query again returns what is committed and changes nothing.

    `query.output` is written after the commit, and by the same query again if it isn't there then. A query from a manifest is refused
    where pool, model or labelled rows are others than that records, unless they were replaced in it; see `raystream.choosing.verify`.

    Args:
        query: what to read, score and choose, or the YAML file that says so, or a manifest.
        pool: rows in memory instead of those at `pool.uri`: a pyarrow.Table, a pandas or polars DataFrame. They are kept in the store.
        reporter: told how far it is; left out, a bar in terminals and notebooks, and silence elsewhere.
        may_score: whether units that aren't in the store may be scored; False is `raystream select`.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    with uncollected():
        from raystream import steps

    with _told(reporter) as told:
        asked, record = _recorded(query)
        return replace(steps.run(_asked(asked, pool), told, may_score, record), html=_as_html)


def score(query: Asked, *, pool: Any = None, reporter: Reporter | None = None) -> Scores:
    """Score the query's pool, and labelled rows outside it, and choose nothing; a query over it later scores nothing.

    Arguments as for `run`.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    with uncollected():
        from raystream import steps

    with _told(reporter) as told:
        return steps.score(_asked(query, pool), told)


def plan(query: Asked, *, pool: Any = None) -> Estimate:
    """Estimate what a query would read and write, and how long it takes; what can't end well is refused as it would be before scoring.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    with uncollected():
        from raystream import steps

    return steps.plan(_asked(query, pool))


def calibrate(query: Asked, *, reporter: Reporter | None = None) -> QueryCalibration:
    """Fit the query's temperature on its labelled rows and keep it; a query that asks for the same one scores none of them again.

    Raises:
        QueryError: the query gives the temperature as a number.
        RaystreamError: see `raystream.errors` for the kinds.
    """
    with uncollected():
        from raystream import steps

    with _told(reporter) as told:
        return steps.calibrate(_asked(query, None), told)


def verify(store: Store, name: str, *, reporter: Reporter | None = None, rescored: int = 0, seed: int = 0) -> Verified:
    """Derive a committed selection again from the store, and compare it; see `raystream.choosing.verify`."""
    with uncollected():
        from raystream import steps

    with _told(reporter) as told:
        return steps.verify(store, name, told, rescored, seed)


def _recorded(query: Asked | Recorded) -> tuple[Asked, Recorded | None]:
    """Return what is asked, and what is recorded of it if it comes from a manifest."""
    from raystream.store.recorded import Recorded, recorded

    record = query if isinstance(query, Recorded) else recorded(query) if isinstance(query, str | PathLike) else None
    return (query, None) if record is None else (record.query, record)  # type: ignore[return-value]


def _asked(query: Asked, rows: Any) -> Query:
    query = _recorded(query)[0]
    if isinstance(query, str | PathLike):
        query = Query.load(Path(query))
    if not isinstance(query, Query):
        raise QueryError(f"query is a {type(query).__name__}, expected a raystream.Query, or the path of a YAML file that holds one")
    if rows is None:
        return query
    from raystream.store.frames import with_rows

    return with_rows(query, rows)


def _as_html(result: Result) -> str:
    from raystream.report.cards import as_html

    return as_html(result)


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


@contextmanager
def _told(reporter: Reporter | None) -> Iterator[Reporter]:
    """Return the reporter that is given, else what suits where this runs."""
    from raystream.scoring.progress import Bar, Silent

    if reporter is not None:
        yield reporter
    elif _in_notebook():
        from raystream.report.page import NotebookBar

        with NotebookBar() as bar_of_notebook:
            yield bar_of_notebook
    elif sys.stderr is not None and sys.stderr.isatty():
        with Bar() as bar:
            yield bar
    else:
        yield Silent()
