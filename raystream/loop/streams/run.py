"""Runs a stream: looks for rows that arrived, scores them, decides on each once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from raystream.cluster.growing import Processes
from raystream.errors import QueryError
from raystream.lake.table_uri import is_table, parse_table
from raystream.loop.streams.log import StreamLog
from raystream.loop.streams.looks import Looks
from raystream.pool import refuse_among
from raystream.query.simulate import Stream
from raystream.scoring.calibrate import fitted_temperature
from raystream.scoring.progress import Reporter, Silent
from raystream.store.life import Lease
from raystream.store.opening import open_store


@dataclass(frozen=True)
class StreamResult:
    """What a call of a stream did, and where the stream stands.

    Attributes:
        stream: its name in the store.
        new_rows: decided on in this call.
        seen: rows since the beginning that count: those with a finite score.
        chosen: of them.
        decisions: the folder that holds these.
        drift: see `raystream.loop.streams.decisions`.
        wait: seconds for which the oldest row that isn't decided on has waited; None where none waits.
        epoch: how many models have scored.
        budget: the share that may be chosen.
        warnings: sentences for the user.
    """

    stream: str
    new_rows: int
    seen: int
    chosen: int
    decisions: str
    drift: dict[str, Any]
    wait: float | None
    epoch: int
    budget: float
    warnings: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the rows seen, those chosen."""
        return self.chosen / self.seen if self.seen else 0.0

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {name: getattr(self, name) for name in ("stream", "new_rows", "seen", "chosen", "share", "decisions", "drift")}


def run_stream(
    stream: Stream,
    *,
    reporter: Reporter | None = None,
    now: Callable[[], float] = time.time,
    wait: Callable[[float], object] | None = None,
) -> StreamResult:
    """Decide on what arrived since the last call; with `stream.follow` go on until interrupted.

    Args:
        stream: what is asked.
        reporter: told how far it is; silent if left out.
        now: the time in seconds since the epoch.
        wait: waits so many seconds; left out, it does.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    query, pause, reporter = stream.query, wait or threading.Event().wait, reporter or Silent()
    refuse_among(query.store.uri, query.row_uris, "store.uri")
    for uri in query.pool.uris:
        if is_table(uri) and parse_table(uri, "pool.uri").version is not None:
            raise QueryError(f"pool.uri {uri} names one version of a table, to which no row is ever added; name the table alone")
    log = StreamLog(open_store(query.store.uri, query.store_options), stream.name)
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(query.cluster, reporter))
        stack.enter_context(Lease(log.store, f"{log.folder}/lease", reporter.stage, wait, what="stream"))
        log.begin(stream)
        fitted = fitted_temperature(query, reporter, processes)
        looks = stack.enter_context(Looks(stream, log, reporter, processes, fitted.calibration if fitted else None, now))
        looks.look(pause)
        while stream.stream.follow:
            pause(stream.stream.follow)
            looks.look(pause)
        drift = looks.drift
        return StreamResult(
            stream=log.name,
            new_rows=looks.new_rows,
            seen=looks.progress.seen,
            chosen=looks.progress.chosen,
            decisions=log.decisions,
            drift=drift.figures,
            wait=None if looks.oldest is None else max(0.0, now() - looks.oldest),
            epoch=looks.progress.epoch,
            budget=stream.stream.budget,
            warnings=(*looks.warnings, *drift.warnings),
        )
