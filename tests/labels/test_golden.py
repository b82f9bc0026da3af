"""A batch of three rows for each tool, byte for byte as in `golden/`, which were read by people beside the tools' documentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from label_batches import PICTURES_ONLY, batch_of

from raystream.errors import QueryError
from raystream.labels.tools import TOOLS
from raystream.labels.tools.label_studio import label_config

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("tool", sorted(set(TOOLS) - {"parquet"}))
def test_files_are_the_golden_ones(tool: str) -> None:
    """Text with markup, line breaks and a formula; of tools that show pictures alone, one pixel."""
    texts = ["plain", '=1+1 <b>ünï</b> & "x"\r\n', "\u2028😀"]
    batch = batch_of([7, -8, 9], pa.int64(), texts, kind="image" if tool in PICTURES_ONLY else "text", classes=("cat", 'a "b" & <c>'))
    files = TOOLS[tool].write(batch).files
    held = {str(path.relative_to(GOLDEN / tool)): path.read_bytes() for path in (GOLDEN / tool).rglob("*") if path.is_file()}
    assert held == files


@pytest.mark.parametrize(
    ("task", "kind", "control"),
    [
        ("multi_label", "text", '<Choices name="label" toName="text" choice="multiple" showInline="true">'),
        ("regression", "text", '<Number name="label" toName="text" required="true"/>'),
        ("tokens", "text", '<Labels name="label" toName="text">'),
        ("segmentation", "image", '<BrushLabels name="label" toName="image">'),
    ],
)
def test_each_task_has_its_control(task: str, kind: Any, control: str) -> None:
    """Several classes, a number, spans, pixels; predictions of these don't travel, which is said."""
    batch = replace(batch_of([1], pa.int64(), kind=kind), task=task)
    batch = replace(batch, items=tuple(replace(item, prediction=None) for item in batch.items))
    written = TOOLS["label_studio"].write(batch)
    assert control in written.files["label_config.xml"].decode()
    assert b"predictions" not in written.files["tasks.json"]
    assert f"predictions of model.task {task} are not carried to Label Studio" in written.notes[0]


@pytest.mark.parametrize(("count", "found"), [(30, False), (31, True)])
@pytest.mark.parametrize("task", ["classes", "tokens"])
def test_a_class_among_many_is_found_by_its_name(task: str, count: int, found: bool) -> None:
    """Keys go round for some thirty; more stand in a box of their own, so that what is shown stays on the screen below it."""
    names = tuple(f"class {number}" for number in range(count))
    root = ElementTree.fromstring(label_config(replace(batch_of([1], pa.int64(), classes=names), task=task)))
    assert [element.get("value") for element in root.iter() if element.tag in ("Choice", "Label")] == list(names)
    assert [element.tag for element in root][-1] == "Text"
    assert [element.get("toName") for element in root.findall("Filter")] == (["label"] if found else [])
    assert (root.find("View") is not None) == found


def test_a_class_that_xml_cant_hold_is_refused() -> None:
    """Before a server would refuse the project, or an import would lose it."""
    with pytest.raises(QueryError, match=r"class 'a\\x00' holds a control character"):
        TOOLS["label_studio"].write(batch_of([1], pa.int64(), classes=("cat", "a\0")))
