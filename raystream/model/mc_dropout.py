"""Monte Carlo dropout at little more than the cost of one pass (Gal and Ghahramani, Dropout as a Bayesian Approximation, 2016).

Each sample is one fixed sub-network: its masks have no axis for the rows, so it is the same for every row, batch, worker and
device (`dropout_masks`). All samples run under one torch.vmap, in which what lies before the first dropout is computed once.
One more sample, which drops nothing, is the deterministic network. Only dropout is switched on (`dropout_mode`): the network
stays in evaluation mode, batch norm with it. Where vmap refuses an operation, the samples run one after another, with the
same masks. So do the samples of models whose forward pass makes a whole prediction at once, such as exported programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from raystream.errors import ModelError
from raystream.model.batches import is_device_failure, is_out_of_memory, keep_freed_memory
from raystream.model.dropout_calls import Forward, Probe, ScriptedDropoutMode, check_scripted, probe, probe_scripted
from raystream.model.dropout_mode import DropoutCall, DropoutMode, Masks
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise

_PASS_BYTES = {"cpu": 32 << 20, "cuda": 2 << 30}
"""What the tensors of one pass may take, by estimate. On a processor no more than its caches hold a good part of."""
_TENSORS_AT_ONCE = 3
_SELU_LIMIT = -1.7580993408473766
_TOLERANCE, _AUTOCAST_TOLERANCE = 1e-3, 0.1
_TEST_ROWS = 2


@dataclass(frozen=True)
class Samples:
    """The outputs for one batch."""

    logits: Tensor
    """Of the deterministic network, float32 (n_rows, n_classes)."""
    samples: Tensor
    """float32 (n_rows, n_samples, n_classes)."""
    embedding: Tensor | None
    """Of the deterministic network, float32 (n_rows, n_dimensions)."""
    mask: Tensor | None = None
    """bool (n_rows, ...), which elements of a dense output count; None: all."""


class Embedding(Protocol):
    """Catches an embedding while a network runs."""

    def take(self, logits: object, rows: int, mask: Tensor | None = None, /) -> Tensor:
        """Return the embedding of the batch that just ran, float32 (rows, dimensions), given the logits it returned; forgets it."""


class MCDropout:
    """Runs a network with its dropout on.

    Args:
        network: in evaluation mode, on its device; modules that ask for `training` before they drop attention weights
            are put into training mode, each by itself.
        run: its forward pass, by which all of it is run.
        samples: how many sub-networks.
        seed: which ones.
        who: names the network in errors.
        embedding: hooks on the network, prepared, or None.
        autocast: whether it runs in mixed precision, which rounds more.
        task: `model.task`, which says what the output of a forward pass is.
        output: `model.output`, logits or probabilities.
        scripted: whether the network is TorchScript.

    Raises:
        ModelError: the network has dropout that can't be switched on.
    """

    def __init__(
        self,
        network: nn.Module,
        run: Forward,
        *,
        samples: int,
        seed: int,
        who: str,
        device: torch.device,
        embedding: Embedding | None = None,
        autocast: bool = False,
        task: str = "classes",
        output: str = "logits",
        scripted: bool = False,
    ) -> None:
        if scripted:
            check_scripted(network, who)
        else:
            _refuse_recurrent(network, who)
        self._network, self._run, self._who, self._embedding = network, run, who, embedding
        self.promise = Promise(who, task, output)
        self._samples, self._device = samples, device
        keep_freed_memory()
        self._masks = Masks(samples, seed, device)
        self._budget = _PASS_BYTES.get(device.type, _PASS_BYTES["cuda"])
        self._tolerance = _AUTOCAST_TOLERANCE if autocast else _TOLERANCE
        self._most_samples = samples + 1
        self._scripted, self._vmap = scripted, not scripted
        self._probe: Probe | None = None
        self._tested = False

    def __call__(self, inputs: tuple[Tensor, ...]) -> Samples:
        """Run all samples, and the deterministic network, on rows.

        Raises:
            ModelError: no dropout was active, or the samples aren't fixed sub-networks; found on the first batch.
        """
        rows = inputs[0].shape[0]
        if rows and self._probe is None:
            self._probe = self._probed(inputs)
        at_once, _ = self._sizes(rows)
        pieces = [self._piece(tuple(values[start : start + at_once] for values in inputs)) for start in range(0, max(rows, 1), at_once)]
        made = pieces[0] if len(pieces) == 1 else _concatenate(pieces)
        if not self._tested:
            self._tested = self._test(inputs, made.samples)
        return made

    def rows_at_once(self, rows: int) -> int:
        """Return how many of so many rows one pass takes."""
        return self._sizes(rows)[0]

    def halve_samples(self) -> bool:
        """Run half as many samples at once from now on; whether that was possible."""
        now = self._sizes(1)[1]
        self._most_samples = max(1, now // 2)
        return now > 1

    def _sizes(self, rows: int) -> tuple[int, int]:
        """Choose rows and samples of one pass. All samples if one row of each fits, since the trunk runs once for each pass."""
        if not self._vmap or self._probe is None:
            return max(rows, 1), 1
        fit = self._budget // (_TENSORS_AT_ONCE * self._probe.bytes_per_row)
        samples = max(1, min(self._most_samples, fit))
        return max(1, min(rows, fit // samples)), samples

    def _probed(self, inputs: tuple[Tensor, ...]) -> Probe:
        if self._scripted:
            found = probe_scripted(self._run, inputs, self._who)
        else:
            found = probe(self._network, lambda given: self.promise.read(self._run(given), given[0].shape[0]).raw, inputs, self._who)
        if not any(call.active for call in found.calls):
            raise ModelError(
                f"{self._who}: no dropout was active, so all of acquire.mc_samples would be equal and every disagreement 0; "
                "give it a dropout layer with p between 0 and 1 before its output, or a committee in model.weights"
            )
        return found

    def _piece(self, inputs: tuple[Tensor, ...]) -> Samples:
        """Draw all samples of rows that fit into memory; the deterministic network goes first."""
        order = [self._samples, *range(self._samples)]
        _, at_once = self._sizes(inputs[0].shape[0])
        if self._vmap:
            try:
                return self._joined([self._vmapped(inputs, order[start : start + at_once]) for start in range(0, len(order), at_once)])
            except Exception as error:
                if is_out_of_memory(error) or is_device_failure(error):
                    raise
            self._vmap = False  # the loop raises what is the model's own fault
        return self._joined(self._looped(inputs, order))

    def _vmapped(self, inputs: tuple[Tensor, ...], order: Sequence[int]) -> dict[str, Tensor]:
        """Compute logits (n_order, n_rows, n_classes) of these samples and, in the same way, embeddings and masks."""
        index = torch.tensor(order, device=self._device)
        made: dict[str, Tensor] = torch.vmap(lambda sample: self._one(inputs, sample))(index)
        return made

    def _looped(self, inputs: tuple[Tensor, ...], order: Sequence[int]) -> list[dict[str, Tensor]]:
        made = [self._one(inputs, torch.tensor(sample, device=self._device)) for sample in order]
        return [{name: values[None] for name, values in one.items()} for one in made]

    def _one(self, inputs: tuple[Tensor, ...], sample: Tensor) -> dict[str, Tensor]:
        """Run one forward pass of one sub-network for its logits and if there are such embedding and mask; under vmap, of many."""
        rows = inputs[0].shape[0]
        mode = ScriptedDropoutMode if self._scripted else DropoutMode
        with mode(lambda call, values: self._replaced(call, values, rows, sample)):
            read = self.promise.read(self._run(inputs), rows)
        made = {"logits": read.logits}
        if read.mask is not None:
            made["mask"] = read.mask
        if self._embedding is not None:
            made["embedding"] = self._embedding.take(read.raw, rows, read.mask)
        return made

    def _replaced(self, call: DropoutCall, values: Tensor, rows: int, sample: Tensor) -> Tensor:
        """Return the output of a dropout call in a sample."""
        if call.p == 0 or rows == 0 or self._probe is None:
            return values
        shape = self._probe.shape_of(call, self._who)
        keep = self._masks.of_call(call.number, shape.mask(call, values, rows, self._who), call.p)[sample].to(values.dtype)
        scale, shift, dropped = _affine(call)
        kept = sample != self._samples
        scale_of = torch.where(kept, scale, 1.0).to(values.dtype)
        factor = shape.over_rows(keep * scale_of, rows)
        if not call.alpha:
            return values * factor
        added = torch.where(kept, dropped + keep * (shift - dropped), torch.zeros_like(keep))
        return values * factor + shape.over_rows(added, rows)

    def _joined(self, made: Sequence[dict[str, Tensor]]) -> Samples:
        logits = torch.cat([part["logits"] for part in made])
        first = {name: values[0].contiguous() for name, values in made[0].items()}
        return Samples(logits[0], logits[1:].transpose(0, 1).contiguous(), first.get("embedding"), first.get("mask"))

    def _test(self, inputs: tuple[Tensor, ...], samples: Tensor) -> bool:
        """Test that samples differ from each other, and that each is the same sub-network every time; False if that can't be tested."""
        samples = samples.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=0.0)  # -inf masks a class
        sound = torch.isfinite(samples).flatten(1).all(dim=1).nonzero().flatten()
        if not len(sound):
            return False
        if self._samples > 1 and bool((samples[sound] == samples[sound][:, :1]).all()):
            raise ModelError(
                f"{self._who}: all {self._samples} of acquire.mc_samples gave equal logits, so every disagreement would be 0; "
                "its dropout does not reach its output: raise its p or move it, or give a committee in model.weights"
            )
        chosen, which = sound[:_TEST_ROWS], sorted({0, self._samples - 1})
        again = self._joined(self._looped(tuple(values[chosen] for values in inputs), [self._samples, *which])).samples
        before, again = samples[chosen][:, which], again.nan_to_num(neginf=0.0)
        if float((before - again).abs().max()) > self._tolerance * max(1.0, float(before.abs().max())):
            raise ModelError(
                f"{self._who}: a dropout sample gave other logits for the same rows in another batch, so it draws random numbers that "
                "are no dropout of torch's, or its rows influence each other; mend that, or give a committee in model.weights"
            )
        return True


def _affine(call: DropoutCall) -> tuple[float, float, float]:
    """Return (a, b, c): dropout makes a kept value v into a v + b, and a dropped one into c."""
    if call.p == 1:
        return 0.0, 0.0, 0.0
    if not call.alpha:
        return 1 / (1 - call.p), 0.0, 0.0
    scale = ((1 - call.p) * (1 + call.p * _SELU_LIMIT**2)) ** -0.5
    shift = -scale * call.p * _SELU_LIMIT
    return scale, shift, scale * _SELU_LIMIT + shift


def _refuse_recurrent(network: nn.Module, who: str) -> None:
    for name, module in network.named_modules():
        if isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1:
            raise ModelError(
                f"{who}: {name or 'it'} is {type(module).__name__} with dropout {module.dropout} between its layers, which can't be "
                "switched on from outside; put torch.nn.Dropout between single layers, set its dropout to 0, or give a committee"
            )


def _concatenate(pieces: Sequence[Samples]) -> Samples:
    embeddings = [piece.embedding for piece in pieces if piece.embedding is not None]
    masks = [piece.mask for piece in pieces if piece.mask is not None]
    return Samples(
        torch.cat([piece.logits for piece in pieces]),
        torch.cat([piece.samples for piece in pieces]),
        torch.cat(embeddings) if embeddings else None,
        torch.cat(masks) if masks else None,
    )


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
        """Return the prediction of the deterministic network with the samples beside it."""
        try:
            made = self._dropout(inputs)
        finally:
            self._made = None
        return Prediction(made.logits, made.embedding, samples=made.samples, mask=made.mask)

    def take(self, logits: object, rows: int, mask: Tensor | None = None, /) -> Tensor:
        """Return the embedding of the pass that just ran; forgets it."""
        made, self._made = self._made, None
        assert made is not None  # a pass has run
        assert made.embedding is not None  # it is asked for
        return made.embedding

    def _run(self, inputs: tuple[Tensor, ...]) -> object:
        """Return logits, or (logits, mask); the embedding waits for `take`."""
        made = self._forward(inputs)
        self._made = made
        return made.logits if made.mask is None else (made.logits, made.mask)
