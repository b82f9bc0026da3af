"""Numbers for the rows of a pool that depend on the seed and the rows' ids alone: what chance goes by."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raystream.pool.ids import BLOCK_ROWS, id_blocks, id_bytes, numbered
from raystream.query import Query
from raystream.scoring.output_kinds import EPIG
from raystream.scoring.scored_pool import ScoredPool, StoredIds
from raystream.selection import row_hash
from raystream.selection.hashing import bytes_hash


class RowHashes:
    """The hashes of all rows, as their ids come by.

    Args:
        seed: the query's.
        rows: how many there will be.

    Attributes:
        found: (n,) uint64.
    """

    def __init__(self, seed: int, rows: int) -> None:
        self._seed, self.found = seed, np.empty(rows, np.uint64)

    def add(self, row: int, ids: pa.Array) -> None:
        """Take the ids of the rows from this one on; those of nulls are of no use."""
        for start, block in id_blocks(ids):
            if not block.null_count:
                self.found[row + start : row + start + len(block)] = block_hashes(self._seed, block)


def goes_by_all_hashes(query: Query) -> bool:
    """Tell whether those of all rows are certain to be looked at."""
    select, acquire = query.select, query.acquire
    return bool(
        select.random_share or (select.traits.chance and select.candidate_limit is None) or (EPIG in acquire.asked and not acquire.targets)
    )


def hashes_of(pool: ScoredPool, seed: int, rows: np.ndarray | None) -> np.ndarray:
    """Return (m,) uint64 hashes of the rows' ids, in any order; of all rows for None. The seed is the query's."""
    if pool.hashes is not None:
        return pool.hashes if rows is None else np.asarray(pool.hashes[rows])
    if rows is None or (2 * len(rows) > len(pool) and isinstance(pool.ids, StoredIds)):  # each id is read once
        every = RowHashes(seed, len(pool))
        for row, chunk in numbered(pool.ids):
            every.add(row, chunk)
        return every.found if rows is None else np.asarray(every.found[rows])
    found = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), BLOCK_ROWS):
        found[start : start + BLOCK_ROWS] = block_hashes(seed, pool.ids_at(rows[start : start + BLOCK_ROWS]))
    return found


def block_hashes(seed: int, ids: pa.Array) -> np.ndarray:
    """Return (n,) uint64 hashes of some ids, integers or text or bytes; none may be null."""
    return row_hash(seed, ids.to_numpy()) if pa.types.is_integer(ids.type) else bytes_hash(seed, *id_bytes(ids))
