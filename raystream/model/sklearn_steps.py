"""The steps of a pipeline of scikit-learn before its estimator, one of which gives the embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raystream.errors import ModelError, did_you_mean
from raystream.model.embedding import INPUTS

Array = npt.NDArray[Any]


class SklearnSteps:
    """What rows go through before an estimator sees them; nothing where it stands alone.

    Args:
        model: an estimator or a pipeline, fitted.
        who: what errors call it.
        wanted: `model.embedding`, the step that gives the embedding, or `inputs`; None: the last step before the estimator, or without
            any the inputs.

    Attributes:
        estimator: the last step, or the model itself.
        step: what gives the embedding.
    """

    def __init__(self, model: Any, who: str, wanted: str | None) -> None:
        steps = list(model.steps) if hasattr(model, "steps") else [("", model)]
        self._who, self._before, self.estimator = who, steps[:-1], steps[-1][1]
        names = [name for name, _ in self._before]
        if wanted is not None and wanted != INPUTS and wanted not in names:
            raise ModelError(
                f"model.embedding is {wanted!r}, which is no step of {who} before the estimator{did_you_mean(wanted, [*names, INPUTS])}"
            )
        self.step: str = wanted or (names[-1] if names else INPUTS)

    @property
    def alone(self) -> bool:
        """Whether the estimator sees the rows as they are."""
        return not self._before

    def transform(self, values: Any) -> tuple[Any, Any]:
        """Return what the estimator sees of rows, and what the embedding's step makes of them, whatever that is."""
        embedded = values
        for name, step in self._before:
            values = values if step is None or step == "passthrough" else step.transform(values)
            embedded = values if name == self.step else embedded
        return values, embedded

    def not_dense(self, embedded: Any, rows: int) -> str:
        """Return in words why what a step gives is no embedding; empty where it is one."""
        if isinstance(embedded, np.ndarray) and embedded.dtype.kind in "biuf" and embedded.shape[:1] == (rows,):
            return ""
        if self.step == INPUTS:
            return f"{self._who} takes texts, which are no embedding; name a step in model.embedding, or leave it out"
        what = f"{type(embedded).__name__} of shape {getattr(embedded, 'shape', '?')}"
        return (
            f"{self._who}: step {self.step} gives {what}, expected a dense array of numbers to be an embedding; "
            "add a step that makes one, such as TruncatedSVD, name another in model.embedding, or choose by a strategy that needs none, "
            "such as top_k or power"
        )

    def dense(self, embedded: Any, rows: int) -> Array:
        """Return what a step gives as an embedding, float32 (rows, dimensions).

        Raises:
            ModelError: it is no dense array of numbers.
        """
        refused = self.not_dense(embedded, rows)
        if refused:
            raise ModelError(refused)
        found: Array = embedded.astype(np.float32).reshape(rows, -1)
        return found
