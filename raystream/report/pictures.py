"""The chosen rows as the model saw them, and as pictures of a page.

Thumbnails of chosen rows, when the pool's input is an image.

What the model saw of chosen rows: an input column of theirs, read from the pool.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from raystream.errors import PoolError, RaystreamError
from raystream.lake import storage_from
from raystream.pool import read_columns_at, read_footers
from raystream.pool.columns import declared_type, decode, plain_type, recognise
from raystream.pool.files import known_files, open_parquet, schema_of
from raystream.pool.images import UndecodableError, cells, holds_bytes, open_image, upright
from raystream.pool.scan import Places
from raystream.store.result import Result

_READ_BYTES = 192 << 20
"""Row groups are read whole, and a report must not take longer than the query: about 0.3 s for this much."""
_KEPT_BYTES = 96 << 20
"""Values of later runs that are kept until they are asked for."""

Accepts = Callable[[pa.Field], bool]
"""Tells whether an input column is wanted."""


@dataclass(frozen=True)
class ChosenInputs:
    """Values of an input column.

    Attributes:
        field: the column's, as the first file declares it.
        ranks: of the rows, ascending.
        values: (len(ranks),).
        asked: of how many rows they were wanted.
    """

    field: pa.Field
    ranks: list[int]
    values: pa.ChunkedArray
    asked: int

    def note(self, what: str) -> str:
        """Say that rows are missing, which are called so; nothing where none are."""
        if len(self.ranks) == self.asked:
            return ""
        return f"{what} of {len(self.ranks)} of these {self.asked} rows: the others lie in row groups too large to read for a report."


class GoneError(Exception):
    """The rows can't be read any more; the message says why."""


def inputs_of(result: Result, rows: pa.Table, accepts: Accepts) -> ChosenInputs | None:
    """Read the first input column that is accepted, of rows of a query's pool; None without one. Ranks are places among the rows.

    Args:
        result: the query.
        rows: with the columns `path` and `row`.
        accepts: whether a column is wanted.

    Raises:
        GoneError: the pool can't be read, or isn't what it was.
    """
    return RunsOfInputs(result, rows, max(1, rows.num_rows)).read(0, accepts)


def is_text(field: pa.Field) -> bool:
    """Tell whether a column holds texts."""
    return bool(pa.types.is_string(field.type) or pa.types.is_large_string(field.type))


_Part = tuple[npt.NDArray[np.int64], pa.Array]
"""Ranks, and their values."""


class RunsOfInputs:
    """An input column of rows of a query's pool, read in runs of so many rows, each row group once.

    What a row group that is read holds of other runs is kept until they are asked for: rows of a batch lie all over the pool, and a run
    of it touches nearly all row groups that the batch does. Threads may ask at the same time.

    Args:
        result: the query.
        rows: with the columns `path` and `row`; ranks are places among them.
        run: rows that are read at a time.
    """

    def __init__(self, result: Result, rows: pa.Table, run: int) -> None:
        pool = result.manifest.resolved["pool"]
        self._names = list(dict.fromkeys(pool["inputs"].values() if isinstance(pool["inputs"], dict) else pool["inputs"]))
        self._run, self._lock = run, Lock()
        files = {file.path: file for file in known_files(result.manifest.files, storage_from(pool.get("storage", {})))}
        paths = rows.column("path").combine_chunks().dictionary_encode()
        self._places = Places(
            tuple(files[path] for path in paths.dictionary.to_pylist()), paths.indices.to_numpy(), rows.column("row").to_numpy()
        )
        self._schema: pa.Schema | None = None
        self._asked: set[tuple[str, int]] = set()
        self._kept: dict[tuple[str, int], list[_Part]] = {}
        self._room = _KEPT_BYTES

    def read(self, number: int, accepts: Accepts) -> ChosenInputs | None:
        """Return the first input column that is accepted, of the rows of a run; None if there is no such column or no such run.

        Raises:
            GoneError: the pool can't be read, or isn't what it was.
        """
        if not self._names or not 0 <= number * self._run < len(self._places):
            return None
        ranks = np.arange(number * self._run, min((number + 1) * self._run, len(self._places)))
        with self._lock:
            try:
                field = self._field(accepts)
                if field is None:
                    return None
                found, values = self._values(field, number, ranks)
            except (RaystreamError, OSError, pa.ArrowException) as error:
                raise GoneError(str(error)) from error
        return ChosenInputs(field, found.tolist(), values, len(ranks))

    def _field(self, accepts: Accepts) -> pa.Field | None:
        if self._schema is None:
            first, _ = self._places[0]
            with open_parquet(first) as file:
                self._schema = schema_of(first, file)
        there = [self._schema.field(name) for name in self._names if name in self._schema.names]
        return next((field for field in there if accepts(field)), None)

    def _values(self, field: pa.Field, number: int, ranks: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], pa.ChunkedArray]:
        """Return the ranks of a run that may be read, and their values."""
        parts = self._kept.pop((field.name, number), [])
        self._room += sum(values.nbytes for _, values in parts)
        self._asked.add((field.name, number))
        wanted, others = self._affordable(np.setdiff1d(ranks, np.concatenate([part for part, _ in parts]) if parts else []), field.name)
        others = others[[(field.name, run) not in self._asked for run in (others // self._run).tolist()]]
        if len(wanted):
            read = np.concatenate([wanted, others])
            places = Places(self._places.files, self._places.of[read], self._places.rows[read])
            stored = pa.schema([pa.field(field.name, plain_type(field.type))])
            values = read_columns_at(places, stored).column(0)
            parts += [(wanted, values.slice(0, len(wanted)))]
            self._keep(field.name, others, values.slice(len(wanted)))
        found = np.concatenate([part for part, _ in parts])
        order = np.argsort(found)
        chunks = [chunk for _, values in parts for chunk in (values.chunks if isinstance(values, pa.ChunkedArray) else [values])]
        return found[order], pa.chunked_array(chunks).take(pa.array(order))

    def _keep(self, column: str, ranks: npt.NDArray[np.int64], values: pa.ChunkedArray) -> None:
        """Keep the values of later runs, those of the nearest runs first, as far as there is room."""
        for run in np.unique(ranks // self._run).tolist():
            places = np.flatnonzero(ranks // self._run == run)
            part = values.take(pa.array(places)).combine_chunks()
            if part.nbytes > self._room:
                return
            self._room -= part.nbytes
            self._kept.setdefault((column, run), []).append((ranks[places], part))

    def _affordable(self, ranks: npt.NDArray[np.int64], column: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return those of some ranks whose row groups may be read, the first ones first, at least one; and which others lie in these."""
        of, rows = self._places.of, self._places.rows
        numbers = np.unique(of[ranks])
        footers = read_footers([self._places.files[number] for number in numbers.tolist()], [column]) if len(numbers) else []
        groups = np.full(len(of), -1)  # of all ranks in the files at hand; a row group has one number among those of these files
        sizes: list[int] = []
        for number, footer in zip(numbers.tolist(), footers, strict=True):
            starts = [0, *accumulate(group.rows for group in footer.row_groups)][:-1]
            here = of == number
            groups[here] = len(sizes) + np.searchsorted(starts, rows[here], "right") - 1
            sizes += [group.bytes for group in footer.row_groups]
        bought, spent = set[int](), 0
        for group in dict.fromkeys(groups[ranks].tolist()):
            if not bought or spent + sizes[group] <= _READ_BYTES:
                bought.add(group)
                spent += sizes[group]
        held = np.isin(groups, list(bought))
        mine = np.zeros(len(of), bool)
        mine[ranks] = True
        return np.flatnonzero(held & mine), np.flatnonzero(held & ~mine)


SIDE = 176
_SMALLEST, _LARGEST = 8, 512
_LARGEST_PIXELS = 50_000_000


@dataclass(frozen=True)
class Picture:
    """A thumbnail: the image as a data URI, and whether it is so small that the page should enlarge it by whole pixels."""

    uri: str
    small: bool


@dataclass(frozen=True)
class Pictures:
    """Thumbnails by rank, what there is to say about those that are missing, and the column that they come from."""

    by_rank: dict[int, Picture]
    note: str = ""
    column: str = ""


def pictures(result: Result, count: int) -> Pictures | None:
    """Make thumbnails of the first `count` chosen rows; None when the pool's inputs aren't images."""
    return pictures_of(lambda accepts: inputs_of(result, result.selection.slice(0, count), accepts))


def pictures_of(read: Callable[[Accepts], ChosenInputs | None], side: int = SIDE) -> Pictures | None:
    """Make pictures of rows of a query's pool, by their ranks; None when the pool's inputs aren't images.

    Args:
        read: gives an input column of these rows.
        side: the most pixels of a side; larger images are shrunk to it.
    """
    try:
        found = read(_may_be_images)
    except GoneError as error:
        return Pictures({}, f"The pictures can't be shown: {error}.")
    if found is None:
        return None
    images = _images(found.values, declared_type(found.field), side)
    if images is None:
        return None
    there = {rank: image for rank, image in zip(found.ranks, images, strict=True) if image is not None}
    with _threads() as threads:
        by_rank = dict(zip(there, threads.map(_encode, _as_bytes(list(there.values()))), strict=True))
    return Pictures(by_rank, found.note("Pictures"), found.field.name)


def _threads() -> ThreadPoolExecutor:
    """Threads for work that Pillow does outside the interpreter's lock."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _may_be_images(field: pa.Field) -> bool:
    type_ = plain_type(declared_type(field))
    if holds_bytes(type_):
        return True
    try:
        column = recognise(field.name, type_)
    except PoolError:
        return False
    return column.dtype in ("uint8", "float32") and _layout(column.shape) is not None


def _images(values: pa.ChunkedArray, declared: pa.DataType, side: int) -> Sequence[npt.NDArray[np.generic] | None] | None:
    """Return the rows as images, small ones, with None for a row that is none; None if none of them is one."""
    if not holds_bytes(plain_type(declared)):
        column = recognise("", declared)
        layout = _layout(column.shape)
        assert layout is not None  # the column was chosen for it
        return [_shrunk(_as_image(block, layout), side) for chunk in values.chunks for block in decode(chunk, column)]
    with _threads() as threads:
        found = list(threads.map(lambda data: _decoded(data, side), (data for chunk in values.chunks for data in cells(chunk))))
    return None if all(image is None for image in found) else found


def _decoded(data: memoryview | None, side: int) -> npt.NDArray[np.generic] | None:
    """Decode an image as its owner would see it; None if it is none, or too large for a page."""
    if data is None:
        return None
    try:
        opened = open_image(data, _LARGEST_PIXELS)
        if opened.format == "jpeg":  # decoded at a half, a quarter or an eighth, where that is no smaller: in a fraction of the time
            opened.image.draft(None, _fitting(opened.image.size, side))
        return _shrunk(np.asarray(upright(opened, None, "rgb")), side)
    except UndecodableError:
        return None


def _fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Compute the width and height that an image shrunk to at most so many pixels a side has."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _layout(shape: Sequence[int | None]) -> tuple[int, ...] | None:
    """Return the order of axes that makes (h, w) or (h, w, colours) of one row; None for what is no image."""
    for axes in ((0, 1), (1, 2, 0), (0, 1, 2)):
        if len(axes) != len(shape):
            continue
        height, width, *colours = [shape[axis] for axis in axes]
        sides = all(side is not None and _SMALLEST <= side <= _LARGEST for side in (height, width))
        if sides and (not colours or colours[0] in (1, 3)):
            return axes
    return None


def _as_image(block: npt.NDArray[np.generic], layout: tuple[int, ...]) -> npt.NDArray[np.generic]:
    image = block.transpose(layout)
    return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _shrunk(image: npt.NDArray[np.generic], side: int) -> npt.NDArray[np.generic]:
    """Shrink to at most so many pixels a side; small images stay as they are, for the page enlarges them by whole pixels."""
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image
    size = _fitting((width, height), side)
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BOX))
    planes = image.reshape(height, width, -1).astype(np.float32)
    shrunk = [Image.fromarray(np.ascontiguousarray(planes[:, :, i])).resize(size, Image.Resampling.BOX) for i in range(planes.shape[2])]
    return np.stack([np.asarray(plane) for plane in shrunk], axis=2).reshape(size[1], size[0], *image.shape[2:])


def _as_bytes(images: list[npt.NDArray[np.generic]]) -> list[npt.NDArray[np.uint8]]:
    """Return uint8 as it is; floats, whose scale only the model knows, from the smallest to the largest value of all pictures."""
    if not images or images[0].dtype == np.uint8:
        return [image.astype(np.uint8) for image in images]
    finite = [np.nan_to_num(image.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0) for image in images]
    low, high = min(image.min() for image in finite), max(image.max() for image in finite)
    return [((image - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8) for image in finite]


def _encode(image: npt.NDArray[np.uint8]) -> Picture:
    buffer = io.BytesIO()
    small = max(image.shape[:2]) <= SIDE // 2
    plain = Image.fromarray(np.ascontiguousarray(image))
    if small:  # lossless, it takes a few hundred bytes
        plain.save(buffer, "WEBP", lossless=True, quality=80, method=1)
    else:  # as WebP it would be a sixth smaller, and take ten times as long
        plain.save(buffer, "JPEG", quality=80)
    return Picture(f"data:image/{'webp' if small else 'jpeg'};base64," + base64.b64encode(buffer.getvalue()).decode(), small)
