from __future__ import annotations

import numpy as np
import pytest
from oracle import data

from raystream.errors import DataError
from raystream.selection import ArrayPart, Candidates, LocalShards, choose, lcmd, prob_cover
from raystream.selection.rows import Block, Rows, float32
from raystream.selection.strategy import gathered


def mapped(folder, x, mode):
    """The rows `x` as a memory map of a file in `folder`."""
    path = folder / f"{x.dtype}-{mode}"
    x.tofile(path)
    return np.memmap(path, x.dtype, mode=mode, shape=x.shape)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("mode", ["r", "c"])
@pytest.mark.parametrize("strategy", ["core_set", "k_means"])
def test_memory_maps_are_chosen_from_without_warnings(tmp_path, dtype, mode, strategy):
    """Read-only and copy-on-write maps give the same batch as arrays, labelled rows too; warnings are errors here."""
    x = data("normal", 300, 8, 0).astype(dtype)
    x.flags.writeable = False
    half = LocalShards([ArrayPart(mapped(tmp_path, x[:200], mode)), ArrayPart(x[200:])], [np.arange(0, 200, 2), None])
    labelled = x[:3].astype(np.float32)
    labelled.flags.writeable = False
    found = choose(Candidates(shards=half, labelled=labelled), strategy=strategy, budget=20)
    kept = np.concatenate([x[:200:2], x[200:]])
    expected = choose(Candidates(shards=LocalShards.of_array(kept), labelled=labelled.copy()), strategy=strategy, budget=20)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.represents, expected.represents)


@pytest.mark.parametrize("dtype", ["float16", ">f2", "float32", ">f4", "float64"])
def test_float32_of_any_float_is_numpys(dtype):
    """Every layout and byte order gives NumPy's values, special ones included, as an array that torch takes."""
    x = np.array([[0.1, -0.0, 65504, 6e-8], [np.inf, -np.inf, np.nan, 1 / 3]]).astype(dtype)
    for given in (x, x[::-1], x.T, x[:, ::2]):
        result = float32(given)
        assert (result.dtype, result.flags.writeable, result.flags.c_contiguous) == (np.float32, True, True)
        np.testing.assert_array_equal(result, given.astype(np.float32))


def test_float32_rows_are_read_without_a_copy():
    """A block of float32 rows that may be written to is the part itself."""
    x = data("normal", 10, 3, 0)
    assert np.shares_memory(Block(2, 5, x[2:5], None, "euclidean").read(), x)


def test_rows_in_memory_are_not_copied_to_be_gathered():
    """One float32 array is taken as it is and left as it was; whatever has to be made is made."""
    x = np.random.default_rng(0).normal(size=(10_000, 6)).astype(np.float32)
    before = x.copy()
    assert gathered(Rows([ArrayPart(x)]), x.nbytes, "s") is x
    others = {
        "float16": Rows([ArrayPart(x.astype(np.float16))]),
        "some": Rows([ArrayPart(x)], [np.arange(0, 10_000, 2)]),
        "cosine": Rows([ArrayPart(x)], metric="cosine"),
        "parts": Rows([ArrayPart(x[:5000]), ArrayPart(x[5000:])]),
        "columns": Rows([ArrayPart(x[:, ::2])]),
        "a slice": Rows([ArrayPart(x)]).slice(0, 5000),
    }
    for name, rows in others.items():
        made = gathered(rows, x.nbytes, "s")
        assert not np.shares_memory(made, x), name
        np.testing.assert_array_equal(made, np.concatenate([block.read() for block in rows.blocks(0, len(rows), 4096)]))
    prob_cover(x, 20, delta=1.0)
    lcmd(x, 20)
    np.testing.assert_array_equal(x, before)
    x[7_777, 3] = np.nan
    with pytest.raises(DataError, match="7777"):
        gathered(Rows([ArrayPart(x)]), x.nbytes, "s")
