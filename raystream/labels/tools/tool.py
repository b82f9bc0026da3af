"""What a tool is to raystream: a function that writes a batch, and one that reads annotations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raystream.errors import LabelsError, QueryError, RaystreamError
from raystream.labels.annotation import FIELD, QUERY_FIELD, RANK_FIELD, SCORE_FIELD, Annotation, Document
from raystream.labels.batch import Batch, Item

_OPEN = ("http:", "https:", "data:")


@dataclass(frozen=True)
class Written:
    """What a batch becomes.

    Attributes:
        files: their content by name.
        notes: what the tool can't hold or what is left to do; sentences.
        single: whether `--out` names the one file, not a folder.
        pictures: whether pictures that are no links are written beside, as `images/` and their names.
    """

    files: dict[str, bytes]
    notes: tuple[str, ...] = ()
    single: bool = False
    pictures: bool = True


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        name: as `--to` and `--from` have it.
        title: for people.
        write: a batch as its files; QueryError if it can't show what there is.
        recognises: whether a file is one that this tool writes.
        annotations: what people did, of a file that it recognises; it may raise what `read` takes for a record of another shape.
        expected: what a file must hold, for messages, where that isn't told by the tool's name.
    """

    name: str
    title: str
    write: Callable[[Batch], Written]
    recognises: Callable[[Document], bool]
    annotations: Callable[[Document], Iterator[Annotation]]
    expected: str = ""

    def read(self, document: Document) -> Iterator[Annotation]:
        """Return what people did, of a file that this tool wrote.

        Raises:
            LabelsError: part of it is of another shape than the tool writes.
        """
        done = 0
        try:
            if isinstance(document.content, list) and len(document.records) < len(document.content):
                raise TypeError("a record that is no object")
            for annotation in self.annotations(document):
                yield annotation
                done += 1
        except RaystreamError:
            raise
        except ValueError as error:
            raise LabelsError(f"{document.name}: {error}, in what follows {done:,} labels; correct it or export it again") from None
        except (AttributeError, KeyError, TypeError) as error:
            raise LabelsError(
                f"{document.name} isn't as {self.title} writes it: what follows {done:,} labels has another shape; was it edited? Export "
                "it again"
            ) from error


def looks_like(document: Document, tools: Iterable[Tool]) -> Tool | None:
    """Return the tool that wrote a file; None if none of them did."""
    return next((tool for tool in tools if tool.recognises(document)), None)


def about(batch: Batch, item: Item) -> dict[str, Any]:
    """Return what travels with a row through every tool, under our own names."""
    return {
        FIELD: item.id,
        QUERY_FIELD: batch.query,
        RANK_FIELD: item.rank,
        SCORE_FIELD: item.score,
        "raystream_confidence": item.confidence,
        "raystream_why": item.why,
        "raystream_represents": item.represents,
    }


def picture(batch: Batch, item: Item, folder: str = "images/") -> str | None:
    """Say where a row's picture is: its link, or its file beside."""
    if item.data is not None:
        return folder + batch.file_name(item)
    return item.url


def needs_shown(batch: Batch, title: str) -> None:
    """Refuse a batch of which people would see nothing.

    Raises:
        QueryError: there is neither text nor picture.
    """
    if batch.kind is None:
        raise QueryError(
            f"query {batch.query} has neither texts nor pictures among its inputs and kept columns, so {title} could show nothing; name a "
            "column of the pool by --show, or use --to csv, jsonl or parquet"
        )


def as_json(value: object) -> bytes:
    """Return one JSON document."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def as_lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    """Return JSON Lines in ASCII: some tools take any of Unicode's separators of lines for the end of one."""
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def no_classes(batch: Batch) -> tuple[str, ...]:
    """Return what is to be said where the classes are only those that were predicted."""
    if batch.complete or batch.task not in ("classes", "multi_label"):
        return ()
    return (f"the query names no classes, so only the {len(batch.classes)} that its model shows are offered: complete them",)


def no_prediction(batch: Batch, title: str) -> tuple[str, ...]:
    """Return what is to be said where predictions don't travel."""
    if batch.task == "classes":
        return ()
    return (f"predictions of model.task {batch.task} are not carried to {title}; its annotators begin from nothing",)


def closed_links(batch: Batch, title: str) -> tuple[str, ...]:
    """Return what is to be said where pictures are links that no browser opens, such as those into buckets."""
    closed = [item.url for item in batch.items if item.data is None and item.url and not item.url.startswith(_OPEN)]
    if batch.kind != "image" or not closed:
        return ()
    scheme = closed[0].partition("://")[0]
    are = "1 link is" if len(closed) == 1 else f"{len(closed):,} links are"
    return (f"{are} of no kind that a browser opens ({scheme}://…): sign them by --presign, unless {title} has access to that place",)
