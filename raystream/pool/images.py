"""JPEG, PNG and WebP images as tensors.

Nothing is allocated for an image before its size is known to be allowed: sizes are read from the headers, and the scaling reads
only what of the image it needs. The EXIF orientation is honoured, as photographs are stored lying on their side. Of several
frames the first counts. An image that is cut short is a bad row.

What a column of bytes holds is told by its first bytes. A row is JPEG, PNG, WebP or a `.npy` file, in a column of binary or, as Hugging
Face writes images, of struct<bytes, path>.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from raystream.errors import PoolError
from raystream.query import Preprocess

Format = Literal["jpeg", "png", "webp", "npy"]
_BYTES = "bytes"
_NPY = b"\x93NUMPY"
_SHOWN_BYTES = 8


class UndecodableError(ValueError):
    """Bytes that don't become a tensor; its text says why, after the column's name."""


def holds_bytes(type_: pa.DataType) -> bool:
    """Tell whether rows of this type are bytes of their own: binary, or a struct of `bytes` and perhaps a path."""
    if pa.types.is_struct(type_):
        index = type_.get_field_index(_BYTES)
        return index >= 0 and type_.num_fields <= 2 and is_binary(type_.field(index).type)
    return is_binary(type_)


def is_binary(type_: pa.DataType) -> bool:
    """Tell whether values are bytes of any length."""
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_))


def cells(array: pa.Array) -> Iterator[memoryview | None]:
    """Yield the bytes of each row, without a copy; None where there are none."""
    values = pc.struct_field(array, _BYTES) if pa.types.is_struct(array.type) else array
    for value in values:
        data = value.as_buffer()
        # Arrow's own are signed, which some decoders refuse
        yield None if data is None else memoryview(data).cast("B")


def missing(array: pa.Array) -> dict[int, str]:
    """Return the rows without bytes, and what they are instead."""
    values = pc.struct_field(array, _BYTES) if pa.types.is_struct(array.type) else array
    if not values.null_count:
        return {}
    rows = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False)).tolist()
    paths = array.type.get_field_index("path") if pa.types.is_struct(array.type) else -1
    if paths < 0:
        return dict.fromkeys(rows, "is null")
    named = pc.struct_field(array, "path").is_valid().to_numpy(zero_copy_only=False)
    return {row: "holds a path without bytes; embed the files in the pool" if named[row] else "is null" for row in rows}


def format_of(data: memoryview | bytes) -> Format | None:
    """Return the format that the first bytes announce; None for any other."""
    start = bytes(memoryview(data)[:12])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"RIFF") and start[8:] == b"WEBP":
        return "webp"
    return "npy" if start.startswith(_NPY) else None


def beginning(data: memoryview | bytes) -> str:
    """Return the first bytes, for messages."""
    start = bytes(memoryview(data)[:_SHOWN_BYTES])
    return f"bytes that start with {start.hex(' ')}" if start else "no bytes"


def npy_header(data: memoryview | bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Return the dtype, the shape, whether it is in Fortran's order, and where the values start.

    Raises:
        UndecodableError: it is no `.npy` file, or one of Python objects, which are pickled and never read.
    """
    view = memoryview(data)
    if bytes(view[:6]) != _NPY:
        raise UndecodableError(f"holds {beginning(data)}, expected a .npy file")
    try:
        wide = view[6] > 1
        (length,) = struct.unpack_from("<I" if wide else "<H", view, 8)
        start = (12 if wide else 10) + length
        if length > 10_000 or start > len(view):
            raise ValueError("its header is too long")
        found = ast.literal_eval(bytes(view[start - length : start]).decode("utf-8" if view[6] > 2 else "latin1"))
        dtype, shape = np.dtype(found["descr"]), tuple(int(size) for size in found["shape"])
        fortran = bool(found["fortran_order"])
    except (ValueError, TypeError, KeyError, SyntaxError, struct.error, IndexError, MemoryError, RecursionError) as error:
        raise UndecodableError(f"holds a .npy file whose header is damaged: {error}") from None
    if dtype.hasobject:
        raise UndecodableError("holds a .npy file of Python objects, which are pickled and never read; write numbers")
    return dtype, shape, fortran, start


def npy_dtype(dtype: np.dtype) -> str:
    """Return the dtype that values of a `.npy` file become: floats float32, integers and booleans what they are.

    Raises:
        UndecodableError: they are anything else.
    """
    if dtype.kind == "f":
        return "float32"
    if dtype.kind in "iub":
        return str(dtype.newbyteorder("="))
    raise UndecodableError(f"holds a .npy file of {dtype}, expected numbers or booleans")


def decode_npy(array: pa.Array, shape: tuple[int, ...], dtype: str) -> tuple[npt.NDArray[np.generic], dict[int, str]]:
    """Return the rows of a column of `.npy` files as (n, *shape) of the dtype, and what is wrong with those that are something else."""
    block = np.zeros((len(array), *shape), dtype)
    flaws: dict[int, str] = {}
    for row, data in enumerate(cells(array)):
        try:
            block[row] = _npy_row(data, shape, dtype)
        except UndecodableError as error:
            flaws[row] = str(error)
    return block, flaws


def _npy_row(data: memoryview | None, shape: tuple[int, ...], dtype: str) -> npt.NDArray[np.generic]:
    assert data is not None  # nulls are flaws of their own, found before
    stored, found, fortran, start = npy_header(data)
    if found != shape or npy_dtype(stored) != dtype:
        raise UndecodableError(f"holds a .npy file of {stored} {found}, expected {dtype} {shape}")
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) - start < count * stored.itemsize:
        raise UndecodableError(f"holds a .npy file of {len(data) - start} bytes of values, expected {count * stored.itemsize}")
    with np.errstate(over="ignore"):
        values = np.frombuffer(data, stored, count, start).astype(dtype, copy=False)
    return values.reshape(shape, order="F" if fortran else "C")


Decoder = Literal["simplejpeg", "pillow"]
EachRow = Callable[[Callable[[tuple[int, memoryview | None]], str | None], Iterable[tuple[int, memoryview | None]]], Iterator[str | None]]
"""`map`, or that of a pool of threads."""
_INTERPOLATION = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what sets the image upright."""
_ORIENTATION = 0x0112
_OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
}


@dataclass(frozen=True, slots=True)
class Decoding:
    """The settings by which the images of a column become tensors.

    Attributes:
        settings: the query's.
        jpeg: what decodes JPEG. Two decoders may differ in the last bit, so the planner decides, and all workers follow.
    """

    settings: Preprocess
    jpeg: Decoder


def installed_decoder() -> Decoder:
    """Choose what decodes JPEG here: simplejpeg, which refuses damage that Pillow passes over with gray pixels, if it is installed."""
    return "simplejpeg" if importlib.util.find_spec("simplejpeg") else "pillow"


def decode_images(array: pa.Array, how: Decoding, each: EachRow) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """Decode a column of images to float32 (n, *shape), and say what is wrong with those that can't be, whose tensors are zero.

    Args:
        array: without nulls.
        how: what becomes of them.
        each: runs the decoding of each row.

    Raises:
        PoolError: simplejpeg was installed where the query was planned, but isn't here.
    """
    settings = how.settings
    block = np.zeros((len(array), *settings.shape), np.float32)
    planes = block if settings.layout == "chw" else block.transpose(0, 3, 1, 2)
    decode_jpeg = _simplejpeg() if how.jpeg == "simplejpeg" else None
    tables = _tables(settings)

    def one(cell: tuple[int, memoryview | None]) -> str | None:
        row, data = cell
        assert data is not None  # nulls are flaws of their own, found before
        try:
            image = _sized(upright(open_image(data, settings.max_pixels, settings.size), decode_jpeg, settings.channels), settings)
        except UndecodableError as error:
            return str(error)
        for channel, plane in enumerate(image.split()):
            # indexing takes three times as long
            np.take(tables[channel], np.asarray(plane), out=planes[row, channel], mode="clip")
        return None

    found = each(one, enumerate(cells(array)))
    return block, {row: reason for row, reason in enumerate(found) if reason is not None}


@dataclass(frozen=True)
class Opened:
    """An image of which the header alone was read."""

    image: Image.Image
    data: memoryview | bytes
    format: Format


def open_image(data: memoryview | bytes, max_pixels: int, size: tuple[int, int] = (1, 1)) -> Opened:
    """Read an image's header.

    Args:
        data: the file.
        max_pixels: how many it may have, and how many the scaling to `size` may hold at a time.
        size: height and width that it is going to have.

    Raises:
        UndecodableError: it is no image, or too large.
    """
    kind = format_of(data)
    if kind is None or kind == "npy":
        raise UndecodableError(f"holds {beginning(data)}, expected a JPEG, PNG or WebP image")
    if kind != "jpeg":  # Pillow reserves memory for a WebP image once it opens it, so its size must be known before
        _check_size(kind, _webp_size(data) if kind == "webp" else _png_size(data), max_pixels, size)
    # Image.open would also look for other formats, and warns of large images by a limit of its own.
    image: Image.Image = _guarded(kind, lambda: _OPENERS[kind](io.BytesIO(data)))
    _check_size(kind, image.size, max_pixels, size)
    return Opened(image, data, kind)


def upright(opened: Opened, decode_jpeg: Any, channels: str) -> Image.Image:
    """Decode an image to 8 bits of RGB or gray, as its EXIF orientation says it should be seen.

    Raises:
        UndecodableError: its data are damaged or cut short.
    """
    image = opened.image
    if opened.format == "jpeg" and decode_jpeg is not None and image.mode in ("RGB", "L"):
        space = "GRAY" if image.mode == "L" else "RGB"
        pixels = _guarded("jpeg", lambda: decode_jpeg(opened.data, colorspace=space, fastdct=False, fastupsample=False))
        decoded: Image.Image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    else:
        _guarded(opened.format, image.load)
        decoded = image
    plain: Image.Image = _guarded(opened.format, lambda: _eight_bits(decoded, "RGB" if channels == "rgb" else "L"))
    turn = _UPRIGHT.get(orientation(image.info.get("exif", b"")))
    return plain if turn is None else plain.transpose(turn)


def orientation(exif: bytes) -> int:
    """Return the orientation that EXIF data name, 1 to 8; 1, upright, where they don't or are damaged."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", data, entry)
            if tag == _ORIENTATION:
                return int(value) if value in _UPRIGHT else 1
    except struct.error:
        pass
    return 1


def _sized(image: Image.Image, settings: Preprocess) -> Image.Image:
    """Return the image in the model's size."""
    height, width = settings.size
    filter_ = _INTERPOLATION[settings.interpolation]
    if settings.resize == "stretch":
        return image.resize((width, height), filter_)
    if settings.resize == "pad":
        scale = min(width / image.width, height / image.height)
        inner = (min(width, max(1, round(image.width * scale))), min(height, max(1, round(image.height * scale))))
        canvas = Image.new(image.mode, (width, height))
        canvas.paste(image.resize(inner, filter_), (round((width - inner[0]) / 2), round((height - inner[1]) / 2)))
        return canvas
    # The sides that scaling would give, rounded down; only what is cut out of them is ever computed.
    if image.width * height >= image.height * width:
        scaled = (max(width, height * image.width // image.height), height)
    else:
        scaled = (width, max(height, width * image.height // image.width))
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    across, down = image.width / scaled[0], image.height / scaled[1]
    right, bottom = min(image.width, (left + width) * across), min(image.height, (top + height) * down)
    return image.resize((width, height), filter_, box=(left * across, top * down, right, bottom))


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Return RGB or L; alpha is dropped, 16 bits are cut to 8 as Pillow itself cuts those of colours."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB warns where entries of the palette are transparent
    return image if image.mode == mode else image.convert(mode)


def _tables(settings: Preprocess) -> list[npt.NDArray[np.float32]]:
    """Compute for each channel what the values 0 to 255 become, rounded once."""
    values = np.arange(256) * settings.scale
    mean, std = (np.broadcast_to(np.asarray(of, dtype=np.float64), settings.depth) for of in (settings.mean, settings.std))
    return [((values - mean[i]) / std[i]).astype(np.float32) for i in range(settings.depth)]


def _check_size(kind: Format, found: tuple[int, int], most: int, size: tuple[int, int]) -> None:
    width, height = found
    if width < 1 or height < 1:
        raise UndecodableError(f"holds a {_name(kind)} of {width} x {height} pixels")
    if width * height > most:
        raise UndecodableError(
            f"holds a {_name(kind)} of {width} x {height} pixels, more than model.preprocess.max_pixels allows ({most}); scale it down"
        )
    # Scaling takes the directions one after the other, and an image of 1 x 50,000,000 pixels is 224 x 50,000,000 in between.
    if max(width, height) * max(size) > max(most, max(size) ** 2):
        raise UndecodableError(f"holds a {_name(kind)} of {width} x {height} pixels, too elongated to be scaled; cut it to size")


def _png_size(data: memoryview | bytes) -> tuple[int, int]:
    return _unpacked("png", ">II", data, 16)


def _webp_size(data: memoryview | bytes) -> tuple[int, int]:
    """Read the size of the canvas; a frame can't be larger."""
    kind = bytes(memoryview(data)[12:16])
    if kind == b"VP8X":
        low, high = _unpacked("webp", "<IH", data, 24)
        both = low | high << 32
        return (both & 0xFFFFFF) + 1, (both >> 24 & 0xFFFFFF) + 1
    if kind == b"VP8L":
        (packed,) = _unpacked("webp", "<I", data, 21)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = _unpacked("webp", "<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise UndecodableError("holds a WebP that can't be decoded: its first chunk is unknown")


def _unpacked(kind: Format, form: str, data: memoryview | bytes, offset: int) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(form, memoryview(data), offset)
    except struct.error:
        raise UndecodableError(f"holds a {_name(kind)} that can't be decoded: it is cut short") from None


def _guarded(kind: Format, run: Callable[[], Any]) -> Any:
    """Run a decoder and return what it returns; whatever it raises on damaged data becomes the row's flaw."""
    try:
        return run()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, zlib.error and others
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UndecodableError(f"holds a {_name(kind)} that can't be decoded: {told}") from None


def _name(kind: Format) -> str:
    return {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "npy": ".npy"}[kind]


def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        raise PoolError(
            "JPEG images were planned to be decoded by simplejpeg, which is not installed here; "
            "pip install 'raystream[images]' on every node, or on none"
        ) from None
    return simplejpeg.decode_jpeg
