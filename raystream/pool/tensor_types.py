"""Tensor columns that other libraries wrote, recognised from the schema alone; none of these libraries is imported.

* Ray Data, `ray.data.arrow_tensor` and `ray.data.arrow_tensor_v2`: a list of all values of a row, the shape as JSON in the
  field's metadata.
* Hugging Face, `Array2DExtensionType` and the like: nested lists, which are tensors as they are.

Where the library is imported all the same, pyarrow knows these types; then they are taken apart again.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from raystream.errors import PoolError

_RAY = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
_RAGGED = "ray.data.arrow_variable_shaped_tensor"


def declared_type(field: pa.Field) -> pa.DataType:
    """The type that says what a column holds: Arrow's own fixed-shape tensor for Ray's, the storage's for other extensions.

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
    """What an extension type is stored as; any other type itself."""
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
