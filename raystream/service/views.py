"""What the page shows of a store's queries, as plain data for JSON: the list, a query, its rows, its map, several side by side.

Nothing here changes a store. A committed query never changes either, so that what was read of one is kept, under the content of its
selection: a query that was dropped and asked again is another. Whether a run is alive is judged by this machine's clock: asking the
store for its own takes a write.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import yaml

from raystream import __version__
from raystream.errors import QueryError, RaystreamError, StoreError, StoreUnreachable
from raystream.lake.uri import redacted
from raystream.query.select import column_of
from raystream.report.cards import facts, lede, title
from raystream.report.pictures import RunsOfInputs, inputs_of
from raystream.report.pool_map import Histogram
from raystream.report.stored import pool_scores, stored_pool
from raystream.report.text import constraints_met, describe_model
from raystream.service.formats import CHUNK, ROWS, batch_rows, ids, one_row, plain, shown_inputs
from raystream.service.pool_sample import NEAR, POINTS, NearestChosen, PoolSample, nearest_chosen, pool_sample, predictions_of
from raystream.store.events import RunState, run_state
from raystream.store.manifest import Manifest
from raystream.store.protocol import Entry, Store
from raystream.store.queries import query_folder, read_manifest
from raystream.store.result import Result, committed_file, committed_table
from raystream.store.vectors import VectorFiles

_THREADS = 16
_LISTED = 5_000
"""Queries of a list; those committed last."""
_KEPT = 128
"""Parts of queries that are kept in memory, a few MiB each at most; maps have room of their own."""
_MAPS = 4
_READ = 2
"""Queries of whose pools rows are kept that were read and not shown yet."""
COMPARED = 8
"""Queries that may be compared at once."""

Data = dict[str, Any]
_Value = TypeVar("_Value")


class RecentValues:
    """The values that were asked for last, each made once, however many ask for it at the same time."""

    def __init__(self, count: int) -> None:
        self._count, self._lock = count, Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Return the value of a key; made now if it isn't there."""
        with self._lock:
            making = self._making.setdefault(key, Lock())
        with making:
            found: _Value
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    found = self._values[key]
                    return found
            try:
                found = make()
            except BaseException:
                with self._lock:
                    self._making.pop(key, None)
                raise
            with self._lock:
                self._values[key] = found
                while len(self._values) > self._count:
                    old, _ = self._values.popitem(last=False)
                    self._making.pop(old, None)
        return found


class Views:
    """The views of one store.

    Args:
        store: which holds the queries.
        points: rows of a pool that its map shows.
    """

    def __init__(self, store: Store, points: int = POINTS) -> None:
        self.store, self._points = store, points
        self._lines: dict[str, tuple[Hashable, Data, bool]] = {}
        self._kept, self._maps, self._read = RecentValues(_KEPT), RecentValues(_MAPS), RecentValues(_READ)

    # the list

    def queries(self) -> Data:
        """Return all queries of the store, those that run among them; the newest first.

        Raises:
            StoreUnreachable: the store can't be listed.
        """
        folders: dict[str, list[Entry]] = {}
        for entry in self.store.walk("queries"):
            parts = entry.name.split("/")
            if len(parts) > 2:
                folders.setdefault(parts[1], []).append(entry)
        with ThreadPoolExecutor(_THREADS if self.store.remote else 1) as threads:
            lines = list(threads.map(lambda item: self._line(*item), folders.items()))
        self._lines = {name: line for name, line in self._lines.items() if name in folders}
        found = sorted((line for line in lines if line is not None), key=lambda line: (line["when"] or "", line["name"]), reverse=True)
        return {"queries": found[:_LISTED], "total": len(found), "store": redacted(self.store.uri)}

    def _line(self, name: str, files: Sequence[Entry]) -> Data | None:
        """Return a query's line of the list; read again only where its files changed, or it may change without them."""
        stamp = (len(files), max(entry.modified for entry in files), sum(entry.size for entry in files))
        known = self._lines.get(name)
        if known is not None and known[0] == stamp and known[2]:
            return known[1]
        committed = any(entry.name.endswith("/manifest.json") for entry in files)
        try:
            line, settled = (self._committed_line(name), True) if committed else self._running_line(name)
        except StoreUnreachable:
            raise
        except QueryError:
            return None  # it was forgotten meanwhile
        except StoreError as error:
            line, settled = _empty_line(name, "damaged") | {"error": str(error)}, True
        self._lines[name] = (stamp, line, settled)
        return line

    def _committed_line(self, name: str) -> Data:
        manifest = read_manifest(self.store, name)
        if manifest is None:
            raise QueryError(f"query {name} is gone")
        try:
            who = run_state(self.store, name, time.time()).who
        except QueryError:
            who = None
        resolved, certificate, seconds = manifest.resolved, manifest.certificate, manifest.seconds
        return _empty_line(name, "committed") | {
            "when": iso(manifest.committed),
            "who": who,
            "strategy": resolved["select"]["strategy"],
            "score": resolved["acquire"]["score"] if manifest.gives_scores else None,
            "budget": resolved["select"]["budget"],
            "chosen": manifest.counts.chosen,
            "rows": manifest.counts.pool,
            "done": manifest.counts.pool,
            "pool": ", ".join(map(redacted, manifest.pool_uris)),
            "model": describe_model(resolved["model"]),
            "labelled": manifest.counts.labelled,
            "radius": plain(certificate.radius) if certificate else None,
            "seconds": seconds.calibrate + seconds.plan + seconds.start + seconds.score + seconds.select,
            "warnings": len(manifest.warnings),
        }

    def _running_line(self, name: str) -> tuple[Data, bool]:
        state = run_state(self.store, name, time.time())
        return _of_run(state) | self._asked_for(name), state.ended

    def _asked_for(self, name: str) -> Data:
        """Return what a query that isn't committed asks for, as far as its file says it."""
        asked = self.asked(name)
        select, acquire, pool = (asked.get(section) or {} for section in ("select", "acquire", "pool"))
        uris = pool.get("uri") or []
        return {
            "strategy": select.get("strategy", "k_means") if asked else None,
            "score": acquire.get("score", "margin") if asked else None,
            "budget": select.get("budget"),
            "pool": ", ".join(redacted(str(uri)) for uri in ([uris] if isinstance(uris, str) else uris)),
        }

    def asked(self, name: str) -> Data:
        """Return the query's file as it was given; empty where there is none."""
        data = self.store.read_if_there(f"{query_folder(name)}/query.yaml") or b""
        try:
            found = yaml.safe_load(data)
        except (yaml.YAMLError, UnicodeDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    # a query

    def version(self, name: str) -> str:
        """Return what changes when anything that is shown of a query does: of a committed one nothing but the program.

        Raises:
            QueryError: there is no such query.
            StoreError: its manifest is damaged.
        """
        manifest = self._manifest(name)
        return f"{__version__}-{manifest.selection.xxh3}" if manifest is not None else ""

    def query(self, name: str) -> Data:
        """Return all there is to say of a query but its rows; of one that isn't committed, how far it is.

        Raises:
            QueryError: there is no such query.
            StoreError: it is damaged.
        """
        manifest = self._manifest(name)
        state = run_state(self.store, name, time.time())
        spec = (self.store.read_if_there(f"{query_folder(name)}/query.yaml") or b"").decode("utf-8", "replace")
        head = {"name": name, "spec": spec, "asked": plain(self.asked(name)), "store": redacted(self.store.uri), "run": _of_run(state)}
        if manifest is None:
            return head | self._asked_for(name)
        return head | {
            "version": self.version(name),
            "title": title(manifest),
            "lede": lede(manifest),
            "facts": [asdict(fact) for fact in facts(manifest)],
            "constraints": [{"name": met.name, "value": met.value, "asked": met.words} for met in constraints_met(manifest)],
            "warnings": manifest.warnings,
            "certificate": plain(asdict(manifest.certificate)) if manifest.certificate else None,
            "counts": asdict(manifest.counts),
            "select": plain(manifest.resolved["select"]),
            "strategy": manifest.resolved["select"]["strategy"],
            "score": manifest.resolved["acquire"]["score"] if manifest.gives_scores else None,
            "committed": iso(manifest.committed),
            "provenance": [
                ["selection", self.store.place(f"{query_folder(name)}/selection.parquet")],
                ["committed", manifest.committed or "at an unknown time"],
                ["model", describe_model(manifest.resolved["model"])],
                ["model's fingerprint", manifest.fingerprint],
                ["seed", str(manifest.seed)],
                ["files of the pool", f"{len(manifest.files):,}"],
                ["versions", ", ".join(f"{package} {version}" for package, version in manifest.versions.items())],
            ],
        }

    def rows(self, name: str) -> Data:
        """Return the chosen rows: a list of values a column."""
        return self._part(name, "rows", lambda result: batch_rows(result))

    def inputs(self, name: str, chunk: int) -> Data:
        """Return thumbnails or texts of a run of chosen rows, by their ranks; see `batch_rows.CHUNK`."""

        def make(result: Result) -> Data:
            key = (name, result.manifest.selection.xxh3)
            runs: RunsOfInputs = self._read.get(key, lambda: RunsOfInputs(result, result.selection.slice(0, ROWS), CHUNK))
            return shown_inputs(lambda accepts: runs.read(chunk, accepts))

        return self._part(name, ("inputs", chunk), make)

    def row(self, name: str, rank: int) -> Data:
        """Return one chosen row as large as there is room for.

        Raises:
            QueryError: no row has this rank.
        """
        return self._part(name, ("row", rank), lambda result: one_row(result, rank))

    def histogram(self, name: str) -> Data:
        """Return the shares of pool and batch over the score, or `missing`, why there are none."""
        return self._part(name, "histogram", _histogram)

    def map(self, name: str) -> Data:
        """Return the pool's map, or `missing`, why there is none."""
        result, sample = self._sample(name)
        if isinstance(sample, str):
            return {"missing": sample}
        return sample.as_data(predictions_of(result))

    def map_ids(self, name: str) -> Data:
        """Return the ids of the map's points, in their order."""
        _, sample = self._sample(name)
        return {"ids": [] if isinstance(sample, str) else sample.ids}

    def near(self, name: str, rank: int) -> Data:
        """Return rows of the pool that a chosen row stands for, the nearest first, as far as they are on the map.

        Raises:
            QueryError: no row has this rank.
        """
        result, sample = self._sample(name)
        if not 0 <= rank < result.selection.num_rows:
            raise QueryError(f"query {name} has no row of rank {rank}; its ranks are 0 to {result.selection.num_rows - 1:,}")
        if isinstance(sample, str):
            return {"missing": sample}
        places = np.flatnonzero(sample.ranks == rank)
        if not len(places):
            return {"missing": "The embedding of this row is not among those that are looked at."}
        nearest: NearestChosen = self._maps.get(
            (name, self.version(name), "nearest"), lambda: nearest_chosen(result, sample, VectorFiles(self.store, checked=False))
        )
        found = nearest.rows_of(int(places[0]))
        rows = sample.rows.take(found[:NEAR])
        shown = shown_inputs(lambda accepts: inputs_of(result, rows, accepts))
        return {
            "total": len(found),
            "whole": sample.whole,
            "ids": ids(rows.column("id")),
            "scores": plain(rows.column("score").to_pylist()),
            "distances": plain(nearest.distance[found[:NEAR]]),
            **shown,
        }

    def selection(self, name: str) -> tuple[Path, str]:
        """Find the selection as a file of this machine, and the hash of its content."""
        manifest = self._committed(name)
        return committed_file(self.store, manifest, manifest.selection), manifest.selection.xxh3

    def compare(self, names: Sequence[str]) -> Data:
        """Return several committed queries side by side.

        Raises:
            QueryError: there are fewer than two, too many, or one of them isn't there or not committed.
        """
        names = list(dict.fromkeys(names))
        if not 2 <= len(names) <= COMPARED:
            raise QueryError(f"{len(names)} queries are to be compared, expected 2 to {COMPARED}")
        results = [self._result(name) for name in names]
        batches = [ids(result.selection.column(1)) for result in results]
        return {
            "queries": [self._compared(result, batch) for result, batch in zip(results, batches, strict=True)],
            "differences": differences([result.manifest.resolved for result in results]),
            "overlap": [[len(set(one) & set(other)) for other in batches] for one in batches],
            "in_all": sorted(set.intersection(*map(set, batches)))[:1000],
        }

    def _compared(self, result: Result, batch: Sequence[str]) -> Data:
        scores = result.selection.column("score").drop_null().to_numpy()
        predicted = predictions_of(result)
        classes = {name: predicted.count(name) for name in sorted({name for name in predicted if name is not None})}
        ten = [plain(float(np.quantile(scores, share))) for share in (0, 0.25, 0.5, 0.75, 1)] if len(scores) else None
        return self._committed_line(result.query) | {
            "certificate": plain(asdict(result.manifest.certificate)) if result.manifest.certificate else None,
            "quantiles": ten,
            "classes": classes if len(classes) <= 50 else {},
            "ids": list(batch[:1000]),
        }

    # what they are made of

    def _manifest(self, name: str) -> Manifest | None:
        """Read the manifest of a query; None of one that isn't committed.

        Raises:
            QueryError: there is no such query.
        """
        if not name or "/" in name or "\\" in name or name in (".", "..") or "\0" in name:
            raise QueryError(f"{name!r} is no name of a query")
        manifest = read_manifest(self.store, name)
        if manifest is None and not self.store.names(query_folder(name)):
            raise QueryError(f"store {redacted(self.store.uri)} has no query {name}")
        return manifest

    def _committed(self, name: str) -> Manifest:
        manifest = self._manifest(name)
        if manifest is None:
            raise QueryError(f"query {name} is not committed, so it has no rows yet")
        return manifest

    def _result(self, name: str) -> Result:
        manifest = self._committed(name)
        key = (name, manifest.selection.xxh3)
        return self._kept.get(
            key, lambda: Result(self.store, committed_table(self.store, manifest, manifest.selection), manifest, new=False)
        )

    def _part(self, name: str, part: Hashable, make: Callable[[Result], Data]) -> Data:
        result = self._result(name)
        return self._kept.get((name, result.manifest.selection.xxh3, part), lambda: make(result))

    def _sample(self, name: str) -> tuple[Result, PoolSample | str]:
        result = self._result(name)
        return result, self._maps.get((name, result.manifest.selection.xxh3, "sample"), lambda: pool_sample(result, self._points))


def _empty_line(name: str, state: str) -> Data:
    keys = ("when", "who", "strategy", "score", "budget", "chosen", "rows", "done", "rate", "seconds_left", "pool", "model")
    more = ("labelled", "radius", "seconds", "error")
    return {"name": name, "state": state, **dict.fromkeys(keys), **dict.fromkeys(more), "warnings": 0}


def iso(time: str | None) -> str | None:
    """Write a time in UTC, as manifests and events have it, in the one form that sorts and that browsers read; None if there is none."""
    if not time:
        return None
    try:
        found = datetime.fromisoformat(time.replace(" UTC", "+00:00"))
    except ValueError:
        return None
    aware = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _of_run(state: RunState) -> Data:
    return _empty_line(state.name, state.state) | {
        "when": iso(state.changed_at or state.started_at),
        "started": iso(state.started_at),
        "who": state.who,
        "rows": state.rows,
        "done": state.rows_done,
        "units": state.units,
        "units_done": state.units_done,
        "rate": plain(state.rate),
        "seconds_left": plain(state.seconds_left),
        "error": state.error,
    }


def _histogram(result: Result) -> Data:
    score = column_of(result.manifest.resolved["acquire"]["score"])
    chosen = result.selection.column("score").drop_null().to_numpy()
    if not len(chosen):
        return {"missing": "There is no histogram of scores: the choice used none."}
    try:
        pool = stored_pool(result)
        scores = pool_scores(pool, score)
    except (RaystreamError, OSError) as error:
        return {"missing": f"There is no histogram of scores: {error}."}
    if not len(scores):
        return {"missing": "There is no histogram of scores: the pool's scored units are no longer in the store."}
    shares = Histogram.of(scores, chosen)
    return {
        "score": score,
        "edges": plain(shares.edges),
        "pool": plain(shares.pool),
        "chosen": plain(shares.chosen),
        "rows": len(scores),
        "whole": not pool.is_sample,
    }


def differences(resolved: Sequence[Data]) -> list[Data]:
    """List the keys in which queries differ, each with its values; where they are kept and run is left out, and defaults count as given."""
    flat = [_flat({key: value for key, value in one.items() if key not in ("cluster", "store")}) for one in resolved]
    keys = sorted({key for one in flat for key in one})
    rows = [(key, [one.get(key) for one in flat]) for key in keys]
    return [{"key": key, "values": plain(values)} for key, values in rows if any(value != values[0] for value in values)]


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: inner for name, of in value.items() for key, inner in _flat(of, f"{at}.{name}" if at else str(name)).items()}
    return {at: None if value in ([], {}) else value}
