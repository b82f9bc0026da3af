"""Thumbnails of chosen rows, when the pool's input is an image."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from raystream.errors import PoolError
from raystream.pool.columns import declared_type, decode, plain_type, recognise
from raystream.pool.images import UndecodableError, cells, holds_bytes, open_image, upright
from raystream.report.chosen_inputs import Accepts, ChosenInputs, GoneError, inputs_of
from raystream.store.result import Result

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
