"""Figures of a server for Prometheus, in its text format."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends, in seconds, of the classes of times that answers take."""
_HELP = {
    "raystream_requests_total": ("counter", "Answers, by method, route and status."),
    "raystream_request_seconds": ("histogram", "Seconds that answers took, by route."),
    "raystream_runs": ("gauge", "Queries that were submitted and haven't ended, by state."),
    "raystream_runs_started_total": ("counter", "Processes that this server started for queries."),
    "raystream_decided_rows_total": ("counter", "Rows that streams decided on by request."),
    "raystream_decide_batches_total": ("counter", "Batches in which they were scored."),
    "raystream_open_event_streams": ("gauge", "Streams of events that are open."),
}

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""A client may send any word, of which each would be kept."""

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counts of one server since it began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, Counter[Labels]] = defaultdict(Counter)
        self._times: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a count."""
        with self._lock:
            self._values[name][tuple(sorted(labels.items()))] += value  # type: ignore[assignment]

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note an answer."""
        self.add("raystream_requests_total", method=method if method in _METHODS else "other", route=route, status=str(status))
        with self._lock:
            counts = self._times.setdefault(route, [0] * (len(BUCKETS) + 1))
            counts[next((i for i, end in enumerate(BUCKETS) if seconds <= end), len(BUCKETS))] += 1
            self._sums[route] += seconds  # type: ignore[assignment]

    def text(self, gauges: Mapping[str, Mapping[str, int]]) -> str:
        """Write all of them, with what is looked up at this moment.

        Args:
            gauges: values by state, by name.
        """
        lines: list[str] = []
        with self._lock:
            for name, (kind, what) in _HELP.items():
                lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
                if name == "raystream_request_seconds":
                    lines += self._histogram(name)
                for state, value in gauges.get(name, {}).items():
                    lines.append(f"{name}{_labels((('state', state),))} {value:g}")
                lines += [f"{name}{_labels(labels)} {value:g}" for labels, value in self._values[name].items()]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        lines = []
        for route, counts in self._times.items():
            below = 0
            for end, count in zip((*(f"{end:g}" for end in BUCKETS), "+Inf"), counts, strict=True):
                below += count
                lines.append(f"{name}_bucket{_labels((('le', end), ('route', route)))} {below}")
            of = _labels((("route", route),))
            lines += [f"{name}_sum{of} {self._sums[route]:.6g}", f"{name}_count{of} {below}"]
        return lines


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
