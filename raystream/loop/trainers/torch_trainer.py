"""trainer: torch, which trains the network of `model.source` with AdamW and a learning rate that falls by a cosine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from raystream import query
from raystream.errors import ModelError, QueryError
from raystream.loop.trainers.training import (
    TRAINED_TASKS,
    Array,
    ClassLabel,
    Fitted,
    Predicted,
    TrainingRows,
    check_args,
    held_back,
    predicted,
    refuse_nan,
    seed_of,
)
from raystream.model.batches import AUTOCAST, choose_device, in_float32, is_device_failure, is_out_of_memory
from raystream.model.promise import Promise
from raystream.model.signature import INPUTS, EmbeddingTap, inputs_embedding
from raystream.model.source import build, plain_network, seeded
from raystream.model.torch_model import TorchPredictor
from raystream.model.weights import load_weights
from raystream.query.catalogue import Arg, kind_of
from raystream.query.catalogue.kinds import count, flag, natural, positive

_SHARE = Arg(
    "a number from 0, below 1",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
    0.0,
    "the part of the labelled rows that is held back to stop early by; 0: none is, and training runs to its end",
)
_NOT_NEGATIVE = Arg(
    "a number from 0",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf,
    0.01,
    "AdamW's weight decay",
)
ARGS: Mapping[str, Arg] = {
    "epochs": count(30, "how often each row is seen, at most"),
    "least_steps": natural(300, "steps to take at least, however few rows there are: more epochs, then"),
    "learning_rate": positive(3e-3, "AdamW's, at the start"),
    "weight_decay": _NOT_NEGATIVE,
    "batch_size": count(32, "rows of a step"),
    "validation": _SHARE,
    "patience": count(5, "epochs without a lower loss on these rows, after which the best weights are taken"),
    "class_weights": flag(False, "whether rows weigh by the inverse of how often their class is labelled"),
    "threads": count(1, "threads; sums depend on their number, and so do the weights"),
}
"""What `loop.train` may hold."""


@dataclass(frozen=True)
class TorchTrainer:
    """See the module; `model` is the query's section, without which nothing can be trained, `names` the model's own of its inputs."""

    args: Mapping[str, Any]
    model: query.Model
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: Mapping[str, Any], model: query.Model | None, names: tuple[str, ...] = ()) -> TorchTrainer:
        """Return the trainer with its arguments checked.

        Raises:
            QueryError: they, or the model, can't be used.
        """
        known = check_args(args, ARGS, "torch")
        if model is None or model.source is None or not kind_of(model.kind).parameters:
            raise QueryError("loop.trainer torch trains a network of your own; give model.source, the import path of its factory")
        if model.task not in TRAINED_TASKS:
            raise QueryError(f"model.task is {model.task}, but trainer torch trains {', '.join(TRAINED_TASKS)}; name your own function")
        return cls(known, model, names)

    def fit(self, rows: TrainingRows, previous: Fitted | None, seed: int) -> TorchFitted:
        """See `Trainer.fit`; without a previous model the network is made anew under the seed, with `model.weights` where given."""
        device = choose_device(self.model.device)
        with _reproducible(seed, self.args["threads"], device):
            network = self._network(seed)
            if previous is not None:
                network.load_state_dict(previous.native.state_dict())
            self._train(network.to(device), rows, seed, device)
        fitted = TorchFitted(network.eval(), self.model, rows.names, device, self.args["threads"])
        refuse_nan(fitted.predict(tuple(values[: self.args["batch_size"]] for values in rows.inputs)), fitted.who)
        return fitted

    def load(self, section: query.Model, classes: tuple[ClassLabel, ...] | None) -> TorchFitted:
        """See `Trainer.load`."""
        assert isinstance(section.weights, str)
        network = self._network(0, section.weights)
        return TorchFitted(network.eval(), self.model, self.names, choose_device(self.model.device), self.args["threads"])

    def _network(self, seed: int, weights: str | None = None) -> nn.Module:
        source = str(self.model.source)
        made = build(source, self.model.args, seed)
        if not isinstance(made, nn.Module):
            raise ModelError(f"model.source {source} returned {type(made).__name__}, expected a torch.nn.Module")
        network = plain_network(made)
        given = weights or (self.model.weights if isinstance(self.model.weights, str) else None)
        if given:
            load_weights(network, given, self.model.trust)
        in_float32(network)
        return network

    def _train(self, network: nn.Module, rows: TrainingRows, seed: int, device: torch.device) -> None:
        args, who = self.args, f"model.source {self.model.source}"
        aside = held_back(rows.labels, args["validation"], seed_of(seed, 1), by_class=rows.task == "classes")
        train = _OnDevice.of(rows.at(np.flatnonzero(~aside)), device)
        check = _OnDevice.of(rows.at(np.flatnonzero(aside)), device) if aside.any() else None
        size, loss = args["batch_size"], _Loss(self.model, rows, args["class_weights"], device, who)
        steps_an_epoch = -(-len(train) // size)
        epochs = max(args["epochs"], -(-args["least_steps"] // steps_an_epoch))
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not parameters:
            raise ModelError(f"{who} has no parameters to train; use another trainer, or a network that learns")
        optimizer = torch.optim.AdamW(parameters, lr=args["learning_rate"], weight_decay=args["weight_decay"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps_an_epoch)
        best: tuple[float, dict[str, Tensor]] = (math.inf, {})
        since = 0
        for _ in range(epochs):
            network.train()
            order = torch.randperm(len(train), device="cpu").to(device)
            for batch in torch.split(order, size):
                if len(batch) == 1 and len(train) > 1 and _normalises(network):
                    continue  # the statistics of one row are none
                optimizer.zero_grad()
                value = loss.of(network, train.at(batch))
                if not torch.isfinite(value):
                    raise ModelError(f"{who}: the training loss is {value.item()}; train with a lower loop.train.learning_rate")
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            if check is None:
                continue
            now = loss.mean(network, check, size)
            if now < best[0]:
                best, since = (now, {name: value.detach().clone() for name, value in network.state_dict().items()}), 0
            else:
                since += 1
            if since >= args["patience"]:
                break
        if best[1]:
            network.load_state_dict(best[1])


torch_trainer = TorchTrainer.of
"""What the catalogue names."""


class TorchFitted:
    """A trained network."""

    def __init__(self, network: nn.Module, model: query.Model, names: tuple[str, ...], device: torch.device, threads: int) -> None:
        self.native, self.who = network, f"model.source {model.source}"
        self._model, self._names, self._device, self._threads = model, names, device, threads
        self.classes: tuple[ClassLabel, ...] | None = tuple(model.classes) if isinstance(model.classes, list) else None

    def predict(self, inputs: tuple[Array, ...], *, embedding: bool = False) -> Predicted:
        """See `Fitted.predict`; the network runs as workers run it."""
        own = self._model.embedding == INPUTS
        predictor = TorchPredictor(
            self.native,
            source=str(self._model.source),
            device=self._device,
            batch_size=self._model.batch_size,
            autocast=AUTOCAST[self._model.precision],
            embedding=EmbeddingTap(self.native, self._model.embedding, self._model.task) if embedding and not own else None,
            task=self._model.task,
            output=self._model.output,
            names=self._names,
        )
        with _threads(self._threads):
            found = predicted(predictor.predict, inputs, self._model.task, embedding=embedding and not own)
        if self.classes is None and self._model.task == "classes":
            self.classes = tuple(range(found.values.shape[1]))
        if not (embedding and own):
            return found
        tensors = tuple(values if values.dtype == object else torch.from_numpy(values.copy()) for values in inputs)
        return Predicted(found.values, inputs_embedding(tensors, self.who).numpy())

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Fitted.save`; clones, since the format refuses tensors that share memory."""
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.native.state_dict().items()}
        safetensors.torch.save_file(state, folder / "model.safetensors")
        return {"weights": "model.safetensors"}


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """Rows as tensors on the device."""

    inputs: tuple[Tensor, ...]
    labels: Tensor

    @classmethod
    def of(cls, rows: TrainingRows, device: torch.device) -> _OnDevice:
        if any(values.dtype == object for values in rows.inputs):
            raise ModelError("trainer torch was given texts, but a network takes tensors; make tensors of them in model.preprocess")
        return cls(tuple(torch.from_numpy(values.copy()).to(device) for values in rows.inputs), torch.from_numpy(rows.labels).to(device))

    def at(self, rows: Tensor) -> _OnDevice:
        return _OnDevice(tuple(values[rows] for values in self.inputs), self.labels[rows])

    def __len__(self) -> int:
        return len(self.labels)


class _Loss:
    """The loss of a task: cross entropy, of labels the binary one, of numbers the squared error."""

    def __init__(self, model: query.Model, rows: TrainingRows, weighted: bool, device: torch.device, who: str) -> None:
        self._model, self._who, self._names, self._device = model, who, rows.names, device
        self._promise = Promise(who, model.task, model.output)
        self._weights = _inverse_frequency(rows).to(device) if weighted and model.task != "regression" else None

    def of(self, network: nn.Module, rows: _OnDevice) -> Tensor:
        """Return the mean over these rows, to be differentiated."""
        amp = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=amp):
            output = self._run(network, rows)
        logits = self._promise.read(output, len(rows)).logits
        if self._model.task == "regression":
            target = rows.labels.to(logits.dtype)
            self._same_width(logits, target)
            return nn.functional.mse_loss(logits, target)
        if self._model.task == "multi_label":
            target = rows.labels.to(logits.dtype)
            target = nn.functional.pad(target, (0, max(0, logits.shape[1] - target.shape[1])))  # labels that no row has yet
            self._same_width(logits, target)
            weights = None if self._weights is None else self._padded(logits.shape[1])
            return nn.functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
        most = int(rows.labels.max())
        if most >= logits.shape[1]:
            raise ModelError(f"{self._who} gives {logits.shape[1]} classes, but a row is labelled as class {most}; make it give more")
        weights = None if self._weights is None else self._padded(logits.shape[1])
        return nn.functional.cross_entropy(logits, rows.labels, weight=weights)

    @torch.no_grad()
    def mean(self, network: nn.Module, rows: _OnDevice, size: int) -> float:
        """Return the mean over these rows, in evaluation mode."""
        network.eval()
        parts = torch.split(torch.arange(len(rows), device=self._device), size)
        return sum(float(self.of(network, rows.at(part))) * len(part) for part in parts) / len(rows)

    def _run(self, network: nn.Module, rows: _OnDevice) -> object:
        try:
            return network(**dict(zip(self._names, rows.inputs, strict=True))) if self._names else network(*rows.inputs)
        except Exception as error:
            if isinstance(error, ModelError) or is_out_of_memory(error) or is_device_failure(error):
                raise
            shapes = ", ".join(f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}" for values in rows.inputs)
            raise ModelError(f"{self._who} raised {type(error).__name__}: {error} while training on inputs {shapes}") from error

    def _same_width(self, logits: Tensor, target: Tensor) -> None:
        if logits.shape != target.shape:
            what = "labels" if self._model.task == "multi_label" else "numbers"
            raise ModelError(f"{self._who} gives {logits.shape[1]} outputs a row, but rows are labelled by {target.shape[1]} {what}")

    def _padded(self, classes: int) -> Tensor:
        assert self._weights is not None
        return nn.functional.pad(self._weights, (0, max(0, classes - len(self._weights))), value=1.0)


def _inverse_frequency(rows: TrainingRows) -> Tensor:
    """Compute (classes,) weights whose mean over the rows is 1; of labels (labels,), how many rows lack each for one that has it."""
    if rows.task == "multi_label":
        yes = rows.labels.sum(axis=0).astype(np.float32)
        return torch.from_numpy(np.where(yes > 0, (len(rows) - yes) / np.maximum(yes, 1), 1).astype(np.float32)).clamp(min=1e-3)
    counts = np.bincount(rows.labels)
    return torch.from_numpy((len(rows) / (np.maximum(counts, 1) * (counts > 0).sum())).astype(np.float32))


def _normalises(network: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


@contextmanager
def _reproducible(seed: int, threads: int, device: torch.device) -> Iterator[None]:
    """Put the seed into all generators, which come back as they were, and set so many threads."""
    with _threads(threads), seeded(seed, [device.index or 0] if device.type == "cuda" else []):
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
