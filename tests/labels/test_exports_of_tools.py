"""What each tool writes, as its documentation has it, and what it means: the five states, people, times, the tool's own names."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from raystream.labels.annotation import Annotation, parse
from raystream.labels.tools import TOOLS, looks_like

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ISO = "2026-03-01T12:00:00Z"


def read(tool: str, name: str, content: Any) -> list[Annotation]:
    """The annotations of a document, which is recognised as the tool's."""
    text = content if isinstance(content, str) else json.dumps(content)
    if isinstance(content, list) and name.endswith(("l", "manifest", "ndjson")):
        text = "".join(json.dumps(line) + "\n" for line in content)
    document = parse(name, text.encode())
    assert looks_like(document, TOOLS.values()) is TOOLS[tool]
    return list(TOOLS[tool].annotations(document))


def choice(*classes: str) -> list[dict[str, Any]]:
    return [
        {"id": "r", "from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": list(classes)}, "origin": "manual"}
    ]


def test_label_studio() -> None:
    """Submitted, cancelled, turned down in a review, a draft; a prediction is no annotation; shapes stay as they are."""
    data = {"text": "t", "raystream_id": "7", "raystream_query": "q", "raystream_rank": 2}
    done = {"completed_by": 4, "was_cancelled": False, "created_at": ISO, "updated_at": ISO}
    box = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": {"x": 1.5, "rectanglelabels": ["cat"]}}
    task = {
        "id": 31,
        "project": 5,
        "data": data,
        "meta": {},
        "annotations": [
            {"id": 1, "result": choice("cat"), **done},
            {"id": 2, "result": [], **done, "was_cancelled": True, "completed_by": {"id": 5, "email": "ben@example.org"}},
            {"id": 3, "result": choice("dog"), **done, "reviews": [{"accepted": True}, {"accepted": False}]},
            {"id": 4, "result": [box], **done},
            {"id": 5, "result": [{"from_name": "label", "to_name": "text", "type": "number", "value": {"number": 2.5}}], **done},
        ],
        "drafts": [
            {"id": 9, "user": "eva@example.org", "created_username": " eva@example.org, 6", "result": choice("dog"), "updated_at": ISO},
            {"id": 10, "user": "eva@example.org", "result": [], "updated_at": ISO},
        ],
        "predictions": [{"model_version": "m", "result": choice("cat"), "score": 0.5}],
    }
    more = {"query": "q", "rank": 2, "labelled_at": NOON}
    found = read("label_studio", "export.json", [task, {"id": 32, "data": {"text": "not ours"}, "annotations": [{"id": 6}]}])
    assert found.pop().id is None
    assert found == [
        Annotation("7", ["cat"], "labelled", "4", tool_id="1", **more),
        Annotation("7", None, "skipped", "5", tool_id="2", **more),
        Annotation("7", ["dog"], "rejected", "4", tool_id="3", **more),
        Annotation(
            "7", [{"type": "rectanglelabels", "value": {"x": 1.5, "rectanglelabels": ["cat"]}}], "labelled", "4", tool_id="4", **more
        ),
        Annotation("7", 2.5, "labelled", "4", tool_id="5", **more),
        Annotation("7", ["dog"], "draft", "6", tool_id="draft 9", **more),
    ]


def test_label_studio_short() -> None:
    """JSON-MIN, one choice and several; a row without a label has none."""
    row = {
        "text": "t",
        "raystream_id": "7",
        "raystream_query": "q",
        "raystream_rank": 2,
        "id": 31,
        "annotator": 4,
        "annotation_id": 1,
        "created_at": ISO,
        "updated_at": ISO,
        "lead_time": 3.5,
    }
    found = read("label_studio", "min.json", [row | {"label": "cat"}, row | {"label": {"choices": ["cat", "dog"]}}, row])
    assert [each.raw for each in found] == ["cat", ["cat", "dog"]]
    assert (found[0].annotator, found[0].tool_id, found[0].labelled_at) == ("4", "1", NOON)
    said = ["cat", {"choices": ["cat", "dog"]}, [{"number": 2.5}], [{"rating": 4}], [{"start": 0, "end": 1, "labels": ["X"]}], "[cat"]
    raw = ["cat", ["cat", "dog"], 2.5, 4, said[4], "[cat"]
    assert [each.raw for each in read("label_studio", "min.json", [row | {"label": one} for one in said])] == raw
    cells = io.StringIO()
    table = csv.DictWriter(cells, [*row, "label"])
    table.writeheader()
    table.writerows(row | {"label": one if isinstance(one, str) else json.dumps(one)} for one in said)
    assert [each.raw for each in read("label_studio", "export.csv", cells.getvalue())] == raw


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>12</id><name>t</name><created>2026-02-01 08:00:00+00:00</created><updated>2026-03-01 12:00:00.000000+00:00</updated>
    <owner><username>admin</username><email></email></owner><assignee><username>anna</username><email></email></assignee></task>
    <dumped>2026-03-02 09:00:00+00:00</dumped></meta>
  <image id="0" name="images/a.png" width="2" height="3"><tag label="cat" source="manual"></tag></image>
  <image id="1" name="images/b.png" width="2" height="3"></image>
  <image id="2" name="images/c.png" width="2" height="3"><tag label="dog" source="auto"></tag></image>
  <image id="3" name="images/d.png" width="2" height="3">
    <box label="cat" source="manual" occluded="0" xtl="0.5" ytl="1" xbr="2" ybr="3" z_order="0"><attribute name="age">old</attribute></box>
  </image>
</annotations>
"""


def test_cvat() -> None:
    """Tags are classes, shapes JSON; a picture without any says nothing, and a label that nobody touched is a draft."""
    box = {
        "shape": "box",
        "label": "cat",
        "source": "manual",
        "occluded": "0",
        "xtl": "0.5",
        "ytl": "1",
        "xbr": "2",
        "ybr": "3",
        "z_order": "0",
        "attributes": {"age": "old"},
    }
    assert read("cvat", "annotations.xml", CVAT) == [
        Annotation("images/a.png", ["cat"], "labelled", "anna", NOON, "task12/images/a.png"),
        Annotation("images/c.png", ["dog"], "draft", "anna", NOON, "task12/images/c.png"),
        Annotation("images/d.png", [box], "labelled", "anna", NOON, "task12/images/d.png"),
    ]


def test_coco() -> None:
    """Boxes by picture, with the names of their categories."""
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 2, "height": 3}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 1, 2, 3], "segmentation": [], "area": 4.0, "iscrowd": 0}],
    }
    [found] = read("cvat", "instances.json", content)
    assert (found.id, found.raw) == ("a.png", [{"label": "cat", "bbox": [0, 1, 2, 3], "segmentation": [], "iscrowd": 0}])


def test_argilla() -> None:
    """Nested records without states, flat ones with them, and what the API gives: a discarded response is a skip."""
    metadata = {"raystream_id": "7", "raystream_query": "q", "raystream_rank": 2}
    record = {
        "id": "7",
        "fields": {"text": "t"},
        "metadata": metadata,
        "suggestions": {"label": {"value": "cat", "score": 0.5, "agent": "m"}},
        "vectors": {},
        "status": "completed",
        "_server_id": "s1",
    }
    [found] = read("argilla", "labels.json", [record | {"responses": {"label": [{"value": "dog", "user_id": "u1"}]}}])
    assert found == Annotation("7", "dog", "labelled", "u1", None, "s1/u1", "q", 2)
    flat = {
        "id": "7",
        "text": "t",
        "status": "completed",
        "_server_id": "s1",
        **metadata,
        "label.responses": ["dog", "cat", "cat"],
        "label.responses.users": ["u1", "u2", "u3"],
        "label.responses.status": ["submitted", "discarded", "draft"],
    }
    rows = read("argilla", "flat.json", [flat])
    assert [(each.annotator, each.state, each.raw) for each in rows] == [
        ("u1", "labelled", "dog"),
        ("u2", "skipped", None),
        ("u3", "draft", "cat"),
    ]
    assert rows[0] == found
    answers = [
        {"id": "r1", "values": {"label": {"value": "dog"}}, "status": "submitted", "user_id": "u1", "updated_at": ISO},
        {"id": "r2", "values": {}, "status": "discarded", "user_id": "u2", "updated_at": ISO},
    ]
    api = [{"id": "x", "external_id": "7", "fields": {}, "metadata": metadata, "responses": answers}]
    assert [(each.annotator, each.state, each.labelled_at) for each in read("argilla", "api.json", api)] == [
        ("u1", "labelled", NOON),
        ("u2", "skipped", NOON),
    ]


def test_prodigy() -> None:
    """Choices, a binary label, spans; `ignore` skips and `reject` rejects."""
    task = {
        "text": "t",
        "raystream_id": "7",
        "raystream_query": "q",
        "raystream_rank": 2,
        "meta": {"rank": 2},
        "_input_hash": 1,
        "_task_hash": -2,
        "_session_id": "db-anna",
        "_timestamp": 1772366400,
        "_view_id": "choice",
    }
    spans = [{"start": 0, "end": 1, "label": "X"}]
    lines = [
        task | {"accept": ["cat"], "answer": "accept"},
        task | {"accept": [], "answer": "ignore"},
        task | {"label": "cat", "answer": "reject"},
        task | {"spans": spans, "answer": "accept"},
        task | {"label": "cat", "answer": "accept"},
    ]
    found = read("prodigy", "db.jsonl", lines)
    assert [(each.state, each.raw) for each in found] == [
        ("labelled", ["cat"]), ("skipped", None), ("rejected", None), ("labelled", spans), ("labelled", "cat"),
    ]  # fmt: skip
    assert found[0] == Annotation("7", ["cat"], "labelled", "db-anna", NOON, "-2/db-anna", "q", 2)


def test_ground_truth() -> None:
    """A class by its name, several by their map, boxes; no human's label is a draft, a failure and our own prediction none at all."""
    line = {"source": "t", "raystream_id": "7", "raystream_query": "q", "raystream_rank": 2}
    about = {
        "class-name": "cat",
        "job-name": "labeling-job/j",
        "confidence": 0.9,
        "type": "groundtruth/text-classification",
        "human-annotated": "yes",
        "creation-date": "2026-03-01T12:00:00.000000",
    }
    several = {key: value for key, value in about.items() if key != "class-name"} | {"class-map": {"0": "cat", "2": "owl"}}
    boxes = {"annotations": [{"class_id": 0, "left": 1}], "image_size": [{"width": 2}]}
    lines = [
        line | {"j": 0, "j-metadata": about, "raystream-prediction": 0, "raystream-prediction-metadata": about | {"human-annotated": "no"}},
        line | {"j": [0, 2], "j-metadata": several},
        line | {"j": boxes, "j-metadata": several},
        line | {"j": 0, "j-metadata": about | {"human-annotated": "no"}},
        line | {"j-metadata": {"failure-reason": "ClientError", "job-name": "labeling-job/j"}},
        line,
    ]
    found = read("ground_truth", "output.manifest", lines)
    assert found[0] == Annotation("7", "cat", "labelled", None, NOON, "labeling-job/j/j", "q", 2)
    assert [(each.state, each.raw) for each in found[1:]] == [
        ("labelled", ["cat", "owl"]), ("labelled", boxes | {"class-map": several["class-map"]}), ("draft", "cat"),
    ]  # fmt: skip


def test_labelbox() -> None:
    """One class, several, a text; skipped, and sent back to be reworked; a row without labels says nothing."""

    def row(answer: dict[str, Any] | None, status: str = "DONE", skipped: bool = False) -> dict[str, Any]:
        label = {
            "label_kind": "Default",
            "id": "l1",
            "annotations": {"objects": [], "classifications": [answer] if answer else []},
            "label_details": {"created_at": ISO, "updated_at": ISO, "created_by": "anna@example.org", "reviews": []},
            "performance_details": {"skipped": skipped},
        }
        project = {"name": "p", "labels": [label], "project_details": {"workflow_status": status}}
        return {"data_row": {"id": "d1", "global_key": "7", "external_id": "7", "row_data": "t"}, "projects": {"p1": project}}

    radio = {"name": "label", "value": "label", "radio_answer": {"name": "cat", "value": "cat"}}
    several = {"name": "label", "checklist_answers": [{"name": "cat"}, {"name": "owl"}]}
    text = {"name": "label", "text_answer": {"content": "x"}}
    lines = [row(radio), row(several), row(text), row(None, skipped=True), row(radio, "IN_REWORK"),
             {"data_row": {"id": "d2", "global_key": "8"}, "projects": {"p1": {"labels": []}}}]  # fmt: skip
    found = read("labelbox", "export.ndjson", lines)
    assert found[0] == Annotation("7", "cat", "labelled", "anna@example.org", NOON, "l1")
    assert [(each.state, each.raw) for each in found[1:]] == [
        ("labelled", ["cat", "owl"]), ("labelled", "x"), ("skipped", None), ("rejected", "cat"),
    ]  # fmt: skip


def test_fiftyone() -> None:
    """One class, several, shapes; tags are skips and rejections."""
    sample = {
        "filepath": "a.png",
        "raystream_id": "7",
        "raystream_query": "q",
        "raystream_rank": 2,
        "tags": [],
        "last_modified_at": {"$date": 1772366400000},
        "ground_truth": {"_cls": "Classification", "label": "cat"},
    }
    several = {"_cls": "Classifications", "classifications": [{"label": "cat"}, {"label": "owl"}]}
    shapes = {"_cls": "Detections", "detections": [{"label": "cat", "bounding_box": [0, 0, 1, 1]}]}
    samples = [sample, sample | {"ground_truth": several}, sample | {"ground_truth": shapes}, sample | {"tags": ["skipped"]},
               sample | {"tags": ["rejected"], "ground_truth": None}, sample | {"ground_truth": None}]  # fmt: skip
    found = read("fiftyone", "samples.json", {"samples": samples})
    assert found[0] == Annotation("7", "cat", "labelled", None, NOON, "", "q", 2)
    assert [(each.state, each.raw) for each in found[1:]] == [
        ("labelled", ["cat", "owl"]), ("labelled", shapes), ("skipped", None), ("rejected", None),
    ]  # fmt: skip


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], [[]], [{"x": 1}]])
def test_what_no_tool_wrote_is_recognised_by_none(content: Any) -> None:
    """Other JSON, whatever its shape, is of no tool."""
    for name in ("a.json", "a.jsonl"):
        assert looks_like(parse(name, json.dumps(content).encode()), TOOLS.values()) is None
