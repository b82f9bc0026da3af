"""kind: torch, a network of the user's own code, run in evaluation mode.

Expected gradient lengths over all of its parameters are computed beside, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from raystream import query
from raystream.acquisition import egl_parameters
from raystream.errors import ModelError
from raystream.model.batches import AUTOCAST, choose_device, halved, in_batches, in_float32, is_device_failure, is_out_of_memory
from raystream.model.mc_dropout import MCDropout
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise
from raystream.model.signature import EmbeddingTap, check_forward
from raystream.model.source import build_network, check_imported, untrained
from raystream.model.weights import load_weights, state_hash


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
        """Compute the lengths, (n_rows,) float32.

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
    """Put it in evaluation mode through and through: MC dropout leaves modules in training mode that ask for it."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def load(
    spec: query.Model,
    *,
    embedding: bool,
    mc_samples: int = 0,
    seed: int = 0,
    last_layer: bool = False,
    gradient_classes: int | None = None,
    names: Sequence[str] = (),
) -> TorchPredictor:
    """Build the network of `spec.source`, fill it from `spec.weights` and put it on its device, its parameters in float32.

    What torch.compile wraps is taken out of it: hooks and dropout samples need the modules themselves, and a unit's scores may not
    depend on whether the query asked for these.
    """
    assert spec.source is not None  # the query checks it
    assert not isinstance(spec.weights, list)  # a committee loads its members one by one
    device = choose_device(spec.device)
    network = build_network(spec.source, spec.args)
    check_imported(spec.source)
    notes = load_weights(network, spec.weights, spec.trust) if spec.weights else untrained(network, spec.source, spec.args)
    if names:
        check_forward(network.forward, names, f"model.source {spec.source}")
    return TorchPredictor(
        network,
        source=spec.source,
        device=device,
        batch_size=spec.batch_size,
        autocast=AUTOCAST[spec.precision],
        embedding=EmbeddingTap(network, spec.embedding, spec.task, last_layer=last_layer) if embedding else None,
        task=spec.task,
        output=spec.output,
        mc_samples=mc_samples,
        seed=seed,
        gradients=GradientLengths(network, gradient_classes, spec.temperature_value, names) if gradient_classes is not None else None,
        names=names,
        notes=notes,
    )


class TorchPredictor:
    """A network on its device that gives logits and, if wanted, embeddings and MC dropout samples."""

    def __init__(
        self,
        network: nn.Module,
        *,
        source: str,
        device: torch.device,
        batch_size: int,
        autocast: torch.dtype | None = None,
        embedding: EmbeddingTap | None = None,
        task: str = "classes",
        output: str = "logits",
        mc_samples: int = 0,
        seed: int = 0,
        gradients: GradientLengths | None = None,
        names: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """
        Args:
            network: is put into evaluation mode and moved to the device.
            source: names the network in errors.
            device: where to run.
            batch_size: the most rows that run at once.
            autocast: the dtype of mixed precision; None for none.
            embedding: hooks on this network; None if embeddings aren't wanted.
            task: `model.task`: what its output is.
            output: `model.output`: logits or probabilities.
            mc_samples: how many MC dropout samples each prediction holds; 0: none.
            seed: of their masks.
            gradients: of this network; None if `Prediction.gradient_lengths` isn't wanted.
            names: the arguments of its forward that the inputs are; empty if they come by position.
            notes: what the user should know of the network.
        """
        self._built_in = in_float32(network)
        self.state_hash = state_hash(network)
        self.device = device
        self.batch_size = batch_size
        self._source = f"model.source {source}"
        self.network = self._placed(network.eval())
        self.notes = tuple(notes)
        self._autocast = autocast
        self._embedding = embedding
        self._gradients = gradients
        self.promise = Promise(self._source, task, output)
        self._names = tuple(names)
        self._dropout = self._make_dropout(mc_samples, seed) if mc_samples else None

    def _make_dropout(self, samples: int, seed: int) -> MCDropout:
        return MCDropout(
            self.network,
            self._run,
            samples=samples,
            seed=seed,
            who=self._source,
            device=self.device,
            embedding=self._embedding,
            autocast=self._autocast is not None,
            task=self.promise.task,
            output="probabilities" if self.promise.probabilities else "logits",
        )

    def _placed(self, network: nn.Module) -> nn.Module:
        try:
            return network.to(self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(f"{self._source} does not fit into the memory of {self.device}; use a larger device") from error

    def predict(self, inputs: tuple[Tensor, ...]) -> Prediction:
        """See `Predictor.predict`. Memory that ran out halves `batch_size` for good, down to one row."""
        if not all(isinstance(values, Tensor) for values in inputs):
            raise ModelError(f"{self._source} was given texts, but a torch module takes tensors; make tensors of them in model.preprocess")
        return in_batches(inputs, lambda: self.batch_size, self._fit)

    def _fit(self, inputs: tuple[Tensor, ...]) -> Prediction | None:
        """Return the prediction for one batch, or None when it did not fit and `batch_size` was halved."""
        try:
            return self._forward(inputs)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        finally:
            if self._embedding is not None:
                self._embedding.clear()
        rows = inputs[0].shape[0] if self._dropout is None else self._dropout.rows_at_once(inputs[0].shape[0])
        if rows <= 1 and self._dropout is not None and self._dropout.halve_samples():
            rows = 2  # one row again, of fewer samples at a time
        self.batch_size = halved(rows, self._source, self.device, reason)
        return None

    @torch.inference_mode()
    def _forward(self, inputs: tuple[Tensor, ...]) -> Prediction:
        rows = inputs[0].shape[0]
        inputs = tuple(values.to(self.device, non_blocking=self.device.type == "cuda") for values in inputs)
        if self._embedding is not None:
            self._embedding.prepare(self._probe, inputs, self.promise)
        bias = self._embedding is None or self._embedding.bias
        if self._dropout is not None:
            made = self._dropout(inputs)
            reason = self._dropout.promise.reason(made.logits, made.samples)
            lengths = self._lengths(inputs, self._dropout.promise)
            return Prediction(
                made.logits, made.embedding, reason, samples=made.samples, mask=made.mask, bias=bias, gradient_lengths=lengths
            )
        output = self._run(inputs)
        read = self.promise.read(output, rows)
        embedding = None if self._embedding is None else self._embedding.take(read.raw, rows, read.mask)
        # egl_parameters names the network in its errors, so that it is wrapped only where it must be.
        as_it_is = read.raw is output and read.raw.shape == read.logits.shape and not self.promise.probabilities
        lengths = self._lengths(inputs, None if as_it_is else self.promise)
        reason = self.promise.reason(read.logits)
        return Prediction(read.logits, embedding, reason, mask=read.mask, bias=bias, gradient_lengths=lengths)

    def _lengths(self, inputs: tuple[Tensor, ...], promise: Promise | None) -> Tensor | None:
        if self._gradients is None:
            return None
        try:
            return self._gradients(inputs, promise)
        finally:
            if self._embedding is not None:
                self._embedding.clear()  # the hooks ran again

    def _probe(self, inputs: tuple[Tensor, ...]) -> object:
        """Return what is scored, once it is known to keep its promise: what to say of a wrong one must not depend on embeddings."""
        return self.promise.read(self._run(inputs), inputs[0].shape[0]).raw

    def _run(self, inputs: tuple[Tensor, ...]) -> object:
        try:
            with torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext():
                return self.network(**dict(zip(self._names, inputs, strict=True))) if self._names else self.network(*inputs)
        except Exception as error:
            if isinstance(error, ModelError) or is_out_of_memory(error) or is_device_failure(error):
                raise
            shapes = ", ".join(f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}" for values in inputs)
            told = f"{type(error).__name__}: {error}"
            built = f", its parameters being float32 in place of {self._built_in}, as model.precision says" if self._built_in else ""
            raise ModelError(
                f"{self._source} raised {told} on inputs {shapes}{built}; check that pool.inputs are what its forward takes"
            ) from error
