"""Small pools and loops over them, for tests of rounds; and a store that ends the process, so to say, at a chosen write."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pools import vectors

from raystream import ActiveLearningLoop, Loop
from raystream.store.local import LocalStore

ROWS, CLASSES = 120, 3
CENTRES = np.array([[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]], np.float32)


def blobs(rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds in four dimensions: (rows, 4) float32, and (rows,) their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    return (CENTRES[labels] + rng.standard_normal((rows, 4))).astype(np.float32), labels


def write_pool(folder: Path, rows: int = ROWS, **more: Any) -> dict[str, int]:
    """Write a pool of two files, and rows to test by; the classes of the pool's rows by their ids."""
    x, y = blobs(rows)
    ids = [f"b{i:04d}" for i in range(rows)]
    (folder / "pool").mkdir()
    table = pa.table({"rid": ids, "x": vectors(x), "y": y, **more})
    half = rows // 2
    pq.write_table(table.slice(0, half), folder / "pool" / "a.parquet", row_group_size=40)
    pq.write_table(table.slice(half), folder / "pool" / "b.parquet", row_group_size=40)
    tx, ty = blobs(90, 1)
    pq.write_table(pa.table({"rid": [f"t{i:04d}" for i in range(90)], "x": vectors(tx), "y": ty}), folder / "test.parquet")
    return dict(zip(ids, y.tolist(), strict=True))


def make_loop(folder: Path, **changes: Any) -> Loop:
    """A loop over that pool with scikit-learn, three rounds of six; `section__key=value` replaces a key, None removes it."""
    spec: dict[str, Any] = {
        "pool": {"uri": str(folder / "pool"), "id": "rid", "inputs": ["x"], "label": "y"},
        "model": {},
        "select": {"budget": 6},
        "cluster": {"address": "in_process"},
        "store": {"uri": str(folder / "runs")},
        "loop": {
            "name": "small",
            "oracle": str(folder / "labels"),
            "trainer": "sklearn",
            "train": {"estimator": "sklearn.linear_model:LogisticRegression"},
            "evaluate": str(folder / "test.parquet"),
            "rounds": 3,
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        target = spec.setdefault(section, {}) if name else spec
        if value is None:
            target.pop(name or section)
        else:
            target[name or section] = value
    return Loop(**spec)


def simulated(folder: Path, **changes: Any) -> Loop:
    """The same loop, whose labels stand in the pool."""
    return make_loop(folder, loop__oracle={"column": "y"}, pool__label=None, **changes)


def answer(folder: Path, name: str, rows: Sequence[tuple[Any, ...]], columns: Sequence[str] = ("rid", "y")) -> None:
    """Write what people said as a CSV file."""
    (folder / "labels").mkdir(exist_ok=True)
    with (folder / "labels" / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def asked(state_or_batch: Any) -> list[Any]:
    """The ids of a batch, in order."""
    table = pq.read_table(state_or_batch.batch) if hasattr(state_or_batch, "batch") else state_or_batch
    return list(table.column("rid").to_pylist())


def history(loop: Loop) -> list[dict[str, Any]]:
    """A loop's history without seconds."""
    rows = ActiveLearningLoop(loop).history.to_pylist()
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


class Killed(BaseException):
    """The process ends here; no `except Exception` may stop that."""


class DyingStore(LocalStore):
    """A store at whose n-th write the process ends: before it, or when it is done and nobody has heard of it."""

    def __init__(self, uri: str, at: int, *, after: bool) -> None:
        super().__init__(uri)
        self.left, self.after = at, after

    def put_if_absent(self, name: str, data: bytes, *, wait: bool = True) -> bool:
        self._die(name, before=True)
        done = super().put_if_absent(name, data, wait=wait)
        self._die(name, before=False)
        return done

    def put(self, name: str, data: bytes) -> None:
        self._die(name, before=True)
        super().put(name, data)
        self._die(name, before=False)

    def _die(self, name: str, *, before: bool) -> None:
        if "/lease/" in name or before == self.after:
            return
        self.left -= 1
        if self.left == 0:
            raise Killed(name)
