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


@pytest.mark.parametrize("tool", ["label_studio", "argilla", "prodigy", "labelbox"])
@pytest.mark.parametrize(
    ("url", "closed"), [("s3://b/{}.jpg", True), ("https://h/{}.jpg?sig=1", False), ("data:image/png;base64,{}", False)]
)
def test_links_that_no_browser_opens_are_said(tool: str, url: str, closed: bool) -> None:
    """People would see nothing: the rows of a bucket are to be signed."""
    batch = batch_of([1, 2], pa.int64(), kind="image")
    items = tuple(replace(item, data=None, url=url.format(item.id)) for item in batch.items)
    notes = TOOLS[tool].write(replace(batch, items=items)).notes
    assert any("2 links are of no kind that a browser opens (s3://…): sign them by --presign" in note for note in notes) == closed


def test_ground_truth_says_which_texts_no_manifest_holds() -> None:
    """An attribute of more than 20,000 characters, or a line of more than 100,000, by its documentation; escapes count."""
    batch = batch_of([1, 2, 3, 4], pa.int64(), ["x" * 20_000, "x" * 20_001, "ü" * 16_000, "ü" * 17_000])
    assert any(note.startswith("2 texts are longer than a manifest may hold") for note in TOOLS["ground_truth"].write(batch).notes)
    assert not TOOLS["ground_truth"].write(replace(batch, items=batch.items[::2])).notes


def test_a_class_that_xml_cant_hold_is_refused() -> None:
    """Before a server would refuse the project, or an import would lose it."""
    with pytest.raises(QueryError, match=r"class 'a\\x00' holds a control character"):
        TOOLS["label_studio"].write(batch_of([1], pa.int64(), classes=("cat", "a\0")))
