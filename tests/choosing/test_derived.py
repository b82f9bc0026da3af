"""What selection keeps in the store: whole or not at all, and no reason to fail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import vectors

import raystream as rs
from raystream.choosing.holding import FEWEST, StoredResults
from raystream.run import verify
from raystream.store.gc import collect
from raystream.store.opening import open_store

ARRAYS = {"radius": np.asarray(0.5), "start": np.arange(5), "index": np.zeros((0, 3), np.int32), "centres": np.eye(3, dtype=np.float32)}


@pytest.fixture
def results(tmp_path: Path) -> StoredResults:
    return StoredResults(open_store(str(tmp_path / "runs")), "abc")


def test_what_is_kept_comes_back(results: StoredResults) -> None:
    """The same arrays, mapped, under the same embeddings, name and parameters only."""
    assert results.get("graph", {"k": 3, "radius": 0.5}) is None
    results.put("graph", {"k": 3, "radius": 0.5}, ARRAYS)
    found = results.get("graph", {"radius": 0.5, "k": 3})
    assert found is not None
    assert found.keys() == ARRAYS.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert (array.dtype, array.flags.writeable) == (ARRAYS[name].dtype, False)
    assert results.get("graph", {"k": 4, "radius": 0.5}) is None
    assert results.get("clusters", {"k": 3, "radius": 0.5}) is None
    assert StoredResults(results.store, "abd").get("graph", {"k": 3, "radius": 0.5}) is None


def test_the_first_result_stays(results: StoredResults, tmp_path: Path) -> None:
    """A second writer leaves nothing behind."""
    results.put("graph", {}, ARRAYS)
    before = sorted(tmp_path.rglob("*"))
    results.put("graph", {}, ARRAYS)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("harm", ["a bit", "cut", "gone", "receipt", "other receipt"])
def test_damage_is_computed_again(results: StoredResults, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    """Never a wrong array, never an error; people are told."""
    results.put("graph", {}, ARRAYS)
    [file] = tmp_path.rglob("centres-*.npy")
    [receipt] = tmp_path.rglob("receipt.json")
    content = file.read_bytes()
    if harm == "a bit":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "cut":
        file.write_bytes(content[:40])
    elif harm == "gone":
        file.unlink()
    else:
        receipt.write_text("{" if harm == "receipt" else "[1]")
    with caplog.at_level(logging.WARNING):
        assert results.get("graph", {}) is None
    assert "computed again" in caplog.text
    results.put("graph", {}, ARRAYS)
    assert results.get("graph", {}) is not None


def test_no_room_is_no_failure(results: StoredResults, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that can't be written: a warning, no half result."""
    (tmp_path / "runs" / "derived").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        results.put("graph", {}, ARRAYS)
    assert "graph is not kept for the next query" in caplog.text
    assert results.get("graph", {}) is None


def test_gc_removes_what_is_old(results: StoredResults) -> None:
    """Young results stay; of old ones nothing is left, and the next query has them again."""
    results.put("graph", {}, ARRAYS)
    assert collect(results.store, older_than=3600, delete=True).derived.count == 0
    assert results.get("graph", {}) is not None
    swept = collect(results.store, older_than=-5)
    assert (swept.derived.count, swept.bytes) == (1, swept.derived.bytes)
    assert results.get("graph", {}) is not None
    collect(results.store, older_than=-5, delete=True)
    assert results.get("graph", {}) is None
    assert not list(results.store.walk("derived"))


@pytest.mark.parametrize(("strategy", "files"), [("typiclust", 3), ("cluster_margin", 3), ("prob_cover", 10)])
def test_the_next_query_over_the_same_embeddings_computes_nothing_again(
    make_query: Callable[..., rs.Query], workplace: Path, strategy: str, files: int
) -> None:
    """The same batch as by a store that holds nothing; other candidates have results of their own; `verify` computes all anew."""
    n = FEWEST + 10
    rng = np.random.default_rng(0)
    rows = {"rid": np.arange(n), "x": vectors(rng.standard_normal((n, 8))), "part": np.arange(n) % 4}
    pq.write_table(pa.table(rows), workplace / "large.parquet")
    asked: dict[str, Any] = {"pool__uri": "large.parquet", "model__batch_size": 4096, "select__strategy": strategy}

    def found(**changes: Any) -> list[str]:
        rs.run(make_query(**asked, **changes))
        return sorted(str(path) for path in workplace.glob("runs/derived/*/*/*"))

    first = found()
    assert len(first) == files
    other: dict[str, Any] = {"select__quotas": [{"by": "part", "max": 3}]}
    assert found(**other) == first
    alone = rs.run(make_query(**asked, **other, store__uri="other"))
    again = rs.run(make_query(**asked, **other))
    assert again.selection.equals(alone.selection)
    for path in workplace.glob("runs/derived/*/*/nearest-*.npy"):
        np.save(path, np.zeros(3))
    verify(again.store, again.query)
    assert found() == first  # whoever had read it would have thrown it away; the result itself is committed and not chosen again
    assert len(found(select__exclude=[7])) == 2 * files
