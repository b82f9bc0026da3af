"""A query's scores as data: one Parquet file, or rows of a table, of every scored row of its pool in row order."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raystream.errors import QueryError, StoreError
from raystream.lake import LOCAL, parse, reason, redacted, with_options
from raystream.lake.table_uri import is_table
from raystream.lake.table_writer import TableRows, check_replaceable, file_in, uploading, write_table
from raystream.pool import refuse_among
from raystream.store.integrity import reading
from raystream.store.manifest import Manifest
from raystream.store.opening import refuse_in_store
from raystream.store.protocol import Store
from raystream.store.queries import find_query, read_manifest, stored_units
from raystream.store.receipts import EMBEDDINGS, Receipt, UnitOutputs
from raystream.store.unit_columns import read_columns
from raystream.store.vectors import VectorFiles, fetch, taken

EMBEDDING = "embedding"
"""The column of embeddings."""
_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 1 << 20


@dataclass(frozen=True)
class WrittenScores:
    """A table of scores that was written: its `columns` in their order, and where it is."""

    query: str
    uri: str
    rows: int
    columns: tuple[str, ...]
    bytes: int | None

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def write_scores(store: Store, name: str, out: str, *, embeddings: bool = False) -> WrittenScores:
    """Write the scores of all rows that a committed query chose from: its candidates, the others, and labelled ones.

    Columns: the id under its own name and in its own type, every stored score (float32, higher means label sooner), `prediction`
    (int32), `confidence`, `path`, `row`, and `embedding` if asked. A Parquet file is written a row group of at most 64 MiB at a
    time and is there when it is whole, in object storage, too; a table gets as many rows at a time, in one commit.

    Args:
        store: holds the query.
        name: the query's, or its beginning.
        out: a file that ends in `.parquet`, a folder, which gets `scores-<query>.parquet`, or a table's URI; options of object
            storage stand in the URI.
        embeddings: whether to write them, too, in the type that they are stored in.

    Raises:
        QueryError: there is no such query, the place can't be used, or the query has no embeddings.
        StoreError: units of the query are gone or damaged, or the place can't be written.
    """
    manifest = read_manifest(store, find_query(store, name))
    assert manifest is not None
    units = stored_units(store, manifest)
    filled = np.flatnonzero(units.outputs.rows)
    if embeddings and not all(units.outputs[index].of(EMBEDDINGS) for index in filled.tolist()):
        raise QueryError(f"query {manifest.query} has no embeddings, which its strategy didn't need; leave --embeddings out")
    refuse_among(out, _sources(manifest.resolved), "--out", f"scores-{manifest.query}.parquet")
    refuse_in_store(out, store.uri, "--out")
    schema = _schema(store, manifest, units.outputs[int(filled[0])], embeddings)
    files = VectorFiles(store)

    def pieces() -> Iterator[pa.Table]:
        for index in filled.tolist():
            yield from _pieces(store, files, units.outputs[index], units.paths[units.path_of[index]], schema)

    count = int(units.outputs.rows.sum())
    if is_table(out):
        rows = TableRows(schema, count, lambda: (batch for piece in pieces() for batch in piece.to_batches()), _group_rows(schema))
        write_table(rows, out, manifest.query, name="scores", key="--out")
        return WrittenScores(manifest.query, redacted(out), count, tuple(schema.names), None)
    with _file(out, f"scores-{manifest.query}.parquet") as (file, place):
        _write(file, schema, pieces())
        size = file.tell()
    return WrittenScores(manifest.query, place, count, tuple(schema.names), size)


def _sources(resolved: dict[str, Any]) -> dict[str, list[str]]:
    """Return all that a committed query's rows came from, by its keys."""
    pool, model, acquire = (resolved.get(section) or {} for section in ("pool", "model", "acquire"))
    found = {
        "pool.uri": pool.get("uri"),
        "pool.labelled": pool.get("labelled"),
        "model.temperature": model.get("temperature"),
        "acquire.targets": acquire.get("targets"),
    }
    return {key: [uris] if isinstance(uris, str) else uris for key, uris in found.items() if isinstance(uris, str | list)}


def _schema(store: Store, manifest: Manifest, first: UnitOutputs, embeddings: bool) -> pa.Schema:
    """Return the columns of the file, from the first unit, and where they come from as its metadata."""
    types = {name: type_ for receipt in first.receipts for name, type_ in _types(store, receipt).items()}
    columns = [name for receipt in first.receipts for name in receipt.columns if name != "row"]
    fields = [pa.field(name, types[name]) for name in columns]
    fields += [pa.field("path", pa.string()), pa.field("row", pa.int64())]
    vectors = first.of(EMBEDDINGS)
    if embeddings and vectors is not None and vectors.file is not None:
        part = VectorFiles(store).parts(vectors.file, vectors.rows)[0]
        item = pa.field("item", pa.from_numpy_dtype(part.array.dtype), nullable=False)
        fields.append(pa.field(EMBEDDING, pa.list_(item, part.dimension)))
    return pa.schema(fields, manifest.about)


def _types(store: Store, receipt: Receipt) -> dict[str, pa.DataType]:
    """Return the types of an output's columns; none of vectors."""
    if receipt.file is None or not receipt.columns:
        return {}
    with reading(store, receipt.file):
        schema = pq.read_schema(store.source(receipt.file))
    return {name: schema.field(name).type for name in receipt.columns}


def _pieces(store: Store, files: VectorFiles, outputs: UnitOutputs, path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield a unit's rows, which are of this file of the pool, some at a time."""
    vectors = outputs.of(EMBEDDINGS) if EMBEDDING in schema.names else None
    kept = None if vectors is None else outputs.kept.get(vectors.output)
    parts = [] if vectors is None or vectors.file is None else files.parts(vectors.file, vectors.rows)
    fetch(parts)
    stored = [name for name in schema.names if name not in ("path", EMBEDDING)]
    table = next(read_columns(store, [outputs], stored))
    size = _group_rows(schema)
    for start in range(0, table.num_rows, size):
        rows = table.slice(start, size)
        columns: dict[str, pa.Array | pa.ChunkedArray] = dict(zip(stored, rows.columns, strict=True))
        columns["path"] = pa.repeat(pa.scalar(path, pa.string()), rows.num_rows)
        if vectors is not None:
            wanted = np.arange(start, start + rows.num_rows) if kept is None else kept[start : start + size]
            type_ = schema.field(EMBEDDING).type
            values = pa.array(taken(parts, wanted).reshape(-1), type_.value_type)
            columns[EMBEDDING] = pa.FixedSizeListArray.from_arrays(values, type=type_)
        yield pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def _group_rows(schema: pa.Schema) -> int:
    """Count the rows of a row group: 64 MiB of numbers and embeddings, but no more than a million."""
    width = sum(field.type.bit_width // 8 if _is_fixed(field.type) else 32 for field in schema)
    return int(min(_GROUP_ROWS, max(1, _GROUP_BYTES // width)))


def _is_fixed(type_: pa.DataType) -> bool:
    try:
        return bool(type_.bit_width)
    except ValueError:
        return False


def _write(out: pa.NativeFile, schema: pa.Schema, pieces: Iterator[pa.Table]) -> None:
    """Write pieces as row groups of even size."""
    size = _group_rows(schema)
    held: list[pa.Table] = []
    rows = 0
    with pq.ParquetWriter(
        out, schema, compression="zstd", use_dictionary=["path"], write_statistics=[name for name in schema.names if name != EMBEDDING]
    ) as writer:
        for piece in pieces:
            held.append(piece)
            rows += piece.num_rows
            if rows >= size:
                whole = pa.concat_tables(held)
                full = rows - rows % size
                writer.write_table(whole.slice(0, full), row_group_size=size)
                held, rows = [whole.slice(full)], rows - full
        if rows:
            writer.write_table(pa.concat_tables(held), row_group_size=size)


@contextmanager
def _file(out: str, name: str) -> Iterator[tuple[pa.NativeFile, str]]:
    """Open a file to write to, which is there when the block ends, whole, or not at all; and give its path or URI."""
    location = parse(out, "--out")
    path = file_in(location, name, "--out")
    try:
        check_replaceable(replace(location, path=path), False, "--out")
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"--out {location.at(path)} can't be written: {reason(error)}") from None
    if location.scheme == "file":
        with _local_file(Path(path)) as file:
            yield file, path
        return
    place = location.at(path)
    with uploading(place, with_options(location, LOCAL, "--out"), "--out") as file:
        yield file, place


@contextmanager
def _local_file(target: Path) -> Iterator[pa.NativeFile]:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(temporary), "wb") as file:
            yield file
        with temporary.open("rb") as whole:
            os.fsync(whole.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        why = error.strerror or reason(error)
        raise StoreError(f"--out {target} can't be written: {why}; name another place or free some space") from None
    finally:
        temporary.unlink(missing_ok=True) if target.parent.is_dir() else None
