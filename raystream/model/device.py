"""Devices: which one to run on, and telling memory that ran out from a device that is lost."""

from __future__ import annotations

import torch

from raystream.errors import ModelError

_ALLOCATION_FAILED = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_DEVICE_LOST = ("CUDA error", "HIP error", "CUDNN_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_INTERNAL_ERROR")


def choose_device(name: str) -> torch.device:
    """The device that `model.device` means; `auto` is a GPU when there is one.

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


def keep_freed_memory() -> None:
    """Let this process keep up to 64 MiB that it freed, instead of handing them back to the system after every operation.

    glibc hands back what is larger than the largest block that was ever freed, up to 32 MiB. Tensors of some megabytes, made and
    freed in each layer, otherwise cost page faults that take a third of the time of a small convolutional network.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # freed at once, and never touched


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or on the host; a smaller batch may do."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATION_FAILED)


def is_device_failure(error: BaseException) -> bool:
    """Whether the device is lost to this process, which must then end: every later call on it would fail too."""
    if is_out_of_memory(error):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)  # torch 2.8
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _DEVICE_LOST)
