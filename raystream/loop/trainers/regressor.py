"""A regressor of scikit-learn as a model of `kind: python`: `kind: sklearn` is for classifiers, which give probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raystream.errors import ModelError
from raystream.model.sklearn_model import one_thread_each, read_estimator

Array = npt.NDArray[Any]


class SklearnRegressor:
    """Gives a regressor's numbers, and its inputs as the embedding.

    Args:
        weights: a skops file.
        trust: `pickle` loads what may run code.
        estimator: in place of a file, a regressor that is fitted already.
    """

    def __init__(self, weights: str = "", trust: str = "safe", *, estimator: Any = None) -> None:
        self._estimator = read_estimator(weights, trust == "pickle") if estimator is None else estimator
        if not hasattr(self._estimator, "predict"):
            raise ModelError(f"model.weights {weights} is {type(self._estimator).__name__}, expected a regressor with predict")
        one_thread_each(self._estimator)

    def predict(self, inputs: tuple[Any, ...]) -> dict[str, Array]:
        """Return `logits` float32 (n, outputs), `embedding` float32 (n, dimensions) but of texts, which are none."""
        if len(inputs) != 1:
            raise ModelError(f"a regressor takes one input, but pool.inputs gives {len(inputs)}; put them into one list column")
        values = inputs[0]
        texts = isinstance(values, list) or np.asarray(values).dtype == object
        given = values if texts else np.asarray(values).reshape(len(values), -1)
        found = np.asarray(self._estimator.predict(given), dtype=np.float32).reshape(len(values), -1)
        return {"logits": found} if texts else {"logits": found, "embedding": given.astype(np.float32)}
