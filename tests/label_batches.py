"""Batches that tests export, and people who work in the tools: they read what was exported and write what each tool would."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.labels.annotation import IdColumn, as_text
from raystream.labels.batch import Batch, Item, Kind

TIME = "2026-03-01T12:00:00+00:00"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44"
    "ae426082"
)
"""One pixel."""
Files = Mapping[str, bytes]
ANIMALS = ("cat", "dog")
Said = Sequence[str | None]
"""What a person says of each row, by rank; None leaves it alone."""


def batch_of(
    ids: Sequence[Any], type_: pa.DataType, texts: Sequence[str] | None = None, *, kind: Kind = "text", classes: Sequence[str] = ANIMALS
) -> Batch:  # fmt: skip
    """Rows with these ids, all predicted to be of the first class."""
    items = tuple(
        Item(
            as_text(id_), rank, 0.5, classes[0], 0.75, "", 1,
            text=texts[rank] if texts is not None else f"row {rank}" if kind == "text" else None,
            data=PNG if kind == "image" else None,
        )
        for rank, id_ in enumerate(ids)
    )  # fmt: skip
    column = IdColumn("rid", type_)
    return Batch("round-1", column, "classes", tuple(classes), True, "x", kind, "abcdef012345", "2026-02-01 10:00:00 UTC", items)


def _label_studio(files: Files, said: Said) -> tuple[str, bytes]:
    tasks = json.loads(files["tasks.json"])
    for number, (task, label) in enumerate(zip(tasks, said, strict=True)):
        result = [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label]}, "id": "r"}]
        done = {"id": 100 + number, "completed_by": 7, "was_cancelled": False, "result": result, "created_at": TIME, "updated_at": TIME}
        task |= {"id": number, "project": 3, "annotations": [done] if label is not None else [], "drafts": []}
    return "project-3.json", json.dumps(tasks).encode()


def _cvat(files: Files, said: Said) -> tuple[str, bytes]:
    root = ElementTree.Element("annotations")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    for name, text in (("id", "5"), ("updated", TIME)):
        ElementTree.SubElement(task, name).text = text
    ElementTree.SubElement(ElementTree.SubElement(task, "assignee"), "username").text = "anna"
    names = [line for line in map(json.loads, files["images/manifest.jsonl"].splitlines()) if "name" in line]
    for number, (line, label) in enumerate(zip(names, said, strict=True)):
        image = ElementTree.SubElement(root, "image", id=str(number), name=line["name"] + line["extension"], width="1", height="1")
        if label is not None:
            ElementTree.SubElement(image, "tag", label=label, source="manual")
    return "annotations.xml", ElementTree.tostring(root)


def _argilla(files: Files, said: Said) -> tuple[str, bytes]:
    records = json.loads(files["records.json"])
    for record, label in zip(records, said, strict=True):
        record |= {"_server_id": f"s-{record['id']}", "updated_at": TIME}
        record["responses"] = {} if label is None else {"label": [{"value": label, "user_id": "u"}]}
    return "records.json", json.dumps(records).encode()


def _prodigy(files: Files, said: Said) -> tuple[str, bytes]:
    lines = []
    for number, (task, label) in enumerate(zip(map(json.loads, files["tasks.jsonl"].splitlines()), said, strict=True)):
        answered = {"accept": [label], "answer": "accept", "_task_hash": number, "_session_id": "db-anna", "_timestamp": 1772366400}
        lines += [] if label is None else [json.dumps(task | answered)]
    return "annotations.jsonl", "".join(line + "\n" for line in lines).encode()


def _ground_truth(files: Files, said: Said) -> tuple[str, bytes]:
    lines = []
    for line, label in zip(map(json.loads, files["manifest.jsonl"].splitlines()), said, strict=True):
        metadata = {"class-name": label, "human-annotated": "yes", "creation-date": TIME, "job-name": "labeling-job/j", "confidence": 0.9}
        lines.append(json.dumps(line | ({} if label is None else {"j": 0, "j-metadata": metadata})))
    return "output.manifest", "".join(line + "\n" for line in lines).encode()


def _labelbox(files: Files, said: Said) -> tuple[str, bytes]:
    lines = []
    for number, (row, label) in enumerate(zip(json.loads(files["data_rows.json"]), said, strict=True)):
        answer = {"name": "label", "value": "label", "radio_answer": {"name": label, "value": label, "classifications": []}}
        details = {"created_at": TIME, "updated_at": TIME, "created_by": "anna@example.org", "reviews": []}
        done = {"label_kind": "Default", "id": f"l{number}", "version": "1.0.0", "label_details": details,
                "performance_details": {"seconds_to_create": 3, "skipped": False},
                "annotations": {"objects": [], "classifications": [answer], "relationships": []}}  # fmt: skip
        project = {"name": "p", "labels": [] if label is None else [done], "project_details": {"workflow_status": "DONE"}}
        keys = {"id": f"d{number}", "global_key": row["global_key"], "external_id": row["external_id"], "row_data": row["row_data"]}
        lines.append(json.dumps({"data_row": keys, "media_attributes": {}, "projects": {"p1": project}}))
    return "export.ndjson", "".join(line + "\n" for line in lines).encode()


def _fiftyone(files: Files, said: Said) -> tuple[str, bytes]:
    samples = []
    for row, label in zip(map(json.loads, files["samples.jsonl"].splitlines()), said, strict=True):
        row |= {"_cls": "Sample", "tags": [], "last_modified_at": {"$date": TIME}}
        row["ground_truth"] = None if label is None else {"_cls": "Classification", "label": label, "tags": []}
        samples.append(row)
    return "samples.json", json.dumps({"samples": samples}).encode()


def _csv(files: Files, said: Said) -> tuple[str, bytes]:
    rows = list(csv.DictReader(io.StringIO(files["batch.csv"].decode(), newline="")))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(row | {"label": label or "", "annotator": "anna"} for row, label in zip(rows, said, strict=True))
    return "batch.csv", text.getvalue().encode()


def _jsonl(files: Files, said: Said) -> tuple[str, bytes]:
    rows = [json.loads(line) | {"label": label} for line, label in zip(files["batch.jsonl"].splitlines(), said, strict=True)]
    return "batch.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(files: Files, said: Said) -> tuple[str, bytes]:
    table = pq.read_table(pa.BufferReader(files["batch.parquet"]))
    table = table.set_column(table.column_names.index("label"), "label", pa.array(said, pa.string()))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return "batch.parquet", sink.getvalue().to_pybytes()


PEOPLE: dict[str, Callable[[Files, Said], tuple[str, bytes]]] = {
    "label_studio": _label_studio, "cvat": _cvat, "argilla": _argilla, "prodigy": _prodigy, "ground_truth": _ground_truth,
    "labelbox": _labelbox, "fiftyone": _fiftyone, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet,
}  # fmt: skip
"""What a tool writes of an exported batch after a person has labelled it: the file's name and content."""
PICTURES_ONLY = ("cvat", "fiftyone")
