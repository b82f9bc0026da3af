"""The seam between algorithms and whoever holds the rows: stretches of them, pieces, and what all pieces say together."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, distances_to, pools

from raystream.errors import DataError, QueryError
from raystream.selection import ArrayPart, LocalPieces, LocalShards, Rows


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 30), st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=5), st.floats(0, 1), st.floats(0, 1))
def test_a_stretch_keeps_the_numbers_of_its_rows(seed, shapes, low, high):
    """A slice yields and gathers the same vectors under the same numbers, a slice of a slice too, and holds only its own parts."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((size, 3)).astype(np.float32) for size, _ in shapes]
    positions = [np.flatnonzero(rng.integers(0, 2, size)) if some else None for size, some in shapes]
    whole = Rows([ArrayPart(array) for array in arrays], positions)
    start, stop = sorted(round(edge * len(whole)) for edge in (low, high))
    part = whole.slice(start, stop)
    assert (part.start, part.stop, len(part), part.width) == (start, stop, stop - start, whole.width)
    expected = whole.gather(np.arange(start, stop))
    for rows in (part, whole.slice(start // 2, len(whole)).slice(start, stop), pickle.loads(pickle.dumps(part))):
        np.testing.assert_array_equal(rows.gather(np.arange(start, stop)), expected)
        blocks = list(rows.blocks(start, stop, 4))
        assert [block.start for block in blocks] == [start, *(block.stop for block in blocks)][: len(blocks)]
        read = [block.read() for block in blocks]
        np.testing.assert_array_equal(np.concatenate(read) if read else np.empty((0, whole.width)), expected)
    held = [part.array for part in part.parts]
    assert all(any(np.shares_memory(array, own) for own in arrays) for array in held)
    assert len(held) <= stop - start


@settings(max_examples=80, deadline=None)
@given(pools(), st.sampled_from([1, 2, 7, 64]), st.integers(0, 10**6))
def test_covering_is_that_of_float64(pool, shards, seed):
    """Counts, radius and the lowest farthest row equal brute force, whatever the sharding; labelled centres count for none."""
    x, k = pool
    rng = np.random.default_rng(seed)
    centres = x[rng.integers(0, len(x), k)]
    chosen = int(rng.integers(0, k + 1))
    found = LocalShards.of_array(x, shards=shards).cover(centres, chosen)
    squared = np.array([distances_to(x, c) for c in centres])
    np.testing.assert_array_equal(found.counts, np.bincount(squared.argmin(axis=0), minlength=k)[:chosen])
    assert found.radius == np.sqrt(squared.min(axis=0).max())
    assert found.farthest == squared.min(axis=0).argmax()


def test_covering_without_rows_or_centres():
    """No candidates have radius 0 and no farthest row; without any centre there is nothing to be nearest to; NaN is named with its row."""
    found = LocalShards.of_array(np.empty((0, 2), dtype=np.float32)).cover(np.ones((3, 2), dtype=np.float32), 2)
    assert (found.counts.tolist(), found.radius, found.farthest) == ([0, 0], 0.0, -1)
    x = data("normal", 10, 2, 0)
    with pytest.raises(QueryError, match="nearest"):
        LocalShards.of_array(x).cover(x[:0], 0)
    x[7] = np.nan
    with pytest.raises(DataError, match="rows 7"):
        LocalShards.of_array(x, shards=3).cover(np.ones((1, 2), dtype=np.float32), 1)


def test_pieces_of_ones_own():
    """An algorithm's own objects are made for each stretch, and asked in row order, with arguments for all and for each."""

    class Sums:
        def __init__(self, rows, power):
            self._rows, self._power = rows, power

        def total(self, factor, more):
            rows = self._rows.gather(np.arange(self._rows.start, self._rows.stop))
            return float((rows**self._power).sum()) * factor + more

    shards = LocalShards.of_array(np.arange(6, dtype=np.float32)[:, None], shards=3)
    pieces = shards.pieces(Sums, 2)
    assert pieces.call("total", 10, apart=[(1,), (2,), (3,)]) == [11.0, 132.0, 413.0]
    assert pieces.call("total", 1, 0) == [1.0, 13.0, 41.0]

    def both(rows, other, sign):
        return Sums(rows, sign * int(other.gather(np.arange(other.start, other.stop)).sum()))

    other = LocalShards.of_array(np.ones((6, 1), dtype=np.float16)).rows
    assert shards.pieces(both, 1, beside=[other]).call("total", 1, 0) == [1.0, 13.0, 41.0]
    # whole blocks of four: rows 0-3 and 4-5
    assert sorted(shards.pieces(Sums, 1, block=4).call("total", 1, 0)) == [0.0, 6.0, 9.0]
    with pytest.raises(ValueError, match="argument"):
        LocalPieces(list, [(), ()]).call("clear", apart=[()])
