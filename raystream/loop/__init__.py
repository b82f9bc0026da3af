"""All that happens around a query: images to try it on, a trainer, and what the chosen labels are worth.

`demo` is the whole round on real images: train on a few labels, ask which rows to label next, add their labels,
train again, and compare with rows drawn at random. `fit_committee` trains several models whose disagreement is a score.
`lure` says what a batch that was drawn with known probabilities tells of a model's loss over all rows.
`stream` decides row by row on what arrives.
"""

from raystream.loop.committee import fit_committee
from raystream.loop.lure import lure

__all__ = ["fit_committee", "lure"]
