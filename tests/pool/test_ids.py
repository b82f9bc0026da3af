from __future__ import annotations

import errno
import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import PoolError, StoreError
from raystream.figures import shown
from raystream.pool import UniqueIds, check_unique
from raystream.pool import ids as id_hashes
from raystream.pool import ids as unique_ids
from raystream.pool.ids import BLOCK_ROWS, id_numbers, take_ids

TYPES = [pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.binary(), pa.binary(1), pa.dictionary(pa.int8(), pa.string())]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.sampled_from(TYPES))
def test_repeated_ids_are_counted_and_the_first_are_named(values: list[int], type_: pa.DataType) -> None:
    """For every id type and chunking: silence if all differ, else the number of repeated ids and three, first met first."""
    is_number = pa.types.is_integer(type_)
    spelled = values if is_number else [str(v).encode() if "binary" in str(type_) else str(v) for v in values]
    ids = pa.chunked_array([pa.array(spelled[:3], type_), pa.array(spelled[3:], type_)])
    repeats = [v for i, v in enumerate(spelled) if v in spelled[:i]]
    if not repeats:
        check_unique(ids, "k")
        return
    named = list(dict.fromkeys(repeats))[:3]
    with pytest.raises(PoolError) as caught:
        check_unique(ids, "k")
    rows = [[i for i, v in enumerate(spelled) if v == repeat][1] for repeat in named]
    places = ", ".join(f"row {row}" for row in rows)
    first = ", ".join(map(shown, named))
    assert str(caught.value).startswith(f"{len(set(repeats))} ids of column k are not unique, first: {first}, met again at {places};")


def test_null_ids_are_counted_and_the_first_are_placed() -> None:
    """Over all chunks, by row number or by what the caller calls the rows."""
    ids = pa.chunked_array([[1, None], [None, 3, None, None, 2]])
    with pytest.raises(PoolError, match=r"4 ids of column k are null, first: row 1, row 2, row 4; expected"):
        check_unique(ids, "k")
    with pytest.raises(PoolError, match=r"first: /a row 11, /a row 12, /a row 14; expected"):
        check_unique(ids, "k", lambda row: f"/a row {row + 10}")
    with pytest.raises(PoolError, match=r"1 ids of column k are not unique, first: 7, met again at /a row 12; expected"):
        check_unique(pa.array([7, 1, 7, 7]), "k", lambda row: f"/a row {row + 10}")
    with pytest.raises(PoolError, match=r"1 ids of column k are null, first: row 1; expected"):
        check_unique(pa.array(["a", None]), "k")
    check_unique(pa.array([3, 1, 2]), "k")


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=20), st.binary(min_size=250, max_size=260)), max_size=30),
    st.sampled_from([pa.binary(), pa.large_binary(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.binary())]),
    st.integers(0, 3),
)
def test_equal_ids_have_equal_numbers_wherever_they_stand(values: list[bytes], type_: pa.DataType, skip: int) -> None:
    """As many different numbers as different ids, whatever lies before and behind an id in memory, in slices and any layout."""
    text = type_ in (pa.string(), pa.large_string())
    given_ = [value.hex() if text else value for value in values]
    ids = pa.chunked_array([pa.array(given_, type_).slice(min(skip, len(given_))), pa.array(given_[::-1], type_)])
    numbers = id_numbers(ids)
    assert numbers.dtype == np.uint64 or not len(ids)
    of: dict[object, set[int]] = {}
    for id_, number in zip(ids.to_pylist(), numbers.tolist(), strict=True):
        of.setdefault(id_, set()).add(number)
    assert all(len(found) == 1 for found in of.values())
    assert len(set(numbers.tolist())) == len(of)


@pytest.mark.parametrize("text", [False, True])
def test_a_repeat_many_blocks_later(text: bool) -> None:
    """Among more ids than are looked at together, in several chunks: found, with the row where it is met again."""
    numbers = np.random.default_rng(0).permutation(3 * BLOCK_ROWS) * 3
    numbers[-5], numbers[2 * BLOCK_ROWS + 1] = numbers[7], numbers[6]
    ids = pa.chunked_array([numbers[:1000], numbers[1000:]])
    if text:
        ids = ids.cast(pa.string())
    with pytest.raises(PoolError, match=rf"2 ids of column k are not unique, first: {numbers[6]}, {numbers[7]}, met again at row "
                       rf"{2 * BLOCK_ROWS + 1}, row {3 * BLOCK_ROWS - 5};"):  # fmt: skip
        check_unique(ids, "k")


def test_ids_of_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clash of hashes is settled by the ids: different ones are no repeat, and equal ones among them are."""
    monkeypatch.setattr("raystream.pool.ids._hashes", lambda data, offsets: np.zeros(len(offsets) - 1, np.uint64))
    check_unique(pa.array(["a", "b", "c"]), "k")
    with pytest.raises(PoolError, match="1 ids of column k are not unique, first: b, met again at row 3;"):
        check_unique(pa.chunked_array([["a", "b"], ["c", "b"]]), "k")


@given(st.lists(st.integers(0, 20), max_size=30), st.lists(st.integers(0, 5), max_size=6))
def test_rows_are_taken_in_the_order_asked_for(rows: list[int], lengths: list[int]) -> None:
    """From chunks of any length, empty ones too, repeats included."""
    every = [f"id{i}" for i in range(21)]
    edges = [0, *np.minimum(np.cumsum(lengths), 21).tolist(), 21]
    ids = pa.chunked_array([pa.array(every[low:high], pa.string()) for low, high in pairwise(edges)])
    assert take_ids(ids, np.array(rows, np.int64)).to_pylist() == [every[row] for row in rows]


@pytest.mark.parametrize("kind", ["numbers", "texts", "all the same", "all twice", "a clash"])
@pytest.mark.parametrize("held", [50, 4000])
def test_hashes_on_disk_find_what_those_in_memory_do(monkeypatch: pytest.MonkeyPatch, kind: str, held: int) -> None:
    """Beyond some rows, over many partitions and blocks: the same verdict, with ids looked at again only where hashes are alike."""
    monkeypatch.setattr(unique_ids, "HELD_NUMBERS", held)
    monkeypatch.setattr("raystream.pool.ids.BLOCK_ROWS", 300)
    order = np.random.default_rng(0).permutation(3000)
    if kind == "a clash":
        real = id_hashes._hashes
        monkeypatch.setattr(id_hashes, "_hashes", lambda data, offsets: real(data, offsets) >> np.uint64(54))
    values = {"all the same": order * 0, "all twice": order // 2}.get(kind, order)
    array = pa.array(values if kind == "numbers" else [f"image-{value:060d}" for value in values.tolist()])
    chunks = [array[:700], array[700:700], array[700:]]
    looked: list[int] = []

    class Again:
        type = array.type

        @property
        def chunks(self) -> list[pa.Array]:
            looked.append(1)
            return chunks

        def __len__(self) -> int:
            return len(array)

    def verdict(ids: pa.Array, again: Any) -> str:
        with UniqueIds(len(ids), "k") as unique:
            for start in (1700, 0):  # whichever thread is first
                unique.add(start, ids[start : start + 1700])
            try:
                unique.check(again)
            except PoolError as error:
                return str(error)
        return ""

    found = verdict(array, Again())
    repeated = len(values) - len(set(values.tolist()))
    assert len(looked) == (1 if repeated or kind == "a clash" else 0)
    assert bool(found) == bool(repeated)
    if repeated:
        firsts = [row for row in range(3000) if values[row] in values[:row]]
        shown = list({str(array[row]): row for row in reversed(firsts)})[::-1][:3]
        assert found.startswith(f"{len(set(values.tolist()))} ids of column k are not unique, first: {', '.join(shown)}, met again at row ")
        monkeypatch.setattr(unique_ids, "_MOST_SUSPECTS", 100)
        assert verdict(array, Again()) == found
    if kind != "a clash":
        one_more = pa.concat_arrays([array, array[5:6]])
        told = verdict(one_more, pa.chunked_array([one_more]))
        assert ("met again at row 3000" in told) == (not repeated)
    with_nulls = pa.concat_arrays([pa.nulls(1, array.type), array, pa.nulls(1, array.type)])
    assert verdict(with_nulls, with_nulls).startswith("2 ids of column k are null, first: row 0, row 3001;")


def test_no_room_for_hashes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the folder, and what to set."""

    def full(**options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unique_ids.tempfile, "TemporaryFile", full)
    with pytest.raises(StoreError, match=r"hashes of the ids, 8 bytes a row: No space left on device; free some space or set TMPDIR"):
        UniqueIds(unique_ids.HELD_NUMBERS + 1, "k")


@pytest.mark.parametrize(("text", "rows"), [(False, 320_000), (True, 100_000)])
def test_hashes_that_are_on_disk_take_no_memory(monkeypatch: pytest.MonkeyPatch, text: bool, rows: int) -> None:
    """Over many times as many rows as are held: less than half of what their hashes take, whatever is looked at together, by one thread."""
    monkeypatch.setattr(unique_ids, "HELD_NUMBERS", 20_000)
    cores = pa.cpu_count()
    pa.set_cpu_count(1)
    block = 2_000

    def ids(start: int) -> pa.Array:
        numbers = np.arange(start, start + block) * 7919 % 1_000_003
        return pa.array([f"images/{number:053d}" for number in numbers.tolist()]) if text else pa.array(numbers)

    ids(0)  # pyarrow's first array imports pandas
    tracemalloc.start()
    try:
        with UniqueIds(rows, "k") as unique:
            for start in range(0, rows, block):
                unique.add(start, ids(start))
            unique.check(pa.nulls(0, ids(0).type))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_cpu_count(cores)
    assert peak < 8 * rows / 2 + 300 * block * text  # Python's own strings of a block
