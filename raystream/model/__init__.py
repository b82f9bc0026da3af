"""The user's model: load it, run it on batches, say what it is.

`load` turns the `model` section of a query into a `Predictor`; everything behind it sees logits and embeddings and
never asks where they come from. A further kind is a module with a `load` of the same signature and a line in `_LOADERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from raystream import query
from raystream.errors import ModelError
from raystream.model import columns_model, torch_model
from raystream.model.classes import check_classes, class_names
from raystream.model.columns_model import input_columns
from raystream.model.committee import Committee, member_names, member_specs
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
_NO_DROPOUT = {
    "columns": "the pool's columns are its output already, with no dropout to switch on",
}
"""Why a kind of model can't give MC dropout samples."""


def load(spec: query.Model, *, embedding: bool, mc_samples: int = 0, seed: int = 0) -> Predictor:
    """Make the model of a query ready to predict; a committee, where it has several weights or members.

    Args:
        spec: the `model` section of the query.
        embedding: whether embeddings are wanted; without, `Prediction.embedding` is None and no hook is set.
        mc_samples: how many MC dropout samples `Prediction.samples` holds; 0: none.
        seed: of their masks.

    Raises:
        ModelError: the source, the weights or the device can't be used, or MC dropout isn't possible with this model.
    """
    members = member_specs(spec)
    if mc_samples and members:
        raise ModelError("acquire.mc_samples is given, but the model is a committee, whose members are the samples; remove it")
    if members:
        loaded = [load(member, embedding=embedding and position == 0) for position, member in enumerate(members)]
        return Committee(loaded, member_names(spec), spec.temperature)
    if mc_samples and spec.kind in _NO_DROPOUT:
        raise ModelError(
            f"acquire.mc_samples is given, but model.kind is {spec.kind}: {_NO_DROPOUT[spec.kind]}; "
            "use kind torch, or a committee in model.weights or model.members"
        )
    if mc_samples:
        return _LOADERS[spec.kind](spec, embedding=embedding, mc_samples=mc_samples, seed=seed)
    return _LOADERS[spec.kind](spec, embedding=embedding)
