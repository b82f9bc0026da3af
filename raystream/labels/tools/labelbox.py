"""Labelbox: data rows whose global key is the row's id, and predictions to begin from; its NDJSON export in.

A label that was skipped is skipped, one sent back to be reworked rejected, and one that isn't submitted yet is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raystream.labels.annotation import LABELLED, REJECTED, SKIPPED, Annotation, Document, id_of, text_or_none, time_of
from raystream.labels.batch import Batch
from raystream.labels.tools.tool import Tool, Written, as_json, as_lines, closed_links, needs_shown, no_classes, no_prediction, picture

_TITLE = "Labelbox"
_LONGEST_KEY = 200
_QUESTION = "label"


def _write(batch: Batch) -> Written:
    needs_shown(batch, _TITLE)
    notes = [*no_classes(batch), *no_prediction(batch, _TITLE), *closed_links(batch, _TITLE)]
    long = sum(len(item.id) > _LONGEST_KEY for item in batch.items)
    if long:
        notes.append(f"{long:,} ids are longer than {_LONGEST_KEY} characters, which no global key may be: Labelbox refuses these rows")
    notes.append("Labelbox keeps neither query, rank, score nor why; give --query when its labels come back")
    if any(item.data is not None for item in batch.items):
        notes.append("the pictures beside are uploaded by the SDK's create_data_rows, run in the folder of the export")
    rows = [
        {
            "row_data": item.text or "" if batch.kind == "text" else picture(batch, item),
            "global_key": item.id,
            "external_id": item.id,
            "media_type": "TEXT" if batch.kind == "text" else "IMAGE",
        }
        for item in batch.items
    ]
    predictions = [
        {
            "dataRow": {"globalKey": item.id},
            "name": _QUESTION,
            "answer": {"name": item.prediction, **({} if item.confidence is None else {"confidence": item.confidence})},
        }
        for item in batch.items
        if item.prediction in batch.classes
    ]
    return Written({"data_rows.json": as_json(rows), "predictions.ndjson": as_lines(predictions)}, tuple(notes))


def _recognises(document: Document) -> bool:
    return document.kind in ("lines", "json") and isinstance(document.first.get("data_row"), Mapping)


def _annotations(document: Document) -> Iterator[Annotation]:
    for record in document.records:
        row = record.get("data_row") or {}
        given = row.get("global_key") if row.get("global_key") is not None else row.get("external_id")
        for project in (record.get("projects") or {}).values():
            status = str((project.get("project_details") or {}).get("workflow_status", ""))
            for label in project.get("labels") or []:
                details = label.get("label_details") or {}
                skipped = bool((label.get("performance_details") or {}).get("skipped"))
                state = SKIPPED if skipped else REJECTED if status == "IN_REWORK" else LABELLED
                yield Annotation(
                    id=id_of(given),
                    raw=None if skipped else _raw(label.get("annotations") or {}),
                    state=state,
                    annotator=text_or_none(details.get("created_by")),
                    labelled_at=time_of(details.get("updated_at") or details.get("created_at")),
                    tool_id=text_or_none(label.get("id")) or "",
                )


def _raw(annotations: Mapping[str, Any]) -> Any:
    classifications = annotations.get("classifications") or []
    own = [found for found in classifications if found.get("name") == _QUESTION] or classifications
    if annotations.get("objects"):
        return {key: annotations[key] for key in ("objects", "classifications") if annotations.get(key)}
    if not own:
        return None
    answer = own[0]
    if "radio_answer" in answer:
        return (answer["radio_answer"] or {}).get("name")
    if "checklist_answers" in answer:
        return [chosen.get("name") for chosen in answer["checklist_answers"] or []]
    if "text_answer" in answer:
        return (answer["text_answer"] or {}).get("content")
    return own


TOOL = Tool("labelbox", _TITLE, _write, _recognises, _annotations)
