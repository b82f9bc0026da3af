"""What rows are scored by."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raystream.query.part import Part, Positive

LOGIT_SCORES = ("entropy", "least_confidence", "margin", "ratio", "energy")
"""The scores that need nothing but logits; every scored unit holds all of them."""

MEMBER_SCORES = ("bald", "consensus_entropy", "vote_entropy", "variation_ratio", "mean_std", "variance")
"""The scores that need several opinions of a row: MC dropout samples or the members of a committee; stored whenever there are any."""

Score = Literal[
    "entropy", "least_confidence", "margin", "ratio", "energy",
    "bald", "consensus_entropy", "vote_entropy", "variation_ratio", "mean_std", "variance",
]  # fmt: skip

DEFAULT_REDUCE, DEFAULT_TOP = "mean", 0.1
"""How scores of a row's many outputs become one unless the query says otherwise, and the share that `top_mean` takes."""


class Acquire(Part):
    """How rows are scored; higher always means: label sooner."""

    section = ("acquire",)

    score: Score = "margin"
    also: list[Score] = []
    mc_samples: Positive | None = None
    reduce: str | None = None
    top: Annotated[float, Field(gt=0, le=1)] | None = None
