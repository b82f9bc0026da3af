"""CVAT: pictures and a manifest in rank order out; CVAT XML and COCO in. Rows come back by the names of their pictures.

A file says of a picture without labels nothing at all, so such a row is not labelled. Labels that nobody touched, which CVAT marks as
automatic, are drafts.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from raystream.errors import QueryError
from raystream.labels.annotation import DRAFT, LABELLED, Annotation, Document, text_or_none, time_of
from raystream.labels.batch import Batch, Item
from raystream.labels.tools.tool import Tool, Written, as_json, needs_shown, no_classes, no_prediction
from raystream.pool.images import UndecodableError, open_image

_TITLE = "CVAT"
_PIXELS = 1 << 40
"""Nothing is decoded, so no picture is too large."""
_SHAPES = ("box", "polygon", "polyline", "points", "ellipse", "cuboid", "mask", "skeleton")
_KINDS = {"classes": "tag", "multi_label": "tag", "segmentation": "mask"}


def _write(batch: Batch) -> Written:
    needs_shown(batch, _TITLE)
    if batch.kind != "image":
        raise QueryError(f"CVAT shows pictures alone, but column {batch.column} of query {batch.query} holds text; use another tool")
    notes = [*no_classes(batch), *no_prediction(batch, _TITLE)]
    notes.append("CVAT keeps neither score, confidence, why nor represents; the order is that of the rank")
    files = {"labels.json": as_json(task_labels(batch)), "annotations.xml": _predictions(batch)}
    if any(item.data is not None for item in batch.items):
        files["images/manifest.jsonl"] = _manifest(batch)
    else:
        files["urls.txt"] = "".join(f"{item.url}\n" for item in batch.items if item.url).encode()
        notes.append("links are given to CVAT as remote sources, in urls.txt; those into buckets need --presign")
    return Written(files, tuple(notes))


def task_labels(batch: Batch) -> list[dict[str, Any]]:
    """Return the labels of a task for a batch: a tag for each class, or what pixels are marked with."""
    return [{"name": name, "type": _KINDS.get(batch.task, "any"), "attributes": []} for name in batch.classes]


def _manifest(batch: Batch) -> bytes:
    lines: list[dict[str, Any]] = [{"version": "1.1"}, {"type": "images"}]
    for item in batch.items:
        if item.data is None:
            continue
        stem, _, suffix = batch.file_name(item).rpartition(".")
        width, height = _size(item)
        lines.append({"name": stem, "extension": f".{suffix}", "width": width, "height": height, "meta": {"related_images": []}})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _size(item: Item) -> tuple[int, int]:
    try:
        image = open_image(item.data or b"", _PIXELS).image
    except UndecodableError as error:
        raise QueryError(f"the picture of row {item.id} {error}, so CVAT can't show it; leave the row out by select.exclude") from None
    return image.width, image.height


def frame_name(batch: Batch, item: Item) -> str:
    """Return what CVAT calls a row's picture; folders are lost where a browser uploads it."""
    return batch.file_name(item) if item.data is not None else posixpath.basename(urlsplit(item.url or "").path)


def _predictions(batch: Batch) -> bytes:
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    known = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in batch.classes:
        ElementTree.SubElement(ElementTree.SubElement(known, "label"), "name").text = name
    for number, item in enumerate(batch.items):
        name = frame_name(batch, item)
        image = ElementTree.SubElement(root, "image", id=str(number), name=name)
        if item.data is not None:
            image.set("width", str(_size(item)[0]))
            image.set("height", str(_size(item)[1]))
        if item.prediction in batch.classes:
            ElementTree.SubElement(image, "tag", label=str(item.prediction), source="auto")
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _recognises(document: Document) -> bool:
    if document.kind == "xml":
        return bool(document.content.tag == "annotations")
    return _is_coco(document)


def _is_coco(document: Document) -> bool:
    wanted = {"images", "annotations", "categories"}
    return document.kind == "json" and isinstance(document.content, Mapping) and wanted <= document.content.keys()


def _annotations(document: Document) -> Iterator[Annotation]:
    yield from _of_coco(document.content) if _is_coco(document) else _of_xml(document.content)


def _of_xml(root: ElementTree.Element) -> Iterator[Annotation]:
    meta = root.find("meta")
    job = None if meta is None else next((found for kind in ("task", "job", "project") if (found := meta.find(kind)) is not None), None)
    who = when = number = None
    if job is not None:
        who = job.findtext("assignee/username") or job.findtext("owner/username")
        when, number = job.findtext("updated") or job.findtext("created"), job.findtext("id")
    for image in root.iter("image"):
        labels = [element for element in image if element.tag == "tag" or element.tag in _SHAPES]
        if not labels:
            continue
        tags = [element.get("label", "") for element in labels if element.tag == "tag"]
        raw: Any = tags if len(tags) == len(labels) else [_shape(element) for element in labels]
        touched = any(element.get("source", "manual") != "auto" for element in labels)
        yield Annotation(
            id=image.get("name", ""),
            raw=raw,
            state=LABELLED if touched else DRAFT,
            annotator=text_or_none(who),
            labelled_at=time_of(when),
            tool_id=f"{job.tag if job is not None else ''}{number or ''}/{image.get('name', '')}",
        )


def _shape(element: ElementTree.Element) -> dict[str, Any]:
    """Return a shape as JSON: its kind, its attributes as CVAT writes them, and what a person chose for it."""
    found: dict[str, Any] = {"shape": element.tag, **element.attrib}
    chosen = {attribute.get("name", ""): attribute.text for attribute in element.findall("attribute")}
    return found | ({"attributes": chosen} if chosen else {})


def _of_coco(content: Mapping[str, Any]) -> Iterator[Annotation]:
    names = {category.get("id"): str(category.get("name")) for category in content["categories"]}
    shapes: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        kept = {key: annotation[key] for key in ("bbox", "segmentation", "iscrowd") if key in annotation}
        shapes.setdefault(annotation.get("image_id"), []).append({"label": names.get(annotation.get("category_id"), ""), **kept})
    for image in content["images"]:
        if found := shapes.get(image.get("id")):
            name = str(image.get("file_name", ""))
            yield Annotation(id=name, raw=found, tool_id=f"coco/{name}")  # date_captured is when the picture was taken


TOOL = Tool("cvat", _TITLE, _write, _recognises, _annotations)
