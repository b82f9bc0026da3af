"""The user's model: load it, run it on batches, say what it is.

`load` turns the `model` section of a query into a `Predictor`; everything behind it sees logits and embeddings and
never asks where they come from. A further kind is a module with a `load` of the same signature, a line in `_LOADERS` and one in
`raystream.kinds`; another package registers such a function as an entry point of the group `raystream.models`.
"""

from __future__ import annotations

from collections.abc import Callable

from raystream import query
from raystream.model import (
    columns_model,
    export_model,
    onnx_model,
    python_model,
    sentence_model,
    sklearn_model,
    torch_model,
    torchscript_model,
    transformers_model,
)
from raystream.model.classes import check_classes, class_names
from raystream.model.columns_model import input_columns
from raystream.model.device import is_device_failure
from raystream.model.fingerprint import code_hash, fingerprint
from raystream.model.prediction import Prediction, Predictor, bad_output_rows

__all__ = [
    "Prediction",
    "Predictor",
    "bad_output_rows",
    "check_classes",
    "class_names",
    "code_hash",
    "fingerprint",
    "input_columns",
    "is_device_failure",
    "load",
]

_LOADERS: dict[str, Callable[..., Predictor]] = {
    "columns": columns_model.load,
    "export": export_model.load,
    "onnx": onnx_model.load,
    "python": python_model.load,
    "sentence_transformers": sentence_model.load,
    "sklearn": sklearn_model.load,
    "torch": torch_model.load,
    "torchscript": torchscript_model.load,
    "transformers": transformers_model.load,
}


def load(spec: query.Model, *, embedding: bool) -> Predictor:
    """Make the model of a query ready to predict.

    Args:
        spec: the `model` section of the query.
        embedding: whether embeddings are wanted; without, `Prediction.embedding` is None and no hook is set.

    Raises:
        ModelError: the source, the weights or the device can't be used.
    """
    return _LOADERS.get(spec.kind, python_model.load_registered)(spec, embedding=embedding)
