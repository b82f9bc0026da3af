"""Which models give the scores that are lengths of gradients."""

from __future__ import annotations

from raystream.query.acquire import Acquire
from raystream.query.catalogue import GRADIENT_SCORES, PARAMETER_SCORES, kind_of
from raystream.query.model import Model


def knows_last_layer(model: Model) -> bool:
    """Whether the input of the layer that gives the logits is known: the last Linear's, or the column that the user says it is."""
    if model.members is not None or isinstance(model.weights, list):
        return False
    kind = kind_of(model.kind)
    return model.embedding is None if kind.last_layer else kind.carried and model.embedding is not None


def check_gradients(acquire: Acquire, model: Model) -> None:
    """Refuse scores from gradients where the model has none that can be taken.

    Raises:
        ValueError: with the reason, and what to use.
    """
    committee, kind = model.members is not None or isinstance(model.weights, list), kind_of(model.kind)
    for score in acquire.asked:
        if score in GRADIENT_SCORES and not knows_last_layer(model):
            if committee:
                reason = "but a committee has several last layers; take bald or consensus_entropy"
            elif kind.last_layer:
                reason = f"but model.embedding names {model.embedding}; leave it out, so that the embedding is that input"
            elif kind.carried:
                reason = "but no column holds it; name the one that does in model.embedding"
            else:
                reason = f"which is not known of kind {model.kind}; use kind torch, or columns that hold the logits and that input"
            raise ValueError(f"acquire asks for {score}, which needs the input of the last Linear layer, {reason}")
        if score in PARAMETER_SCORES and (committee or not kind.parameters):
            if committee:
                reason = "but a committee has several networks; give one of them, or take bald"
            elif kind.carried:
                reason = "but kind columns has no network; name the input of the last layer in model.embedding and take egl"
            else:
                reason = f"which kind {model.kind} doesn't give; use kind torch"
            raise ValueError(f"acquire asks for {score}, which needs the gradients of a network's parameters, {reason}")
