"""Estimators of scikit-learn as trainers, of classes and of numbers.

trainer: sklearn, which fits an estimator of scikit-learn, or a pipeline of several.

A regressor of scikit-learn as a model of `kind: python`: `kind: sklearn` is for classifiers, which give probabilities.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raystream import query
from raystream.errors import ModelError, QueryError, did_you_mean
from raystream.imports import is_import_path
from raystream.loop.trainers.training import Array, ClassLabel, Fitted, Predicted, TrainingRows, predicted, refuse_nan
from raystream.model.promise import Promise
from raystream.model.sklearn_model import SklearnClassifier, SklearnSteps, one_thread_each, read_estimator
from raystream.model.source import optional
from raystream.query.catalogue import kind_of
from raystream.query.catalogue.scores import REGRESSOR, TRAINERS


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


_FILE = "model.skops"
_MADE = TRAINERS["sklearn"].made


@dataclass(frozen=True)
class SklearnTrainer:
    """Fits an estimator.

    Attributes:
        steps: import paths of the pipeline's steps with their arguments, the estimator last; one step is no pipeline.
        task: `model.task`.
        embedding: the step of the pipeline that gives the embedding, or `inputs`; see `said_of`.
        trust: `model.trust`.
    """

    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    task: str = "classes"
    embedding: str | None = None
    trust: str = "safe"

    @classmethod
    def of(cls, args: Mapping[str, Any], model: query.Model | None, names: tuple[str, ...] = ()) -> SklearnTrainer:
        """Make the trainer of `loop.train`: `estimator`, an import path or a list of them for a pipeline, and its own arguments.

        Raises:
            QueryError: an import path or an argument is wrong.
        """
        optional("sklearn", "sklearn", "sklearn")
        given = args.get("estimator")
        if given is None:
            raise QueryError(
                "loop.train.estimator is missing; trainer sklearn fits it, so give its import path, such as "
                "sklearn.linear_model:LogisticRegression"
            )
        own = {name: value for name, value in args.items() if name != "estimator"}
        steps = [_step(value) for value in (given if isinstance(given, list) else [given])]
        if not steps:
            raise QueryError("loop.train.estimator is an empty list; give the import paths of the pipeline's steps")
        steps[-1] = (steps[-1][0], {**steps[-1][1], **own})
        for path, arguments in steps:
            _check(path, arguments)
        task = "classes" if model is None else model.task
        return cls(tuple(steps), task, *said_of(model))

    def fit(self, rows: TrainingRows, previous: Fitted | None, seed: int) -> SklearnFitted:
        """See `Trainer.fit`; from a previous model on goes an estimator that has `warm_start` or `partial_fit`, others begin anew."""
        estimator = self._made(seed)
        values, labels = flat_inputs(rows.inputs), _targets(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence, and of labels that all rows have: the metrics show what came of it
            try:
                started = _warm(estimator, previous, rows) if previous is not None else None
                fitted = estimator.fit(values, labels) if started is None else started.fit(values, labels)
            except Exception as error:
                told = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise ModelError(f"loop.train.estimator {self.steps[-1][0]} could not be fitted to {len(rows):,} rows: {told}") from error
        found = self.fitted(fitted, rows.classes)
        refuse_nan(found.predict(tuple(values[:8] for values in rows.inputs)), found.who)
        return found

    def load(self, section: query.Model, classes: tuple[ClassLabel, ...] | None) -> SklearnFitted:
        """See `Trainer.load`."""
        path = section.source if kind_of(section.kind).names_classes else section.weights
        return self.fitted(read_estimator(str(path), said_of(section)[1] == "pickle"), classes)

    def fitted(self, estimator: Any, classes: tuple[ClassLabel, ...] | None) -> SklearnFitted:
        """Return an estimator that is fitted already."""
        return SklearnFitted(estimator, self.task, self.embedding, self.trust, classes)

    def _made(self, seed: int) -> Any:
        parts = [_find(path)(**arguments) for path, arguments in self.steps]
        for part in parts:
            one_thread_each(part)
            unset = [name for name, value in part.get_params().items() if name.rpartition("__")[2] == "random_state" and value is None]
            part.set_params(**dict.fromkeys(unset, seed))
        if self.task == "multi_label" and not _takes_labels(parts[-1]):
            from sklearn.multiclass import OneVsRestClassifier

            parts[-1] = OneVsRestClassifier(parts[-1])
        if len(parts) == 1:
            return parts[0]
        from sklearn.pipeline import make_pipeline

        return make_pipeline(*parts)


sklearn_trainer = SklearnTrainer.of
"""What the catalogue names."""


class SklearnFitted:
    """A fitted estimator."""

    def __init__(self, estimator: Any, task: str, embedding: str | None, trust: str, classes: tuple[ClassLabel, ...] | None) -> None:
        self.native, self._task, self._step, self._trust = estimator, task, embedding, trust
        self.who = f"the {type(estimator).__name__} of loop.train"
        self._regressor = SklearnRegressor(embedding=embedding, estimator=estimator, who=self.who) if task == "regression" else None
        self._classifiers = {
            wanted: SklearnClassifier(estimator, Promise(self.who, task, "probabilities"), embedding, embedding=wanted)
            for wanted in (() if self._regressor else (False, True))
        }
        own = None if self._regressor else self._classifiers[False].class_labels
        self.classes: tuple[ClassLabel, ...] | None = classes if own is None else own

    def predict(self, inputs: tuple[Array, ...], *, embedding: bool = False) -> Predicted:
        """See `Fitted.predict`."""
        if self._regressor is not None:
            if embedding:
                logits, vectors = self._regressor.embed(inputs)
                return Predicted(logits.astype(np.float64), vectors)
            return Predicted(self._regressor.predict(inputs)["logits"].astype(np.float64))
        return predicted(self._classifiers[embedding].predict, inputs, self._task, embedding=embedding)

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Fitted.save`; what may run code is written all the same, and loaded again only where `model.trust` says pickle."""
        optional("skops.io", "sklearn", "sklearn").dump(self.native, folder / _FILE)
        if self._task == "regression":
            given = {"trust": self._trust} | ({} if self._step is None else {"embedding": self._step})
            return {**_MADE[self._task], "weights": _FILE, "args": given}
        return {**_MADE[self._task], "source": _FILE}


def said_of(model: query.Model | None) -> tuple[str | None, str]:
    """Return `model.embedding` and `model.trust`; of a regressor, whose kind has neither, its arguments of these names."""
    if model is None:
        return None, "safe"
    if model.source != REGRESSOR:
        return model.embedding, model.trust
    return model.args.get("embedding"), model.args.get("trust", "safe")


def flat_inputs(inputs: tuple[Array, ...]) -> Any:
    """Return what an estimator is given for the one input that it takes: (n, features), or texts."""
    if len(inputs) != 1:
        raise ModelError(f"trainer sklearn takes one input, but pool.inputs gives {len(inputs)}; put them into one list column")
    values = inputs[0]
    return values if values.dtype == object else values.reshape(len(values), -1)


def _targets(rows: TrainingRows) -> Array:
    if rows.task == "classes":
        assert rows.classes is not None
        return np.asarray(rows.classes)[rows.labels]
    return rows.labels[:, 0] if rows.task == "regression" and rows.labels.shape[1] == 1 else rows.labels


def _step(value: object) -> tuple[str, Mapping[str, Any]]:
    """Return a step of a pipeline: an import path, or a mapping of one to its arguments."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        path, arguments = next(iter(value.items()))
        if isinstance(path, str) and (arguments is None or isinstance(arguments, dict)):
            return path, dict(arguments or {})
    raise QueryError(
        f"loop.train.estimator holds {value!r}, expected the import path of an estimator, or a mapping of one to its arguments"
    )


def _check(path: str, arguments: Mapping[str, Any]) -> None:
    """See that the estimator is there and takes these arguments."""
    made = _find(path)
    try:
        known: Sequence[str] = list(inspect.signature(made).parameters)
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise QueryError(f"loop.train.{unknown[0]} is not an argument of {path}{did_you_mean(unknown[0], known)}")
        part = made(**arguments)
    except QueryError:
        raise
    except Exception as error:
        raise QueryError(f"loop.train.estimator {path} raised {type(error).__name__}: {error} with {dict(arguments)}") from None
    if not hasattr(part, "fit") or not hasattr(part, "get_params"):
        raise QueryError(f"loop.train.estimator {path} makes {type(part).__name__}, expected an estimator of scikit-learn, with fit")


def _find(path: str) -> Any:
    if not is_import_path(path):
        raise QueryError(f"loop.train.estimator is {path!r}, expected an import path, such as sklearn.linear_model:LogisticRegression")
    name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise QueryError(f"loop.train.estimator {path}: {error}; check the path, or install what it needs") from None
    if not hasattr(module, attribute):
        raise QueryError(f"loop.train.estimator {path}: {name} has no {attribute}{did_you_mean(attribute, dir(module))}")
    return getattr(module, attribute)


def _takes_labels(estimator: Any) -> bool:
    """Tell whether it is fitted on a matrix of labels as it is."""
    from sklearn.utils import get_tags

    tags = get_tags(estimator)
    return bool(tags.classifier_tags and tags.classifier_tags.multi_label)


def _warm(estimator: Any, previous: Fitted, rows: TrainingRows) -> Any:
    """Return the previous estimator, ready to go on from where it is; None where this one can't."""
    before = previous.native
    if type(before) is not type(estimator) or "warm_start" not in getattr(estimator, "get_params", dict)():
        return None
    known, now = getattr(before, "classes_", None), _targets(rows)
    if rows.task == "classes" and (known is None or set(np.asarray(known).tolist()) != set(np.unique(now).tolist())):
        return None  # a new class: its shape is another
    return before.set_params(warm_start=True)
