"""FiftyOne: samples and a script that merges them into a dataset out; what its script saves, or a dataset on disk, in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raystream.errors import QueryError
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
from raystream.labels.tools.tool import Tool, Written, about, as_lines, needs_shown, no_classes, no_prediction, picture

_TITLE = "FiftyOne"
_FIELD = "ground_truth"
_TAGS = {"rejected": REJECTED, "skipped": SKIPPED}

_LOAD = '''"""Merges this folder into the FiftyOne dataset {name!r}. Run it in the folder; running it twice adds nothing."""

import json
from pathlib import Path

import fiftyone as fo

here = Path(__file__).resolve().parent
dataset = fo.load_dataset({name!r}) if fo.dataset_exists({name!r}) else fo.Dataset({name!r}, persistent=True)
samples = []
for line in (here / "samples.jsonl").open():
    row = json.loads(line)
    prediction = row.pop("prediction")
    sample = fo.Sample(filepath=str(here / row.pop("filepath")), **row)
    if prediction is not None:
        sample["prediction"] = fo.Classification(label=prediction, confidence=row["raystream_confidence"])
    samples.append(sample)
dataset.merge_samples(samples, key_field="raystream_id")
'''

_SAVE = '''"""Saves the labels of the FiftyOne dataset {name!r} as labels.jsonl, for raystream labels. Run it in this folder."""

import json

import fiftyone as fo

with open("labels.jsonl", "w") as file:
    for sample in fo.load_dataset({name!r}):
        label = sample["{field}"] if sample.has_field("{field}") else None
        if label is None and not sample.tags:
            continue
        row = {{key: sample[key] for key in ("raystream_id", "raystream_query", "raystream_rank")}}
        row |= {{"_cls": "Sample", "tags": sample.tags, "{field}": None if label is None else label.to_dict()}}
        row["last_modified_at"] = sample.last_modified_at.isoformat()
        file.write(json.dumps(row, default=str) + "\\n")
'''


def _write(batch: Batch) -> Written:
    needs_shown(batch, _TITLE)
    if batch.kind != "image":
        raise QueryError(f"FiftyOne shows pictures alone, but column {batch.column} of query {batch.query} holds text; use another tool")
    notes = [
        *no_classes(batch),
        *no_prediction(batch, _TITLE),
        f"FiftyOne has no skips: tag a sample `skipped` or `rejected`, and label it in the field `{_FIELD}`",
    ]
    if any(item.url for item in batch.items):
        notes.append("FiftyOne opens files of its own machine alone: download the links, and put their paths into samples.jsonl")
    name = f"raystream-{batch.query}"
    files = {
        "samples.jsonl": as_lines(_sample(batch, item) for item in batch.items),
        "load.py": _LOAD.format(name=name).encode(),
        "save.py": _SAVE.format(name=name, field=_FIELD).encode(),
    }
    return Written(files, tuple(notes))


def _sample(batch: Batch, item: Item) -> dict[str, Any]:
    return {"filepath": picture(batch, item), **about(batch, item), "prediction": item.prediction}


def _samples(document: Document) -> list[Mapping[str, Any]]:
    content = document.content
    if document.kind == "json" and isinstance(content, Mapping) and isinstance(content.get("samples"), list):
        return [sample for sample in content["samples"] if isinstance(sample, Mapping)]
    return [record for record in document.records if "tags" in record and (_FIELD in record or "_cls" in record)]


def _recognises(document: Document) -> bool:
    return document.kind in ("json", "lines") and any("filepath" in sample or _FIELD in sample for sample in _samples(document)[:1])


def _annotations(document: Document) -> Iterator[Annotation]:
    for sample in _samples(document):
        state = next((state for tag, state in _TAGS.items() if tag in (sample.get("tags") or [])), None)
        raw = _raw(sample.get(_FIELD))
        if raw is None and state is None:
            continue
        yield Annotation(
            id=id_of(sample.get(FIELD)),
            raw=raw if state is None else None,
            state=state or LABELLED,
            labelled_at=time_of(sample.get("last_modified_at")),
            query=text_or_none(sample.get(QUERY_FIELD)),
            rank=whole_number(sample.get(RANK_FIELD)),
        )


def _raw(label: Any) -> Any:
    if not isinstance(label, Mapping):
        return label
    if isinstance(label.get("classifications"), list):
        return [found.get("label") for found in label["classifications"]]
    if label.get("_cls", "Classification") == "Classification" and "label" in label:
        return label["label"]
    return dict(label) or None


TOOL = Tool("fiftyone", _TITLE, _write, _recognises, _annotations)
