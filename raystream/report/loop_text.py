"""Where a loop stands, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def describe_loop(summary: Mapping[str, Any]) -> str:
    """Return the state, the rounds as a table, and where everything is.

    Args:
        summary: what `--json` prints.
    """
    lines = [f"loop {summary['loop']}: {summary['state']}", f"  {summary['reason']}"]
    lines += [f"  batch {summary['round']} was chosen as it is because {summary['why']}"] if summary["why"] else []
    lines += [f"  warning  {warning}" for warning in summary["warnings"]]
    if summary["rounds"]:
        lines += ["", rounds_as_text(summary["rounds"])]
    places = [(name, summary[name]) for name in ("batch", "history", "report") if summary[name] is not None]
    return "\n".join([*lines, "", *(f"{name:<8} {place}" for name, place in places)])


def rounds_as_text(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Write a line a round."""
    metrics = list(dict.fromkeys(name for row in rounds for name, value in row["metrics"].items() if value is not None))
    paid = ["cost"] if any(row.get("cost") is not None for row in rounds) else []
    table = [["round", "labels", "strategy", *paid, *metrics, "choosing s", "training s"]]
    for row in rounds:
        values = [f"{row['cost']:,.5g}" if row["cost"] is not None else "" for _ in paid]
        values += [_figure(row["metrics"].get(name)) for name in metrics]
        seconds = [f"{row['seconds'][name]:.1f}" for name in ("query", "train")]
        table.append([str(row["round"]), f"{row['labels']:,}", row["strategy"], *values, *seconds])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            f"{cell:<{width}}" if column == 2 else f"{cell:>{width}}" for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
