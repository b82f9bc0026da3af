"""Gives decisions that a log holds their file: those of requests that were answered by a server that is gone, or by one that isn't.

The log holds rows, scores and decisions. The state after them is that before them gone on with: decisions are a function of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raystream.loop.streams.decisions import StreamState
from raystream.loop.streams.log import Progress, StreamLog
from raystream.loop.streams.segment import Begun, Record
from raystream.query.stream import Stream

_REQUESTS = "raystream.requests"
"""In the metadata of decisions: a JSON list of the requests' ids, what was asked, and how many rows each has."""
_log = logging.getLogger("raystream")


def fold(log: StreamLog) -> None:
    """Give what is in the log, and in no file of decisions, its file; whoever appended to it goes on in another.

    Raises:
        StoreError: what is there is damaged, or can't be written.
    """
    while (found := log.unfolded()) is not None:
        part, begun, records = found
        before, saved = log.progress()
        if before.parts != part - 1:
            continue  # somebody else has done it meanwhile
        progress, state = _after(log.stream(), before, saved, begun, records)
        rows = pa.concat_tables([record.rows for record in records])
        log.commit_decisions(rows, progress, state, about(request for record in records for request in record.requests), logged=True)


def about(requests: Iterable[tuple[str, str, int]]) -> dict[str, str]:
    """Write what a file of decisions says in its metadata of the requests whose rows it holds, in their order."""
    return {_REQUESTS: json.dumps([list(request) for request in requests])}


def requests_of(schema: pa.Schema) -> list[tuple[str, str, int]]:
    """List the requests whose rows a file of decisions holds: ids, what was asked, and how many rows each has."""
    return [(known, asked, rows) for known, asked, rows in json.loads((schema.metadata or {}).get(_REQUESTS.encode(), b"[]"))]


def _after(
    stream: Stream, before: Progress, saved: Mapping[str, Any], begun: Begun, records: Sequence[Record]
) -> tuple[Progress, dict[str, Any]]:
    """Find how far a stream has come after what its log holds, and the state then."""
    state = StreamState.of(stream, begun.classes, saved, begun.model != before.model)
    chosen = before.chosen
    for record in records:
        state.decide(record.scores, record.vectors, None)
        chosen += pc.sum(record.rows.column("chosen")).as_py()
    after: dict[str, Any] = state.saved
    if state.sampler.labelled != chosen:  # another version or processor may decide otherwise where scores nearly tie
        _log.warning("%s rows were chosen by requests, where %s would be now; what was answered stands", chosen, state.sampler.labelled)
        after["sampler"]["labelled"] = chosen
    rows = sum(record.rows.num_rows for record in records)
    progress = replace(
        before,
        parts=before.parts + 1,
        rows=before.rows + rows,
        seen=state.sampler.seen,
        chosen=chosen,
        epoch=begun.epoch,
        model=begun.model,
    )
    return progress, after
