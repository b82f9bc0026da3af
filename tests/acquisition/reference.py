"""Textbook formulas in float64 NumPy, straight from probabilities, and the members of which values are published."""

from __future__ import annotations

import numpy as np
import torch

TWO = [(0.9, 0.1), (0.1, 0.9)]
THREE = [(0.7, 0.2, 0.1), (0.1, 0.7, 0.2), (0.6, 0.3, 0.1)]


def members_of(*rows):
    """(n, k, c) float64 log-probabilities of rows of members of probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def softmax(z):
    """Over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def entropy_of(p):
    """In nats over the last axis."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


def member_scores_of(p):
    """Every score of members from probabilities (n, k, c)."""
    n, k, c = p.shape
    mean = p.mean(axis=1)
    votes = np.zeros((n, c))
    for row in range(n):
        for member in range(k):
            votes[row, p[row, member].argmax()] += 1 / k
    return {
        "bald": entropy_of(mean) - entropy_of(p).mean(axis=1),
        "consensus_entropy": entropy_of(mean),
        "vote_entropy": entropy_of(votes),
        "variation_ratio": 1 - votes.max(axis=1),
        "mean_std": p.std(axis=1).mean(axis=1),
        "variance": p.var(axis=1).sum(axis=1),
    }


def may_be_logits(z):
    """False for what is refused as probabilities given as logits."""
    return bool((z < 0).any() or np.abs(z.sum(axis=-1) - 1).max() > 0.01)
