"""The shapes of what models give by their task; of pixels and tokens which of them count, and what a row's embedding is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raystream.errors import ModelError
from raystream.query import TASKS

AXES = {"classes": (2,), "multi_label": (2,), "regression": (2,), "tokens": (3,), "segmentation": (4, 5)}
"""How many axes a task's logits have; a single one of two is given the second."""


def class_axis(task: str) -> int:
    """Where the classes are in the logits of a batch."""
    return 2 if task == "tokens" else 1


def check_mask(mask: object, logits: Tensor, who: str, task: str) -> Tensor | None:
    """The mask of the elements that count, bool (rows, tokens) or (rows, height, width); None if all do.

    Raises:
        ModelError: it has another shape, or isn't of booleans or integers.
    """
    if mask is None:
        return None
    shape = tuple(size for axis, size in enumerate(logits.shape) if axis != class_axis(task))
    if not isinstance(mask, Tensor) or mask.is_floating_point() or tuple(mask.shape) != shape:
        got = f"{str(mask.dtype).removeprefix('torch.')} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ModelError(f"{who} returned a mask of {got}, expected booleans or integers {shape}, 0 at what doesn't count")
    return mask.bool()


def pooled(value: Tensor, mask: Tensor | None, task: str, who: str) -> Tensor:
    """An embedding of rows, float32 (rows, dimensions), out of one that may have several positions.

    Of a dense task, the mean over the positions that count: (rows, positions, dimensions) over its second axis, and
    (rows, dimensions, height, width) over all but the first two. A feature map that is coarser than the mask is averaged
    whole. Of other tasks, all numbers of a row.

    Raises:
        ModelError: a sequence has another length than the mask.
    """
    value = value.float()
    if not TASKS[task].dense or value.ndim == 2:
        return value.flatten(1)
    if value.ndim > 3:
        value, fits = value.flatten(2).transpose(1, 2), mask is not None and value.shape[2:] == mask.shape[1:]
    else:
        fits = mask is not None and value.shape[1] == mask.flatten(1).shape[1]
        if task == "tokens" and mask is not None and not fits:
            raise ModelError(
                f"{who} gives {value.shape[1]} vectors a row for {mask.shape[1]} tokens, so the mask doesn't fit; name another module"
            )
    if mask is None or not fits:
        return value.mean(dim=1)
    counts = mask.flatten(1).unsqueeze(2)
    kept = torch.where(counts, value, torch.zeros((), dtype=value.dtype, device=value.device))  # what doesn't count may be NaN
    return kept.sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def padded(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parts of predictions of tokens, padded to one length with tokens that don't count."""
    longest = max(piece["mask"].shape[1] for piece in pieces)

    def longer(piece: dict[str, Any]) -> dict[str, Any]:
        more = longest - piece["mask"].shape[1]
        pads = {"logits": (0, 0, 0, more), "samples": (0, 0, 0, more), "mask": (0, more)}
        widened = {name: torch.nn.functional.pad(piece[name], pad) for name, pad in pads.items() if piece[name] is not None and more}
        return piece | widened

    return [longer(piece) for piece in pieces]
