"""The tools: how each takes a batch, and what it gives back. One module a tool."""

from raystream.labels.tools import argilla, cvat, fiftyone, ground_truth, label_studio, labelbox, plain, prodigy
from raystream.labels.tools.tool import Tool, Written, looks_like

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        label_studio.TOOL, cvat.TOOL, argilla.TOOL, prodigy.TOOL, ground_truth.TOOL, labelbox.TOOL, fiftyone.TOOL, plain.CSV, plain.JSONL,
        plain.PARQUET,
    )
}  # fmt: skip
"""By their names, as `--to` and `--from` take them; those that are told by the least come last."""

__all__ = ["TOOLS", "Tool", "Written", "looks_like"]
