from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.errors import DataError, QueryError
from raystream.selection import hashing, random, random_order, row_hash, top_k
from raystream.selection.strategies import ranking


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(0, 45))
def test_top_k_is_a_stable_sort(values, k):
    """Highest score first, ties to the lower row, exactly min(k, n) rows."""
    score = np.array(values, dtype=np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    np.testing.assert_array_equal(top_k(score, k), expected)
    np.testing.assert_array_equal(top_k(np.array(values, dtype=np.int64), k), expected)


def test_top_k_takes_infinities_and_refuses_nan():
    """Infinite scores rank; NaN is an error that names the row."""
    np.testing.assert_array_equal(top_k(np.array([0.0, np.inf, -np.inf]), 3), [1, 0, 2])
    with pytest.raises(DataError, match="row 1"):
        top_k(np.array([0.0, np.nan]), 1)


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(0, 35))
def test_random_order_is_lowest_key_first(values, k):
    """Keys ascending, ties to the lower row, unsigned to the last bit."""
    keys = np.array(values, dtype=np.uint64) + np.uint64(2**64 - 6)
    np.testing.assert_array_equal(random_order(keys, k), sorted(range(len(values)), key=lambda i: (values[i], i))[:k])


def test_hash_depends_on_seed_and_id_alone():
    """The same id in any integer type hashes alike; another seed or id doesn't."""
    ids = np.arange(1000)
    hashes = row_hash(7, ids)
    np.testing.assert_array_equal(hashes, row_hash(7, ids.astype(np.int32)))
    np.testing.assert_array_equal(hashes, row_hash(7, ids.astype(np.uint64)))
    np.testing.assert_array_equal(hashes[::-1], row_hash(7, ids[::-1]))
    assert len(np.unique(hashes)) == 1000
    assert not (hashes == row_hash(8, ids)).any()
    np.testing.assert_array_equal(row_hash(7, np.array([-1], dtype=np.int8)), row_hash(7, np.array([-1])))


def test_hashes_stay_what_they_are():
    """Selections are reproducible across releases only if these numbers never change."""
    assert [int(h) for h in row_hash(0, np.array([0, 1]))] == [12035550249420947055, 627405149472732430]
    assert [int(h) for h in row_hash(0, ["a", "b"])] == [4180199910021036473, 12533802481785156753]


def test_string_hashes():
    """Strings and their bytes hash alike; other types are refused."""
    np.testing.assert_array_equal(row_hash(3, ["é", "x"]), row_hash(3, ["é".encode(), b"x"]))
    assert row_hash(3, ["x"])[0] != row_hash(4, ["x"])[0]
    with pytest.raises(QueryError, match="float"):
        row_hash(0, [1.5])


@pytest.mark.parametrize("lengths", [[60], [8], [3], [128], range(1, 129), [0, 5], [4, 129]], ids=str)
@pytest.mark.parametrize("seed", [0, -1])
def test_bytes_that_lie_together_hash_as_one_by_one(lengths: Sequence[int], seed: int) -> None:
    """Past every size within: short ones are hashed many at a time, long or empty ones and a few by `hashlib`; BLAKE2b all of them."""
    draw = np.random.default_rng(len(lengths))
    ids = [draw.bytes(int(length)) for length in draw.choice(lengths, hashing._TOGETHER + 2 * hashing._FEW)]
    offsets = np.cumsum([0, *map(len, ids)])
    found = hashing.bytes_hash(seed, np.frombuffer(b"".join(ids), np.uint8), offsets)
    key = (seed % 2**64).to_bytes(8, "little")
    assert found.tolist() == [int.from_bytes(hashlib.blake2b(id_, digest_size=8, key=key).digest(), "little") for id_ in ids]
    part = slice(7, 7 + hashing._FEW)
    np.testing.assert_array_equal(
        hashing.bytes_hash(seed, np.frombuffer(b"".join(ids), np.uint8), offsets[part.start : part.stop + 1]), found[part]
    )


def test_random_is_uniform_and_nested():
    """Each row is drawn equally often, and a larger batch begins with the smaller one."""
    ids = np.arange(20)
    counts = np.bincount(np.concatenate([random(ids, 5, seed=seed) for seed in range(2000)]), minlength=20)
    assert (np.abs(counts - 500) < 6 * np.sqrt(500 * 0.75)).all()
    np.testing.assert_array_equal(random(ids, 3, seed=1), random(ids, 10, seed=1)[:3])


@given(st.lists(st.integers(0, 6), max_size=80), st.integers(0, 90), st.integers(4, 40))
def test_the_lowest_are_the_same_block_by_block(key: list[int], k: int, at_once: int) -> None:
    """As a stable sort of all keys at once, however many are looked at together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_AT_ONCE", at_once)
        found = ranking.lowest(np.array(key, dtype=np.int64), k)
        of_scores = ranking.best(-np.array(key, dtype=np.float32), k)
    assert found.tolist() == of_scores.tolist() == sorted(range(len(key)), key=lambda row: (key[row], row))[:k]
