"""Texts in batches of about equal length, so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raystream.errors import ModelError

PADDED_TOKENS = {"cpu": 1024, "cuda": 1 << 16}
"""How many tokens, padding included, run at once: on a processor what its caches hold, on a GPU what keeps it busy.

MiniLM on one thread, 1,024 glosses, CPU seconds: 512 tokens 3.8, 1024 3.8, 2048 3.9, 4096 4.4, 8192 5.4.
"""


def by_length(lengths: Sequence[int], most_rows: int, most_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Cut rows into batches of similar length, the longest first, so that memory that runs out does so at once.

    The cut depends on the lengths alone: the same rows always share a batch, whoever runs them.

    Args:
        lengths: tokens of each row.
        most_rows: rows of a batch.
        most_tokens: rows of a batch times its longest row; one row is a batch however long it is.

    Returns:
        the positions of each batch's rows; every row stands in one of them.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = max(1, min(most_rows, most_tokens // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def text_columns(inputs: Sequence[object], most: int, who: str) -> list[list[str]]:
    """The inputs as lists of str.

    Raises:
        ModelError: there are more than `most`.
    """
    if len(inputs) > most:
        raise ModelError(f"{who} takes at most {most} column{'s' if most > 1 else ''} of texts, but pool.inputs gives {len(inputs)}")
    return [np.asarray(values, dtype=object).tolist() for values in inputs]
