"""Stored embeddings as arrays: mapped from the store when looked at, let go of afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa


@dataclass
class MappedEmbeddings:
    """A run of embeddings (n, d) in a file of the store.

    The file is open only between a look at `array` and `release`: a pool has more units than a process may have
    open files, and mapped pages count as this process's memory.
    """

    path: Path
    offset: int
    rows: int
    dimension: int
    dtype: str
    _array: np.ndarray | None = field(default=None, repr=False)

    @property
    def array(self) -> np.ndarray:
        """The embeddings, (rows, dimension) of `dtype`; writing to them changes nothing on disk."""
        if self._array is None:
            self._array = np.memmap(self.path, self.dtype, mode="c", offset=self.offset, shape=(self.rows, self.dimension))
        return self._array

    def __getstate__(self) -> dict[str, object]:
        """Where the embeddings are, not the embeddings: another process maps the file for itself."""
        return self.__dict__ | {"_array": None}

    def release(self) -> None:
        """Unmap the file, once nobody else holds `array`."""
        self._array = None


def map_embeddings(path: Path) -> list[MappedEmbeddings]:
    """The embeddings in an Arrow file that a worker wrote, a part for each of its record batches, in row order."""
    parts: list[MappedEmbeddings] = []
    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
        with pa.ipc.open_file(whole) as reader:
            for index in range(reader.num_record_batches):
                column = reader.get_batch(index).column(0)
                values = column.values
                offset = values.buffers()[1].address - whole.address
                dtype = np.dtype(values.type.to_pandas_dtype()).name
                parts.append(MappedEmbeddings(path, offset, len(column), column.type.list_size, dtype))
    return parts
