"""A model's outputs for a batch of rows, which of the rows can't be used, and what the model's classes are called."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from raystream.errors import ModelError, QueryError
from raystream.model.promise import NOT_FINITE


@dataclass(frozen=True)
class RowScores:
    """The scores that are kept of rows whose output isn't one distribution over classes, each reduced to a number a row."""

    scores: dict[str, Tensor]
    """By name; each float32 (n_rows,)."""
    prediction: Tensor | None
    """int32 (n_rows,); None for regression."""
    confidence: Tensor | None
    """float32 (n_rows,); None for regression."""
    sound: Tensor
    """bool (n_rows,), whether all numbers of a row that count can be used."""
    classes: int | None
    """Of the model; None for regression."""
    members: int | None
    """How many opinions there were; None for one."""

    def kept(self, keep: Tensor) -> RowScores:
        """Return these rows alone; keep is bool (n_rows,), on any device."""
        keep = keep.to(self.sound.device)
        return replace(
            self,
            scores={name: values[keep] for name, values in self.scores.items()},
            prediction=None if self.prediction is None else self.prediction[keep],
            confidence=None if self.confidence is None else self.confidence[keep],
            sound=self.sound[keep],
        )


@dataclass(frozen=True)
class Prediction:
    """The output for one batch, on the predictor's device; not to be written to."""

    logits: Tensor | None
    """float32 (n_rows, n_classes), or as `model.task` says; None if the pool's columns hold an embedding alone, or with `scores`."""
    embedding: Tensor | None
    """float32 (n_rows, n_dimensions); None if not wanted."""
    reason: str = NOT_FINITE
    """What is wrong with the rows that `bad_output_rows` finds."""
    samples: Tensor | None = None
    """float32 (n_rows, n_samples, n_classes), logits of each MC dropout sample or member of a committee; None for neither."""
    bias: bool = True
    """Whether the layer whose input the embedding is, if it is one's, has a bias."""
    gradient_lengths: Tensor | None = None
    """float32 (n_rows,), expected gradient lengths over all parameters; None if not wanted."""
    mask: Tensor | None = None
    """bool (n_rows, n_tokens) or (n_rows, height, width), which elements of a dense output count; None: all."""
    scores: RowScores | None = None
    """In place of logits and samples, once they were reduced; None for one distribution over classes a row."""


class Predictor(Protocol):
    """A model that is ready to run."""

    @property
    def device(self) -> torch.device:
        """Where it runs, and where its predictions lie."""

    @property
    def state_hash(self) -> str:
        """sha256 of all parameters and buffers; empty for a model that has none."""

    @property
    def batch_size(self) -> int:
        """The most rows that run at once; smaller than asked for once a batch did not fit into memory."""

    def predict(self, inputs: tuple[Any, ...]) -> Prediction:
        """Run the model on rows.

        Args:
            inputs: one tensor per input column, in order, each (n_rows, ...); of a column of texts an object array (n_rows,)
                of str. More rows than `batch_size` run in pieces of it. They are copied to the device asynchronously, so
                leave them alone until the prediction is read.

        Returns:
            the prediction for all rows; may share memory with the inputs.

        Raises:
            ModelError: the model refuses the rows, its output isn't what `raystream.model.promise` says, or one row does not fit
                into memory.
        """


def bad_output_rows(prediction: Prediction) -> Tensor | None:
    """Return the rows whose numbers can't be used, or None when all can.

    Bad are NaN and +inf logits, rows of -inf alone (-inf masks a class and is fine), the same in any sample, and any embedding
    or gradient length that isn't finite.
    One synchronisation with the device when nothing is wrong.

    Returns:
        None, or bool (n_rows,) on the prediction's device, True at bad rows.
    """
    if prediction.scores is not None:
        bad = ~prediction.scores.sound
        if prediction.embedding is not None:
            bad |= ~torch.isfinite(prediction.embedding).all(dim=1)
        return bad if bool(bad.any()) else None
    every = (prediction.logits, prediction.embedding, prediction.samples, prediction.gradient_lengths)
    present = [values for values in every if values is not None]
    if not present or math.isfinite(sum(values.sum() for values in present)):
        return None
    bad = torch.zeros(present[0].shape[0], dtype=torch.bool, device=present[0].device)
    if prediction.logits is not None:
        top = prediction.logits.amax(dim=1)  # NaN if the row holds one
        bad |= ~torch.isfinite(top)
    if prediction.samples is not None:
        bad |= ~torch.isfinite(prediction.samples.amax(dim=2)).all(dim=1)
    if prediction.embedding is not None:
        bad |= ~torch.isfinite(prediction.embedding).all(dim=1)
    if prediction.gradient_lengths is not None:
        bad |= ~torch.isfinite(prediction.gradient_lengths)
    return bad if bool(bad.any()) else None


def class_names(classes: list[str] | str | None) -> list[str] | None:
    """Return the names that `model.classes` gives, in the order of the model's outputs; None if it gives none.

    Args:
        classes: the names, or the path of a text file with one name a line, or of a JSON file with a list.

    Raises:
        QueryError: the file can't be read, or the names aren't distinct strings.
    """
    if classes is None:
        return None
    names = _read(classes) if isinstance(classes, str) else list(classes)
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        if name in seen:
            raise QueryError(f"model.classes holds {name!r} twice, at {seen[name]} and {position}; every class needs a name of its own")
        seen[name] = position
    return names


def check_classes(names: Sequence[str] | None, count: int) -> None:
    """Compare the names with the number of the model's outputs.

    Raises:
        ModelError: they differ.
    """
    if names is not None and len(names) != count:
        raise ModelError(f"model.classes names {len(names)} classes, but the model has {count} outputs; name one per output, in order")


def _read(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise QueryError(f"model.classes {path} can't be read: {reason}; give a list of names or a file with one name a line") from None
    if path.endswith(".json") or text.lstrip().startswith("["):
        return _from_json(text, path)
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not all(names):
        raise QueryError(f"model.classes {path}, line {names.index('') + 1} is empty; expected one name a line")
    return names


def _from_json(text: str, path: str) -> list[str]:
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise QueryError(f"model.classes {path}, line {error.lineno} isn't JSON: {error.msg}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise QueryError(f"model.classes {path} holds something else than a list of names")
    return names
