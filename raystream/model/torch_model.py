"""kind: torch, a network of the user's own code, run in evaluation mode."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from raystream import query
from raystream.errors import ModelError
from raystream.model.device import choose_device, is_device_failure, is_out_of_memory
from raystream.model.embedding import EmbeddingTap
from raystream.model.gradient_lengths import GradientLengths
from raystream.model.imported import check_imported
from raystream.model.mc_dropout import MCDropout
from raystream.model.prediction import Prediction, check_logits
from raystream.model.signature import check_forward
from raystream.model.source import build_network
from raystream.model.task_output import check_mask, split
from raystream.model.weights import load_weights, state_hash

AUTOCAST = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    """Build the network of `spec.source`, fill it from `spec.weights` and put it on its device."""
    assert spec.source is not None  # the query checks it
    assert not isinstance(spec.weights, list)  # a committee loads its members one by one
    device = choose_device(spec.device)
    network = build_network(spec.source, spec.args)
    check_imported(spec.source)
    if spec.weights is not None:
        load_weights(network, spec.weights, spec.trust)
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
        mc_samples=mc_samples,
        seed=seed,
        gradients=GradientLengths(network, gradient_classes, spec.temperature_value, names) if gradient_classes is not None else None,
        names=names,
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
        mc_samples: int = 0,
        seed: int = 0,
        gradients: GradientLengths | None = None,
        names: Sequence[str] = (),
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
            mc_samples: how many MC dropout samples each prediction holds; 0: none.
            seed: of their masks.
            gradients: of this network; None if `Prediction.gradient_lengths` isn't wanted.
            names: the arguments of its forward that the inputs are; empty if they come by position.
        """
        self.state_hash = state_hash(network)
        self.device = device
        self.batch_size = batch_size
        self._source = f"model.source {source}"
        self._network = self._placed(network.eval())
        self._autocast = autocast
        self._embedding = embedding
        self._gradients = gradients
        self._task = task
        self._names = tuple(names)
        self._dropout = self._make_dropout(mc_samples, seed) if mc_samples else None

    def _make_dropout(self, samples: int, seed: int) -> MCDropout:
        return MCDropout(
            self._network,
            self._run,
            samples=samples,
            seed=seed,
            who=self._source,
            device=self.device,
            embedding=self._embedding,
            autocast=self._autocast is not None,
            task=self._task,
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
        rows = inputs[0].shape[0]
        pieces: list[Prediction] = []
        start = 0
        while start < rows or not pieces:
            piece = tuple(values[start : start + self.batch_size] for values in inputs)
            prediction = self._fit(piece)
            if prediction is not None:
                pieces.append(prediction)
                start += self.batch_size
        return pieces[0] if len(pieces) == 1 else _concatenate(pieces)

    def _fit(self, inputs: tuple[Tensor, ...]) -> Prediction | None:
        """The prediction for one batch, or None when it did not fit and `batch_size` was halved."""
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
        if rows <= 1 and not (self._dropout and self._dropout.halve_samples()):
            raise ModelError(f"{self._source}: one row does not fit into the memory of {self.device} ({reason}); use a larger device")
        self.batch_size = max(1, rows // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # after the except clause, whose traceback held the batch's tensors
        return None

    @torch.inference_mode()
    def _forward(self, inputs: tuple[Tensor, ...]) -> Prediction:
        rows = inputs[0].shape[0]
        inputs = tuple(values.to(self.device, non_blocking=self.device.type == "cuda") for values in inputs)
        if self._embedding is not None:
            self._embedding.prepare(self._probe, inputs)
        bias = self._embedding is None or self._embedding.bias
        if self._dropout is not None:
            made = self._dropout(inputs)
            return Prediction(
                made.logits, made.embedding, samples=made.samples, mask=made.mask, bias=bias, gradient_lengths=self._lengths(inputs)
            )
        output, given = split(self._run(inputs), self._task)
        logits = check_logits(output, rows, self._source, self._task)
        mask = check_mask(given, logits, self._source, self._task)
        embedding = None if self._embedding is None else self._embedding.take(output, rows, mask)
        return Prediction(logits, embedding, mask=mask, bias=bias, gradient_lengths=self._lengths(inputs))

    def _lengths(self, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if self._gradients is None:
            return None
        try:
            return self._gradients(inputs)
        finally:
            if self._embedding is not None:
                self._embedding.clear()  # the hooks ran again

    def _probe(self, inputs: tuple[Tensor, ...]) -> object:
        """The raw output, once it is known to be logits: what to say of a wrong one must not depend on embeddings."""
        output, _ = split(self._run(inputs), self._task)
        check_logits(output, inputs[0].shape[0], self._source, self._task)
        return output

    def _run(self, inputs: tuple[Tensor, ...]) -> object:
        try:
            with torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext():
                return self._network(**dict(zip(self._names, inputs, strict=True))) if self._names else self._network(*inputs)
        except Exception as error:
            if isinstance(error, ModelError) or is_out_of_memory(error) or is_device_failure(error):
                raise
            shapes = ", ".join(f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}" for values in inputs)
            told = f"{type(error).__name__}: {error}"
            raise ModelError(
                f"{self._source} raised {told} on inputs {shapes}; check that pool.inputs are what its forward takes"
            ) from error


def _concatenate(pieces: list[Prediction]) -> Prediction:
    logits, embedding, samples, mask, lengths = (
        torch.cat(parts) if parts else None
        for parts in (
            [piece.logits for piece in pieces if piece.logits is not None],
            [piece.embedding for piece in pieces if piece.embedding is not None],
            [piece.samples for piece in pieces if piece.samples is not None],
            [piece.mask for piece in pieces if piece.mask is not None],
            [piece.gradient_lengths for piece in pieces if piece.gradient_lengths is not None],
        )
    )
    return Prediction(logits, embedding, samples=samples, mask=mask, bias=pieces[0].bias, gradient_lengths=lengths)
