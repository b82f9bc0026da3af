"""Label Studio: tasks with predictions out; its JSON and JSON_MIN exports, and what its API lists, in.

A submitted annotation is labelled, a cancelled one skipped, an unsubmitted draft a draft, one that a reviewer turned down rejected.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from xml.sax.saxutils import quoteattr

from raystream.errors import QueryError
from raystream.labels.annotation import (
    DRAFT,
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
from raystream.labels.tools.tool import Tool, Written, about, as_json, closed_links, needs_shown, no_classes, no_prediction, picture
from raystream.pool.images import format_of

CONTROL = "label"
"""The name of the control by which rows are labelled."""
PREDICTED_BY = "raystream"
"""What predictions are said to be of. A project shows those of one version alone, so that a later round's model may have no other."""
_BUTTONS = 30
"""Classes of which each has a key and a place on the screen; more stand in a box that scrolls, below a field to find one by its name."""
_TITLE = "Label Studio"
_NO_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def tasks(batch: Batch, *, inline: bool = False, to: str | None = None) -> list[dict[str, Any]]:
    """Return the batch as Label Studio imports it.

    Args:
        batch: to be labelled.
        inline: put pictures into the tasks themselves, which a server on another machine can show, too.
        to: what the interface calls what it shows, if that isn't ours.
    """
    needs_shown(batch, _TITLE)
    return [_task(batch, item, inline, to or str(batch.kind)) for item in batch.items]


def _task(batch: Batch, item: Item, inline: bool, to: str) -> dict[str, Any]:
    assert batch.kind is not None
    shown = item.text or ""
    if batch.kind == "image":
        shown = (picture(batch, item, "/data/local-files/?d=images/") or "") if not inline or item.data is None else _inline(item.data)
    data = {key: value for key, value in about(batch, item).items() if value is not None}
    found: dict[str, Any] = {"data": {batch.kind: shown, **data}}
    if item.prediction is not None and item.prediction in batch.classes:
        result = {
            "id": "prediction", "from_name": CONTROL, "to_name": to, "type": "choices", "value": {"choices": [item.prediction]},
        }  # fmt: skip
        found["predictions"] = [{"model_version": PREDICTED_BY, "score": item.confidence or 0.0, "result": [result]}]
    return found


def _inline(data: bytes) -> str:
    return f"data:image/{format_of(data)};base64,{base64.b64encode(data).decode()}"


def label_config(batch: Batch) -> str:
    """Return the labelling interface: a control for the task, and below it what is shown, which may be longer than the screen.

    Raises:
        QueryError: there is nothing to show, or the name of a class can't stand in XML.
    """
    needs_shown(batch, _TITLE)
    assert batch.kind is not None
    for name in batch.classes:
        if _NO_XML.search(name):
            raise QueryError(f"class {name!r} holds a control character, which Label Studio's configuration can't; rename the class")
    tag = {"text": "Text", "image": "Image"}[batch.kind]
    shown = f'<{tag} name="{batch.kind}" value="${batch.kind}"/>'
    return f"<View>\n  {_control(batch)}\n  {shown}\n</View>\n"


def _control(batch: Batch) -> str:
    kind = batch.kind or "text"
    if batch.task == "regression":
        return f'<Number name="{CONTROL}" toName="{kind}" required="true"/>'
    if batch.task in ("classes", "multi_label"):
        tag, inner = "Choices", "Choice"
        # None of several classes may be the answer, no class at all is none.
        more = ' choice="single-radio" required="true"' if batch.task == "classes" else ' choice="multiple"'
        more += ' showInline="true"'
    else:
        tag, inner, more = ("Labels" if kind == "text" else "BrushLabels"), "Label", ""
    choices = "\n".join(f"    <{inner} value={quoteattr(name)}/>" for name in batch.classes)
    control = f'<{tag} name="{CONTROL}" toName="{kind}"{more}>\n{choices}\n  </{tag}>'
    if len(batch.classes) <= _BUTTONS:
        return control
    find = f'<Filter name="find" toName="{CONTROL}" hotkey="shift+f" minlength="0" placeholder="Find a class (Shift+F)"/>'
    return f'{find}\n  <View style="max-height: 30vh; overflow-y: auto">\n  {control}\n  </View>'


def _write(batch: Batch) -> Written:
    notes = [*no_classes(batch), *no_prediction(batch, _TITLE), *closed_links(batch, _TITLE)]
    if any(item.data is not None for item in batch.items):
        notes.append(
            "Label Studio shows the pictures if it serves local files: set LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT to the folder of the export, and add its folder images as local storage"
        )
    files = {"tasks.json": as_json(tasks(batch)), "label_config.xml": label_config(batch).encode()}
    return Written(files, tuple(notes))


def _recognises(document: Document) -> bool:
    if document.kind not in ("json", "csv"):
        return False
    first = document.first
    whole = isinstance(first.get("data"), Mapping) and ("annotations" in first or "predictions" in first or "completions" in first)
    return whole or ("annotation_id" in first and "annotator" in first)


def _annotations(document: Document) -> Iterator[Annotation]:
    for record in document.records:
        if isinstance(record.get("data"), Mapping):
            yield from of_task(record)
        elif "annotations" in record or "annotation_id" not in document.first:
            raise TypeError("a task without data")
        elif "annotation_id" in record and (said := record.get(CONTROL)) not in (None, ""):
            yield Annotation(
                id=id_of(record.get(FIELD)),
                raw=_short(said, document.kind),
                annotator=_person(record.get("annotator")),
                labelled_at=time_of(record.get("updated_at") or record.get("created_at")),
                tool_id=text_or_none(record.get("annotation_id")) or "",
                query=text_or_none(record.get(QUERY_FIELD)),
                rank=whole_number(record.get(RANK_FIELD)),
            )


def of_task(task: Mapping[str, Any]) -> Iterator[Annotation]:
    """Return what people did with one task, as exports and the API have it."""
    data = task.get("data") or {}
    for annotation in task.get("annotations") or task.get("completions") or []:
        reviews = annotation.get("reviews") or []
        state = LABELLED
        if annotation.get("was_cancelled"):
            state = SKIPPED
        elif reviews and reviews[-1].get("accepted") is False:
            state = REJECTED
        yield _said(data, annotation, state, str(annotation.get("id", "")))
    for draft in task.get("drafts") or []:
        if isinstance(draft, Mapping) and draft.get("result") and not draft.get("annotation"):
            yield _said(data, draft, DRAFT, f"draft {draft.get('id', '')}")


def _said(data: Mapping[str, Any], said: Mapping[str, Any], state: str, tool_id: str) -> Annotation:
    return Annotation(
        id=id_of(data.get(FIELD)),
        raw=None if state == SKIPPED else _raw(said.get("result") or []),
        state=state,
        annotator=_person(said.get("completed_by") or said.get("created_username") or said.get("user")),
        labelled_at=time_of(said.get("updated_at") or said.get("created_at")),
        tool_id=tool_id,
        query=text_or_none(data.get(QUERY_FIELD)),
        rank=whole_number(data.get(RANK_FIELD)),
    )


def _person(value: object) -> str | None:
    """Name a person by number, the one name of people that all of Label Studio's exports have."""
    if isinstance(value, Mapping):
        value = value.get("id") or value.get("email")
    text = text_or_none(value)
    if text is not None and text.rpartition(", ")[2].isdecimal():  # "anna@example.org, 7"
        return text.rpartition(", ")[2]
    return text


def _raw(results: list[Mapping[str, Any]]) -> Any:
    """Return the label of an annotation's results: of the control `label` if it has one, else of all."""
    own = [result for result in results if result.get("from_name") == CONTROL] or [
        result for result in results if result.get("type") not in ("relation",) and "value" in result
    ]
    values = [result.get("value") or {} for result in own]
    if (said := _said_by(values)) is not None:
        return said
    return [{"type": result.get("type"), "value": value} for result, value in zip(own, values, strict=True)]


def _said_by(values: Sequence[Mapping[str, Any]]) -> Any:
    """Return the classes or the number that results say; None for shapes and the like."""
    if all("choices" in value for value in values):
        said = [value["choices"] for value in values]
        return [choice for chosen in said for choice in ([chosen] if isinstance(chosen, str) else chosen)]
    return next((values[0][key] for key in ("number", "rating") if key in values[0]), None) if len(values) == 1 else None


def _short(said: Any, kind: str) -> Any:
    """Return the label of a record of JSON-MIN, or of a spreadsheet, where all but a single class is JSON in a cell."""
    if kind == "csv" and isinstance(said, str) and said[:1] in ("{", "["):
        with suppress(ValueError):
            said = json.loads(said)
    values = [said] if isinstance(said, Mapping) else said
    if not isinstance(values, list) or not values or not all(isinstance(value, Mapping) for value in values):
        return said
    found = _said_by(values)
    return said if found is None else found


TOOL = Tool("label_studio", _TITLE, _write, _recognises, _annotations)
