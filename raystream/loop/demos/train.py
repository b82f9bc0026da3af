"""A small trainer, enough for the demo: the same seed and images give the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

THREADS = 1
"""Sums depend on the number of threads, so it is fixed. Batches this small gain a quarter from a second thread, and
lose thirtyfold to it when another process wants the processor: the threads wait for each other at every layer."""
_LEARNING_RATE = 8e-3
_BATCH = 32


@runtime_checkable
class _Redrawn(Protocol):
    """A layer that draws its weights anew."""

    def reset_parameters(self) -> None: ...


def train(network: nn.Module, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], *, seed: int, epochs: int) -> None:
    """Train a network in place, from newly drawn weights, with Adam and a learning rate that falls to zero.

    Args:
        network: (n, ...) images -> (n, classes) logits; its layers know how to draw their weights anew.
        images: (n, ...).
        labels: (n,) class numbers.
        seed: of the weights, the order of the images and the dropout; the global generator stays as it was.
        epochs: how often each image is seen.
    """
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    with _fixed_threads(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, _Redrawn):
                module.reset_parameters()
        network.train()
        steps = epochs * -(-len(inputs) // _BATCH)
        optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(inputs)), _BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> float:
    """Return the share of images whose top class is their label, in evaluation mode."""
    network.eval()
    with _fixed_threads():
        predictions = network(torch.from_numpy(images)).argmax(dim=1).numpy()
    return float((predictions == labels).mean())


@contextmanager
def _fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
