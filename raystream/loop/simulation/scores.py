"""The acquisition scores of a trained model's outputs, for rounds that hold arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raystream.acquisition import (
    logit_scores,
    member_scores,
    multi_label_member_scores,
    multi_label_scores,
    regression_variance,
)
from raystream.errors import QueryError
from raystream.query.catalogue import SCORES

Array = npt.NDArray[Any]
_SIMULATED = ("logits", "members")
"""What a score may be computed from; the others look into the model."""


def score_rows(score: str, task: str, values: Array, samples: Array | None) -> Array:
    """Return (n,) float32, higher = label sooner, as workers score the same outputs.

    Args:
        score: its name.
        task: `model.task`.
        values: (n, classes) probabilities, or (n, labels) of multi-label.
        samples: (n, members, classes) what each member of a committee says; needed by scores of members.
    """
    if task == "regression":
        return np.asarray(regression_variance(_members(samples, score)), dtype=np.float32)
    if SCORES[score].source == "members":
        logits = _logits(_members(samples, score), task)
        found = multi_label_member_scores(logits, [score]) if task == "multi_label" else member_scores(logits, [score]).scores
        return found[score].float().numpy()
    logits = _logits(values, task)
    if task == "multi_label":
        result: Array = np.asarray(multi_label_scores(logits, score), dtype=np.float32)
        return result
    return logit_scores(logits).scores[score].numpy()


def check_score(score: str, task: str, members: int) -> None:
    """Refuse a score that rounds in memory can't compute.

    Raises:
        QueryError: it looks into the model, is a function of the user's own, or needs a committee.
    """
    entry = SCORES.get(score)
    if entry is None or entry.source not in _SIMULATED:
        known = ", ".join(name for name, of in SCORES.items() if of.source in _SIMULATED and task in of.tasks)
        raise QueryError(f"acquire.score is {score}, which is not simulated; use one of {known}")
    if (entry.source == "members" or task == "regression") and members < 2:
        raise QueryError(f"acquire.score {score} compares several opinions of a row; set loop.committee to 2 or more")


def _members(samples: Array | None, score: str) -> Array:
    assert samples is not None, f"{score} was checked"
    return samples


def _logits(values: Array, task: str) -> torch.Tensor:
    """Return logarithms of probabilities, or log-odds of labels; -inf where a class is out of the question."""
    p = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    return (torch.logit(p) if task == "multi_label" else torch.log(p)).float()
