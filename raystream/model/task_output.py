"""Outputs with more than one class a row: pixels, tokens, labels, numbers. Their shapes, which elements count, and their embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raystream.errors import ModelError
from raystream.query import TASKS

_AXES = {"classes": (2,), "multi_label": (2,), "regression": (2,), "tokens": (3,), "segmentation": (4, 5)}
"""How many axes a task's logits have; regression's of one axis are given a second."""


def split(output: object, task: str) -> tuple[object, object]:
    """The logits and, of a dense task, the mask of what a model returned: logits, (logits, mask), or a mapping of both names."""
    if not TASKS[task].dense:
        return output, None
    if isinstance(output, Mapping):
        return output.get("logits"), output.get("mask")
    if isinstance(output, tuple | list) and len(output) == 2:
        return output[0], output[1]
    return output, None


def class_axis(task: str) -> int:
    """Where the classes are in the logits of a batch."""
    return 2 if task == "tokens" else 1


def check_task_logits(output: object, rows: int, who: str, task: str) -> Tensor:
    """The output of a model as float32, in the shape of its task.

    Raises:
        ModelError: it has another shape, too few classes, or isn't floating.
    """
    expected = f"a floating tensor {TASKS[task].output} for model.task {task}"
    if not isinstance(output, Tensor):
        hint = "; beside it, it may return a mask of the elements that count: (logits, mask)" if TASKS[task].dense else ""
        raise ModelError(f"{who} returned {type(output).__name__}, expected {expected}{hint}")
    if task == "regression" and output.ndim == 1:
        output = output.unsqueeze(1)
    wrong = output.ndim not in _AXES[task] or output.shape[0] != rows or not output.is_floating_point()
    if wrong or 0 in output.shape[1:]:
        got = f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)} for {rows} rows"
        raise ModelError(f"{who} returned {got}, expected {expected}; check model.task, or wrap the model so that it returns this")
    if TASKS[task].dense and output.shape[class_axis(task)] < 2:
        raise ModelError(f"{who} returned {tuple(output.shape)}, expected at least two classes on axis {class_axis(task)}")
    return output.float()


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
