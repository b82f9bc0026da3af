"""What the page shows of loops, simulations and streams, as plain data for JSON. Nothing here changes a store or runs a user's code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raystream.errors import QueryError, StoreError
from raystream.figures import number_of
from raystream.loop.journal import Journal
from raystream.loop.simulation.comparison import Curves, aligned
from raystream.loop.simulation.outcome import band, best_of, read_summary, verdict_in_words
from raystream.loop.streams.decisions import Drift
from raystream.loop.streams.log import StreamLog
from raystream.query.catalogue.scores import METRICS, metric_of
from raystream.query.catalogue.strategies import CONTROL
from raystream.query.loop import Loop
from raystream.query.simulate import Simulation, Stream
from raystream.service.formats import ids, plain
from raystream.store.packs import in_threads
from raystream.store.protocol import Store
from raystream.store.queries import read_parquet

_POINTS = 600
"""Of a stream's lines, at most."""
_POINTS_OF_FILE = 64
_BATCH = 24
_LIMITS = ("rounds", "budget", "exhausted")
"""Rules that only say what the spec says."""

Data = dict[str, Any]


def campaigns(store: Store) -> Data:
    """Name all loops, simulations and streams of a store."""
    return {kind: [name for name in store.names(kind) if _is_name(name)] for kind in ("loops", "simulations", "streams")}


# a loop


def loop_view(store: Store, name: str) -> Data:
    """Return a loop's curves, rounds and rules, where it stands, and what is to be done.

    Raises:
        QueryError: there is no such loop.
        StoreError: it is damaged.
    """
    loop = _read(store, f"loops/{name}/loop.yaml", "loop", name, Loop)
    journal = Journal(store, name)
    data = store.read_if_there(f"{journal.folder}/history.parquet")
    history = [] if data is None else plain(read_parquet(data).to_pylist())
    asked_rules = loop.loop.stop.named if loop.loop.stop is not None else {}
    metrics = [column for column in (history[0] if history else {}) if _is_metric(column, loop.metrics)]
    state, reason, todo = _where_it_stands(loop, journal, history, list(asked_rules))
    rules = [column.removeprefix("would_stop_") for column in (history[0] if history else {}) if column.startswith("would_stop_")]
    return {
        "name": name,
        "state": state,
        "reason": reason,
        "todo": todo,
        "history": history,
        "metrics": [{"name": metric, "percent": _is_share(metric), "lower": metric_of(metric).lower_is_better} for metric in metrics],
        "rules": [_rule(rule, rule in asked_rules, history) for rule in rules if rule not in _LIMITS],
        "advise": loop.loop.stop.advise if loop.loop.stop is not None else False,
        "batches": _batches(journal),
        "judged_by": "the control rows" if loop.loop.evaluate is None else "the rows of loop.evaluate",
        "spec": loop.to_yaml(),
        "report": store.place(f"{journal.folder}/report.html") if store.exists(f"{journal.folder}/report.html") else None,
    }


def _where_it_stands(
    loop: Loop, journal: Journal, history: Sequence[Mapping[str, Any]], asked_rules: Sequence[str]
) -> tuple[str, str, str]:
    """Return state, reason and what to do, by the records alone."""
    again = "Run raystream loop with its file again."
    last = 0
    while journal.asked(last + 1) is not None:
        last += 1
    rounds = [row for row in history if row["round"]]
    labels = history[-1]["labels"] if history else 0
    if not last:
        return "begun", "no batch was asked for yet", again
    asked = journal.asked(last)
    assert asked is not None
    if journal.closed(last) is None:
        rows = journal.read_table(last, asked.batch).num_rows
        where = ", ".join(loop.loop.oracle_uris)
        put = f" Put them into {where}; then run raystream loop with its file again." if where else f" {again}"
        return (
            "waiting",
            f"batch {last} of {number_of(rows, 'row')} waits for its labels",
            f"Label {journal.place(f'rounds/{last:04d}/selection.parquet')}.{put}",
        )
    if journal.judged(last) is None:
        return "training", f"batch {last} is labelled; its model is being trained, or the run was interrupted", again
    settings = loop.loop
    held = [name for name in asked_rules if rounds and rounds[-1].get(f"would_stop_{name}")]
    if settings.stop is not None and not settings.stop.advise and held and (settings.stop.when == "any" or len(held) == len(asked_rules)):
        return (
            "stopped",
            f"{' and '.join(held)} after round {len(rounds)}, with {labels:,} labels",
            "Train on all labels and use the model.",
        )
    if settings.rounds is not None and len(rounds) >= settings.rounds:
        return "finished", f"all {settings.rounds} rounds are done, with {labels:,} labels", "Raise loop.rounds to go on, or use the model."
    if settings.budget is not None and labels >= settings.budget:
        return "finished", f"the budget of {settings.budget:,} labels is used up", "Raise loop.budget to go on, or use the model."
    advice = f" {' and '.join(held)} would stop here." if held else ""
    return "between rounds", f"round {last} is judged, the next batch is not asked for yet", again + advice


def _rule(name: str, asked: bool, history: Sequence[Mapping[str, Any]]) -> Data:
    row = next((row for row in history if row.get(f"would_stop_{name}")), None)
    return {"name": name, "asked": asked, "round": row and row["round"], "labels": row and row["labels"]}


def _batches(journal: Journal) -> list[Data]:
    """Return what each round asked for: its query, its strategy, and why; the newest first."""
    found = []
    number = 1
    while (asked := journal.asked(number)) is not None:
        batch = journal.read_table(number, asked.batch)
        head = ids(batch.column(1).slice(0, _BATCH))
        found.append(
            {
                "round": number,
                "query": asked.query,
                "strategy": asked.strategy,
                "why": asked.why,
                "rows": batch.num_rows,
                "controls": asked.controls,
                "ids": head,
                "closed": journal.closed(number) is not None,
                "judged": journal.judged(number) is not None,
            }
        )
        number += 1
    return found[::-1]


def _is_metric(column: str, metrics: Sequence[str]) -> bool:
    return column in metrics or ("recall" in metrics and column.startswith("recall_"))


def _is_share(name: str) -> bool:
    return metric_of(name).percent if name in METRICS or name.startswith("recall_") else False


# a simulation


def simulation_view(store: Store, name: str) -> Data:
    """Return a simulation's curves with their intervals, its figures and its verdict.

    Raises:
        QueryError: there is no such simulation.
        StoreError: it is damaged.
    """
    folder = f"simulations/{name}"
    simulation = _read(store, f"{folder}/simulation.yaml", "simulation", name, Simulation)
    head = {"name": name, "spec": simulation.to_yaml(), "metric": simulation.metrics[0], "report": store.place(f"{folder}/report.html")}
    tables = [store.read_if_there(f"{folder}/{part}.parquet") for part in ("curves", "summary")]
    if tables[0] is None or tables[1] is None:
        played = sum(len(store.names(f"{folder}/runs/{run}")) for run in store.names(f"{folder}/runs"))
        return head | {"state": "running", "played": played}
    curves, summary = read_parquet(tables[0]), read_parquet(tables[1]).to_pylist()
    metric = simulation.metrics[0]
    lines = _curves(curves, metric, "labels")
    priced = any("cost_saved" in row for row in summary)
    compared = {row["strategy"]: read_summary(row) for row in summary}
    best = best_of(compared)

    def gain(row: Mapping[str, Any]) -> float:
        return -compared[row["strategy"]].decisive.gain

    seeds = len(next(iter(lines.values())).values)
    return head | {
        "state": "finished",
        "seeds": seeds,
        "percent": metric_of(metric).percent,
        "lower": metric_of(metric).lower_is_better,
        "best": best,
        "verdict": verdict_in_words(best, compared, metric, seeds),
        "ceiling": _ceiling(store, folder, metric),
        "curves": [_line(key, of) for key, of in lines.items()],
        "beside": [_beside(key, of, lines[CONTROL]) for key, of in lines.items() if key != CONTROL],
        "cost_curves": [_line(key, of) for key, of in _curves(curves, metric, "cost").items()] if priced else [],
        "table": plain([row | {"verdict": compared[row["strategy"]].decisive.verdict} for row in sorted(summary, key=gain)]),
        "control": CONTROL,
    }


def _curves(table: pa.Table, metric: str, over: str) -> Mapping[str, Curves]:
    """List by strategy the curves of a metric over numbers of labels, or what they cost, that all share."""
    of: dict[str, dict[int, list[tuple[float, float]]]] = {}
    columns = [table.column(name).to_pylist() for name in ("strategy", "seed", over, metric)]
    for strategy, seed, labels, value in zip(*columns, strict=True):
        of.setdefault(strategy, {}).setdefault(seed, []).append((labels, value))
    pairs = {key: [tuple(np.array(rows, dtype=np.float64).T) for rows in seeds.values()] for key, seeds in of.items()}
    return aligned(pairs)


def _line(name: str, curves: Curves) -> Data:
    low, high = band(curves.values)
    return {"name": name, "x": plain(curves.labels), "y": plain(curves.mean), "low": plain(low), "high": plain(high)}


def _beside(name: str, curves: Curves, chance: Curves) -> Data:
    return _line(name, Curves(curves.labels, curves.values - chance.values))


def _ceiling(store: Store, folder: str, metric: str) -> float | None:
    """Return the mean of the metric with all labels."""
    names = store.names(f"{folder}/runs/all-labels")
    values = []
    for name in names:
        data = store.read_if_there(f"{folder}/runs/all-labels/{name}")
        try:
            values.append(float(json.loads(data or b"{}")["metrics"][metric]))
        except (ValueError, KeyError, TypeError):
            continue
    return float(np.mean(values)) if values else None


# a stream


def stream_view(store: Store, name: str, kept: Callable[[str, Callable[[], Data]], Data]) -> Data:
    """Return a stream's share, its threshold over time, and whether scores have drifted.

    Args:
        store: which holds it.
        name: of the stream.
        kept: what was made of a file of decisions before, by its name; such files never change.

    Raises:
        QueryError: there is no such stream.
        StoreError: it is damaged.
    """
    stream = _read(store, f"streams/{name}/stream.yaml", "stream", name, Stream)
    log = StreamLog(store, name)
    progress, state = log.look()
    folder = f"{log.folder}/decisions"
    files = [file for file in store.names(folder) if file.endswith(".parquet")]
    parts = in_threads(lambda file: kept(f"{folder}/{file}", lambda: _of_file(store.read(f"{folder}/{file}"))), files)
    drift = Drift.of(state["drift"]) if state else Drift()
    return {
        "name": name,
        "budget": stream.stream.budget,
        "manager": stream.stream.manager,
        "strict": stream.stream.strict,
        "rows": progress.rows,
        "seen": progress.seen,
        "chosen": progress.chosen,
        "share": progress.chosen / progress.seen if progress.seen else None,
        "epoch": progress.epoch,
        "decisions": log.decisions,
        "drift": plain(drift.figures),
        "warnings": drift.warnings,
        "line": _joined(parts),
        "spec": stream.to_yaml(),
    }


def _of_file(data: bytes) -> Data:
    """Return some points along one file of decisions: rows that count so far in it, those chosen, threshold and score at each."""
    parquet = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    table = parquet.read(["score", "threshold", "chosen"], use_threads=False)
    score = table.column("score").to_numpy(zero_copy_only=False).astype(np.float64)
    threshold = table.column("threshold").to_numpy(zero_copy_only=False).astype(np.float64)
    chosen = table.column("chosen").to_numpy(zero_copy_only=False).astype(bool)
    counts = np.isfinite(score)
    seen, taken = np.cumsum(counts), np.cumsum(chosen)
    at = np.unique(np.linspace(0, max(0, len(score) - 1), min(len(score), _POINTS_OF_FILE)).round().astype(np.int64)).tolist()
    sums = np.concatenate([[0.0], np.cumsum(np.where(counts, score, 0.0))])
    edges = [-1, *at]
    means = [(sums[stop + 1] - sums[start + 1]) / max(1, int(counts[start + 1 : stop + 1].sum())) for start, stop in pairwise(edges)]
    return {
        "seen": int(seen[-1]) if len(seen) else 0,
        "chosen": int(taken[-1]) if len(taken) else 0,
        "points": [
            [int(seen[i]), int(taken[i]), plain(float(threshold[i])), plain(float(mean))] for i, mean in zip(at, means, strict=True)
        ],
    }


def _joined(parts: Sequence[Data]) -> Data:
    """Join the points of all files one after the other, thinned."""
    seen = chosen = 0
    points: list[list[Any]] = []
    for part in parts:
        points += [[seen + rows, chosen + taken, threshold, score] for rows, taken, threshold, score in part["points"]]
        seen, chosen = seen + part["seen"], chosen + part["chosen"]
    apart = -(-len(points) // _POINTS) or 1
    some = points[::-1][::apart][::-1]  # the last one is always among them
    return {
        "seen": [point[0] for point in some],
        "share": [point[1] / point[0] if point[0] else None for point in some],
        "threshold": [point[2] for point in some],
        "score": [point[3] for point in some],
    }


# all of them


def _is_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and "/" not in name and "\\" not in name and "\0" not in name


def _read(store: Store, file: str, what: str, name: str, kind: Any) -> Any:
    """Read a campaign's file as the object that it was made of."""
    data = store.read_if_there(file) if _is_name(name) else None
    if data is None:
        raise QueryError(f"the store has no {what} {name!r}")
    try:
        return kind(**dict(yaml.safe_load(data)))
    except (QueryError, TypeError, ValueError, yaml.YAMLError) as error:
        raise StoreError(f"store: {store.place(file)} is damaged ({error}); restore it") from None
