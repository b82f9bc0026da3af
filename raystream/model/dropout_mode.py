"""Sees every dropout call of a forward pass, functional ones and attention's included, and puts something else in its place.

While a `DropoutMode` is entered, these count as dropout calls, whatever `training` they are given: torch.nn.functional's
dropout, dropout1d to 3d, alpha_dropout and feature_alpha_dropout, which torch's modules call too, their namesakes in torch
and torch.ops.aten, and the dropout of attention weights in scaled_dot_product_attention and MultiheadAttention, whose fused
path torch leaves under any such mode. Not seen are the dropout between the layers of torch's recurrent modules, and calls
inside scripted or compiled code. In-place calls return their result and leave their input alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from raystream.model.per_row import per_row


@dataclass(frozen=True)
class DropoutCall:
    """What a dropout call does to its input."""

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
        """scaled_dot_product_attention, written out where its weights are dropped."""
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
    """The functions of these names, and those that work in place, in torch and in torch.ops.aten."""
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
