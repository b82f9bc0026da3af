"""Columns of bytes: what they hold, told by their first bytes, and the bytes of each row.

A row is JPEG, PNG, WebP or a `.npy` file, in a column of binary or, as Hugging Face writes images, of struct<bytes, path>.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Format = Literal["jpeg", "png", "webp", "npy"]
_BYTES = "bytes"
_NPY = b"\x93NUMPY"
_SHOWN_BYTES = 8


class UndecodableError(ValueError):
    """Bytes that don't become a tensor; its text says why, after the column's name."""


def holds_bytes(type_: pa.DataType) -> bool:
    """Whether rows of this type are bytes of their own: binary, or a struct of `bytes` and perhaps a path."""
    if pa.types.is_struct(type_):
        index = type_.get_field_index(_BYTES)
        return index >= 0 and type_.num_fields <= 2 and _is_binary(type_.field(index).type)
    return _is_binary(type_)


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_))


def cells(array: pa.Array) -> Iterator[memoryview | None]:
    """The bytes of each row, without a copy; None where there are none."""
    values = pc.struct_field(array, _BYTES) if pa.types.is_struct(array.type) else array
    for value in values:
        data = value.as_buffer()
        # Arrow's own are signed, which some decoders refuse
        yield None if data is None else memoryview(data).cast("B")


def missing(array: pa.Array) -> dict[int, str]:
    """The rows without bytes, and what they are instead."""
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
    """The format that the first bytes announce; None for any other."""
    start = bytes(memoryview(data)[:12])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"RIFF") and start[8:] == b"WEBP":
        return "webp"
    return "npy" if start.startswith(_NPY) else None


def beginning(data: memoryview | bytes) -> str:
    """The first bytes, for messages."""
    start = bytes(memoryview(data)[:_SHOWN_BYTES])
    return f"bytes that start with {start.hex(' ')}" if start else "no bytes"


def npy_header(data: memoryview | bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """The dtype, the shape, whether it is in Fortran's order, and where the values start.

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
    """What values of a `.npy` file become: floats float32, integers and booleans what they are.

    Raises:
        UndecodableError: they are anything else.
    """
    if dtype.kind == "f":
        return "float32"
    if dtype.kind in "iub":
        return str(dtype.newbyteorder("="))
    raise UndecodableError(f"holds a .npy file of {dtype}, expected numbers or booleans")


def decode_npy(array: pa.Array, shape: tuple[int, ...], dtype: str) -> tuple[npt.NDArray[np.generic], dict[int, str]]:
    """The rows of a column of `.npy` files as (n, *shape) of the dtype, and what is wrong with those that are something else."""
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
