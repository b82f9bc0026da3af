"""A trainer of the user's own: a function by its import path, that makes a model of a table of labelled rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from raystream import query
from raystream.errors import ModelError, QueryError, RaystreamError
from raystream.loop.trainers.sklearn_trainer import SklearnTrainer, said_of
from raystream.loop.trainers.torch_trainer import TorchFitted
from raystream.loop.trainers.training import Array, ClassLabel, Fitted, Predicted, TrainingRows, predicted, refuse_nan
from raystream.model import Promised, load
from raystream.model.batches import choose_device, is_device_failure
from raystream.model.source import build, find, plain_network
from raystream.model.weights import load_weights
from raystream.query.catalogue import kind_of
from raystream.query.catalogue.scores import USERS_TRAINER

LABEL = "label"
"""The column of labels in the table that the function gets, whatever it is called in the files of labels."""


@dataclass(frozen=True)
class UsersTrainer:
    """Calls `function(table, previous, seed, args)`.

    The table holds the rows as the pool has them, with a column `label`; `previous` is what the function returned the round before, or
    None. It returns a `torch.nn.Module` for `model.source`, a fitted estimator of scikit-learn, or the path of a file or folder as
    `model.kind` loads it.
    """

    path: str
    args: Mapping[str, Any]
    function: Callable[..., Any]
    model: query.Model | None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: str, args: Mapping[str, Any], model: query.Model | None, names: tuple[str, ...] = ()) -> UsersTrainer:
        """Return the trainer that an import path names.

        Raises:
            QueryError: there is no such function.
        """
        try:
            function = find(path, "loop.trainer")
        except RaystreamError as error:
            raise QueryError(str(error).replace("model.source is", "loop.trainer is")) from None
        if not callable(function):
            raise QueryError(
                f"loop.trainer {path} is {type(function).__name__}, expected a function (labelled table, previous model, seed, args)"
            )
        return cls(path, dict(args), function, model, names)

    def fit(self, rows: TrainingRows, previous: Fitted | None, seed: int) -> Fitted:
        """See `Trainer.fit`."""
        table = rows.table if rows.table is not None else as_table(rows)
        try:
            made = self.function(table, None if previous is None else previous.native, seed, dict(self.args))
        except RaystreamError:
            raise
        except Exception as error:
            if is_device_failure(error):
                raise
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ModelError(f"loop.trainer {self.path} raised {told} on {len(rows):,} labelled rows; fix the function") from error
        fitted = self._fitted(made, rows.classes, rows.names)
        refuse_nan(fitted.predict(tuple(values[:8] for values in rows.inputs)), f"loop.trainer {self.path}")
        return fitted

    def load(self, section: query.Model, classes: tuple[ClassLabel, ...] | None) -> Fitted:
        """See `Trainer.load`."""
        if kind_of(section.kind).names_classes or section.source == USERS_TRAINER.made["regression"]["source"]:
            return SklearnTrainer((), section.task, *said_of(section)).load(section, classes)
        if kind_of(section.kind).parameters and isinstance(section.weights, str):
            network = build(str(section.source), section.args)
            assert isinstance(network, nn.Module)
            network = plain_network(network)
            load_weights(network, section.weights, section.trust)
            return TorchFitted(network.eval(), section, self.names, choose_device(section.device), 1)
        return FileFitted(section, str(section.weights if kind_of(section.kind).imported else section.source), classes)

    def _fitted(self, made: object, classes: tuple[ClassLabel, ...] | None, names: tuple[str, ...]) -> Fitted:
        model = self.model
        if isinstance(made, nn.Module):
            if model is None or model.source is None or not kind_of(model.kind).parameters:
                raise ModelError(
                    f"loop.trainer {self.path} returned a module, which workers can load only by the factory that makes it; "
                    "name that in model.source, or return the path of a file"
                )
            return TorchFitted(plain_network(made).eval().to(choose_device(model.device)), model, names, choose_device(model.device), 1)
        if isinstance(made, str | os.PathLike):
            path = os.path.abspath(made)
            if not os.path.exists(path):
                raise ModelError(f"loop.trainer {self.path} returned the path {path}, where there is nothing")
            if model is None or kind_of(model.kind).names_classes:
                return SklearnTrainer((), "classes" if model is None else model.task).load(
                    query.Model(kind=USERS_TRAINER.made["classes"]["kind"], source=path, trust="safe" if model is None else model.trust),
                    classes,
                )
            changed = {"weights": path} if kind_of(model.kind).imported else {"source": path}
            return FileFitted(model.derived(**changed), path, classes)
        if hasattr(made, "predict") and hasattr(made, "get_params"):
            return SklearnTrainer((), "classes" if model is None else model.task, *said_of(model)).fitted(made, classes)
        raise ModelError(
            f"loop.trainer {self.path} returned {type(made).__name__}, expected a torch.nn.Module, a fitted estimator of scikit-learn, "
            "or the path of a model's file"
        )


class FileFitted:
    """A model that lies in a file or folder, as its kind has it."""

    def __init__(self, section: query.Model, path: str, classes: tuple[ClassLabel, ...] | None) -> None:
        self._section, self._path = section, Path(path)
        self.native = path
        self.classes: tuple[ClassLabel, ...] | None = tuple(section.classes) if isinstance(section.classes, list) else classes
        self._loaded: dict[bool, Promised] = {}

    def predict(self, inputs: tuple[Array, ...], *, embedding: bool = False) -> Predicted:
        """See `Fitted.predict`."""
        if embedding not in self._loaded:
            self._loaded[embedding] = load(self._section, embedding=embedding)
        return predicted(self._loaded[embedding].predict, inputs, self._section.task, embedding=embedding)

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Fitted.save`."""
        name = f"model{self._path.suffix}"
        if self._path.is_dir():
            shutil.copytree(self._path, folder / name)
        else:
            shutil.copyfile(self._path, folder / name)
        return {"weights": name} if kind_of(self._section.kind).imported else {"source": name}


def as_table(rows: TrainingRows) -> pa.Table:
    """Return rows of arrays as a table, `input` or `input_0` and so on beside `label`."""
    columns: dict[str, pa.Array] = {}
    for place, values in enumerate(rows.inputs):
        name = rows.names[place] if rows.names else "input" if len(rows.inputs) == 1 else f"input_{place}"
        if values.ndim == 1:
            columns[name] = pa.array(values.tolist() if values.dtype == object else values)
        else:
            flat = np.ascontiguousarray(values).reshape(len(values), -1)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    return pa.table({**columns, LABEL: pa.array(rows.values)})
