from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from oracle import data, greedy

from raystream.errors import DataError
from raystream.selection import Candidates, LocalShards, assign, choose
from raystream.threads import each, one_thread


@pytest.fixture
def threads():
    """Sets torch's threads, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_order_from_single_threaded_torch(threads, count):
    """Every item is worked on once, by one of as many threads as torch has, each with one of torch's own."""
    threads(count)
    seen = []

    def work(item):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return item * item

    assert each(range(100), lambda: work) == [i * i for i in range(100)]
    assert len({ident for ident, _ in seen}) <= count
    assert {inside for _, inside in seen} == {1}
    assert torch.get_num_threads() == count
    assert each([], lambda: work) == []


def test_threads_run_at_the_same_time(threads):
    """Two items that wait for each other are both finished."""
    threads(2)
    both = threading.Barrier(2, timeout=30)
    assert sorted(each(range(2), lambda: lambda item: both.wait())) == [0, 1]


def test_each_thread_has_its_own_start(threads):
    """What `start` makes is never used by two threads."""
    threads(3)
    owners = []

    def start():
        owner = threading.get_ident()
        owners.append(owner)

        def work(item):
            assert threading.get_ident() == owner

        return work

    each(range(50), start)
    assert len(owners) <= 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_first_failure_is_raised_and_ends_the_work(threads, count):
    """The error is that of the first item that failed, whichever thread was faster; few items follow it."""
    threads(count)
    taken = []

    def items():
        for i in range(10000):
            taken.append(i)
            yield i

    def work(item):
        if item >= 7:
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 7"):
        each(items(), lambda: work)
    assert len(taken) < 10000
    assert torch.get_num_threads() == count


def test_one_thread_is_put_back(threads):
    """The setting comes back after an error, too."""
    threads(3)
    with one_thread():
        assert torch.get_num_threads() == 1
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("kind", ["normal", "equal", "one_hot", "unit"])
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_any_number_of_threads_chooses_the_same(threads, kind, count, memory):
    """Order, counts, radius and the farthest row are those of float64, ties to the lower row, streamed or not."""
    threads(count)
    x = data(kind, 9000, 6, 0)
    shards = LocalShards.of_array(x, block=128, memory=memory)
    found = choose(Candidates(shards=shards), strategy="core_set", budget=8)
    np.testing.assert_array_equal(found.rows, greedy(x, 8)[0])
    squared = np.array([np.square(x.astype(np.float64) - c.astype(np.float64)).sum(axis=1) for c in x[found.rows]])
    np.testing.assert_array_equal(found.represents, np.bincount(squared.argmin(axis=0), minlength=8))
    assigned = assign(shards.rows, x[found.rows])
    assert assigned.radius == np.sqrt(squared.min(axis=0).max())
    assert assigned.farthest == squared.min(axis=0).argmax()


def test_the_first_bad_rows_are_named(threads):
    """Whichever thread meets NaN first, the error names the lowest rows."""
    threads(4)
    x = data("normal", 50000, 2, 0)
    x[20000:, 1] = np.nan
    with pytest.raises(DataError, match=r"rows 20000, 20001, 20002"):
        assign(LocalShards.of_array(x).rows, x[:3])
