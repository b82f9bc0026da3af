"""Sees every dropout call of a forward pass, functional ones and attention's included, and puts something else in its place.

While a `DropoutMode` is entered, these count as dropout calls, whatever `training` they are given: torch.nn.functional's
dropout, dropout1d to 3d, alpha_dropout and feature_alpha_dropout, which torch's modules call too, their namesakes in torch
and torch.ops.aten, and the dropout of attention weights in scaled_dot_product_attention and MultiheadAttention, whose fused
path torch leaves under any such mode. Not seen are the dropout between the layers of torch's recurrent modules, and calls
inside scripted or compiled code. In-place calls return their result and leave their input alone.

What is put in its place: masks that are a function of (seed, sample, call, coordinates) and of nothing else. A mask is no stream of
random numbers but a hash of where each of its numbers stands. So it is the same in every worker, for every number of rows, on every
device and whatever was drawn before, and a shorter sequence sees the first part of the mask that a longer one sees: drawn for the
longest length, and sliced.

Operations that treat each row by itself run under vmap with the samples as more rows. vmap has a rule of its own for most of them, but
batch norm's shuffles the whole tensor (five times its time), attention's runs one sample after another, and none of them sees autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CACHE_BYTES = 1 << 30
"""Of masks kept for the next batch, one byte a number; beyond it they are drawn again each time."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_RESOLUTION = 1 << 32


def keep_mask(seed: int, sample: int, call: int, shape: Sequence[int], p: float) -> npt.NDArray[np.bool_]:
    """Draw which numbers a dropout call keeps, in one sample.

    Args:
        seed: of the query.
        sample: which of the sub-networks.
        call: the number of the dropout call in the forward pass.
        shape: of the mask; the value at a coordinate doesn't depend on it.
        p: probability of being dropped, to the nearest of 2^-32.

    Returns:
        bool, of that shape, True where kept.
    """
    state = np.zeros((), dtype=np.uint64)
    for key in (seed, sample, call):
        state = _mix(state, np.array(key, dtype=np.uint64))
    for size in shape:
        state = _mix(state[..., None], np.arange(size, dtype=np.uint64))
    return np.asarray((state >> np.uint64(32)) >= np.uint64(round(p * _RESOLUTION)))


def _mix(state: npt.NDArray[np.uint64], key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Take one step of splitmix64 (Steele, Lea and Flood, 2014) from each state by each key."""
    with np.errstate(over="ignore"):
        mixed = state + (key + np.uint64(1)) * _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


class Masks:
    """The masks of all samples, and of one more, the last, that keeps everything: the deterministic network."""

    def __init__(self, samples: int, seed: int, device: torch.device) -> None:
        self._samples, self._seed, self._device = samples, seed, device
        self._drawn: dict[int, tuple[float, Tensor]] = {}
        self._bytes = 0

    def of_call(self, call: int, shape: Sequence[int], p: float) -> Tensor:
        """Return the masks of a call, bool (samples + 1, *shape), on the device; not to be written to."""
        known = self._drawn.get(call)
        if known is not None and known[0] == p and known[1].ndim == len(shape) + 1:
            longest = tuple(known[1].shape[1:])
            if any(size > drawn for size, drawn in zip(shape, longest, strict=True)):
                longest = tuple(max(pair) for pair in zip(shape, longest, strict=True))
                known = self._keep(call, longest, p)
        else:
            known = self._keep(call, tuple(shape), p)
        return known[1][(slice(None), *(slice(size) for size in shape))]

    def _keep(self, call: int, shape: tuple[int, ...], p: float) -> tuple[float, Tensor]:
        keep = np.ones((self._samples + 1, *shape), dtype=np.bool_)
        for sample in range(self._samples):
            keep[sample] = keep_mask(self._seed, sample, call, shape, p)
        drawn = (p, torch.from_numpy(keep).to(self._device))
        before = self._drawn.pop(call, None)
        self._bytes -= before[1].numel() if before else 0
        if self._bytes + drawn[1].numel() <= _CACHE_BYTES:
            self._drawn[call] = drawn
            self._bytes += drawn[1].numel()
        return drawn


_FEWEST_AXES = {F.linear: 2, F.conv1d: 3, F.conv2d: 4, F.conv3d: 5}


def per_row(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `func(*args, **kwargs)`, which may be any function of torch's."""
    rows = _row_arguments(func, args, kwargs)
    if not rows:
        return func(*args, **kwargs)
    return _PerRow.apply(func, rows, tuple(kwargs), *args, *kwargs.values())  # type: ignore[no-untyped-call]


def _row_arguments(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Count the leading arguments that hold rows in axis 0, the others being the same for every row; 0: unknown."""
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
        """Keep nothing: there are no gradients."""

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


@dataclass(frozen=True)
class DropoutCall:
    """A dropout call: its number, and what it does to its input."""

    number: int
    """Its place among the dropout calls of the forward pass, 0 first."""
    p: float
    channels: int | None = None
    """The axis of the channels that are dropped whole; None where every number is dropped by itself."""
    alpha: bool = False
    """Whether dropped numbers become the SELU's negative limit, mean and variance being kept, instead of 0."""


class DropoutMode(TorchFunctionMode):
    """Replaces dropout while it is entered.

    Args:
        replace: is given each dropout call and its input, and returns what takes the place of the output.
    """

    def __init__(self, replace: Callable[[DropoutCall, Tensor], Tensor]) -> None:
        super().__init__()
        self._replace = replace
        self._calls = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return self._drop(func, args, kwargs)
        if func in ATTENTION:
            return self._attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                # training=True keeps its dropout_p, and changes nothing else in it.
                return _attention_body(*args, **{**kwargs, "training": True})
        return per_row(func, args, kwargs) if self._calls else func(*args, **kwargs)  # the trunk is the same for all samples

    def _drop(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = args[0] if args else kwargs["input"]
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        if not 0 <= p <= 1:
            return func(*args, **kwargs)  # raises
        whole_channels, alpha, unbatched = DROPOUTS[func]
        channels = (0 if values.ndim == unbatched else 1) if whole_channels else None
        return self._replace(self._next(p, channels, alpha), values)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Call scaled_dot_product_attention, written out where its weights are dropped."""
        call = self._next(dropout_p)
        if dropout_p == 0:
            self._replace(call, query)
            options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
            return cast(Tensor, per_row(F.scaled_dot_product_attention, (query, key, value, attn_mask), options))
        if enable_gqa:
            repeat = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(repeat, -3), value.repeat_interleave(repeat, -3)
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = (query @ key.transpose(-2, -1)).float() * scale
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        return self._replace(call, torch.softmax(scores, dim=-1).to(value.dtype)) @ value

    def _next(self, p: float, channels: int | None = None, alpha: bool = False) -> DropoutCall:
        call = DropoutCall(self._calls, float(p), channels, alpha)
        self._calls += 1
        return call


def _variants(*names: str) -> list[Any]:
    """Return the functions of these names, and those that work in place, in torch and in torch.ops.aten."""
    found = [getattr(torch, name + suffix) for name in names for suffix in ("", "_")]
    packets = [getattr(torch.ops.aten, name + suffix) for name in names for suffix in ("", "_")]
    return found + packets + [packet.default for packet in packets]


DROPOUTS: dict[Any, tuple[bool, bool, int | None]] = {
    **dict.fromkeys([F.dropout, *_variants("dropout")], (False, False, None)),
    **dict.fromkeys([F.alpha_dropout, *_variants("alpha_dropout")], (False, True, None)),
    **dict.fromkeys([F.dropout2d, *_variants("feature_dropout")], (True, False, None)),
    **dict.fromkeys([F.feature_alpha_dropout, *_variants("feature_alpha_dropout")], (True, True, None)),
    F.dropout1d: (True, False, 2),
    F.dropout3d: (True, False, 4),
}
"""By function: whether channels are dropped whole, whether it is alpha dropout, and the number of axes of an input without rows."""

ATTENTION = (F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)

# A mode is off while it handles a call, and multi_head_attention_forward, entered again, would hand itself to the mode again.
# This is its body alone, without that question at its start.
_attention_body = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    "multi_head_attention_forward",
    F.multi_head_attention_forward.__defaults__,
)
