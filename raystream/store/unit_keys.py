"""The keys of units as a table: 32 bytes each, hexadecimal when one is handed out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
        if not all(map(is_key, found)):
            raise ValueError("a key that isn't 64 hexadecimal digits")
        return cls(np.frombuffer(bytes.fromhex("".join(found)), np.uint8).reshape(-1, KEY_BYTES))

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
