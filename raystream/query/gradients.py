"""Which models give the scores that are lengths of gradients."""

from __future__ import annotations

from raystream.query.acquire import GRADIENT_SCORES, Acquire
from raystream.query.model import Model


def knows_last_layer(model: Model) -> bool:
    """Whether the input of the layer that gives the logits is known: the last Linear's, or the column that the user says it is."""
    if model.members is not None or isinstance(model.weights, list):
        return False
    return model.embedding is None if model.kind == "torch" else model.kind == "columns" and model.embedding is not None


def check_gradients(acquire: Acquire, model: Model) -> None:
    """Refuse scores from gradients where the model has none that can be taken.

    Raises:
        ValueError: with the reason, and what to use.
    """
    committee = model.members is not None or isinstance(model.weights, list)
    for score in acquire.asked:
        if score in GRADIENT_SCORES and not knows_last_layer(model):
            if committee:
                reason = "but a committee has several last layers; take bald or consensus_entropy"
            elif model.kind == "torch":
                reason = f"but model.embedding names {model.embedding}; leave it out, so that the embedding is that input"
            elif model.kind == "columns":
                reason = "but no column holds it; name the one that does in model.embedding"
            else:
                reason = f"which is not known of kind {model.kind}; use kind torch, or columns that hold the logits and that input"
            raise ValueError(f"acquire asks for {score}, which needs the input of the last Linear layer, {reason}")
        if score == "egl_parameters" and (committee or model.kind != "torch"):
            if committee:
                reason = "but a committee has several networks; give one of them, or take bald"
            elif model.kind == "columns":
                reason = "but kind columns has no network; name the input of the last layer in model.embedding and take egl"
            else:
                reason = f"which kind {model.kind} doesn't give; use kind torch"
            raise ValueError(f"acquire asks for egl_parameters, which needs the gradients of a network's parameters, {reason}")
