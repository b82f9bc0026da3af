"""Expected gradient lengths over all parameters of a network, of each batch that it runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from raystream.acquisition import egl_parameters
from raystream.model.promise import Promise


class GradientLengths:
    """`raystream.acquisition.egl_parameters` of a network, in its parameters' own precision, with all dropout off.

    Args:
        network: on its device.
        classes: how many of the likeliest classes count.
        temperature: of the softmax.
        names: the arguments of its forward that the inputs are; empty if they come by position.
    """

    def __init__(self, network: nn.Module, classes: int, temperature: float, names: Sequence[str] = ()) -> None:
        self._network, self._classes, self._temperature, self._names = network, classes, temperature, names

    def __call__(self, inputs: tuple[Tensor, ...], promise: Promise | None = None) -> Tensor:
        """(n_rows,), float32.

        Args:
            inputs: each (n_rows, ...).
            promise: makes logits of what the network returns; None if it returns just these.

        Raises:
            ModelError: the network can't be differentiated row by row.
        """
        network = self._network if promise is None else _AsLogits(self._network, promise)
        with _evaluating(network):
            return egl_parameters(network, inputs, classes=self._classes, temperature=self._temperature, names=self._names).float()


class _AsLogits(nn.Module):
    """A network that returns logits, whatever the one inside returns."""

    def __init__(self, network: nn.Module, promise: Promise) -> None:
        super().__init__()
        self.network, self._promise = network, promise

    def forward(self, *inputs: Tensor, **named: Any) -> Tensor:
        rows = next(iter((*inputs, *named.values()))).shape[0]
        return self._promise.read(self.network(*inputs, **named), rows).logits


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode through and through: MC dropout leaves modules in training mode that ask for it."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
