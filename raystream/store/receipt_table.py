"""Receipts and keys of a million units as tables.

Receipts of one output as a table: of a million units, objects would take a thousand bytes each.

What the receipts of a model's units have in common is kept once, and what differs in columns of numbers. A receipt that says more, as of
rows that were left out, is kept as it is beside them.

The keys of units as a table: 32 bytes each, hexadecimal when one is handed out.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raystream.store.protocol import StoredFile
from raystream.store.receipts import Receipt, unit_folder

KEY_BYTES = 32
_BLOCK = 1 << 16


_KEY = re.compile("[0-9a-f]{64}")


def is_key(text: str) -> bool:
    """Tell whether this is a unit's key."""
    return _KEY.fullmatch(text) is not None


class Keys(Sequence[str]):
    """The keys of units, in their order.

    Args:
        digests: (n, 32) uint8.
    """

    def __init__(self, digests: npt.NDArray[np.uint8]) -> None:
        self.digests = digests

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """Hold these keys.

        Raises:
            ValueError: one of them is none.
        """
        if isinstance(keys, Keys):
            return keys
        found = list(keys)
        text = "".join(found)
        digests = _unhexed(text)
        if not set(map(len, found)) <= {2 * KEY_BYTES} or digests.hex() != text:
            raise ValueError("a key that isn't 64 hexadecimal digits")
        return cls(np.frombuffer(digests, np.uint8).reshape(-1, KEY_BYTES))

    @classmethod
    def of_column(cls, column: pa.ChunkedArray) -> Keys:
        """Hold those in a column of strings; see `of`."""
        starts = range(0, len(column), _BLOCK)
        parts = [cls.of(column.slice(start, _BLOCK).to_pylist()).digests for start in starts]
        return cls(np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *parts]))

    def __len__(self) -> int:
        return len(self.digests)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            digits = 2 * KEY_BYTES
            text = self.digests[place].tobytes().hex()
            return [text[start : start + digits] for start in range(0, len(text), digits)]
        key: str = self.digests[place].tobytes().hex()
        return key

    def take(self, places: npt.NDArray[np.int64]) -> Keys:
        """Return the keys at these places, in the order asked for."""
        return Keys(self.digests[places])

    @property
    def first_bytes(self) -> npt.NDArray[np.uint8]:
        """(n,) by which their folders lie in folders."""
        return np.asarray(self.digests[:, 0])

    @property
    def numbers(self) -> npt.NDArray[np.uint64]:
        """(n,) the first eight bytes of each, which hardly ever are another's."""
        return np.ascontiguousarray(self.digests[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


_FIELDS = {
    "rows": "<i8",
    "quarantined": "<i8",
    "size": "<i8",
    "bytes_read": "<i8",
    "seconds": "<f8",
    "repeated_reads": "<i4",
    "model": "<i4",
    "attempt": "V6",
    "xxh3": "V16",
    "positions": "V8",
}
"""What differs between units, and how it is kept: `attempt` are the digits in the file's name, `model` is a place in a list."""
_COLUMNS = np.dtype(list(_FIELDS.items()))
_KINDS = {name: np.dtype(kind) for name, kind in _FIELDS.items()}
_MODELS = b"raystream.models"
"""In the metadata of a pack: a JSON list of what its receipts say of the model."""

Mask = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OfModel:
    """What the receipts of a model's units have in common; `suffix` is that of their files, None of units without one."""

    suffix: str | None
    columns: tuple[str, ...]
    width: int | None
    members: int | None
    classes: int | None
    batch_size: int
    state_hash: str
    class_labels: tuple[str | int | float | bool, ...] | None
    notes: tuple[str, ...]

    @classmethod
    def parsed(cls, said: Sequence[Any]) -> OfModel:
        """Read a JSON list of the fields."""
        suffix, columns, width, members, classes, batch_size, state_hash, labels, notes = said
        return cls(
            suffix, tuple(columns), width, members, classes, batch_size, state_hash, None if labels is None else tuple(labels), tuple(notes)
        )


class ReceiptTable:
    """The receipts of one output of units, as far as there are any.

    Args:
        output: the kind, and the digest of its parameters.
        keys: of all units.
        names: theirs; left out, they are kept as the receipts give them.

    Attributes:
        there: (n,) whether there is a receipt.
        loose: (n,) whether it came from elsewhere than a pack.
    """

    def __init__(self, output: str, keys: Keys, names: Sequence[str] | None = None) -> None:
        self.output, self.keys = output, keys
        self._names: Sequence[str] = [""] * len(keys) if names is None else names
        self.there = np.zeros(len(keys), bool)
        self.loose = np.zeros(len(keys), bool)
        self._table = np.zeros(len(keys), _COLUMNS)
        self._models: list[OfModel] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._guard = threading.Lock()
        # invariant: receipts that the columns don't say all of
        self._whole: dict[int, Receipt] = {}

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def kind(self) -> str:
        """Of the output, whatever its parameters."""
        return self.output.rpartition("-")[0]

    def add(self, place: int, receipt: Receipt) -> bool:
        """Take the receipt of the unit at this place; whether there was none."""
        self._put(place, receipt)
        new = not self.there[place]
        self.there[place] = self.loose[place] = True
        return new

    def remove(self, place: int) -> None:
        """Forget the receipt of the unit at this place."""
        self.there[place] = self.loose[place] = False
        self._whole.pop(place, None)

    def at(self, place: int) -> Receipt | None:
        """Return the receipt of the unit at this place, if there is one."""
        if not self.there[place]:
            return None
        if place in self._whole:
            return self._whole[place]
        rows, quarantined, size, bytes_read, seconds, repeated, number, attempt, xxh3, positions = self._table[place].item()
        model = self._models[number]
        key = self.keys[place]
        file = None
        if model.suffix is not None:
            file = StoredFile(f"{unit_folder(key)}/{self.output}-{attempt.hex()}{model.suffix}", size, xxh3.hex())
        return Receipt(
            key, self.output, self._names[place], rows, positions.hex(), file, model.columns, model.width, model.members, model.classes,
            model.batch_size, model.state_hash, quarantined, (), bytes_read, seconds, repeated, None, model.class_labels, model.notes,
        )  # fmt: skip

    def files(self, places: Integers) -> list[tuple[int, str, int]]:
        """List the files that the receipts at these places name: the place, the file's name and its size in bytes."""
        some = self._table[places[self.there[places]]]
        inside = places[self.there[places]].tolist()
        keys = self.keys.take(np.asarray(inside, np.int64))[:]
        attempts = np.ascontiguousarray(some["attempt"]).tobytes().hex()
        suffixes = [model.suffix for model in self._models]
        found = [
            (place, f"{unit_folder(key)}/{self.output}-{attempts[12 * i : 12 * i + 12]}{suffix}", size)
            for i, (place, key, number, size) in enumerate(zip(inside, keys, some["model"].tolist(), some["size"].tolist(), strict=True))
            if (suffix := suffixes[number]) is not None
        ]
        if not self._whole:
            return found
        whole = [(place, file.name, file.size) for place in inside if place in self._whole for file in self._whole[place].files]
        return [file for file in found if file[0] not in self._whole] + whole

    @property
    def rows(self) -> Integers:
        """(n,) rows of each unit, 0 where there is no receipt."""
        return np.where(self.there, self._table["rows"], 0)

    @property
    def quarantined(self) -> Integers:
        """(n,) how many rows were left out of each unit, 0 where there is no receipt."""
        return np.where(self.there, self._table["quarantined"], 0)

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """(n,) what the pass over each unit took, 0 where there is no receipt."""
        return np.where(self.there, self._table["seconds"], 0.0)

    @property
    def positions(self) -> npt.NDArray[np.uint64]:
        """(n,) equal where units' files hold the same rows."""
        return np.ascontiguousarray(self._table["positions"]).view(np.uint64)

    def first_of_models(self, places: Integers) -> list[int]:
        """Find the first index into `places` of everything that is said of the model."""
        inside = np.flatnonzero(self.there[places])
        return [int(inside[at]) for at in np.unique(self._table["model"][places[inside]], return_index=True)[1]]

    def say(self, what: str, places: Integers) -> Mask:
        """Tell (m,) whether the receipts at these places say this of the model."""
        known = np.array([getattr(model, what) is not None for model in self._models] or [False])
        return np.asarray(self.there[places] & known[self._table["model"][places]])

    def spread(self, places: Integers, keys: Keys, names: Sequence[str] | None) -> ReceiptTable:
        """Return the same receipts, of units that stand at these places among others."""
        found = ReceiptTable(self.output, keys, names)
        found.there[places], found.loose[places], found._table[places] = self.there, self.loose, self._table
        found._models, found._numbers = list(self._models), dict(self._numbers)
        found._whole = {int(places[place]): receipt for place, receipt in self._whole.items()}
        if isinstance(found._names, list):
            for place, name in zip(places.tolist(), self._names, strict=True):
                found._names[place] = name
        return found

    def packed(self, start: int, stop: int) -> bytes:
        """Write the receipts of a run of units as an Arrow file."""
        some, there = self._table[start:stop], self.there[start:stop]
        numbers = np.unique(some["model"][there])
        of = np.searchsorted(numbers, some["model"])
        columns: dict[str, pa.Array] = {
            "there": pa.array(there),
            "unit": pa.array(self._names[start:stop], pa.string()),
        }
        for name, kind in _KINDS.items():
            values = of.astype(np.int32) if name == "model" else np.ascontiguousarray(some[name])
            if kind.kind == "V":
                columns[name] = pa.Array.from_buffers(pa.binary(kind.itemsize), len(some), [None, pa.py_buffer(values)])
            else:
                columns[name] = pa.array(values)
        more = [self._whole[place].to_json() if place in self._whole else None for place in range(start, stop)]
        columns["receipt"] = pa.array(more, pa.binary())
        models = [_fields(self._models[number]) for number in numbers.tolist()]
        table = pa.table(columns).replace_schema_metadata({_MODELS: json.dumps(models)})
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)) as writer:
            writer.write_table(table)
        data: bytes = out.getvalue().to_pybytes()
        return data

    def unpack(self, start: int, stop: int, data: bytes) -> bool:
        """Take the receipts of a run of units from such a file; whether it is one.

        Of a file that isn't whole, nothing is taken.
        """
        try:
            # by this thread alone: see `queries.read_parquet`
            with pa.ipc.open_file(pa.BufferReader(data), options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
                batch = reader.get_batch(0)
                models = [OfModel.parsed(said) for said in json.loads(reader.schema.metadata[_MODELS])]
            batch.validate(full=True)  # bytes may have changed since
            there = batch.column("there").to_numpy(zero_copy_only=False)
            some = np.zeros(len(there), _COLUMNS)
            for name, kind in _KINDS.items():
                column = batch.column(name)
                if kind.kind == "V":
                    some[name] = np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind.itemsize)
                else:
                    some[name] = column.to_numpy()
            whole = {start + i: Receipt.from_json(text) for i, text in enumerate(batch.column("receipt").to_pylist()) if text is not None}
            names = batch.column("unit").to_pylist() if isinstance(self._names, list) else []
            right = len(there) == stop - start and ((some["model"] >= 0) & (some["model"] < len(models)))[there].all()
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError):
            return False
        if not right:
            return False
        some["model"][there] = np.array([self._number(_fields(model)) for model in models], np.int32)[some["model"][there]]
        self._table[start:stop], self.there[start:stop] = some, there
        self._whole |= whole
        if isinstance(self._names, list):
            self._names[start:stop] = names
        return True

    def _number(self, said: tuple[Any, ...]) -> int:
        """Return the place in the list of what a receipt says of its model, whose fields these are."""
        number = self._numbers.get(said)
        if number is None:
            with self._guard:  # receipts are read by several threads
                if said not in self._numbers:
                    self._models.append(OfModel(*said))
                    self._numbers[said] = len(self._models) - 1
                number = self._numbers[said]
        return number

    def _put(self, place: int, receipt: Receipt) -> None:
        """Write a receipt into the columns, and beside them unless they say all of it."""
        attempt, suffix, xxh3, size = _NO_ATTEMPT, None, _NO_XXH3, 0
        plain = not receipt.quarantined and receipt.quarantine is None and not receipt.quarantine_reasons
        file = receipt.file
        if file is not None:
            beginning = f"{unit_folder(receipt.key)}/{self.output}-"
            digits = len(beginning) + len(_NO_ATTEMPT)
            attempt, suffix, xxh3, size = file.name[len(beginning) : digits], file.name[digits:], file.xxh3, file.size
            plain = plain and file.name.startswith(beginning)
        text = attempt + xxh3 + receipt.positions
        hashes = _unhexed(text)  # at once: there is a receipt a unit
        plain = plain and len(attempt) == 12 and len(xxh3) == 32 and len(text) == 60 and hashes.hex() == text
        if not plain:
            positions = _unhexed(receipt.positions)
            hashes = bytes(22) + (positions if len(positions) == 8 else xxhash.xxh3_64_digest(receipt.positions.encode()))
        said = (
            suffix, receipt.columns, receipt.width, receipt.members, receipt.classes, receipt.batch_size, receipt.state_hash,
            receipt.class_labels, receipt.notes,
        )  # fmt: skip
        self._table[place] = (
            receipt.rows, receipt.quarantined, size, receipt.bytes_read, receipt.seconds, receipt.repeated_reads, self._number(said),
            hashes[:6], hashes[6:22], hashes[22:],
        )  # fmt: skip
        if not plain:
            self._whole[place] = receipt
        else:
            self._whole.pop(place, None)
        if isinstance(self._names, list):
            self._names[place] = receipt.unit


def _fields(model: OfModel) -> tuple[Any, ...]:
    return tuple(getattr(model, field.name) for field in fields(OfModel))


_NO_ATTEMPT, _NO_XXH3 = "0" * 12, "0" * 32


def _unhexed(text: str) -> bytes:
    """Return the bytes that hexadecimal digits say; none where the text is something else."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
