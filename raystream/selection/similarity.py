"""How like each row is to the most similar of a few given ones."""

from __future__ import annotations

import numpy as np

from raystream.selection.bounds import Encoding
from raystream.selection.nearest import Centres, block_rows, nearest
from raystream.selection.rows import Array, Block, Rows, normalised, not_finite
from raystream.selection.threads import each

_CENTRES_AT_ONCE = 4096


def similarity(rows: Rows, similar: Array) -> Array:
    """(n,) float64: (1 + the largest cosine with a row of `similar`) / 2, from 0 to 1.

    The cosine is 1 - D / 2, D the exact float64 squared distance of the two rows divided by their lengths,
    so that it depends on the two alone. Rows of zeros have a cosine of 1 with each other and of 0 with all else.

    Args:
        rows: the candidates, read once.
        similar: (m, d) float32, m at least 1.

    Raises:
        DataError: rows that are not finite.
    """
    result = np.empty(len(rows))
    unit = normalised(similar)
    zeros = ~unit.any(axis=1)
    unit = unit[~zeros]
    chunks = []
    if len(unit):
        encoding = Encoding.fit(unit.mean(axis=0, dtype=np.float64), 1.0, on_grid=False, precision="auto")
        chunks = [Centres.of(unit[i : i + _CENTRES_AT_ONCE], encoding) for i in range(0, len(unit), _CENTRES_AT_ONCE)]

    def see(block: Block) -> Array:
        x = block.read()
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if not len(bad):
            x = normalised(x)
            cosine = np.full(len(x), 0.0 if zeros.any() else -1.0)
            for chunk in chunks:
                np.maximum(cosine, 1 - nearest(x, chunk, exact_distance=True).upper / 2, out=cosine)
            cosine[~x.any(axis=1)] = float(zeros.any())
            result[block.start : block.stop] = (1 + cosine) / 2
        return bad + block.start

    size = block_rows(min(max(len(unit), 1), _CENTRES_AT_ONCE))
    bad = [found for found in each(rows.blocks(0, len(rows), size), lambda: see) if len(found)]
    if bad:
        every = np.concatenate(bad)
        raise not_finite(len(every), [int(row) for row in every[:3]])
    return np.clip(result, 0.0, 1.0)
