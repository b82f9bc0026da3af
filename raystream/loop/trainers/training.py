"""What trainers are given and what they give back: a seam with one method that matters, `Trainer.fit`.

Rows come as the tensors that scoring makes of them, labels as numbers; so rounds of a loop, which read a pool, and rounds of a
simulation, which hold arrays, train alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError, QueryError, did_you_mean
from raystream.model import Prediction
from raystream.query.catalogue import Arg

Array = npt.NDArray[Any]
ClassLabel = str | int | float | bool
"""What a class is called."""

TRAINED_TASKS = ("classes", "multi_label", "regression")
"""What `model.task` may be where a trainer trains."""


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Labelled rows.

    Attributes:
        inputs: the model's tensors, each (n, ...), or of texts an object array of str.
        labels: int64 (n,), places in `classes`; of multi-label uint8 (n, labels), 0 or 1; of regression float32 (n, outputs).
        task: `model.task`.
        classes: what the classes or labels are called, in the order of the numbers; None for regression.
        names: the model's own names of its inputs; empty where they come by position.
        table: the same rows as the pool has them, with a column `label`, for trainers of the user's own.
    """

    inputs: tuple[Array, ...]
    labels: Array
    task: str = "classes"
    classes: tuple[ClassLabel, ...] | None = None
    names: tuple[str, ...] = ()
    table: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: npt.NDArray[np.integer]) -> TrainingRows:
        """Return these rows, in that order; one may come several times."""
        table = None if self.table is None else self.table.take(pa.array(rows))
        return replace(self, inputs=tuple(values[rows] for values in self.inputs), labels=self.labels[rows], table=table)

    @property
    def values(self) -> list[Any]:
        """The labels as people gave them: a class, a list of classes, a number or several."""
        if self.task == "regression":
            return list(self.labels[:, 0].tolist() if self.labels.shape[1] == 1 else self.labels.tolist())
        assert self.classes is not None
        if self.task == "multi_label":
            return [[name for name, yes in zip(self.classes, row, strict=True) if yes] for row in self.labels]
        return [self.classes[number] for number in self.labels]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a trained model says of rows.

    Attributes:
        values: float64 (n, classes), probabilities that sum to 1; of multi-label (n, labels), each its own; of regression (n, outputs).
        embedding: float32 (n, dimensions); None if not asked for.
    """

    values: Array
    embedding: Array | None = None


class Fitted(Protocol):
    """A trained model, ready to be asked, and to be kept as a query's `model` section names it."""

    @property
    def classes(self) -> tuple[ClassLabel, ...] | None:
        """What its outputs are called, in their order; None for regression."""

    @property
    def native(self) -> Any:
        """The network, estimator or path itself: what a trainer of the user's own gets as its previous model."""

    def predict(self, inputs: tuple[Array, ...], *, embedding: bool = False) -> Predicted:
        """Return what it says of rows, given as in `TrainingRows.inputs`."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Write it as files, and return the keys of the `model` section that load it; paths in it are names of files in the folder."""


class Trainer(Protocol):
    """Trains models of one kind; the same rows, previous model and seed give the same model."""

    def fit(self, rows: TrainingRows, previous: Fitted | None, seed: int) -> Fitted:
        """Train on labelled rows, from `previous` on where that is not None.

        Raises:
            ModelError: the model can't be made or trained, or what came of it gives NaN.
        """

    def load(self, section: query.Model, classes: tuple[ClassLabel, ...] | None) -> Fitted:
        """Return what `save` wrote, given the section with paths of this machine."""


def predicted(forward: Callable[[tuple[Any, ...]], Prediction], inputs: tuple[Array, ...], task: str, *, embedding: bool) -> Predicted:
    """Return what a predictor says of rows, as probabilities or numbers.

    Args:
        forward: `Predictor.predict` or the like.
        inputs: as in `TrainingRows.inputs`.
        task: `model.task`.
        embedding: whether the predictor gives one that is wanted.
    """
    tensors = tuple(values if values.dtype == object else _tensor(values) for values in inputs)
    found = forward(tensors)
    assert found.logits is not None
    return Predicted(
        probabilities(found.logits, task).cpu().numpy(),
        found.embedding.float().cpu().numpy() if embedding and found.embedding is not None else None,
    )


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Return logits of a task as float64 probabilities; numbers of regression as they are."""
    exact = logits.double()
    if task == "regression":
        return exact
    return exact.sigmoid() if task == "multi_label" else exact.softmax(dim=1)


def refuse_nan(found: Predicted, who: str) -> Predicted:
    """Return the prediction, unless a number of it is NaN or infinite.

    Raises:
        ModelError: one is.
    """
    bad = int((~np.isfinite(found.values).all(axis=1)).sum())
    if bad:
        raise ModelError(
            f"{who}: after training the model gives NaN or infinity for {bad:,} of {len(found.values):,} rows; train with a lower "
            "learning rate, or look at the inputs"
        )
    return found


def gives_embedding(fitted: Fitted, inputs: tuple[Array, ...]) -> bool:
    """Tell whether a model gives embeddings, which of a pipeline shows when it is asked: texts become sparse rows in some.

    Args:
        fitted: the model.
        inputs: a few rows, as in `TrainingRows.inputs`.
    """
    try:
        return fitted.predict(inputs, embedding=True).embedding is not None
    except ModelError:
        return False


def check_args(args: Mapping[str, Any], known: Mapping[str, Arg], trainer: str) -> dict[str, Any]:
    """Return a trainer's arguments with their defaults.

    Raises:
        QueryError: one is unknown, or not what it must be.
    """
    for name, value in args.items():
        if name not in known:
            raise QueryError(f"loop.train.{name} is not an argument of trainer {trainer}{did_you_mean(name, known)}")
        if not known[name].accepts(value):
            raise QueryError(f"loop.train.{name} is {value!r}, expected {known[name].expected}")
    return {name: args.get(name, arg.default) for name, arg in known.items()}


def seed_of(*parts: int) -> int:
    """Return a seed of 31 bits out of several numbers: one for each purpose, and none the other's."""
    return int(np.random.default_rng(list(parts)).integers(0, 2**31))


def held_back(labels: Array, share: float, seed: int, *, by_class: bool) -> npt.NDArray[np.bool_]:
    """Return (n,) which rows are held back from training: a share of all, of each class by turns, and never the only row of a class.

    Args:
        labels: int64 (n,), or anything where `by_class` is false.
        share: of the rows, from 0 to 1.
        seed: of the draw.
        by_class: whether each class keeps a row at least.
    """
    rows = len(labels)
    order = np.random.default_rng(seed).permutation(rows)
    mask = np.zeros(rows, dtype=bool)
    wanted = math.floor(share * rows)
    if not by_class:
        mask[order[:wanted]] = True
        return mask
    left = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    for row in order:
        if wanted and left[labels[row]] > 1:
            mask[row], wanted = True, wanted - 1
            left[labels[row]] -= 1
    return mask


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)) if values.flags.writeable else torch.from_numpy(values.copy())
