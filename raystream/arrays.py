"""Arrays as callers give them: lists, NumPy arrays, torch tensors of any device and dtype, with a gradient or without.

A masked array with masked values is refused: a masked row is one that somebody doesn't want to be looked at, and NumPy
itself would hand on what lies under the mask.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.errors import DataError


def plain(values: ArrayLike, name: str) -> np.ndarray:
    """Return the values as a NumPy array of the dtype that they have; bfloat16, which NumPy hasn't, becomes float32.

    Args:
        values: see the module.
        name: of the argument, for errors.

    Raises:
        DataError: masked values, rows of several lengths, sparse tensors.
    """
    if isinstance(values, torch.Tensor):
        return _of_tensor(values, name)
    if isinstance(values, list | tuple) and values:
        if any(isinstance(value, torch.Tensor) for value in values):
            values = [_of_tensor(torch.as_tensor(value), name) for value in values]
        elif any(isinstance(value, np.ma.MaskedArray) for value in values):
            values = np.ma.stack([np.ma.asarray(value) for value in values])
    refuse_masked(values, name)
    try:
        return np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise DataError(f"`{name}` is no array: {error}; expected rows of one length") from None


def numbers(values: ArrayLike, name: str) -> np.ndarray:
    """Return the values as `plain` gives them: integers, booleans or floats.

    Raises:
        DataError: as `plain`, and for what are no real numbers.
    """
    array = plain(values, name)
    if array.dtype.kind not in "biuf":
        raise DataError(f"`{name}` holds values of type {array.dtype}, expected real numbers")
    return array


def refuse_masked(values: object, name: str) -> None:
    """Raise DataError if any value is masked."""
    if isinstance(values, np.ma.MaskedArray) and (masked := np.ma.getmaskarray(values)).any():
        first = ", ".join(str(int(i)) for i in np.argwhere(masked)[0])
        raise DataError(f"`{name}` has {int(masked.sum())} masked values, first at [{first}]; leave those rows out, or fill them in")


def _of_tensor(values: torch.Tensor, name: str) -> np.ndarray:
    if values.layout != torch.strided or values.is_quantized or values.is_meta:
        raise DataError(f"`{name}` is a sparse, quantised or empty tensor, expected a dense one, such as `{name}`.to_dense()")
    values = values.detach().cpu().resolve_conj().resolve_neg()
    if values.is_floating_point() and values.dtype not in (torch.float16, torch.float32, torch.float64):
        values = values.float()  # bfloat16 and narrower
    array: np.ndarray = values.numpy()
    return array
