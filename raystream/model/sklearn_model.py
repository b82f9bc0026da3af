"""Estimators and pipelines of scikit-learn as models.

kind: sklearn, a classifier of scikit-learn; forests, bagging and soft votes are committees.

The steps of a pipeline of scikit-learn before its estimator, one of which gives the embedding.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError, did_you_mean
from raystream.model.batches import BatchPredictor, last_line
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise
from raystream.model.signature import INPUTS
from raystream.model.source import optional
from raystream.model.weights import find_file, what_file


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


Array = npt.NDArray[np.generic]

_TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
)
"""Types that hold numbers alone and that common classifiers are made of, but that skops leaves to its callers."""


def load(spec: query.Model, *, embedding: bool) -> BatchPredictor:
    """Load the classifier of `spec.source`.

    Raises:
        ModelError: scikit-learn or skops is missing; the file is a pickle that isn't trusted, or no classifier with
            probabilities of what `model.task` says.
    """
    assert spec.source is not None  # the query checks it
    who = f"model.source {spec.source}"
    optional("sklearn", "sklearn", "sklearn")
    model = read_estimator(spec.source, spec.trust == "pickle")
    one_thread_each(model)
    promise = Promise(who, spec.task, "probabilities")
    classifier = SklearnClassifier(model, promise, spec.embedding, embedding=embedding)
    return BatchPredictor(
        classifier.predict,
        promise=promise,
        device=torch.device("cpu"),
        batch_size=spec.batch_size,
        class_labels=classifier.class_labels,
    )


class SklearnClassifier:
    """A fitted classifier, alone or at the end of a pipeline; of one class a row, or of labels with a yes or no each.

    The embedding is what a step of the pipeline gives: the one that `model.embedding` names, or else the last before the classifier.
    Of a classifier alone it is its inputs.
    """

    def __init__(self, model: Any, promise: Promise, step: str | None, *, embedding: bool) -> None:
        self._who, self._promise = promise.who, promise
        self._steps = SklearnSteps(model, promise.who, step if embedding else None)
        self._classifier, self._embedded = self._steps.estimator, embedding
        if not hasattr(self._classifier, "predict_proba"):
            raise ModelError(
                f"{self._who} is {type(self._classifier).__name__} without predict_proba, expected a classifier that gives probabilities; "
                "wrap it in sklearn.calibration.CalibratedClassifierCV"
            )
        self.class_labels = self._check_classes()
        self._members = _members(self._classifier)

    def predict(self, inputs: tuple[Any, ...]) -> Prediction:
        """Return log-odds or logarithms of probabilities, those of the members, and the embedding, for a tensor (n, ...) or texts (n,)."""
        if len(inputs) != 1:
            raise ModelError(f"{self._who} takes one input, but pool.inputs gives {len(inputs)}; put them into one list column")
        values = inputs[0].flatten(1).numpy() if isinstance(inputs[0], Tensor) else inputs[0]
        rows = len(values)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="X does not have valid feature names")  # the pool's columns come by order
            values, embedded = self._steps.transform(values)
            embedding = torch.from_numpy(self._steps.dense(embedded, rows)) if self._embedded else None
            self._check_width(values)
            members = [self._probabilities(member(values)) for member in self._members]
            mean = np.mean(np.stack(members), axis=0) if members else self._probabilities(self._classifier.predict_proba(values))
        samples = self._promise.members(torch.from_numpy(np.stack(members, axis=1))) if members else None
        return Prediction(self._promise.logits(torch.from_numpy(mean), rows), embedding, samples=samples)

    def _probabilities(self, found: Any) -> npt.NDArray[np.float64]:
        """Read what `predict_proba` gave, a list where there are several outputs: (n, classes) of classes, (n, labels) of labels."""
        if isinstance(found, list):
            return np.stack([self._yes(np.asarray(one, dtype=np.float64), label) for label, one in enumerate(found)], axis=1)
        return np.asarray(found, dtype=np.float64)

    def _yes(self, found: npt.NDArray[np.float64], label: int) -> npt.NDArray[np.float64]:
        """Return (n,) the probability of one label, out of that of its two classes, or of the only one that it was fitted on."""
        classes = list(self._classifier.classes_[label])
        yes = [position for position, value in enumerate(classes) if value in (1, True)]
        if set(classes) - {0, 1}:
            raise ModelError(
                f"{self._who}: output {label} is one of the classes {', '.join(map(str, classes))}, expected labels that are 0 or 1, one "
                "output for each; fit one on each of them, or one classifier for each output"
            )
        return found[:, yes[0]] if yes else np.zeros(len(found))

    def _check_classes(self) -> tuple[Any, ...] | None:
        """Return the classes, as the classifier calls them; None of one whose outputs are labels.

        Raises:
            ModelError: its outputs are what `model.task` isn't, or it knows one class alone.
        """
        classes, several = getattr(self._classifier, "classes_", None), self._promise.task == "multi_label"
        kind = type(self._classifier).__name__
        if not several and (isinstance(classes, list) or getattr(self._classifier, "multilabel_", False)):
            raise ModelError(
                f"{self._who} is {kind} fitted on several labels a row, whose probabilities are no one distribution, but model.task is "
                "classes; set it to multi_label"
            )
        if several or classes is None:
            return None
        labels = tuple(np.asarray(classes).tolist())
        if len(labels) < 2:
            raise ModelError(f"{self._who} is {kind} fitted on rows of one class alone, {labels[0]!r}; fit it on two or more")
        return labels

    def _check_width(self, values: Any) -> None:
        expected = getattr(self._classifier, "n_features_in_", None)
        got = values.shape[1] if len(getattr(values, "shape", ())) == 2 else None
        if self._steps.alone and expected is not None and got is not None and got != expected:
            raise ModelError(f"{self._who} takes {expected} features, but pool.inputs gives {got}; name the columns that it was fitted on")


def read_estimator(path: str, trusted: bool) -> Any:
    """Return the estimator in a skops file, or in a pickle that is trusted.

    Raises:
        ModelError: it is missing, something else, or can run code and isn't trusted.
    """
    known = Path(path)
    found = what_file(known) if known.is_file() else ""
    if found == "a pickle":
        if not trusted:
            raise ModelError(
                f"model.source {path} is a pickle, which can run code and is not loaded; save the model by skops.io.dump, "
                "or set model.trust to pickle if you trust whoever wrote it"
            )
        return _unpickle(path)
    file = find_file(path, "a skops file", "save the model by skops.io.dump")
    io = optional("skops.io", "sklearn", "sklearn")
    try:
        unknown = io.get_untrusted_types(file=file)
        refused = sorted(set(unknown) - set(_TRUSTED))
        if refused and not trusted:
            raise ModelError(
                f"model.source {path} holds types that may run code: {', '.join(refused[:5])}; fit the model without them, "
                "or set model.trust to pickle if you trust whoever wrote it"
            )
        return io.load(file, trusted=unknown)
    except ModelError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {last_line(error)}"
        raise ModelError(f"model.source {path} can't be loaded by skops: {told}; save the model again with the versions here") from None


def _unpickle(path: str) -> Any:
    joblib = optional("joblib", "sklearn", "sklearn")
    try:
        return joblib.load(path)
    except Exception as error:
        told = f"{type(error).__name__}: {last_line(error)}"
        raise ModelError(f"model.source {path} is a pickle that can't be loaded here: {told}; save the model by skops.io.dump") from None


def one_thread_each(model: Any) -> None:
    """Keep every part to this worker's one process: a model may have been saved with n_jobs=-1."""
    if hasattr(model, "get_params"):
        jobs = {key: None for key, value in model.get_params().items() if key.rpartition("__")[2] == "n_jobs" and value is not None}
        model.set_params(**jobs)


def _members(classifier: Any) -> list[Any]:
    """List functions from inputs to the probabilities of each member, if the classifier's own are the mean of these; else none."""
    from sklearn.ensemble import BaggingClassifier, VotingClassifier
    from sklearn.ensemble._forest import ForestClassifier

    if isinstance(classifier, ForestClassifier):
        return [lambda values, tree=tree: tree.predict_proba(values) for tree in classifier.estimators_]
    if isinstance(classifier, VotingClassifier) and classifier.weights is None:
        return [member.predict_proba for member in classifier.estimators_]
    if isinstance(classifier, BaggingClassifier) and all(hasattr(member, "predict_proba") for member in classifier.estimators_):
        pairs = zip(classifier.estimators_, classifier.estimators_features_, strict=True)
        count = len(classifier.classes_)
        return [lambda values, m=member, f=features: _of_all(m, values[:, f], count) for member, features in pairs]
    return []


def _of_all(member: Any, values: Any, count: int) -> Array:
    """Return a member's probabilities of all classes: it may have been fitted on rows of some of them, whose numbers it names."""
    found: Array = member.predict_proba(values)
    if found.shape[1] == count:
        return found
    wide = np.zeros((len(found), count))
    wide[:, member.classes_] = found
    return wide
