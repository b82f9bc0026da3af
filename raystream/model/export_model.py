"""kind: export, a program that torch.export.save wrote."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError
from raystream.model.batches import BatchPredictor, choose_device, last_line
from raystream.model.dropout_mode import ATTENTION, DROPOUTS
from raystream.model.mc_dropout import SampledForward
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise
from raystream.model.signature import Input, Outputs, Signature, in_order
from raystream.model.weights import find_file, state_hash

_HOW = "return (logits, embedding) from forward and export that"


def load(spec: query.Model, *, embedding: bool, mc_samples: int = 0, seed: int = 0, names: Sequence[str] = ()) -> BatchPredictor:
    """Load the program of `spec.source` and put it on its device.

    For MC dropout, the program's own calls of dropout are replaced, whose flags say that they are off. Dropout of attention
    weights that was off when scaled_dot_product_attention was exported has left no trace, and stays off.

    Raises:
        ModelError: the file holds no such program, or its program takes one batch size alone, or
            holds no dropout for the samples that are wanted.
    """
    assert spec.source is not None  # the query checks it
    device = choose_device(spec.device)
    path = find_file(spec.source, "a torch.export archive", "save the model with torch.export.save, or set model.kind to what it is")
    who = f"model.source {spec.source}"
    program = _load(str(path), who)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    signature = Signature(_inputs(program), who)
    order = in_order(names, signature.names, who)
    network = program.module()
    promise = Promise(who, spec.task, spec.output)
    outputs = Outputs(embedding, spec.embedding, promise, _HOW)

    def run(given: tuple[Tensor, ...]) -> Prediction:
        return outputs.prediction(network(*given), len(given[0]))

    passed: Callable[[tuple[Tensor, ...]], Prediction] = run
    if mc_samples:
        _check_dropout(program, who)
        passed = SampledForward(network, run, samples=mc_samples, seed=seed, who=who, device=device, embedding=embedding, task=spec.task)

    def forward(inputs: tuple[Any, ...]) -> Prediction:
        given = [values.to(device, non_blocking=device.type == "cuda") for values in order(inputs)]
        return passed(signature.fit(given))

    hashed = state_hash(network)
    return BatchPredictor(forward, promise=promise, device=device, batch_size=spec.batch_size, state_hash=hashed, network=network)


def _check_dropout(program: torch.export.ExportedProgram, who: str) -> None:
    calls = [node for node in program.graph.nodes if node.target in (*DROPOUTS, *ATTENTION)]
    if not calls:
        raise ModelError(
            f"{who}: acquire.mc_samples is given, but its graph holds no dropout: it had none, or was exported after run_decompositions, "
            "which removes it; export the model itself, use kind torch, or give a committee in model.members"
        )


def _load(path: str, who: str) -> torch.export.ExportedProgram:
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"{who} can't be loaded by torch {torch.__version__}: {type(error).__name__}: {last_line(error)}; export the model again"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log lines of torch.export, which repeat a failure with its traceback."""
    logger = logging.getLogger("torch.export")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _inputs(program: torch.export.ExportedProgram) -> list[Input]:
    """Return the tensors that the program takes, with None for lengths that it leaves open."""
    names = set(program.graph_signature.user_inputs)
    found = []
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" and node.name in names else None
        if isinstance(value, torch.Tensor):
            found.append(Input(node.name, value.dtype, tuple(size if isinstance(size, int) else None for size in value.shape)))
    return found
