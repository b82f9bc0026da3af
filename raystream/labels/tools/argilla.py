"""Argilla: records with suggestions out; its records in, as `to_json`, as the flat rows of its datasets, and as its API has them.

A discarded response is a skip. `to_json` leaves the state of responses out, which the flat rows have: there, responses of records that
aren't completed are drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raystream.labels.annotation import (
    DRAFT,
    FIELD,
    LABELLED,
    QUERY_FIELD,
    RANK_FIELD,
    SKIPPED,
    Annotation,
    Document,
    id_of,
    text_or_none,
    time_of,
    whole_number,
)
from raystream.labels.batch import Batch, Item
from raystream.labels.tools.tool import Tool, Written, about, as_json, closed_links, needs_shown, no_classes, no_prediction, picture

_TITLE = "Argilla"
_QUESTION = "label"
_STATES = {"submitted": LABELLED, "discarded": SKIPPED, "draft": DRAFT}

_LOAD = '''"""Makes an Argilla dataset of this folder. Run it in the folder, with ARGILLA_API_URL and ARGILLA_API_KEY set."""

import argilla as rg

client = rg.Argilla()
settings = rg.Settings(
    fields=[{field}],
    questions=[{question}],
    metadata=[
        rg.TermsMetadataProperty("raystream_id"),
        rg.TermsMetadataProperty("raystream_query"),
        rg.IntegerMetadataProperty("raystream_rank"),
        rg.FloatMetadataProperty("raystream_score"),
        rg.FloatMetadataProperty("raystream_confidence"),
        rg.TermsMetadataProperty("raystream_why"),
        rg.IntegerMetadataProperty("raystream_represents"),
    ],
)
dataset = client.datasets({name!r})
if dataset is None:
    dataset = rg.Dataset(name={name!r}, settings=settings, client=client).create()
dataset.records.from_json("records.json")  # records of known ids are updated, so running it twice adds nothing
'''

_SAVE = '''"""Saves the records of the Argilla dataset with their responses, for raystream labels, as labels.json."""

import json

import argilla as rg

dataset = rg.Argilla().datasets({name!r})
with open("labels.json", "w") as file:
    json.dump(dataset.records(with_responses=True).to_list(flatten=True), file, default=str)
'''


def _write(batch: Batch) -> Written:
    needs_shown(batch, _TITLE)
    notes = [*no_classes(batch), *no_prediction(batch, _TITLE), *closed_links(batch, _TITLE)]
    question = {
        "classes": f"rg.LabelQuestion(name={_QUESTION!r}, labels={list(batch.classes)!r})",
        "multi_label": f"rg.MultiLabelQuestion(name={_QUESTION!r}, labels={list(batch.classes)!r})",
        "tokens": f"rg.SpanQuestion(name={_QUESTION!r}, field={batch.kind!r}, labels={list(batch.classes)!r})",
    }.get(batch.task, f"rg.TextQuestion(name={_QUESTION!r})")
    if batch.task in ("segmentation", "regression"):
        notes.append(f"Argilla has no question for model.task {batch.task}: load.py asks for a text instead")
    if any(item.data is not None for item in batch.items):
        notes.append("Argilla takes the pictures beside as paths below the folder of the export: run load.py there")
    field = f"rg.{'Text' if batch.kind == 'text' else 'Image'}Field(name={batch.kind!r})"
    load = _LOAD.format(field=field, question=question, name=f"raystream-{batch.query}")
    files = {
        "records.json": as_json([_record(batch, item) for item in batch.items]),
        "load.py": load.encode(),
        "save.py": _SAVE.format(name=f"raystream-{batch.query}").encode(),
    }
    return Written(files, tuple(notes))


def _record(batch: Batch, item: Item) -> dict[str, Any]:
    shown = item.text or "" if batch.kind == "text" else picture(batch, item)
    suggestions = {}
    if item.prediction in batch.classes:
        suggestions[_QUESTION] = {"value": item.prediction, "score": item.confidence, "agent": f"raystream-{batch.model}"}
    metadata = {key: value for key, value in about(batch, item).items() if value not in (None, "") or key == FIELD}
    return {"id": item.id, "fields": {batch.kind: shown}, "metadata": metadata, "suggestions": suggestions, "responses": {}, "vectors": {}}


def _recognises(document: Document) -> bool:
    if document.kind not in ("json", "lines", "parquet"):
        return False
    return all(key in document.first for key in ("fields", "responses")) or f"{_QUESTION}.responses" in document.first


def _annotations(document: Document) -> Iterator[Annotation]:
    for record in document.records:
        metadata = record.get("metadata") if isinstance(record.get("metadata"), Mapping) else record
        assert isinstance(metadata, Mapping)
        given = next((value for value in (metadata.get(FIELD), record.get("external_id"), record.get("id")) if value is not None), None)
        for raw, who, state, when in _responses(record):
            known = _STATES.get(str(state or "submitted"))
            if known is None:
                raise ValueError(f"the status of a response is {str(state)!r}; expected {', '.join(_STATES)}")
            yield Annotation(
                id=id_of(given),
                raw=None if known == SKIPPED else raw,
                state=known,
                annotator=text_or_none(who),
                labelled_at=time_of(when),
                tool_id=f"{record.get('_server_id') or ''}/{who}" if record.get("_server_id") else "",
                query=text_or_none(metadata.get(QUERY_FIELD)),
                rank=whole_number(metadata.get(RANK_FIELD)),
            )


def _responses(record: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Return value, who, status and time of each response to the question `label`, or to the only one."""
    flat = f"{_QUESTION}.responses"
    if flat in record:
        values = record[flat] or []
        if not isinstance(values, list):
            raise TypeError(f"{flat} is no list")
        users, states = (record.get(f"{flat}.{part}") or [None] * len(values) for part in ("users", "status"))
        if not len(values) == len(users) == len(states):
            raise TypeError(f"{flat} without as many people or states")
        yield from ((value, who, state, record.get("updated_at")) for value, who, state in zip(values, users, states, strict=True))
        return
    responses = record.get("responses") or {}
    if isinstance(responses, list):  # as the API has them
        for response in responses:
            values = response.get("values") or {}
            answer: Mapping[str, Any] = values.get(_QUESTION) or next(iter(values.values()), {})
            yield answer.get("value"), response.get("user_id"), response.get("status"), response.get("updated_at")
        return
    unsaid = "submitted" if record.get("status", "completed") == "completed" else "draft"
    for answer in responses.get(_QUESTION) or next(iter(responses.values()), []) or []:
        yield answer.get("value"), answer.get("user_id"), answer.get("status") or unsaid, record.get("updated_at")


TOOL = Tool("argilla", _TITLE, _write, _recognises, _annotations)
