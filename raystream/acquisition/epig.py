"""EPIG: how much a row's label would tell about the labels of target rows, from members' log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from raystream.acquisition.inputs import InKind, given_members, in_kind
from raystream.acquisition.members import check_mass
from raystream.errors import QueryError

_BLOCK = 1 << 18
"""Numbers of a block of joint probabilities: rows x classes x columns of the targets."""

_BLOCK_ROWS = 512
"""Rows x classes of a block, so that its joint probabilities are one matrix product of good shape."""

_TINY = 1e-300
"""Stands for a probability of 0, so that p log p comes out as 0."""


@dataclass(frozen=True)
class EpigTargets:
    """The numbers about its targets that `epig` needs, computed once by `epig_targets`."""

    probabilities: Tensor
    """float64 (n_members, n_targets * n_classes)."""
    entropy: float
    """Mean over targets of the entropy of their mean prediction, in nats."""
    classes: int

    def __len__(self) -> int:
        return self.probabilities.shape[1] // self.classes


def epig_targets(log_probs: ArrayLike | None = None, *, probabilities: ArrayLike | None = None) -> EpigTargets:
    """Prepare target rows: those for which the model should become good.

    Args:
        log_probs: (n_targets, n_members, n_classes), log-probabilities of the same members in the same order as the rows'.
        probabilities: of them, instead.

    Raises:
        QueryError: no targets, or NaN or infinity among them.
    """
    given = given_members(log_probs, probabilities)
    if not len(given):
        raise QueryError("there are no targets, expected at least one row for which the model should become good")
    p = given.double().exp()
    mass = p.mean(dim=1).sum(dim=1)
    if not bool(mass.isfinite().all()):
        raise QueryError(f"target {int(mass.isfinite().logical_not().nonzero()[0])} holds NaN or infinity; leave it out")
    check_mass(mass)
    entropy = float(torch.special.entr(p.mean(dim=1)).sum(dim=1).mean())
    return EpigTargets(p.transpose(0, 1).reshape(p.shape[1], -1), entropy, p.shape[2])


def epig(log_probs: ArrayLike | None, targets: EpigTargets | ArrayLike, *, probabilities: ArrayLike | None = None) -> InKind:
    """Compute the expected predictive information gain, H(p_x) + mean_* H(p_*) - mean_* H(joint of x and *), in nats.

    It is the mutual information of a row's label and a target's, mean over targets: `bald` asks what a label tells about the model,
    `epig` what it tells about the predictions that matter. 0 when members agree; never above `bald`. The joint of a row and a target is
    (1/K) P_xᵀ P_*, so member k must be the same model, or the same dropout mask, for every row and every target.

    Time is n_rows x n_targets x n_classes²; memory some MB beside arguments and result.

    Args:
        log_probs: (n_rows, n_members, n_classes), log-probabilities as of `log_probabilities`; None with probabilities.
        targets: what `epig_targets` made, or (n_targets, n_members, n_classes) of what the rows are given as.
        probabilities: (n_rows, n_members, n_classes) that sum to 1, instead of log_probs.

    Returns:
        float64 (n_rows,), NaN for a row that holds NaN or +inf; a tensor where rows are given as one, else a NumPy array.

    References:
        Bickford Smith, Kirsch, Farquhar, Gal, Foster and Rainforth, Prediction-Oriented Bayesian Active Learning, 2023.
    """
    rows = given_members(log_probs, probabilities)
    if not isinstance(targets, EpigTargets):
        targets = epig_targets(targets) if probabilities is None else epig_targets(probabilities=targets)
    n, members, classes = rows.shape
    if (members, classes) != (len(targets.probabilities), targets.classes):
        theirs = f"targets {len(targets.probabilities)} and {targets.classes}"
        raise QueryError(f"rows have {members} members and {classes} classes, {theirs}, expected the same members for both")
    scores = torch.empty(n, dtype=torch.float64, device=rows.device)
    size = max(1, _BLOCK_ROWS // classes)
    for start in range(0, n, size):
        p = rows[start : start + size].double().exp()
        mean = p.mean(dim=1)
        mass = mean.sum(dim=1)
        check_mass(mass, start)
        apart = torch.special.entr(mean).sum(dim=1) + targets.entropy
        gain = (apart - _joint_entropy(p, targets)).clamp_(min=0)
        scores[start : start + size] = gain + mass * 0  # NaN or infinity in, NaN out
    return in_kind(scores, log_probs, probabilities)


def _joint_entropy(p: Tensor, targets: EpigTargets) -> Tensor:
    """Compute (b,), the entropy of the joint of each row (b, k, c) and a target, mean over targets."""
    rows, members, classes = p.shape
    left = p.transpose(1, 2).reshape(rows * classes, members) / members
    total = torch.zeros(rows, dtype=torch.float64, device=p.device)
    for columns in torch.split(targets.probabilities, max(1, _BLOCK // (rows * classes)), dim=1):
        joint = (left @ columns).clamp_(min=_TINY)
        total -= joint.log().mul_(joint).view(rows, -1).sum(dim=1)
    return total / len(targets)
