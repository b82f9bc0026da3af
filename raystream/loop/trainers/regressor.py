"""A regressor of scikit-learn as a model of `kind: python`: `kind: sklearn` is for classifiers, which give probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raystream.errors import ModelError
from raystream.model.sklearn_model import one_thread_each, read_estimator
from raystream.model.sklearn_steps import SklearnSteps

Array = npt.NDArray[Any]


class SklearnRegressor:
    """Gives a regressor's numbers, and the embedding that a classifier in its place would give.

    Args:
        weights: a skops file.
        trust: `pickle` loads what may run code.
        embedding: the step of a pipeline that gives the embedding, or `inputs`; None: the last before the regressor, of one alone its
            inputs.
        estimator: in place of a file, a regressor that is fitted already.
        who: what errors call it; left out, by the file.
    """

    def __init__(
        self, weights: str = "", trust: str = "safe", embedding: str | None = None, *, estimator: Any = None, who: str = ""
    ) -> None:
        found = read_estimator(weights, trust == "pickle") if estimator is None else estimator
        if not hasattr(found, "predict"):
            raise ModelError(f"model.weights {weights} is {type(found).__name__}, expected a regressor with predict")
        one_thread_each(found)
        self._steps = SklearnSteps(found, who or f"model.weights {weights}", embedding)

    def predict(self, inputs: tuple[Any, ...]) -> dict[str, Array]:
        """Return `logits` float32 (n, outputs), and `embedding` float32 (n, dimensions) where its step gives one: texts are none."""
        logits, embedded = self._run(inputs)
        if self._steps.not_dense(embedded, len(logits)):
            return {"logits": logits}
        return {"logits": logits, "embedding": self._steps.dense(embedded, len(logits))}

    def embed(self, inputs: tuple[Any, ...]) -> tuple[Array, Array]:
        """Return the numbers and the embedding.

        Raises:
            ModelError: what its step gives is no embedding.
        """
        logits, embedded = self._run(inputs)
        return logits, self._steps.dense(embedded, len(logits))

    def _run(self, inputs: tuple[Any, ...]) -> tuple[Array, Any]:
        if len(inputs) != 1:
            raise ModelError(f"a regressor takes one input, but pool.inputs gives {len(inputs)}; put them into one list column")
        values = inputs[0]
        texts = isinstance(values, list) or np.asarray(values).dtype == object
        seen, embedded = self._steps.transform(values if texts else np.asarray(values).reshape(len(values), -1))
        return np.asarray(self._steps.estimator.predict(seen), dtype=np.float32).reshape(len(values), -1), embedded
