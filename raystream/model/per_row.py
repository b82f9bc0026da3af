"""Operations that treat each row by itself, run under vmap as what they are: with the samples as more rows.

vmap has a rule of its own for most of them, but batch norm's shuffles the whole tensor (five times its time), attention's
runs one sample after another, and none of them sees autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST_AXES = {F.linear: 2, F.conv1d: 3, F.conv2d: 4, F.conv3d: 5}


def per_row(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func(*args, **kwargs)`, which may be any function of torch's."""
    rows = _row_arguments(func, args, kwargs)
    if not rows:
        return func(*args, **kwargs)
    return _PerRow.apply(func, rows, tuple(kwargs), *args, *kwargs.values())  # type: ignore[no-untyped-call]


def _row_arguments(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many of the leading arguments hold rows in axis 0, the others being the same for every row; 0: unknown."""
    if func in _FEWEST_AXES:
        return int(bool(args) and args[0].ndim >= _FEWEST_AXES[func])
    if func is F.batch_norm:
        return int(not (args[5] if len(args) > 5 else kwargs.get("training")))
    if func is F.scaled_dot_product_attention and len(args) == 4 and args[0].ndim > 2:
        query, mask = args[0], args[3]
        return 4 if mask is not None and mask.ndim == query.ndim and mask.shape[0] == query.shape[0] else 3
    return 0


class _PerRow(torch.autograd.Function):
    @staticmethod
    def forward(func: Callable[..., Tensor], rows: int, names: tuple[str, ...], *values: Any) -> Tensor:
        positional = len(values) - len(names)
        return func(*values[:positional], **dict(zip(names, values[positional:], strict=True)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept: there are no gradients."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], func: Callable[..., Tensor], rows: int, names: tuple[str, ...], *values: Any
    ) -> tuple[Tensor, int]:
        samples, dims = info.batch_size, in_dims[3:]
        if any(isinstance(dim, int) for dim in dims[rows:]):  # of a tuple, such as a stride, it is a tuple
            raise NotImplementedError(f"the parameters of {func.__name__} differ between the samples")
        parts = [
            value.expand(samples, *value.shape) if dim is None else value.movedim(dim, 0)
            for dim, value in zip(dims[:rows], values[:rows], strict=True)
        ]
        folded = _PerRow.forward(func, rows, names, *(part.flatten(0, 1) for part in parts), *values[rows:])
        return folded.reshape(samples, -1, *folded.shape[1:]), 0
