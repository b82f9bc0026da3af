"""MC dropout for models whose forward pass makes a whole prediction at once, such as exported programs and text models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from raystream.model.mc_dropout import MCDropout
from raystream.model.prediction import Prediction


class SampledForward:
    """Gives predictions that hold dropout samples.

    Args:
        network: in evaluation mode, on its device.
        forward: runs it on tensors, each (n_rows, ...), on that device; logits, embedding and mask as one pass gives them.
        samples: how many sub-networks.
        seed: which ones.
        who: names the network in errors.
        autocast: whether it runs in mixed precision.
        embedding: whether predictions hold one.
        task: `model.task`.
        scripted: whether the network is TorchScript.

    Raises:
        ModelError: see `MCDropout`.
    """

    def __init__(
        self,
        network: nn.Module,
        forward: Callable[[tuple[Tensor, ...]], Prediction],
        *,
        samples: int,
        seed: int,
        who: str,
        device: torch.device,
        embedding: bool,
        task: str,
        autocast: bool = False,
        scripted: bool = False,
    ) -> None:
        self._forward = forward
        self._made: Prediction | None = None
        self._dropout = MCDropout(
            network,
            self._run,
            samples=samples,
            seed=seed,
            who=who,
            device=device,
            embedding=self if embedding else None,
            autocast=autocast,
            task=task,
            scripted=scripted,
        )

    def __call__(self, inputs: tuple[Tensor, ...]) -> Prediction:
        """The prediction of the deterministic network with the samples beside it."""
        try:
            made = self._dropout(inputs)
        finally:
            self._made = None
        return Prediction(made.logits, made.embedding, samples=made.samples, mask=made.mask)

    def take(self, logits: object, rows: int, mask: Tensor | None = None, /) -> Tensor:
        """The embedding of the pass that just ran; forgets it."""
        made, self._made = self._made, None
        assert made is not None  # a pass has run
        assert made.embedding is not None  # it is asked for
        return made.embedding

    def _run(self, inputs: tuple[Tensor, ...]) -> object:
        """Logits, or (logits, mask); the embedding waits for `take`."""
        made = self._forward(inputs)
        self._made = made
        return made.logits if made.mask is None else (made.logits, made.mask)
