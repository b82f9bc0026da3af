"""Labelling tools: the batch out, labels in.

`export_batch` writes a committed selection as a tool takes it, `collect_labels` reads what people did there into the one table of
labels, `LabelStudio` does both by the tool's API. A row's id travels inside the data as `raystream_id`, a text whose type comes back
from the query.
"""

from raystream.labels.annotation import Annotation
from raystream.labels.batch import Batch, Item, read_batch
from raystream.labels.collect import Collected, collect_labels
from raystream.labels.consolidate import consolidate
from raystream.labels.export import Exported, export_batch
from raystream.labels.label_table import LabelRow, LabelTable
from raystream.labels.tools import TOOLS

__all__ = [
    "TOOLS",
    "Annotation",
    "Batch",
    "Collected",
    "Exported",
    "Item",
    "LabelRow",
    "LabelTable",
    "collect_labels",
    "consolidate",
    "export_batch",
    "read_batch",
]
