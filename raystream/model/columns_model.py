"""kind: columns, the model's output as columns of the pool; the model is the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError
from raystream.model.committee import mean_logits
from raystream.model.prediction import Prediction
from raystream.model.promise import NOT_FINITE, Promise

_SUM_TOLERANCE = 1e-3
_NO_LOG_DISTRIBUTION = "a member's samples are no log-probabilities: their exponentials don't sum to 1"


def input_columns(spec: query.Model) -> tuple[str, ...]:
    """Return the pool's columns that `predict` takes, in order: logits or probabilities, then samples, then the embedding."""
    return tuple(column for column in (spec.logits or spec.probabilities, spec.samples, spec.embedding) if column)


def load(spec: query.Model, *, embedding: bool) -> ColumnsPredictor:
    """Return the identity on the columns that `spec` names.

    Raises:
        ModelError: an embedding is wanted, and no column holds one.
    """
    if embedding and not spec.embedding:
        raise ModelError("an embedding is needed, but model.embedding names no column of the pool; name the one that holds it")
    return ColumnsPredictor(spec, embedding=embedding)


class ColumnsPredictor:
    """Passes the pool's own logits, or the logarithm of its probabilities, its samples and embeddings through.

    Samples, (n_rows, n_members, n_classes), are log-probabilities, or where `model.output` is probabilities such: those of the members
    of a committee, or of dropout samples. Without logits or probabilities beside them, the logits are those of the members' mean.
    """

    def __init__(self, spec: query.Model, *, embedding: bool) -> None:
        self.device = torch.device("cpu")
        self.state_hash = ""
        self.batch_size = spec.batch_size
        self._columns = input_columns(spec)
        self._scored = spec.logits or spec.probabilities
        who = f"column {self._scored} (model.{'logits' if spec.logits else 'probabilities'})"
        self.promise = Promise(who, spec.task, "probabilities" if spec.probabilities else "logits", "holds")
        self._of_samples = Promise(f"column {spec.samples} (model.samples)", spec.task, spec.output, "holds")
        self._task = spec.task
        self._samples = spec.samples
        self._temperature = spec.temperature_value
        self._embedding = spec.embedding if embedding else None

    def predict(self, inputs: tuple[Tensor, ...]) -> Prediction:
        """See `Predictor.predict`; the inputs are the tensors of `input_columns`, each (n_rows, ...)."""
        if len(inputs) != len(self._columns):
            raise ModelError(f"{len(inputs)} input columns came, expected {len(self._columns)}: {', '.join(self._columns)}")
        rows = inputs[0].shape[0]
        logits = None
        reason = NOT_FINITE
        if self._scored:
            values = inputs[0] if inputs[0].is_floating_point() else inputs[0].float()
            logits = self.promise.logits(values, rows)
            reason = self.promise.reason(logits)
        samples = None
        if self._samples:
            given = inputs[1 if logits is not None else 0]
            if self._task == "regression":
                return self._numbers(given, inputs, rows)
            samples, sound = self._members(given, rows)
            reason = reason if sound else self._of_samples.reason(samples) if self._of_samples.probabilities else _NO_LOG_DISTRIBUTION
            logits = mean_logits(samples, self._temperature) if logits is None else logits
            if logits.shape[1] != samples.shape[2]:
                raise ModelError(
                    f"column {self._samples} (model.samples) has {samples.shape[2]} classes, but {self._scored} "
                    f"has {logits.shape[1]}; both need the same classes in the same order"
                )
        embedding = self._vectors(inputs, rows)
        return Prediction(logits, embedding, reason, samples=samples)

    def _members(self, samples: Tensor, rows: int) -> tuple[Tensor, bool]:
        """Read log-probabilities of members, float32 (rows, members, classes), and tell whether all are; other rows hold no such number."""
        shape = tuple(samples.shape)
        what = "probabilities" if self._of_samples.probabilities else "log-probabilities"
        if samples.ndim != 3 or shape[0] != rows or shape[1] < 2 or shape[2] < 2 or not samples.is_floating_point():
            raise ModelError(
                f"column {self._samples} (model.samples) is {samples.dtype} of shape {shape} for {rows} rows, expected {what} (rows, "
                "members, classes) with at least two of each; give a column of lists of lists, all of one shape"
            )
        if self._of_samples.probabilities:
            made = self._of_samples.members(samples)
            return made, not bool((made == torch.inf).any())
        bad = ((samples.double().exp().sum(dim=2) - 1).abs() > _SUM_TOLERANCE).any(dim=1)
        samples = samples.float()
        if not bool(bad.any()):
            return samples, True
        return samples.masked_fill(bad[:, None, None], torch.nan), False

    def _numbers(self, given: Tensor, inputs: tuple[Tensor, ...], rows: int) -> Prediction:
        """Make the prediction of a regression from what each member says, (rows, members) or (rows, members, outputs)."""
        shape = tuple(given.shape)
        if given.ndim not in (2, 3) or shape[0] != rows or shape[1] < 2 or not given.is_floating_point():
            raise ModelError(
                f"column {self._samples} (model.samples) is {given.dtype} of shape {shape} for {rows} rows, expected floating numbers "
                "(rows, members) or (rows, members, outputs) of at least two members"
            )
        samples = given.float().reshape(rows, shape[1], -1)
        return Prediction(samples.double().mean(dim=1).float(), self._vectors(inputs, rows), samples=samples)

    def _vectors(self, inputs: tuple[Tensor, ...], rows: int) -> Tensor | None:
        """Return the embedding, if it is wanted."""
        if not self._embedding:
            return None
        embedding = inputs[-1].float()
        if embedding.ndim < 2 or embedding.shape[0] != rows:
            raise ModelError(
                f"column {self._embedding} (model.embedding) has the shape {tuple(embedding.shape)} for {rows} rows, "
                "expected (rows, dimensions); give a column of lists of one length"
            )
        return embedding.flatten(1)
