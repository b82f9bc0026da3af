"""The embedding of a text model: a hidden state, averaged over the tokens of each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raystream.errors import ModelError
from raystream.model.embedding import find_module


class HiddenState:
    """A hook on a network that catches a hidden state of each batch.

    By name it is that module's output; by default the last hidden state of the part below the head.
    """

    def __init__(self, network: Any, name: str | None) -> None:
        """
        Args:
            network: of transformers.
            name: a module of it, as `named_modules` spells it; None for the default.

        Raises:
            ModelError: it has no module of that name.
        """
        self._caught: Any = None
        self._where = f"model.embedding {name}" if name is not None else "the last hidden state"
        module = find_module(network, name) if name is not None else network.base_model
        module.register_forward_hook(self._catch)

    def take(self, mask: Tensor) -> Tensor:
        """The embedding of the batch that just ran, float32 (rows, dimensions); forgets it.

        Args:
            mask: (rows, tokens), 1 at tokens and 0 at padding.
        """
        value, self._caught = self._caught, None
        if isinstance(value, Mapping):
            value = next(iter(value.values()), None)  # ModelOutput: the last hidden state comes first
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (2, 3) or value.shape[0] != mask.shape[0]:
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                f"{self._where} gives {got}, expected floating numbers (rows, dimensions) or (rows, tokens, dimensions); "
                "name another module in model.embedding"
            )
        if value.ndim == 2:
            return value.float()
        if value.shape[1] != mask.shape[1]:
            raise ModelError(
                f"{self._where} gives {value.shape[1]} vectors for {mask.shape[1]} tokens; name another module in model.embedding"
            )
        weight = mask.to(torch.float32).unsqueeze(2)
        return (value.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)

    def clear(self) -> None:
        """Forget what was caught, so that a batch that failed holds no memory."""
        self._caught = None

    def _catch(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self._caught = output
