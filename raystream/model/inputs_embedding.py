"""`model.embedding: inputs`: the model's own inputs as the embedding, for models of any kind that takes tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raystream.errors import ModelError

INPUTS = "inputs"


def inputs_embedding(inputs: tuple[Any, ...], who: str) -> Tensor:
    """All numbers of a row's inputs, float32 (rows, dimensions).

    Raises:
        ModelError: there are texts among them.
    """
    if not all(isinstance(values, Tensor) for values in inputs):
        raise ModelError(f"{who} takes texts, which are no embedding; name a step or module in model.embedding, or leave it out")
    each = [values.float().flatten(1) if values.ndim > 1 else values.float().unsqueeze(1) for values in inputs]
    return each[0] if len(each) == 1 else torch.cat(each, dim=1)
