"""Trainers by name, one model at a time or a committee.

Trainers by their names, and committees: several models trained on rows drawn anew, whose disagreement is a score.

Trains a committee by bootstrap (Breiman, Bagging Predictors, 1996): each member on rows drawn anew, with replacement.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from raystream import query
from raystream.errors import ModelError, QueryError, did_you_mean
from raystream.loop.demos.mnist import train
from raystream.loop.trainers.training import Array, ClassLabel, Fitted, Predicted, Trainer, TrainingRows, seed_of
from raystream.loop.trainers.users_trainer import UsersTrainer
from raystream.query.catalogue.scores import TRAINERS

TrainMember = Callable[[nn.Module, Array, Array, int], object]
_EPOCHS = 30
_alone = threading.Lock()
"""Training draws from the process's own generator, so members that share a process take turns."""


class MapExecutor(Protocol):
    """Runs a function on each item, somewhere, and gives the results in order; those of concurrent.futures do."""

    def map(self, function: Callable[..., Any], items: Iterable[Any], /) -> Iterator[Any]: ...


def fit_committee(
    factory: Callable[[int], nn.Module],
    data: tuple[Array, Array],
    members: int,
    seed: int,
    *,
    folder: str | Path,
    trainer: TrainMember | None = None,
    executor: MapExecutor | None = None,
) -> list[str]:
    """Train the members of a committee; the same arguments give the same weights, wherever they are trained.

    Args:
        factory: makes an untrained network from a seed. For processes, it, the trainer and the data must be picklable.
        data: labelled rows, x (n, ...) and y (n,). Each member sees n of them, drawn by (seed, member).
        members: how many, two at least.
        seed: of the rows, the weights and the training.
        folder: where the weights are written, as member-0.safetensors and so on.
        trainer: trains a network in place, given (network, x, y, seed); left out: `raystream.loop.demos.mnist.train`, 30 epochs.
        executor: left out: one after another, in this process. Threads gain nothing, processes and Ray do.

    Returns:
        the paths of the weights, in order, for a query's `model.weights`.

    Raises:
        QueryError: there are fewer than two members, or x and y don't fit together.
    """
    x, y = data
    if members < 2:
        raise QueryError(f"members is {members}, expected two at least: one model disagrees with nobody")
    if len(x) != len(y) or not len(x):
        raise QueryError(f"data holds {len(x)} rows in x and {len(y)} in y, expected as many, and at least one")
    trainings = [_Training(factory, x, y, member, seed, trainer or _train) for member in range(members)]
    states = map(_fit, trainings) if executor is None else executor.map(_fit, trainings)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder / f"member-{member}.safetensors", state) for member, state in enumerate(states)]


def bootstrap_rows(rows: int, member: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the rows that a member is trained on: as many as there are, drawn with replacement."""
    return np.random.default_rng([seed, member, 0]).integers(0, rows, rows)


@dataclass(frozen=True)
class _Training:
    factory: Callable[[int], nn.Module]
    x: Array
    y: Array
    member: int
    seed: int
    trainer: TrainMember


def _fit(training: _Training) -> bytes:
    """Return a member's weights, as the content of a safetensors file: what travels between processes."""
    rows = bootstrap_rows(len(training.x), training.member, training.seed)
    own_seed = int(np.random.default_rng([training.seed, training.member, 1]).integers(0, 2**31))
    with _alone, torch.random.fork_rng(devices=[]):
        torch.manual_seed(own_seed)
        network = training.factory(own_seed)
        training.trainer(network, training.x[rows], training.y[rows], own_seed)
    # clones: the format refuses tensors that share memory
    return safetensors.torch.save({name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()})


def _train(network: nn.Module, x: Array, y: Array, seed: int) -> None:
    train(network, x, y, seed=seed, epochs=_EPOCHS)


def _write(path: Path, content: bytes) -> str:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return str(path)


def make_trainer(trainer: str, args: Mapping[str, Any], model: query.Model | None = None, names: tuple[str, ...] = ()) -> Trainer:
    """Return the trainer that `loop.trainer` names.

    Args:
        trainer: `torch`, `sklearn`, or the import path of a function.
        args: `loop.train`.
        model: the query's section, as far as it is given; `torch` needs its source.
        names: the model's own names of its inputs; empty where they come by position.

    Raises:
        QueryError: there is none, or its arguments are wrong.
    """
    if trainer in TRAINERS:
        made: Trainer = TRAINERS[trainer].make(args, model, names)
        return made
    if ":" not in trainer:
        near = did_you_mean(trainer, TRAINERS)
        raise QueryError(f"loop.trainer is {trainer!r}, expected {', '.join(TRAINERS)}, or the import path of a function{near}")
    return UsersTrainer.of(trainer, args, model, names)


def fit(trainer: Trainer, rows: TrainingRows, previous: Fitted | None, seed: int, members: int = 1) -> Fitted:
    """Train one model, or a committee by bootstrap: each member on as many rows, drawn anew with replacement.

    Args:
        trainer: trains each.
        rows: the labelled rows.
        previous: to go on from; of a committee each member goes on from its own.
        seed: of the draws and of the training.
        members: how many.

    Raises:
        ModelError: see `Trainer.fit`.
    """
    if members == 1:
        return trainer.fit(rows, previous, seed)
    before = previous.members if isinstance(previous, CommitteeFitted) and len(previous.members) == members else [None] * members
    fitted = [trainer.fit(rows.at(member_rows(rows, member, seed)), before[member], seed_of(seed, member, 1)) for member in range(members)]
    return CommitteeFitted(fitted)


def member_rows(rows: TrainingRows, member: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a member's rows, and one of each class that the draw missed: members must agree on which classes there are."""
    drawn = bootstrap_rows(len(rows), member, seed)
    if rows.task != "classes":
        return drawn
    missed = np.setdiff1d(rows.labels, rows.labels[drawn])
    pick = np.random.default_rng([seed, member, 2])
    return np.concatenate([drawn, *(pick.choice(np.flatnonzero(rows.labels == number), 1) for number in missed)])


class CommitteeFitted:
    """Several trained models, whose mean counts."""

    def __init__(self, members: list[Fitted]) -> None:
        self.members = members
        self.native = [member.native for member in members]

    @property
    def classes(self) -> tuple[ClassLabel, ...] | None:
        """See `Fitted.classes`."""
        return self.members[0].classes

    def predict(self, inputs: tuple[Array, ...], *, embedding: bool = False) -> Predicted:
        """Return the mean of the members; the embedding is the first one's, as workers have it."""
        found = [member.predict(inputs, embedding=embedding and place == 0) for place, member in enumerate(self.members)]
        if len({each.values.shape for each in found}) > 1:
            raise ModelError("the members of the committee give different numbers of classes; make the trainer give each all of them")
        return Predicted(np.mean([each.values for each in found], axis=0), found[0].embedding)

    def samples(self, inputs: tuple[Array, ...]) -> Array:
        """Return float64 (n, members, classes), what each member says."""
        return np.stack([member.predict(inputs).values for member in self.members], axis=1)

    def save(self, folder: Path) -> dict[str, Any]:
        """See `Fitted.save`: `weights` as a list, or `members`, as the kind has it."""
        sections = []
        for place, member in enumerate(self.members):
            own = folder / f"member-{place}"
            own.mkdir()
            section = member.save(own)
            moved = {key: f"{own.name}/{section[key]}" for key in ("source", "weights") if key in section and (own / section[key]).exists()}
            sections.append(section | moved)
        if all(set(section) == {"weights"} for section in sections):
            return {"weights": [section["weights"] for section in sections]}
        return {"members": sections}


def load_fitted(trainer: Trainer, section: query.Model, classes: tuple[ClassLabel, ...] | None) -> Fitted:
    """Return what `fit` made, given the section that `save` led to, with paths of this machine."""
    if section.members is not None:
        shared = {key: getattr(section, key) for key in ("task", "embedding", "device", "batch_size", "precision")}
        return CommitteeFitted([trainer.load(member.derived(**shared), classes) for member in section.members])
    if isinstance(section.weights, list):
        return CommitteeFitted([trainer.load(section.derived(weights=path), classes) for path in section.weights])
    return trainer.load(section, classes)
