"""What `model.precision` means for networks of torch's: parameters in float32, and mixed precision on top where it is asked for."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

AUTOCAST = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""By `model.precision`, the dtype of mixed precision; None for none."""


def in_float32(network: nn.Module) -> str:
    """Convert all floating parameters and buffers, in whatever dtype they were built or saved, and say which others there were."""
    dtypes = {values.dtype for values in chain(network.parameters(), network.buffers()) if values.is_floating_point()}
    others = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - {torch.float32})
    if others:
        network.float()
    return " and ".join(others)
