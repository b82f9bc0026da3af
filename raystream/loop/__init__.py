"""All that happens around a query: rounds of asking for labels, training and judging, until there is enough.

`campaign` is the loop on real labels; its neighbours are what it keeps, asks and stops by. `simulation/` compares strategies where every
label is known, `streams/` decides row by row on what arrives, `trainers/` make the models, `demos/` show both on real images.
`fit_committee` trains several models whose disagreement is a score; `lure` says what a batch that was drawn with known probabilities
tells of a model's loss over all rows.
"""

from raystream.loop.lure import lure
from raystream.loop.trainers.by_name import fit_committee

__all__ = ["fit_committee", "lure"]
