"""SageMaker Ground Truth: the augmented manifest, both ways. A label that no human gave, or a failure, is none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from raystream.labels.annotation import (
    DRAFT,
    FIELD,
    LABELLED,
    QUERY_FIELD,
    RANK_FIELD,
    Annotation,
    Document,
    id_of,
    text_or_none,
    time_of,
    whole_number,
)
from raystream.labels.batch import Batch, Item
from raystream.labels.tools.tool import Tool, Written, about, as_json, as_lines, needs_shown, no_classes, no_prediction, picture

_TITLE = "Ground Truth"
_PREDICTED = "raystream-prediction"
_METADATA = "-metadata"
_LONGEST_TEXT, _LONGEST_LINE = 20_000, 100_000
"""Characters that an attribute and a line of a manifest may have."""


def _write(batch: Batch) -> Written:
    needs_shown(batch, _TITLE)
    notes = [*no_classes(batch), *no_prediction(batch, _TITLE)]
    if batch.kind == "image" and not all((item.url or "").startswith("s3:") for item in batch.items):
        notes.append("Ground Truth reads pictures from S3 alone: copy images/ to a bucket, and put its URI in front of each source-ref")
    lines = [_line(batch, item) for item in batch.items]
    long = sum(len(line.get("source", "")) > _LONGEST_TEXT or len(json.dumps(line)) > _LONGEST_LINE for line in lines)
    if long:
        notes.append(
            f"{long:,} texts are longer than a manifest may hold ({_LONGEST_TEXT:,} characters, {_LONGEST_LINE:,} a line): Ground Truth "
            "refuses these rows"
        )
    categories = {"document-version": "2018-11-28", "labels": [{"label": name} for name in batch.classes]}
    files = {"manifest.jsonl": as_lines(lines), "categories.json": as_json(categories)}
    return Written(files, tuple(notes))


def _line(batch: Batch, item: Item) -> dict[str, Any]:
    shown = {"source": item.text or ""} if batch.kind == "text" else {"source-ref": picture(batch, item)}
    found = {**shown, **{key: value for key, value in about(batch, item).items() if value is not None}}
    if item.prediction in batch.classes:
        number = batch.classes.index(str(item.prediction))
        kind = "groundtruth/image-classification" if batch.kind == "image" else "groundtruth/text-classification"
        found[_PREDICTED] = number
        found[_PREDICTED + _METADATA] = {
            "class-name": item.prediction,
            "confidence": item.confidence,
            "type": kind,
            "job-name": f"raystream-{batch.query}",
            "human-annotated": "no",
            "creation-date": batch.committed.removesuffix(" UTC").replace(" ", "T"),
        }
    return found


def _recognises(document: Document) -> bool:
    first = document.first
    return document.kind in ("lines", "json") and ("source-ref" in first or "source" in first) and "data" not in first


def _annotations(document: Document) -> Iterator[Annotation]:
    for record in document.records:
        names = [key.removesuffix(_METADATA) for key in record if key.endswith(_METADATA) and isinstance(record[key], Mapping)]
        for name in names:
            about_it = record[name + _METADATA]
            if name == _PREDICTED or "failure-reason" in about_it:
                continue
            human = str(about_it.get("human-annotated", "yes")).lower() == "yes"
            yield Annotation(
                id=id_of(record.get(FIELD)),
                raw=_raw(record.get(name), about_it),
                state=LABELLED if human else DRAFT,
                labelled_at=time_of(about_it.get("creation-date")),
                tool_id=f"{about_it.get('job-name', '')}/{name}",
                query=text_or_none(record.get(QUERY_FIELD)),
                rank=whole_number(record.get(RANK_FIELD)),
            )


def _raw(value: Any, about_it: Mapping[str, Any]) -> Any:
    if "class-name" in about_it:
        return about_it["class-name"]
    named = about_it.get("class-map")
    if isinstance(named, Mapping) and isinstance(value, list):  # several classes a row, as their numbers
        return [named.get(str(number), str(number)) for number in value]
    if isinstance(named, Mapping) and isinstance(value, Mapping):
        return {**value, "class-map": named}
    return value


TOOL = Tool("ground_truth", _TITLE, _write, _recognises, _annotations)
