"""Reads a unit in a thread, so that the next rows are decoded while the device computes on these.

The first rows of a pool are what a model is probed with before it scores a unit. They are the same for every worker, and each reads them
itself: pool rows don't travel, and what the probe decides is decided alike for the whole query.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raystream.errors import ModelError, RaystreamError
from raystream.model import Promised, code_hash, is_device_failure, load_preparation
from raystream.pool import BadRow, OutageError, ReadSpec, Unit, UnitRows, UnreachableError, read_unit
from raystream.pool.columns import RAW, TEXT
from raystream.pool.reader import Prepare, Prepared
from raystream.query import Query

CHUNK_BYTES = 2 << 20
CHUNK_ROWS = 16384
"""A chunk is no larger than either, but always a whole inference batch: what was read is still in the cache when it is used."""
_TEXT_BYTES = 1 << 10
"""What a text is taken to need, where chunks are cut; that of a page."""
_IMAGES_BYTES = 32 << 20
BUFFERS = 2
"""Chunks of a unit that are in memory at a time."""
_Buffer = torch.Tensor | np.ndarray


@dataclass
class BufferedRows:
    """Clean rows of a unit, a whole number of inference batches unless they are the last.

    `inputs` are views into a buffer that is filled again once the next chunk is asked for: tensors, and for a column of texts
    an object array of str.
    """

    ids: pa.Array
    rows: np.ndarray
    inputs: tuple[_Buffer, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[BufferedRows]:
        """Read its inference batches."""
        for start in range(0, len(self), size):
            stop = start + size
            yield BufferedRows(self.ids[start:stop], self.rows[start:stop], tuple(values[start:stop] for values in self.inputs))


class BatchReader:
    """Iterates over a unit's chunks; memory is bounded by a row group and two chunks.

    Args:
        unit: what to read.
        spec: which columns, and what they become.
        batch_size: rows of one inference batch. Batches are cut by counting the unit's clean rows, so they are
            the same whoever reads them.
        pin: whether to read into page-locked memory, for a copy to a CUDA device.
        threads: that decode images.
        prepare: makes the tensors, where `spec.prepared` says so.
    """

    def __init__(self, unit: Unit, spec: ReadSpec, batch_size: int, pin: bool, threads: int = 1, prepare: Prepare | None = None) -> None:
        spec = spec.only(unit.columns)
        width = row_bytes(spec)
        batches = max(1, min(CHUNK_ROWS, CHUNK_BYTES // width) // batch_size)
        # what a function of the user's makes of a row, and how large it is, shows once it has run
        self._capacity = batch_size if spec.prepared is not None else batch_size * batches
        self._at_once = rows_at_once(spec, self._capacity)
        self._threads, self._prepare = threads, prepare
        self._unit, self._spec, self._pin = unit, spec, pin
        self._filled: queue.Queue[tuple[BufferedRows, int] | BaseException | None] = queue.Queue()
        self._free: queue.Queue[int | None] = queue.Queue()
        self._buffers: list[tuple[_Buffer, ...]] = [()] * BUFFERS
        for slot in range(BUFFERS):
            self._free.put(slot)
        self._closed = False
        self.bad: list[BadRow] = []
        self._passing: list[np.ndarray] = []
        self.repeated: list[str] = []
        self._thread = threading.Thread(target=self._read, name="raystream-reader", daemon=True)

    def __enter__(self) -> BatchReader:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed = True
        self._free.put(None)
        self._thread.join()

    def __iter__(self) -> Iterator[BufferedRows]:
        while True:
            item = self._filled.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            chunk, slot = item
            yield chunk
            self._free.put(slot)

    def check(self, scored: np.ndarray, left_out: np.ndarray) -> None:
        """Compare what became of the unit's rows with those that passed its filters as they were read, once all chunks have been.

        Args:
            scored: (n,) int64, the positions of the rows that were scored.
            left_out: (m,) int64, those of the quarantined rows.

        Raises:
            RaystreamError: a row is missing, comes twice, or is none that passed.
        """
        passing = np.concatenate(self._passing) if self._passing else np.empty(0, np.int64)
        became = np.sort(np.concatenate([scored, left_out]), kind="stable") if len(left_out) else scored
        if np.array_equal(passing, became):
            return
        same = min(len(passing), len(became))
        differ = np.flatnonzero(passing[:same] != became[:same])
        first = int(differ[0]) if len(differ) else same
        row = min(int(rows[first]) for rows in (passing, became) if first < len(rows))
        raise RaystreamError(
            f"{self._unit.name}: of {len(passing)} rows that pass the filters {len(scored)} were scored and {len(left_out)} left out, "
            f"the first that is missing or too many is row {row}; this is a defect of raystream, so report it"
        )

    def _read(self) -> None:
        try:
            self._fill_buffers()
            self._filled.put(None)
        except BaseException as error:
            self._filled.put(error)

    def _fill_buffers(self) -> None:
        slot: int | None = None
        ids: list[pa.Array] = []
        rows: list[np.ndarray] = []
        filled = 0
        blocks = read_unit(self._unit, self._spec, self._at_once, self._threads, self._prepare, self.repeated.append, self._passing.append)
        for decoded in blocks:
            self.bad += decoded.bad
            taken = 0
            while taken < len(decoded.rows):
                if slot is None:
                    slot = self._free.get()
                    if slot is None:
                        return
                    # Of a block whose beginning has filled the buffer before, only the rest is left to hand over.
                    # A function of the user's may return the same memory each time.
                    if not taken and len(decoded.rows) == self._capacity and not self._pin and self._prepare is None:
                        inputs = tuple(_tensor(values) for values in decoded.inputs)
                        self._filled.put((BufferedRows(decoded.ids, decoded.rows, inputs), slot))
                        slot = None
                        break
                    self._make_buffer(slot, decoded)
                count = min(self._capacity - filled, len(decoded.rows) - taken)
                for buffer, values in zip(self._buffers[slot], decoded.inputs, strict=True):
                    target = buffer.numpy() if isinstance(buffer, torch.Tensor) else buffer
                    target[filled : filled + count] = values[taken : taken + count]
                ids.append(decoded.ids.slice(taken, count))
                rows.append(decoded.rows[taken : taken + count])
                filled += count
                taken += count
                if filled == self._capacity:
                    self._hand_over(slot, ids, rows, filled)
                    slot, ids, rows, filled = None, [], [], 0
            if self._closed:
                return
        if slot is not None and filled:
            self._hand_over(slot, ids, rows, filled)

    def _make_buffer(self, slot: int, decoded: UnitRows) -> None:
        if self._buffers[slot]:
            return
        capacity = min(self._capacity, self._unit.rows)
        self._buffers[slot] = tuple(self._buffer(capacity, values) for values in decoded.inputs)

    def _buffer(self, capacity: int, values: np.ndarray) -> _Buffer:
        """Make room for rows like these."""
        if values.dtype == object:
            return np.empty(capacity, dtype=object)
        return torch.empty((capacity, *values.shape[1:]), dtype=_torch_dtype(values.dtype), pin_memory=self._pin)

    def _hand_over(self, slot: int, ids: list[pa.Array], rows: list[np.ndarray], filled: int) -> None:
        inputs = tuple(buffer[:filled] for buffer in self._buffers[slot])
        self._filled.put((BufferedRows(pa.concat_arrays(ids), np.concatenate(rows), inputs), slot))


def rows_at_once(spec: ReadSpec, most: int) -> int:
    """Choose how many rows to decode at a time: fewer where they are images, into a buffer of more, so that no third batch is in memory."""
    return max(1, min(most, _IMAGES_BYTES // row_bytes(spec))) if spec.decodes_images else most


def row_bytes(spec: ReadSpec) -> int:
    """Count the bytes that one row's tensors take in memory; of texts, a guess."""
    return sum(prod(shape) * _item_bytes(dtype) for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)) or 1


def _item_bytes(dtype: str) -> int:
    return _TEXT_BYTES if dtype in (TEXT, RAW) else np.dtype(dtype).itemsize


def _tensor(values: np.ndarray) -> _Buffer:
    """Make a tensor over what was decoded, without a copy; nobody else looks at this memory, so a model may write into it. Texts stay."""
    if values.dtype == object:
        return values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


PROBE_UNITS = 8
"""From so many units, at most, the rows are taken: they may hold few, or under filters none."""
_FEWEST = 2
"""Rows with which it can be told whether all of them sum to 1 by no chance."""


@dataclass(frozen=True)
class FirstRows:
    """Some rows as the model's inputs, and the units that they are of."""

    inputs: tuple[Any, ...]
    units: tuple[str, ...]


def first_rows(units: Sequence[Unit], spec: ReadSpec, count: int, prepare: Prepare | None, threads: int) -> FirstRows | None:
    """Read the first clean rows of these units.

    A unit that can't be read, or not on without a bad row, is left at that: what is wrong with it is said when it is scored. Where a
    storage doesn't answer, which has been waited for by then, no other unit is tried.

    Args:
        units: the pool's first, in its order.
        spec: which columns, and what they become.
        count: the most rows; fewer of large images.
        prepare: makes the tensors, where `spec.prepared` says so.
        threads: that decode images.

    Returns:
        at least one row; None if there is none.

    Raises:
        OutageError: the storage of one is away.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    names: list[str] = []
    at_once = rows_at_once(spec, count)
    left = min(count, max(at_once, _FEWEST))
    for unit in units:
        try:
            for rows in read_unit(unit, spec, at_once, threads, prepare):
                parts.append(tuple(values[:left].copy() for values in rows.inputs))
                left -= len(parts[-1][0])
                names.append(unit.name)
                if left <= 0:
                    break
        except OutageError:
            raise  # another worker, at another time, would take other rows
        except UnreachableError:
            break
        except (Exception, SystemExit) as error:  # the user's code may run here
            if is_device_failure(error):
                raise
        if left <= 0:
            break
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return None
    whole = (np.concatenate(values) for values in zip(*parts, strict=True))
    inputs = tuple(values if values.dtype == object else torch.from_numpy(values) for values in whole)
    return FirstRows(inputs, tuple(dict.fromkeys(names)))


def probe(model: Promised, first: FirstRows, *, lenient: bool = False) -> None:
    """Run the model on the first rows, and see that it keeps its promise.

    Args:
        model: just loaded.
        first: the rows.
        lenient: see `Promised.probe`.

    Raises:
        ModelError: it doesn't; with the name of the first unit.
    """
    try:
        model.probe(first.inputs, lenient=lenient)
    except ModelError as error:
        raise ModelError(f"{first.units[0]}: {error}") from error


_KEY = "model.preprocess"


def planned(query: Query) -> Prepared | None:
    """Return what units are keyed by, if `model.preprocess` names a function; None if it doesn't.

    Raises:
        ModelError: its module isn't there.
    """
    source = query.model.prepares
    return None if source is None else Prepared(source, code_hash(source, _KEY))


def preparation(spec: ReadSpec) -> Prepare | None:
    """Import the function that the spec names, if it names one.

    Raises:
        ModelError: it can't be imported, or isn't the one that was planned with.
    """
    if spec.prepared is None:
        return None
    found = load_preparation(spec.prepared.source, spec.inputs, spec.names)
    if code_hash(spec.prepared.source, _KEY) != spec.prepared.code:
        raise ModelError(f"{_KEY} {spec.prepared.source} changed while the query was being started; run it again")
    return found
