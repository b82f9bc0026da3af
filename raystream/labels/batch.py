"""A committed batch as people are to see it, with links to what lies in buckets.

A committed batch as people are to see it: each chosen row with its text or picture, and what the model thinks of it.

Links into buckets that whoever has them may open for a while: written only when asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import pyarrow as pa

from raystream.errors import PoolError, QueryError, StoreError, did_you_mean
from raystream.labels.annotation import IdColumn
from raystream.lake import is_remote, parse, storage_from, with_options
from raystream.lake.bucket import bucket_of
from raystream.lake.retry import server_reason
from raystream.pool import File, read_columns_at
from raystream.pool.columns import plain, plain_type
from raystream.pool.files import known_files, open_parquet, schema_of
from raystream.pool.images import cells, format_of, holds_bytes
from raystream.store.queries import stored_units
from raystream.store.result import Result
from raystream.store.rounds import as_asked, is_round

_URL = re.compile(r"(?:https?|s3a?|gs|gcs|abfss?|file)://\S+|data:image/")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
Kind = Literal["text", "image"]


@dataclass(frozen=True)
class Item:
    """One chosen row.

    Attributes:
        id: as tools carry it.
        rank: 0 is to be labelled first.
        score: higher is more uncertain; None for strategies without one.
        prediction: the class that the model thinks it is, as text; None where it says none.
        confidence: of that, 0 to 1.
        why: the constraint or share that the row was chosen for; empty otherwise.
        represents: how many candidates are nearest to it.
        text: what to read.
        url: where the picture is.
        data: the picture itself, encoded.
    """

    id: str
    rank: int
    score: float | None
    prediction: str | None
    confidence: float | None
    why: str
    represents: int | None
    text: str | None = None
    url: str | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Batch:
    """What is exported of a query.

    Attributes:
        query: its name.
        ids: what ids are.
        task: `model.task`.
        classes: the names of the classes; of a model that names none, those predicted in the batch.
        complete: whether these are all.
        column: what is shown.
        kind: text or pictures; None where there is nothing to show.
        model: the beginning of its fingerprint.
        committed: when.
        items: by rank.
    """

    query: str
    ids: IdColumn
    task: str
    classes: tuple[str, ...]
    complete: bool
    column: str | None
    kind: Kind | None
    model: str
    committed: str
    items: tuple[Item, ...]

    def file_name(self, item: Item) -> str:
        """Name the file in which a picture's bytes are written; a tool that knows files alone gives its row back by it."""
        return f"{file_stem(self.query, item.rank, item.id)}.{_suffix(item.data or b'')}"


def file_stem(query: str, rank: int, id_: str) -> str:
    """Return the name of a row's picture without its suffix: safe in every file system and URL, whatever characters the id has."""
    return f"{_UNSAFE.sub('_', query)}.{rank:06d}.{hashlib.sha256(id_.encode()).hexdigest()[:10]}"


def ids_of(result: Result) -> IdColumn:
    """Return what the ids of a query's pool are."""
    name = result.manifest.resolved["pool"].get("id") or "id"
    return IdColumn(name, result.selection.schema.field(name).type)


def names_classes(result: Result) -> bool:
    """Tell whether the query itself gives its classes names, so that labels are texts."""
    return result.manifest.resolved["model"].get("classes") is not None


def class_names_of(result: Result, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names of the classes: those that the query gives, else the model's own; None where the classes are numbers.

    Args:
        result: the committed query.
        given: what the file holds that `model.classes` names, if it names one.
    """
    listed = result.manifest.resolved["model"].get("classes")
    if given is not None or isinstance(listed, list):
        return tuple(listed if given is None else given)
    if "prediction_name" not in result.selection.column_names:
        return None
    units = stored_units(result.store, result.manifest).outputs
    labels = next((unit.class_labels for unit in units if unit.class_labels is not None), None)
    return None if labels is None else tuple(map(str, labels))


def read_batch(result: Result, classes: Sequence[str] | None = None, show: str | None = None) -> Batch:
    """Read the batch of a committed query, with what people are to see of each row.

    Args:
        result: the committed query; of a loop's round, its control rows come with it.
        classes: what the file holds that `model.classes` names, if it names one.
        show: the column to show, of the pool or kept in the selection; left out, the first of `pool.inputs` that holds texts or
            encoded pictures, else the first kept column of URLs.

    Raises:
        QueryError: there is no such column, or it holds neither texts nor pictures.
        PoolError: a file of the pool is gone or was changed since.
    """
    result = as_asked(result)
    selection, task = result.selection, result.manifest.resolved["model"]["task"]
    ids = ids_of(result)
    known = class_names_of(result, classes)
    rows = selection.num_rows

    def column(name: str) -> list[object]:
        return selection.column(name).to_pylist() if name in selection.column_names else [None] * rows

    predicted = column("prediction_name" if "prediction_name" in selection.column_names else "prediction")
    names = [None if value is None or task != "classes" else str(value) for value in predicted]
    name, values = _shown(result, show)
    kind = None if values is None else _kind(values)
    if kind is None and show is not None:
        raise QueryError(f"--show {show} holds neither text nor JPEG, PNG or WebP pictures; name a column that does")
    cells_ = [None] * rows if kind is None or values is None else _cells(values)
    items = tuple(
        Item(
            id_, rank, score, prediction, confidence, why or "", represents,
            text=cell if isinstance(cell, str) and kind == "text" else None,
            url=cell if isinstance(cell, str) and kind == "image" else None,
            data=cell if isinstance(cell, bytes) else None,
        )
        for id_, rank, score, prediction, confidence, why, represents, cell in zip(
            ids.texts(selection.column(ids.name)), column("rank"), column("score"), names, column("confidence"), column("why"),
            column("represents"), cells_, strict=True,
        )
    )  # fmt: skip
    seen = tuple(sorted({prediction for prediction in names if prediction is not None}, key=lambda text: (len(text), text)))
    manifest = result.manifest
    # a loop's model knows the classes that it has met; others may come with any label
    complete = known is not None and (classes is not None or names_classes(result) or not is_round(result))
    return Batch(
        manifest.query, ids, task, known if known is not None else seen, complete, name if kind else None, kind,
        manifest.fingerprint[:12], manifest.committed, items,
    )  # fmt: skip


def _shown(result: Result, show: str | None) -> tuple[str, pa.ChunkedArray] | tuple[None, None]:
    """Return the column that people see, and its values for the chosen rows; nothing if there is none."""
    selection = result.selection
    pool = result.manifest.resolved["pool"]
    inputs = pool["inputs"]
    kept = [name for name in pool.get("keep") or [] if name in selection.column_names]
    if show is not None:
        if show in kept:
            return show, plain(selection.column(show))
        return show, _read(result, [show], required=True)[show]
    if not selection.num_rows:
        return None, None
    names = list(dict.fromkeys(inputs.values() if isinstance(inputs, dict) else inputs))
    found = _read(result, [name for name in names if name not in kept], required=False)
    for name in names:
        values = plain(selection.column(name)) if name in kept else found.get(name)
        if values is not None and _kind(values) is not None:
            return name, values
    for name in kept:
        if _kind(plain(selection.column(name))) == "image":
            return name, plain(selection.column(name))
    return None, None


def _read(result: Result, names: Sequence[str], *, required: bool) -> dict[str, pa.ChunkedArray]:
    """Return columns of the pool's files, of the chosen rows; those that may be text or pictures, or all that are asked for by name."""
    if not names or not result.selection.num_rows:
        return {name: pa.chunked_array([], pa.string()) for name in names}
    selection = result.selection
    storage = storage_from(result.manifest.resolved["pool"].get("storage") or {})
    files = {file.path: file for file in known_files(result.manifest.files, storage)}
    places: list[tuple[File, int]] = [
        (files[path], row) for path, row in zip(selection.column("path").to_pylist(), selection.column("row").to_pylist(), strict=True)
    ]
    with open_parquet(places[0][0]) as file:
        schema = schema_of(places[0][0], file)
    wanted = []
    for name in names:
        if name not in schema.names:
            if required:
                raise QueryError(f"--show {name} is no column of the pool{did_you_mean(name, schema.names)}")
            continue
        type_ = plain_type(schema.field(name).type)
        if required or _is_text(type_) or holds_bytes(type_):
            wanted.append(pa.field(name, type_))
    if not wanted:
        return {}
    try:
        table = read_columns_at(places, pa.schema(wanted))
    except PoolError as error:
        raise PoolError(f"what people are to see of the chosen rows can't be read: {error}") from None
    return {field.name: table.column(field.name) for field in wanted}


def check_shown(file: File, inputs: Sequence[str], kept: Sequence[str], show: str | None) -> None:
    """See before anything is chosen that a pool has something that people can look at, as far as types tell.

    Args:
        file: of the pool.
        inputs: the columns that the model sees.
        kept: those that selections carry.
        show: the column to show; see `read_batch`.

    Raises:
        QueryError: it has nothing, or not that column.
    """
    with open_parquet(file) as parquet:
        schema = schema_of(file, parquet)
    if show is not None and show not in schema.names:
        raise QueryError(f"loop.oracle.show {show} is no column of the pool{did_you_mean(show, schema.names)}")
    for name in (*inputs, *kept) if show is None else (show,):
        type_ = plain_type(schema.field(name).type) if name in schema.names else pa.null()
        if _is_text(type_) or holds_bytes(type_):
            return
    where = "pool.inputs and pool.keep hold" if show is None else f"loop.oracle.show {show} holds"
    raise QueryError(f"{where} neither texts nor pictures, so people could see nothing; name a column that does in loop.oracle.show")


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _kind(values: pa.ChunkedArray) -> Kind | None:
    """Return what a column holds."""
    if _is_text(values.type):
        given = [value for value in values.to_pylist() if value]
        return "image" if given and all(_URL.match(value) for value in given) else "text"
    if not holds_bytes(values.type):
        return None
    first = next((cell for chunk in values.chunks for cell in cells(chunk) if cell is not None), None)
    return "image" if first is not None and format_of(first) in ("jpeg", "png", "webp") else None


def _cells(values: pa.ChunkedArray) -> list[str | bytes | None]:
    if _is_text(values.type):
        return list(values.to_pylist())
    return [None if cell is None else bytes(cell) for chunk in values.chunks for cell in cells(chunk)]


def _suffix(data: bytes) -> str:
    return {"jpeg": "jpg", "png": "png", "webp": "webp"}.get(format_of(data) or "", "bin")


LONGEST = 7 * 24 * 3600.0
"""Seconds; no provider signs for longer."""


def presigned(batch: Batch, seconds: float, options: Mapping[str, Any]) -> Batch:
    """Sign the links of a batch into buckets.

    Args:
        batch: whose pictures are links.
        seconds: for which they open.
        options: of the object storage, as `pool.storage` has them.

    Raises:
        QueryError: there is no link to sign, or the time is longer than any provider signs for.
        StoreError: the credentials in the environment can't sign.
    """
    import obstore
    from obstore.exceptions import BaseError

    if not 0 < seconds <= LONGEST:
        raise QueryError("--presign must be more than 0 and at most 7d, since no provider signs for longer")
    if not any(item.url and is_remote(item.url) and not item.url.startswith(("http:", "https:")) for item in batch.items):
        raise QueryError(f"--presign signs links into buckets, such as s3://…, but column {batch.column} holds none; leave it out")
    storage = storage_from(options)
    items, buckets = [], {}
    for item in batch.items:
        if not item.url or item.url.startswith(("http:", "https:")) or not is_remote(item.url):
            items.append(item)
            continue
        location = parse(item.url, f"column {batch.column}")
        root = replace(location, path=location.bucket, options=())
        try:
            if root.uri not in buckets:
                buckets[root.uri] = bucket_of(root.uri, with_options(location, storage, "pool.storage"), f"column {batch.column}")
            items.append(replace(item, url=str(obstore.sign(buckets[root.uri], "GET", location.key, timedelta(seconds=seconds)))))
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, QueryError | StoreError):
                raise
            raise StoreError(f"{location.uri} can't be signed: {server_reason(error)}; set the credentials in the environment") from None
    return replace(batch, items=tuple(items))
