"""Acquisition functions: what the model says about a row -> one number, higher = label sooner.

Pure functions on tensors that read and write nothing, usable without a cluster or a query:

    >>> import torch
    >>> from raystream.acquisition import margin
    >>> [round(value, 6) for value in margin(torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).tolist()]
    [0.579488, 1.0]

`logits` holds the scores that need one forward pass of one model, `members` those of a committee or of dropout samples; the formulas
stand in each docstring.
"""

from raystream.acquisition.calibration import (
    ReliabilityBins,
    TemperatureFit,
    expected_calibration_error,
    fit_mean_temperature,
    fit_temperature,
    mean_log_probabilities,
    relative_error,
    reliability_bins,
)
from raystream.acquisition.check import check_acquisition
from raystream.acquisition.dense import DenseScores, all_dense_scores, dense_scores
from raystream.acquisition.epig import EpigTargets, epig, epig_targets
from raystream.acquisition.gradients import badge_factors, badge_norm, egl, egl_parameters
from raystream.acquisition.logits import (
    LogitScores,
    class_weighted,
    energy,
    entropy,
    least_confidence,
    logit_scores,
    margin,
    multi_label_member_scores,
    multi_label_scores,
    ratio,
)
from raystream.acquisition.members import (
    MemberScores,
    bald,
    consensus_entropy,
    log_probabilities,
    mean_std,
    member_scores,
    regression_variance,
    variance,
    variation_ratio,
    vote_entropy,
)

__all__ = [
    "DenseScores",
    "EpigTargets",
    "LogitScores",
    "MemberScores",
    "ReliabilityBins",
    "TemperatureFit",
    "all_dense_scores",
    "badge_factors",
    "badge_norm",
    "bald",
    "check_acquisition",
    "class_weighted",
    "consensus_entropy",
    "dense_scores",
    "egl",
    "egl_parameters",
    "energy",
    "entropy",
    "epig",
    "epig_targets",
    "expected_calibration_error",
    "fit_mean_temperature",
    "fit_temperature",
    "least_confidence",
    "log_probabilities",
    "logit_scores",
    "margin",
    "mean_log_probabilities",
    "mean_std",
    "member_scores",
    "multi_label_member_scores",
    "multi_label_scores",
    "ratio",
    "regression_variance",
    "relative_error",
    "reliability_bins",
    "variance",
    "variation_ratio",
    "vote_entropy",
]
