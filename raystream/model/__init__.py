"""The user's model: load it, run it on batches, say what it is.

`load` turns the `model` section of a query into a `Predictor`; everything behind it sees logits and embeddings and never asks where
they come from. What these are to be, `promise` says, and `probe` tries on a few rows, for all kinds alike. A further kind is a module
with a `load` of the same signature, and an entry in `raystream.query.catalogue`; another package registers such a function as an entry
point of the group `raystream.models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raystream import query
from raystream.errors import ModelError
from raystream.model.batches import is_device_failure, runs_on_gpu
from raystream.model.columns_model import input_columns
from raystream.model.committee import Committee, member_names, member_specs
from raystream.model.fingerprint import code_hash, fingerprint
from raystream.model.prediction import Prediction, Predictor, RowScores, bad_output_rows, check_classes, class_names
from raystream.model.preparation import load_preparation
from raystream.model.probe import PROBE_ROWS, Promised
from raystream.model.signature import INPUTS
from raystream.model.weights import with_local_files
from raystream.query.catalogue import kind_of

__all__ = [
    "PROBE_ROWS",
    "Prediction",
    "Predictor",
    "Promised",
    "RowScores",
    "bad_output_rows",
    "check_classes",
    "class_names",
    "code_hash",
    "fingerprint",
    "input_columns",
    "is_device_failure",
    "load",
    "load_preparation",
    "runs_on_gpu",
    "with_local_files",
]


def load(
    spec: query.Model,
    *,
    embedding: bool,
    mc_samples: int = 0,
    seed: int = 0,
    last_layer: bool = False,
    gradient_classes: int | None = None,
    names: Sequence[str] = (),
) -> Promised:
    """Make the model of a query ready to predict; a committee, where it has several weights or members.

    Args:
        spec: the `model` section of the query.
        embedding: whether embeddings are wanted; without, `Prediction.embedding` is None and no hook is set.
        mc_samples: how many MC dropout samples `Prediction.samples` holds; 0: none.
        seed: of their masks.
        last_layer: whether the embedding must be the input of the layer that gives the logits.
        gradient_classes: over how many classes `Prediction.gradient_lengths` goes, of kind torch alone; None: not wanted.
        names: the model's own names of its inputs, as `pool.inputs` gives them; empty if they come by position.

    Raises:
        ModelError: the source, the weights or the device can't be used, or MC dropout isn't possible with this model.
    """
    members = member_specs(spec)
    if mc_samples and members:
        raise ModelError("acquire.mc_samples is given, but the model is a committee, whose members are the samples; remove it")
    if members:
        loaded = [load(member, embedding=embedding and position == 0, names=names) for position, member in enumerate(members)]
        named = list(zip(member_names(spec), loaded, strict=True))
        return Promised(Committee(loaded, member_names(spec), spec.temperature_value, spec.task), spec, members=named)
    kind = kind_of(spec.kind)
    if mc_samples and kind.no_dropout:
        raise ModelError(
            f"acquire.mc_samples is given, but model.kind is {spec.kind}: {kind.no_dropout}; "
            "use kind torch or export, or a committee in model.weights or model.members"
        )
    # kinds that know no names or samples don't have the argument
    further: dict[str, Any] = {"mc_samples": mc_samples, "seed": seed} if mc_samples else {}
    if names and kind.named:
        further["names"] = tuple(names)
    if kind.parameters and (last_layer or gradient_classes is not None):
        further |= {"last_layer": last_layer, "gradient_classes": gradient_classes}
    inputs_embedded = embedding and spec.embedding == INPUTS and not kind.own_inputs
    model = kind.loader(spec, embedding=embedding and not inputs_embedded, **further)
    return Promised(model, spec, watched=not mc_samples and gradient_classes is None, inputs_embedded=inputs_embedded)
