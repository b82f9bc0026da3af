"""kind: onnx, a model that onnxruntime runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raystream import query
from raystream.errors import ModelError
from raystream.model.batches import BatchPredictor, choose_device, last_line
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise
from raystream.model.signature import Input, Outputs, Signature, in_order
from raystream.model.source import optional
from raystream.model.weights import find_file
from raystream.query import TASKS

_HOW = "return (logits, embedding) from forward and export that"
_CUDA = "CUDAExecutionProvider"
_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def load(spec: query.Model, *, embedding: bool, names: Sequence[str] = ()) -> BatchPredictor:
    """Make a session for the file of `spec.source`, with as many threads as torch has here.

    Raises:
        ModelError: onnxruntime is missing, refuses the file, or doesn't run on the device; or an output isn't there.
    """
    assert spec.source is not None  # the query checks it
    runtime = optional("onnxruntime", "onnx", "onnx")
    device = _device(runtime, spec.device)
    path = find_file(spec.source, "an ONNX model", "export the model with torch.onnx.export, or set model.kind to what it is")
    who = f"model.source {spec.source}"
    session = _session(runtime, path, device, who)
    signature = Signature([_input(of, who) for of in session.get_inputs()], who)
    order = in_order(names, signature.names, who)
    given_back = [of.name for of in session.get_outputs()]
    promise = Promise(who, spec.task, spec.output)
    outputs = Outputs(embedding, spec.embedding, promise, _HOW)
    logits = outputs.scored(given_back)
    wanted = [logits, outputs.embedding_name(given_back, logits)] if embedding else [logits]
    if TASKS[spec.task].dense:
        wanted = given_back  # a mask may be among them

    def forward(inputs: tuple[Any, ...]) -> Prediction:
        arrays = (values.cpu().numpy() for values in signature.fit(order(inputs)))
        found = session.run(wanted, dict(zip(signature.names, arrays, strict=True)))
        made = {name: torch.from_numpy(values) if hasattr(values, "dtype") else values for name, values in zip(wanted, found, strict=True)}
        return outputs.prediction(made, len(inputs[0]))

    # Whatever device the session runs on, it takes and returns arrays of the processor's.
    return BatchPredictor(forward, promise=promise, device=torch.device("cpu"), batch_size=spec.batch_size)


def _device(runtime: Any, name: str) -> torch.device:
    """Return the device of that name, if this build of onnxruntime has it; `auto` is one that it has."""
    device = choose_device(name)
    if device.type == "cpu" or (device.type == "cuda" and _CUDA in runtime.get_available_providers()):
        return device
    if name == "auto":
        return torch.device("cpu")
    raise ModelError(f"model.device is {name!r}, on which this onnxruntime does not run; install onnxruntime-gpu, or set it to cpu")


def _session(runtime: Any, path: Path, device: torch.device, who: str) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    chosen = (_CUDA, {"device_id": device.index or 0}) if device.type == "cuda" else "CPUExecutionProvider"
    try:
        return runtime.InferenceSession(str(path), options, providers=[chosen])
    except Exception as error:
        raise ModelError(f"{who} is no model that onnxruntime {runtime.__version__} can run: {last_line(error)}; export it again") from None


def _input(of: Any, who: str) -> Input:
    if of.type not in _DTYPES:
        raise ModelError(f"{who}: input {of.name} is {of.type}, expected a tensor of numbers; export a model that takes such")
    return Input(of.name, _DTYPES[of.type], tuple(of.shape))
