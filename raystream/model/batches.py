"""Runs a model's forward function on batches, in smaller ones once memory ran out.

On which device, and in what precision: a network's parameters are float32, with mixed precision on top where it is asked for.
Memory that ran out is told from a device that is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from raystream import query
from raystream.errors import ModelError
from raystream.model.prediction import Prediction
from raystream.model.promise import NOT_FINITE, Promise, WrongShapeError, padded

_ALLOCATION_FAILED = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_DEVICE_LOST = ("CUDA error", "HIP error", "CUDNN_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_INTERNAL_ERROR")


def choose_device(name: str) -> torch.device:
    """Return the device that `model.device` means; `auto` is a GPU when there is one.

    Raises:
        ModelError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta" or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
            raise RuntimeError(f"{torch.cuda.device_count()} CUDA devices are visible")
        return torch.zeros(1, device=device).device
    except (AssertionError, RuntimeError) as error:
        if is_device_failure(error):
            raise
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ModelError(f"model.device {name!r} is not available here ({reason}); use auto, cpu or a device that is") from None


def runs_on_gpu(model: query.Model) -> bool:
    """Tell whether any part of a model would run on a GPU in this process."""
    names = {part.device for part in [model, *(model.members or [])]}
    return any(name.startswith("cuda") or (name == "auto" and torch.cuda.is_available()) for name in names)


def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB that it freed, instead of handing them back to the system after every operation.

    glibc hands back what is larger than the largest block that was ever freed, up to 32 MiB. Tensors of some megabytes, made and
    freed in each layer, otherwise cost page faults that take a third of the time of a small convolutional network.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # freed at once, and never touched


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed, on a device or on the host; a smaller batch may do."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATION_FAILED)


def is_device_failure(error: BaseException) -> bool:
    """Tell whether the device is lost to this process, which must then end: every later call on it would fail too."""
    if is_out_of_memory(error):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)  # torch 2.8
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _DEVICE_LOST)


Forward = Callable[[tuple[Any, ...]], Prediction]


class BatchPredictor:
    """A `Predictor` around a forward function: the pieces, memory that runs out and what is said of a failure."""

    def __init__(
        self,
        forward: Forward,
        *,
        promise: Promise,
        device: torch.device,
        batch_size: int,
        state_hash: str = "",
        network: nn.Module | None = None,
        class_labels: tuple[Any, ...] | None = None,
    ) -> None:
        """
        Args:
            forward: runs rows at once, and raises ModelError for what it can explain.
            promise: what its outputs are to be; names the model in errors.
            device: where it runs.
            batch_size: the most rows that run at once.
            state_hash: of its parameters and buffers, if it has them in this process.
            network: that runs, if it is one of torch's.
            class_labels: what the model itself calls its classes, if it does.
        """
        self.device = device
        self.batch_size = batch_size
        self.state_hash = state_hash
        self.network, self.class_labels = network, class_labels
        self._forward = forward
        self.promise, self._who = promise, promise.who

    def predict(self, inputs: tuple[Any, ...]) -> Prediction:
        """See `Predictor.predict`. Memory that ran out halves `batch_size` for good, down to one row."""
        return in_batches(inputs, lambda: self.batch_size, self._fit)

    def _fit(self, inputs: tuple[Any, ...]) -> Prediction | None:
        """Return the prediction for one batch, or None when it did not fit and `batch_size` was halved."""
        try:
            with torch.inference_mode():
                made = self._forward(inputs)
                return replace(made, reason=self.promise.reason(made.logits, made.samples)) if self.promise.probabilities else made
        except Exception as error:
            if not is_out_of_memory(error):
                if isinstance(error, ModelError) or is_device_failure(error):
                    raise
                told = f"{type(error).__name__}: {last_line(error)}"
                raise ModelError(
                    f"{self._who} raised {told} on inputs {described(inputs)}; check that pool.inputs are what it takes"
                ) from error
            reason = str(error).partition("\n")[0]
        self.batch_size = halved(len(inputs[0]), self._who, self.device, reason)
        return None


def in_batches(inputs: tuple[Any, ...], size: Callable[[], int], fit: Callable[[tuple[Any, ...]], Prediction | None]) -> Prediction:
    """Predict batch after batch, and again what did not fit.

    Args:
        inputs: each (n, ...), n 0 or more.
        size: rows of the next batch; smaller once one did not fit.
        fit: predicts for one batch, or gives None when memory ran out and a smaller one is to be tried.
    """
    rows, start = len(inputs[0]), 0
    pieces: list[Prediction] = []
    while start < rows or not pieces:
        batch = size()
        given = tuple(values[start : start + batch] for values in inputs)
        try:
            prediction = fit(given)
        except WrongShapeError as error:
            raise ModelError(f"{error}; it was given {described(given)}") from None
        if prediction is not None:
            pieces.append(prediction)
            start += batch
    return join(pieces)


def halved(rows: int, who: str, device: torch.device, reason: str) -> int:
    """Return half of the rows that did not fit; to be called after the except clause, whose traceback holds the batch's tensors.

    Raises:
        ModelError: it was one row.
    """
    if rows <= 1:
        raise ModelError(f"{who}: one row does not fit into the memory of {device} ({reason}); use a larger device")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows // 2


def join(pieces: Sequence[Prediction]) -> Prediction:
    """Join predictions for consecutive rows."""
    if len(pieces) == 1:
        return pieces[0]

    def together(values: list[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.cat(present) if present else None

    names = ("logits", "embedding", "samples", "mask", "gradient_lengths")
    parts = [{name: getattr(piece, name) for name in names} for piece in pieces]
    if len({part["mask"].shape[1:] for part in parts if part["mask"] is not None}) > 1:
        parts = padded(parts)
    joined: dict[str, Any] = {name: together([part[name] for part in parts]) for name in parts[0]}
    reason = next((piece.reason for piece in pieces if piece.reason != NOT_FINITE), NOT_FINITE)
    return replace(pieces[0], reason=reason, **joined)


def described(inputs: Sequence[Any]) -> str:
    """Return the dtypes and shapes of inputs, for messages."""
    return ", ".join(
        f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}" if isinstance(values, Tensor) else f"texts ({len(values)},)"
        for values in inputs
    )


def last_line(error: BaseException) -> str:
    """Return the line that says what happened: TorchScript and others put a traceback before it."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"])[-1]


AUTOCAST = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""By `model.precision`, the dtype of mixed precision; None for none."""


def in_float32(network: nn.Module) -> str:
    """Convert all floating parameters and buffers, in whatever dtype they were built or saved, and say which others there were."""
    dtypes = {values.dtype for values in chain(network.parameters(), network.buffers()) if values.is_floating_point()}
    others = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - {torch.float32})
    if others:
        network.float()
    return " and ".join(others)
