"""Trains a committee by bootstrap (Breiman, Bagging Predictors, 1996): each member on rows drawn anew, with replacement."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from raystream.errors import QueryError
from raystream.loop.demos.train import train

Array = npt.NDArray[Any]
Trainer = Callable[[nn.Module, Array, Array, int], object]
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
    trainer: Trainer | None = None,
    executor: MapExecutor | None = None,
) -> list[str]:
    """Train the members of a committee; the same arguments give the same weights, wherever they are trained.

    Args:
        factory: makes an untrained network from a seed. For processes, it, the trainer and the data must be picklable.
        data: labelled rows, x (n, ...) and y (n,). Each member sees n of them, drawn by (seed, member).
        members: how many, two at least.
        seed: of the rows, the weights and the training.
        folder: where the weights are written, as member-0.safetensors and so on.
        trainer: trains a network in place, given (network, x, y, seed); left out: `raystream.loop.demos.train.train`, 30 epochs.
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
    trainer: Trainer


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
