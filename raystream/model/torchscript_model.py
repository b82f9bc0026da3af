"""kind: torchscript, a module that torch.jit.save wrote."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError
from raystream.model.batches import BatchPredictor, choose_device, last_line
from raystream.model.mc_dropout import SampledForward
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise
from raystream.model.signature import Outputs, in_order
from raystream.model.weights import find_file, state_hash

_HOW = "return (logits, embedding) from forward and script that"


def load(spec: query.Model, *, embedding: bool, mc_samples: int = 0, seed: int = 0, names: Sequence[str] = ()) -> BatchPredictor:
    """Load the module of `spec.source` onto its device, in evaluation mode.

    Raises:
        ModelError: the file holds no such module.
    """
    assert spec.source is not None  # the query checks it
    device = choose_device(spec.device)
    path = find_file(spec.source, "a TorchScript archive", "save the model with torch.jit.save, or set model.kind to what it is")
    who = f"model.source {spec.source}"
    network = _load(str(path), device, who)
    promise = Promise(who, spec.task, spec.output)
    outputs = Outputs(embedding, spec.embedding, promise, _HOW)
    floating = _dtype(network)
    arguments = [of.name for of in network.forward.schema.arguments[1:]]  # without self
    takes = len(arguments)
    order = in_order(names, arguments, who)

    def run(given: tuple[Tensor, ...]) -> Prediction:
        return outputs.prediction(network(*given), len(given[0]))

    def sampled_run(given: tuple[Tensor, ...]) -> Prediction:
        return run(tuple(values.clone() for values in given))  # dropout in place must not reach the next sample's input

    passed: Callable[[tuple[Tensor, ...]], Prediction] = run
    if mc_samples:
        passed = SampledForward(
            network, sampled_run, samples=mc_samples, seed=seed, who=who, device=device, embedding=embedding, task=spec.task, scripted=True
        )

    def forward(inputs: tuple[Any, ...]) -> Prediction:
        if len(inputs) > takes:
            raise ModelError(f"{who} takes {takes} inputs, but pool.inputs gives {len(inputs)}; name one for each")
        given = (values.to(device, non_blocking=device.type == "cuda") for values in order(inputs))
        return passed(tuple(values.to(floating) if values.is_floating_point() else values for values in given))

    hashed = state_hash(network)
    return BatchPredictor(forward, promise=promise, device=device, batch_size=spec.batch_size, state_hash=hashed, network=network)


def _dtype(network: Any) -> torch.dtype:
    """Return the dtype of the floating parameters, and so of the inputs: a file runs in the precision that it was saved in."""
    return next((values.dtype for values in network.parameters() if values.is_floating_point()), torch.float32)


def _load(path: str, device: torch.device, who: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch calls TorchScript itself deprecated
            network = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
            return network.eval() if hasattr(network, "training") else network  # a frozen module has no mode
    except RuntimeError as error:
        raise ModelError(f"{who} can't be loaded by torch {torch.__version__}: {last_line(error)}; save the model again") from None
