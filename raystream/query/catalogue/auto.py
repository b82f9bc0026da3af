"""`strategy: auto`: the written rule by which a strategy is picked, and the figures that it stands on."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"
CONTROL = "random"
"""The strategy that all others are compared with."""

ENOUGH = 2.0
"""Labelled rows per class seen, from which a model's scores are trusted.

On digits, 30 seeds from 10 rows, the area under the accuracy by labels against k_means throughout: 2 gains .0050 (standard error .0013),
3 .0040, 4 .0027, 5 .0008. A first batch by typiclust instead of random gains .0147. `benchmarks/simulate.py --thresholds` measures it on
other data.
"""
_FIRST, _FIRST_PLAIN, _LATER, _LATER_PLAIN, _NUMBERS = "typiclust", CONTROL, "k_means", "power", "lcmd"


@dataclass(frozen=True)
class AutoChoice:
    """What the rule says.

    Attributes:
        strategy: with its own default of `candidates`.
        why: a sentence.
    """

    strategy: str
    why: str


def pick(labelled: int, classes: int, *, task: str, embedding: bool, score: bool, enough: float = ENOUGH) -> AutoChoice:
    """Pick the strategy for a batch.

    Args:
        labelled: rows that have labels.
        classes: of the model, or seen in the labels.
        task: `model.task`.
        embedding: whether rows have one.
        score: whether rows have one.
        enough: labelled rows per class from which scores are trusted; another than the default only to measure it.
    """
    if not labelled:
        if embedding:
            return AutoChoice(_FIRST, "nothing is labelled, so that scores mean nothing, and typical rows come first")
        return AutoChoice(_FIRST_PLAIN, "nothing is labelled, and there is no embedding to tell rows apart by")
    if task == "regression":
        if embedding:
            return AutoChoice(_NUMBERS, "the model predicts numbers")
        return AutoChoice(_LATER_PLAIN if score else _FIRST_PLAIN, "the model predicts numbers, and there is no embedding")
    each = labelled / max(classes, 1)
    seen = f"{labelled:,} labelled rows of {classes:,} {'class' if classes == 1 else 'classes'}, {each:.3g} for each"
    if embedding and (each < enough or not score):
        below = f"below {enough:g}: too few to trust scores" if each < enough else "but the model gives no score"
        return AutoChoice(_FIRST, f"{seen}, {below}")
    if not score:
        return AutoChoice(_FIRST_PLAIN, f"{seen}, but the model gives neither a score nor an embedding")
    if not embedding:
        return AutoChoice(_LATER_PLAIN, f"{seen}, and there is no embedding")
    return AutoChoice(_LATER, f"{seen}, at least {enough:g}: scores count")
