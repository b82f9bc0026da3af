import pytest
import torch

from raystream.errors import ModelError
from raystream.model import is_device_failure
from raystream.model.batches import choose_device, is_out_of_memory


def test_auto_is_a_gpu_when_there_is_one():
    """auto never fails."""
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "mps:7", "meta", "gpu", ""])
def test_a_device_that_is_not_here(name):
    """A device that isn't here or nowhere is an error that names it."""
    with pytest.raises(ModelError, match=f"model.device '{name}' is not available"):
        choose_device(name)


def test_a_real_allocation_failure_is_recognised():
    """Torch's own error for too large a tensor counts as memory that ran out, not as a lost device."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_device_failure(caught.value)


@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (MemoryError(), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_memory_and_lost_devices_are_told_apart(error, memory, lost):
    """Memory that ran out asks for a smaller batch, any other CUDA error for the end of the process."""
    assert is_out_of_memory(error) is memory
    assert is_device_failure(error) is lost
