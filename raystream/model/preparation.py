"""`model.preprocess` as a function of the user's: from a record batch of the pool's columns to the model's tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raystream.errors import ModelError, did_you_mean
from raystream.model.batches import is_device_failure
from raystream.model.source import check_imported, find

Array = npt.NDArray[np.generic]


def load_preparation(source: str, columns: Sequence[str], names: Sequence[str] = ()) -> Preparation:
    """Import the function that `model.preprocess` names.

    Args:
        source: `module:function`.
        columns: of `pool.inputs`, in order.
        names: the model's own names of its inputs, if the query gives them.

    Raises:
        ModelError: it can't be imported, or can't be called.
    """
    function = find(source, "model.preprocess")
    check_imported(source, "model.preprocess")
    if not callable(function):
        raise ModelError(f"model.preprocess {source} is {type(function).__name__}, expected a function of a pyarrow.RecordBatch")
    return Preparation(function, source, columns, names)


class Preparation:
    """Calls the function on some rows, and checks what it returns.

    The function gets a RecordBatch of the input columns, each once, and returns

    * one tensor or array (rows, ...), the model's only input; or a list of str, for a model of texts;
    * or a mapping of these with exactly the names in `pool.inputs`: the model's own, or where it is a list the columns'.

    Floating values become float32, integers and booleans stay what they are. It is called in the thread that reads, on at most
    `model.batch_size` rows; what becomes of a row may not depend on which others it comes with. A row on which it raises, even alone,
    or that becomes NaN, is a bad row.
    """

    def __init__(self, function: Callable[[pa.RecordBatch], object], source: str, columns: Sequence[str], names: Sequence[str]) -> None:
        self._function = function
        self._who = f"model.preprocess {source}"
        self._named = bool(names)
        self._names = tuple(names or dict.fromkeys(columns))
        self._expected: tuple[tuple[tuple[int, ...], np.dtype], ...] | None = None
        self._lock = threading.Lock()

    def __call__(self, batch: pa.RecordBatch) -> tuple[tuple[Array, ...], dict[int, str]]:
        """Return the model's inputs, (n, ...) each, and why rows that it can't take are bad; what stands in their place means nothing.

        Raises:
            ModelError: what the function returned can't be the model's inputs.
        """
        try:
            return self._checked(self._function(batch), batch.num_rows), {}
        except Exception as error:
            if isinstance(error, ModelError | MemoryError) or is_device_failure(error):
                raise
            return self._without_bad_rows(batch, error)

    def _without_bad_rows(self, batch: pa.RecordBatch, error: Exception) -> tuple[tuple[Array, ...], dict[int, str]]:
        """Find the rows that make the function raise, and run it on the others."""
        flaws: dict[int, str] = {}
        for row in range(batch.num_rows):
            try:
                self._function(batch.slice(row, 1))
            except Exception as found:
                flaws[row] = f"makes {self._who} raise {_told(found)}"
        if not flaws:
            raise ModelError(
                f"{self._who} raised {_told(error)} on {batch.num_rows} rows, but on none of them alone; correct it"
            ) from error
        good = np.array([row for row in range(batch.num_rows) if row not in flaws], dtype=np.int64)
        if not len(good):
            return tuple(np.empty((batch.num_rows, *shape), dtype) for shape, dtype in self._expected or ()), flaws
        rest = batch.take(pa.array(good))
        try:
            made = self._checked(self._function(rest), len(good))
        except Exception as again:
            if isinstance(again, ModelError):
                raise
            raise ModelError(f"{self._who} raised {_told(again)} on rows that it took one by one; correct it") from again
        return tuple(_spread(values, good, batch.num_rows) for values in made), flaws

    def _checked(self, returned: object, rows: int) -> tuple[Array, ...]:
        values = tuple(self._array(value, name) for name, value in self._parts(returned))
        for value, (name, _) in zip(values, self._parts(returned), strict=True):
            if value.ndim < 1 or value.shape[0] != rows:
                raise ModelError(f"{self._who} returned{name} values of shape {value.shape} for {rows} rows, expected ({rows}, ...)")
        found = tuple((value.shape[1:], value.dtype) for value in values)
        with self._lock:
            if self._expected is None and rows:
                self._expected = found
        if rows and found != self._expected:
            told, before = (", ".join(f"{dtype} {('rows', *shape)}" for shape, dtype in of) for of in (found, self._expected or ()))
            raise ModelError(
                f"{self._who} returned {told} after {before} for other rows; expected one shape and type for all rows of the pool"
            )
        return values

    def _parts(self, returned: object) -> list[tuple[str, object]]:
        """Return the values in the model's order, and what to call each."""
        if not isinstance(returned, Mapping):
            if self._named and len(self._names) > 1:
                raise ModelError(f"{self._who} returned {type(returned).__name__}, expected a mapping with {', '.join(self._names)}")
            return [("", returned)]
        unknown = next((name for name in returned if name not in self._names), None)
        if unknown is not None:
            raise ModelError(
                f"{self._who} returned {unknown!r}, which is no name in pool.inputs ({', '.join(self._names)})"
                f"{did_you_mean(str(unknown), self._names)}; name it there, such as {{{unknown}: {self._names[0]}}}"
            )
        missing = next((name for name in self._names if name not in returned), None)
        if missing is not None:
            raise ModelError(f"{self._who} returned {', '.join(map(str, returned))}, but nothing for {missing}, which pool.inputs names")
        return [(f" {name}", returned[name]) for name in self._names]

    def _array(self, value: object, name: str) -> Array:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            texts = np.empty(len(value), dtype=object)
            texts[:] = value
            return texts
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiubO":
            got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ModelError(f"{self._who} returned{name} {got}, expected a tensor or an array of numbers, or a list of str")
        if value.dtype == object and not all(isinstance(text, str) for text in value.flat):
            raise ModelError(f"{self._who} returned{name} an array of Python objects, expected numbers or str")
        if value.dtype.kind == "f" and value.dtype != np.float32:
            with np.errstate(over="ignore"):
                value = value.astype(np.float32)
        return cast(Array, value)


def _spread(values: Array, rows: npt.NDArray[np.int64], count: int) -> Array:
    """Return the values at these rows of a larger block."""
    block: Array = np.full(count, "", dtype=object) if values.dtype == object else np.zeros((count, *values.shape[1:]), values.dtype)
    block[rows] = values
    return block


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
