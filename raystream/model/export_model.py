"""kind: export, a program that torch.export.save wrote."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from raystream import query
from raystream.errors import ModelError
from raystream.model.artefact import find_file
from raystream.model.batches import BatchPredictor, last_line
from raystream.model.device import choose_device
from raystream.model.prediction import Prediction
from raystream.model.signature import Input, Outputs, Signature, in_order
from raystream.model.weights import state_hash

_HOW = "return (logits, embedding) from forward and export that"


def load(spec: query.Model, *, embedding: bool, names: Sequence[str] = ()) -> BatchPredictor:
    """Load the program of `spec.source` and put it on its device.

    Raises:
        ModelError: the file holds no such program, or its program takes one batch size alone.
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
    outputs = Outputs(embedding, spec.embedding, who, _HOW)

    def forward(inputs: tuple[Any, ...]) -> Prediction:
        given = [values.to(device, non_blocking=device.type == "cuda") for values in order(inputs)]
        return outputs.prediction(network(*signature.fit(given)), len(inputs[0]))

    return BatchPredictor(forward, who=who, device=device, batch_size=spec.batch_size, state_hash=state_hash(network))


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
    """Without the log lines of torch.export, which repeat a failure with its traceback."""
    logger = logging.getLogger("torch.export")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _inputs(program: torch.export.ExportedProgram) -> list[Input]:
    """The tensors that the program takes, with None for lengths that it leaves open."""
    names = set(program.graph_signature.user_inputs)
    found = []
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" and node.name in names else None
        if isinstance(value, torch.Tensor):
            found.append(Input(node.name, value.dtype, tuple(size if isinstance(size, int) else None for size in value.shape)))
    return found
