"""Turn Arrow columns into the model's input tensors.

A column is recognised from its Arrow type alone. Numbers and booleans are scalars; `fixed_size_list`, `list` and
`large_list` of them, nested or not, and `arrow.fixed_shape_tensor` are tensors of one shape for the whole pool.

For a model that takes texts, a column of strings is one input, too: an object array of str, (n,).

Bytes are one input a column, too: images, decoded as the query says, or `.npy` files. Which, only the data can tell.

Types: floating columns become float32; integer and boolean tensors keep their type; scalar columns of whatever
type are stacked, in order, into one float32 tensor (n, f). Each tensor column is one positional input of the model.

Tensor columns that other libraries wrote are recognised from the schema alone; none of these libraries is imported.

* Ray Data, `ray.data.arrow_tensor` and `ray.data.arrow_tensor_v2`: a list of all values of a row, the shape as JSON in the
  field's metadata.
* Hugging Face, `Array2DExtensionType` and the like: nested lists, which are tensors as they are.

Where the library is imported all the same, pyarrow knows these types; then they are taken apart again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raystream.errors import PoolError
from raystream.pool import images as encoded
from raystream.pool.images import Decoding

_RAY = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
_RAGGED = "ray.data.arrow_variable_shaped_tensor"


def declared_type(field: pa.Field) -> pa.DataType:
    """Return the type that says what a column holds: Arrow's own fixed-shape tensor for Ray's, the storage's for other extensions.

    Raises:
        PoolError: a tensor column doesn't say its shape, or has none.
    """
    type_, metadata = field.type, field.metadata or {}
    if isinstance(type_, pa.FixedShapeTensorType):
        return type_
    name = metadata.get(b"ARROW:extension:name", b"").decode("utf-8", "replace")
    written = metadata.get(b"ARROW:extension:metadata", b"")
    if isinstance(type_, pa.BaseExtensionType):
        name, type_ = type_.extension_name, storage_type(type_)
        written = field.type.__arrow_ext_serialize__() if name in _RAY else b""
    if name == _RAGGED:
        raise PoolError(f"column {field.name} holds Ray tensors of different shapes; expected one shape, so write it anew with one")
    if name not in _RAY or not (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        return type_
    return pa.fixed_shape_tensor(type_.value_type, _shape(field.name, written))


def storage_type(type_: pa.DataType) -> pa.DataType:
    """Return the type that an extension type is stored as; any other type itself."""
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    return type_


def _shape(column: str, written: bytes) -> list[int]:
    try:
        shape: Any = json.loads(written)
    except ValueError:
        # Ray can be told to pickle it, and what is in a pool is never unpickled.
        shape = None
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape) or not shape:
        raise PoolError(f"column {column} is a Ray tensor whose shape is not written as JSON; write the pool with Ray's default settings")
    return shape


TEXT = "object"
"""The dtype of texts."""
BYTES = "bytes"
"""The dtype of bytes of which it isn't known yet what they are."""
RAW = "raw"
"""The dtype of a column that goes as it is to a function of the user's."""
Texts = Literal["refused", "taken", "expected"]
_UNREADABLE = (ValueError, OverflowError, pa.ArrowException)
Flaws = dict[int, str]
"""Row of a block -> what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the model sees it.

    Attributes:
        shape: of one row; None stands for the width of a list, which only the data can tell. () is a scalar.
        dtype: of the decoded tensor; "object" for texts, which are str.
        masked: whether -inf is a value, as in logits, where it masks a class.
        image: how its images are decoded, if it holds images.
        npy: whether it holds `.npy` files.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    masked: bool = False
    image: Decoding | None = None
    npy: bool = False

    @property
    def is_scalar(self) -> bool:
        """True if the column holds one number a row, and is stacked with the others."""
        return not self.shape and not self.is_text and not self.is_encoded and not self.is_raw

    @property
    def is_encoded(self) -> bool:
        """True if a row is bytes, from which its tensor is decoded."""
        return self.npy or self.image is not None or self.dtype == BYTES

    @property
    def is_raw(self) -> bool:
        """True if a function of the user's makes tensors of the column."""
        return self.dtype == RAW

    @property
    def is_text(self) -> bool:
        """True if the column holds strings."""
        return self.dtype == TEXT


def recognise(name: str, type_: pa.DataType, texts: Texts = "refused") -> Column:
    """Find what a column of this type is to the model.

    Args:
        name: the column's.
        type_: the column's.
        texts: whether the model takes strings, or nothing else.

    Raises:
        PoolError: the type can't become what the model takes.
    """
    plain_ = plain_type(type_)
    if texts != "refused" and (pa.types.is_string(plain_) or pa.types.is_large_string(plain_)):
        return Column(name, (), TEXT)
    if texts == "expected":
        raise PoolError(f"column {name} is {type_}; expected strings, as this kind of model takes texts")
    if encoded.holds_bytes(plain_):
        return Column(name, (None,), BYTES)
    if isinstance(type_, pa.FixedShapeTensorType):
        shape = tuple(type_.shape)
        order = type_.permutation or range(len(shape))
        return Column(name, tuple(shape[i] for i in order), _dtype(name, type_, type_.value_type))
    sizes: list[int | None] = []
    leaf = type_
    while _is_list(leaf):
        sizes.append(leaf.list_size if pa.types.is_fixed_size_list(leaf) else None)
        leaf = leaf.value_type
    return Column(name, tuple(sizes), _dtype(name, type_, leaf))


def check_mixture(columns: Sequence[Column]) -> None:
    """Raise PoolError if single numbers, which become one tensor, stand beside anything else."""
    scalar = next((c for c in columns if c.is_scalar), None)
    other = next((c for c in columns if not c.is_scalar), None)
    if scalar is not None and other is not None:
        raise PoolError(
            f"the inputs mix single numbers (column {scalar.name}) with {'texts' if other.is_text else 'lists'} (column {other.name}); "
            "expected one kind, so put the numbers into a list column or leave one of them out"
        )


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the type to compute with: a dictionary's values, and 64-bit offsets for views, which Arrow 26 can't take or compare."""
    if pa.types.is_dictionary(type_):
        return plain_type(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType) and not isinstance(type_, pa.FixedShapeTensorType):
        return plain_type(storage_type(type_))
    if pa.types.is_string_view(type_):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(type_) else type_


def plain(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the same values in their plain type."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType) and not isinstance(type_, pa.FixedShapeTensorType):
        chunked = isinstance(array, pa.ChunkedArray)
        return plain(pa.chunked_array([c.storage for c in array.chunks], type_.storage_type) if chunked else array.storage)
    plain_ = plain_type(type_)
    return array if plain_ is type_ else array.cast(plain_)


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with all columns in their plain types."""
    return batch if _is_plain(batch.schema) else pa.record_batch([plain(column) for column in batch.columns], names=batch.schema.names)


def readable(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return the values as Python's, for people; as text where Python has none, such as times after the year 9999."""
    try:
        return list(array.to_pylist())
    except _UNREADABLE:
        return [_readable(value) for value in array]


def _readable(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except _UNREADABLE:
        pass
    type_ = value.type
    try:
        if pa.types.is_timestamp(type_) and type_.tz is not None:
            return f"{value.cast(pa.timestamp(type_.unit)).cast(pa.string()).as_py()}Z"
        return value.cast(pa.string()).as_py()
    except _UNREADABLE:
        return f"a value of type {type_}"


def _is_plain(schema: pa.Schema) -> bool:
    return all(plain_type(type_) is type_ for type_ in schema.types)


def row_shapes(array: pa.Array, column: Column) -> list[tuple[int, ...]]:
    """Return the shapes of the rows of a list column that have one: those that are null, ragged, or empty at any level are left out."""
    count = len(array)
    of = np.arange(count)  # the row that each list belongs to
    shapes = np.zeros((count, len(column.shape)), dtype=np.int64)
    regular = np.ones(count, dtype=bool)
    for level in range(len(column.shape)):
        widths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        least = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(least, of, widths)
        np.maximum.at(shapes[:, level], of, widths)
        regular &= (least == shapes[:, level]) & (least > 0)
        array, of = array.flatten(), np.repeat(of, widths)
    return [tuple(shape) for shape in shapes[regular].tolist()]


def structural_flaws(array: pa.Array, column: Column) -> Flaws:
    """Return the rows that are null, hold nulls, or don't have the column's shape; empty for a sound block."""
    if column.is_raw:
        return text_flaws(array)
    if column.is_encoded:
        return encoded.missing(array)
    if column.is_text and (flaws := text_flaws(array)):
        return flaws | dict.fromkeys(np.flatnonzero(np.asarray(array.is_null())).tolist(), "is null")
    array = _storage(array)
    return _flaws(array, _storage_shape(array, column), np.arange(len(array)))


def text_flaws(array: pa.Array) -> Flaws:
    """Return the rows of a column of strings that aren't UTF-8, which Parquet and Arrow let through, but Python doesn't."""
    if not pa.types.is_string(array.type) and not pa.types.is_large_string(array.type):
        return {}
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        rows = enumerate(array.cast(pa.large_binary()).to_pylist())
        return {row: "is no UTF-8" for row, value in rows if value is not None and value.decode(errors="ignore").encode() != value}
    return {}


def decode(array: pa.Array, column: Column) -> npt.NDArray[np.generic]:
    """Return a structurally sound block as (n, *shape) of the column's dtype: a view of Arrow's memory where types allow it."""
    if not len(array):
        return np.empty((0, *known_shape(column.shape)), column.dtype)
    storage = values = _storage(array)
    for _ in column.shape:
        values = _items(values)
    flat: npt.NDArray[np.generic] = values.to_numpy(zero_copy_only=False)
    if flat.dtype != column.dtype:
        with np.errstate(over="ignore"):
            flat = flat.astype(column.dtype)
    order = getattr(array.type, "permutation", None)
    shape = tuple(array.type.shape) if order else known_shape(column.shape)
    rows = flat.reshape(len(storage), *shape)
    return rows.transpose(0, *(i + 1 for i in order)) if order else rows


def value_flaws(block: npt.NDArray[np.generic], masked: bool = False) -> Flaws:
    """Return the rows of a decoded block (n, *shape) that hold NaN or infinite values.

    If `masked`, -inf is fine in a row that holds anything else. A sum is finite only if all its terms are, so that sound
    blocks cost one pass over cached memory.
    """
    if block.dtype.kind != "f" or not block.size:
        return {}
    with np.errstate(all="ignore"):
        # Flat einsum sums at memory speed on one thread: 27 GB/s where ndarray.sum reaches 20.
        if math.isfinite(np.einsum("i->", np.asarray(block, dtype=np.float32).reshape(-1))):
            return {}
    rows = block.reshape(len(block), -1)
    # The largest value is NaN if the row holds one.
    sound = np.isfinite(rows.max(axis=1)) if masked else np.isfinite(rows).all(axis=1)
    return {int(row): _value_flaw(rows[row], masked) for row in np.flatnonzero(~sound)}


def _value_flaw(row: npt.NDArray[np.generic], masked: bool) -> str:
    if np.isnan(row).any():
        return "holds NaN"
    return "holds nothing but -inf" if masked and float(np.max(row)) < 0 else "holds a value that is infinite as float32"


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _dtype(name: str, type_: pa.DataType, leaf: pa.DataType) -> str:
    if pa.types.is_floating(leaf):
        return "float32"
    if pa.types.is_integer(leaf):
        return str(leaf)
    if pa.types.is_boolean(leaf):
        return "bool"
    raise PoolError(f"column {name} is {type_}; expected numbers, booleans, or lists of them as a model's input")


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array


def _storage_shape(storage: pa.Array, column: Column) -> tuple[int, ...]:
    """Return the widths of its lists, level by level; the values of a tensor lie in one list."""
    shape = known_shape(column.shape)
    flat = len(shape) > 1 and _is_list(storage.type) and not _is_list(storage.type.value_type)
    return (math.prod(shape),) if flat else shape


def known_shape(shape: Sequence[int | None]) -> tuple[int, ...]:
    """Return a complete shape."""
    assert None not in shape, "plan_pool puts the width of list columns in"
    return tuple(size for size in shape if size is not None)


def _items(array: pa.Array) -> pa.Array:
    """Return the items of a list array, those in the slots of null rows included, those outside its slice not."""
    if not _is_list(array.type):
        return array  # a fixed-shape tensor's storage is flat
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        # flatten() would drop null rows, and values ignores slicing.
        return array.values.slice(array.offset * size, len(array) * size)
    first, last = (array.offsets[i].as_py() for i in (0, -1))
    return array.values.slice(first, last - first)


def _flaws(array: pa.Array, shape: tuple[int, ...], rows: npt.NDArray[np.int64], null: str = "is null") -> Flaws:
    """Look level by level for what no tensor can be made of; rows[i] is the block's row that item i belongs to."""
    flaws: Flaws = {}
    if array.null_count:
        missing = array.is_null().to_numpy(zero_copy_only=False)
        flaws.update(dict.fromkeys(rows[missing].tolist(), null))
        array, rows = array.filter(pa.array(~missing)), rows[~missing]
    if not _is_list(array.type):
        return flaws
    width = shape[0]
    if not pa.types.is_fixed_size_list(array.type) or array.type.list_size != width:
        lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        ragged = lengths != width
        if ragged.any():
            for row, length in zip(rows[ragged].tolist(), lengths[ragged].tolist(), strict=True):
                flaws.setdefault(row, f"holds {length} values, expected {width}")
            array, rows = array.filter(pa.array(~ragged)), rows[~ragged]
    inner = _items(array)
    if not inner.null_count and not _is_list(inner.type):
        return flaws  # sound blocks end here, without a row number for each item
    return {**_flaws(inner, shape[1:], np.repeat(rows, width), "holds a null"), **flaws}
