"""Prodigy: JSON Lines with the row's id in each task; what `db-out` prints back. `ignore` is a skip, `reject` a rejection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raystream.labels.annotation import (
    FIELD,
    LABELLED,
    QUERY_FIELD,
    RANK_FIELD,
    REJECTED,
    SKIPPED,
    Annotation,
    Document,
    id_of,
    text_or_none,
    time_of,
    whole_number,
)
from raystream.labels.batch import Batch, Item
from raystream.labels.tools.tool import Tool, Written, about, as_lines, closed_links, needs_shown, no_classes, no_prediction, picture

_STATES = {"accept": LABELLED, "reject": REJECTED, "ignore": SKIPPED}


def _write(batch: Batch) -> Written:
    needs_shown(batch, "Prodigy")
    notes = [*no_classes(batch), *no_prediction(batch, "Prodigy"), *closed_links(batch, "Prodigy")]
    if batch.task not in ("classes", "multi_label"):
        notes.append(f"Prodigy's tasks hold no options for model.task {batch.task}: choose the recipe, such as ner.manual, by hand")
    if any(item.data is not None for item in batch.items):
        notes.append("Prodigy reads the pictures beside if it is started in the folder of the export, with --fetch-media")
    return Written({"tasks.jsonl": as_lines(_task(batch, item) for item in batch.items)}, tuple(notes))


def _task(batch: Batch, item: Item) -> dict[str, Any]:
    shown = item.text or "" if batch.kind == "text" else picture(batch, item)
    seen = {"rank": item.rank, "score": item.score, "prediction": item.prediction, "confidence": item.confidence, "why": item.why or None}
    found = {str(batch.kind): shown, **about(batch, item), "meta": {key: value for key, value in seen.items() if value is not None}}
    if batch.task in ("classes", "multi_label"):
        found["options"] = [{"id": name, "text": name} for name in batch.classes]
        found["config"] = {"choice_style": "single" if batch.task == "classes" else "multiple"}
        if item.prediction in batch.classes:
            found["accept"] = [item.prediction]
    return found


def _recognises(document: Document) -> bool:
    return document.kind in ("lines", "json") and str(document.first.get("answer")) in _STATES


def _annotations(document: Document) -> Iterator[Annotation]:
    for record in document.records:
        answer = record.get("answer")
        if answer is None:  # nobody has come to it
            continue
        if answer not in _STATES:
            raise ValueError(f"answer {str(answer)!r} is none of {', '.join(_STATES)}")
        state = _STATES[answer]
        meta = record.get("meta") if isinstance(record.get("meta"), Mapping) else {}
        assert isinstance(meta, Mapping)
        given = record.get(FIELD, meta.get(FIELD))
        session = text_or_none(record.get("_annotator_id") or record.get("_session_id"))
        hashed = text_or_none(record.get("_task_hash") or record.get("_input_hash"))
        yield Annotation(
            id=id_of(given),
            raw=_raw(record) if state == LABELLED else None,
            state=state,
            annotator=session,
            labelled_at=time_of(record.get("_timestamp")),
            tool_id=f"{hashed}/{session or ''}" if hashed else "",
            query=text_or_none(record.get(QUERY_FIELD)),
            rank=whole_number(record.get(RANK_FIELD)),
        )


def _raw(record: Mapping[str, Any]) -> Any:
    if "accept" in record:
        return record["accept"]
    for key in ("label", "spans", "user_input"):
        if record.get(key) not in (None, ""):
            return record[key]
    return None


TOOL = Tool("prodigy", "Prodigy", _write, _recognises, _annotations)
