"""Numbers for rows where the model runs: reductions of many outputs, and scores of users' own.

Turns outputs of many pixels, tokens, labels or numbers a row into one number per row and score, where the model runs.

Acquisition functions of the user's own, by import path, run on blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raystream.acquisition import all_dense_scores, multi_label_member_scores
from raystream.acquisition.logits import label_scores
from raystream.errors import ModelError, QueryError
from raystream.imports import find
from raystream.model import Prediction, Predictor, RowScores, is_device_failure
from raystream.model.batches import is_out_of_memory
from raystream.model.source import check_imported
from raystream.query import DEFAULT_REDUCE, DEFAULT_TOP, MEMBER_SCORES, TASKS, Acquire, Model
from raystream.query.catalogue import number_formulas
from raystream.query.select import column_of

_NOTHING_COUNTS = "its mask leaves no element to score"


@dataclass(frozen=True)
class Reduction:
    """The rule by which a row's many outputs become one number: `model.task`, `acquire.reduce`, `acquire.top` and the temperature."""

    task: str
    reduce: str
    top: float
    temperature: float

    @classmethod
    def of(cls, model: Model, acquire: Acquire) -> Reduction | None:
        """Return the reduction of a query; None for one distribution over classes a row, which is kept as it is."""
        if model.task == "classes":
            return None
        top = DEFAULT_TOP if acquire.top is None else acquire.top
        return cls(model.task, acquire.reduce or DEFAULT_REDUCE, top, model.temperature_value)


class ReducedPredictor:
    """A `Predictor` whose predictions hold `scores` in place of logits and samples.

    It reduces batch by batch, since the outputs of a few rows may take gigabytes; memory that ran out while reducing
    halves the batch.
    """

    def __init__(self, model: Predictor, reduction: Reduction) -> None:
        self._model, self._reduction = model, reduction
        self._most = model.batch_size

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._model.device

    @property
    def state_hash(self) -> str:
        """The model's."""
        return self._model.state_hash

    @property
    def batch_size(self) -> int:
        """The most rows that run at once."""
        return min(self._most, self._model.batch_size)

    def predict(self, inputs: tuple[Any, ...]) -> Prediction:
        """See `Predictor.predict`."""
        rows = len(inputs[0])
        pieces: list[Prediction] = []
        start = 0
        while start < rows or not pieces:
            size = self.batch_size
            piece = self._fit(tuple(values[start : start + size] for values in inputs))
            if piece is not None:
                pieces.append(piece)
                start += size
        return pieces[0] if len(pieces) == 1 else _joined(pieces)

    def _fit(self, inputs: tuple[Any, ...]) -> Prediction | None:
        """Reduce the prediction of one batch; None when it did not fit and the batch was halved."""
        try:
            with torch.inference_mode():
                return reduced(self._model.predict(inputs), self._reduction)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(inputs[0]) <= 1:
                raise
        self._most = max(1, len(inputs[0]) // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # after the except clause, whose traceback held the batch's tensors
        return None


def reduced(prediction: Prediction, how: Reduction) -> Prediction:
    """Return a prediction with its rows' scores in place of its logits and samples; one that has no logits, as it is."""
    if prediction.logits is None:
        return prediction
    reason = prediction.reason
    if how.task == "regression":
        scores = _regression(prediction.logits, prediction.samples)
    elif how.task == "multi_label":
        scores = _multi_label(prediction.logits, prediction.samples, how)
    else:
        scores, empty = _dense(prediction, how)
        if bool(empty.any()):
            others = bool((~scores.sound & ~empty).any())
            reason = f"{reason}, or {_NOTHING_COUNTS}" if others else _NOTHING_COUNTS
    return Prediction(None, prediction.embedding, reason, scores=scores)


def _dense(prediction: Prediction, how: Reduction) -> tuple[RowScores, Tensor]:
    """Return the scores, and bool (n_rows,) at rows of which no element counts."""
    logits, samples, mask = prediction.logits, prediction.samples, prediction.mask
    assert logits is not None
    empty = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if mask is not None:
        empty = ~mask.flatten(1).any(dim=1)
        mask = mask | empty.view(-1, *[1] * (mask.ndim - 1))  # so that they can be scored; they aren't sound
    made = all_dense_scores(logits, samples, mask=mask, reduce=how.reduce, top=how.top, temperature=how.temperature)
    classes = logits.shape[2 if how.task == "tokens" else 1]
    sound = _finite(made.scores) & ~empty
    return RowScores(made.scores, made.prediction, made.confidence, sound, classes, _count(samples)), empty


def _multi_label(logits: Tensor, samples: Tensor | None, how: Reduction) -> RowScores:
    """Take the likeliest label as the prediction, and that label's own probability as the confidence."""
    names = TASKS["multi_label"].scores
    scores = {name: label_scores(logits, name, how.reduce, how.temperature).float() for name in names}
    if samples is not None:
        of_members = multi_label_member_scores(samples, MEMBER_SCORES, reduce=how.reduce, temperature=how.temperature)
        scores |= of_members
    top, label = logits.max(dim=1)
    confidence = torch.sigmoid(top / how.temperature).float()
    return RowScores(scores, label.int(), confidence, _finite(scores), logits.shape[1], _count(samples))


def _regression(numbers: Tensor, samples: Tensor | None) -> RowScores:
    sound = torch.isfinite(numbers).all(dim=1)
    if samples is None:
        return RowScores({}, None, None, sound, None, None)
    scores = {name: formula(samples).float() for name, formula in number_formulas().items()}
    return RowScores(scores, None, None, sound & _finite(scores), None, _count(samples))


def _finite(scores: dict[str, Tensor]) -> Tensor:
    return torch.isfinite(torch.stack(list(scores.values()))).all(dim=0)


def _count(samples: Tensor | None) -> int | None:
    return None if samples is None else samples.shape[1]


def _joined(pieces: list[Prediction]) -> Prediction:
    """Join reduced predictions for consecutive rows."""
    scores = [piece.scores for piece in pieces if piece.scores is not None]
    embeddings = [piece.embedding for piece in pieces if piece.embedding is not None]
    reasons = dict.fromkeys(piece.reason for piece in pieces if piece.scores is not None and not bool(piece.scores.sound.all()))
    together = None
    if scores:
        first = scores[0]
        together = RowScores(
            {name: torch.cat([one.scores[name] for one in scores]) for name in first.scores},
            None if first.prediction is None else torch.cat([one.prediction for one in scores if one.prediction is not None]),
            None if first.confidence is None else torch.cat([one.confidence for one in scores if one.confidence is not None]),
            torch.cat([one.sound for one in scores]),
            first.classes,
            first.members,
        )
    embedding = torch.cat(embeddings) if embeddings else None
    return Prediction(None, embedding, " or ".join(reasons) or pieces[0].reason, scores=together)


_GIVEN = ("logits", "log_probs")


@dataclass(frozen=True)
class UsersScore:
    """A function that scores rows, as `raystream.acquisition.check_acquisition` describes it.

    Attributes:
        path: where it is, for messages.
        given: "logits", (n_rows, n_classes), or "log_probs", (n_rows, n_members, n_classes); None: the latter where a row has
            several opinions, else the former. A function says it by an attribute of that name.
    """

    path: str
    function: Callable[[Tensor], object]
    given: str | None

    @property
    def column(self) -> str:
        """Under which name its scores are stored."""
        return column_of(self.path)

    def __call__(self, logits: Tensor, log_probs: Tensor | None) -> Tensor:
        """Score a block of rows, (n,) on the processor, finite.

        Args:
            logits: (n, c), after temperature.
            log_probs: (n, k, c) of the members or dropout samples; None for one opinion.

        Raises:
            QueryError: it takes the opinions of several members, and there is one.
            ModelError: it failed, or its scores can't be used.
        """
        if self.given == "log_probs" and log_probs is None:
            raise QueryError(
                f"acquisition function {self.path} takes several opinions of a row, but the model has one; "
                "set acquire.mc_samples for MC dropout, or give a committee"
            )
        given = log_probs if log_probs is not None and self.given != "logits" else logits
        shape = tuple(given.shape)
        try:
            with torch.no_grad():
                scores = self.function(given.clone())  # it may write into what it is given
        except Exception as error:
            if is_device_failure(error):
                raise
            raise ModelError(
                f"acquisition function {self.path} raised {type(error).__name__}: {error} on {self._what(given)} {shape}; "
                "raystream.acquisition.check_acquisition tries it out"
            ) from error
        if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.shape != (len(given),):
            got = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise ModelError(
                f"acquisition function {self.path} returned {got} for {self._what(given)} {shape}, expected floating scores ({len(given)},)"
            )
        scores = scores.float().cpu()
        bad = torch.nonzero(~scores.isfinite()).flatten()
        if len(bad):
            raise ModelError(
                f"acquisition function {self.path} gave {len(bad)} of {len(scores)} rows no finite score, first {float(scores[bad[0]])}; "
                "expected finite numbers, higher for rows to label sooner"
            )
        return scores

    @staticmethod
    def _what(given: Tensor) -> str:
        return "logits (rows, classes)" if given.ndim == 2 else "log-probabilities (rows, members, classes)"


def users_score(path: str) -> UsersScore:
    """Import the function that a query names in `acquire.score` or `also`.

    Raises:
        QueryError: it can't be imported, or isn't a function.
        ModelError: its source was edited after this process imported it.
    """
    found = find(path, "acquire asks for")
    if not callable(found):
        raise QueryError(f"acquire asks for {path}, which is no function; expected one from (n, c) or (n, k, c) to (n,)")
    given = getattr(found, "given", None)
    if given not in (None, *_GIVEN):
        raise QueryError(f"acquisition function {path} has given = {given!r}, expected 'logits' or 'log_probs'")
    check_imported(path, "acquisition function")
    return UsersScore(path, found, given)
