"""Expected gradient lengths over all parameters of a network, of each batch that it runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from raystream.acquisition import egl_parameters


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

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """(n_rows,), float32.

        Raises:
            ModelError: the network can't be differentiated row by row.
        """
        with _evaluating(self._network):
            lengths = egl_parameters(self._network, inputs, classes=self._classes, temperature=self._temperature, names=self._names)
            return lengths.float()


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
