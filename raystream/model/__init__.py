"""The user's model: load it, run it on batches, say what it is.

`load` turns the `model` section of a query into a `Predictor`; everything behind it sees logits and embeddings and
never asks where they come from. A further kind is a module with a `load` of the same signature and a line in `_LOADERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from raystream import query
from raystream.model import columns_model, torch_model
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
    "torch": torch_model.load,
}


def load(spec: query.Model, *, embedding: bool) -> Predictor:
    """Make the model of a query ready to predict.

    Args:
        spec: the `model` section of the query.
        embedding: whether embeddings are wanted; without, `Prediction.embedding` is None and no hook is set.

    Raises:
        ModelError: the source, the weights or the device can't be used.
    """
    return _LOADERS[spec.kind](spec, embedding=embedding)
