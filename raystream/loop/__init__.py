"""What happens around a query: images to try it on, a trainer, and what the chosen labels are worth.

`demo` is the whole round on real images: train on a few labels, ask which rows to label next, add their labels,
train again, and compare with rows drawn at random. `fit_committee` trains several models whose disagreement is a score.
`stream` decides row by row on what arrives.
"""

from raystream.loop.committee import fit_committee

__all__ = ["fit_committee"]
