"""Vectors of few rows: read and checked by pages, not a byte more than it takes, and never a vector that nobody wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

import raystream as rs
from raystream.errors import StoreError
from raystream.scoring import outputs
from raystream.scoring.outputs import embedding_type
from raystream.store import vectors
from raystream.store.bucket import ObjectStore
from raystream.store.local import LocalStore
from raystream.store.opening import store_at
from raystream.store.protocol import Store, StoredFile
from raystream.store.vectors import VectorFiles, map_embeddings

MakeQuery = Callable[..., rs.Query]
NAME = "units/a/embeddings-0123456789ab.arrow"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store, where no file is too small for pages."""
    monkeypatch.setattr(vectors, "_WHOLE_BYTES", 0)
    if request.param == "folder":
        return store_at(str(tmp_path / "runs"))
    bucket = MemoryStore()
    monkeypatch.setattr("raystream.store.bucket.bucket_of", lambda uri, storage: bucket)
    monkeypatch.setattr(vectors, "_REMOTE_GAP", 2000)
    return store_at("s3://bucket/runs")


def write(store: Store, x: np.ndarray) -> StoredFile:
    """(n, d) as a worker writes them."""
    file = outputs._VectorFile(store, NAME, "embedding", x.shape[1], str(x.dtype))
    for start in range(0, len(x), 777):
        file.add(torch.from_numpy(x[start : start + 777]))
    file.close()
    return store.stored(NAME)


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all ranges that are read."""
    lengths: list[int] = []
    for kind in (LocalStore, ObjectStore):
        inner = kind.range

        def counted(self: Any, file: StoredFile, start: int, length: int, inner: Callable[..., bytes] = inner) -> bytes:
            lengths.append(length)
            return inner(self, file, start, length)

        monkeypatch.setattr(kind, "range", counted)
    return lengths


@settings(deadline=None, max_examples=40)
@given(data=st.data(), n=st.integers(1, 600), d=st.integers(1, 70), dtype=st.sampled_from(["float16", "float32"]))
def test_any_rows_of_any_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, n: int, d: int, dtype: str) -> None:
    """As indexing the array that was written: from one block or many, with pages of one row or many, the last ones cut short.

    As in a bucket, too, where what is read at once may reach from one block into the next.
    """
    store = store_at(str(tmp_path_factory.mktemp("runs")))
    x = np.random.default_rng(n).standard_normal((n, d)).astype(dtype)
    wanted = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1) | st.sampled_from([0, n - 1]), min_size=1, max_size=9))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "_WHOLE_BYTES", 0)
        patch.setattr(vectors, "PAGE_BYTES", data.draw(st.sampled_from([1, 64, 500])))
        patch.setattr("raystream.store.vectors.EMBEDDING_BLOCK_BYTES", data.draw(st.sampled_from([1, 5000, 8 << 20])))
        file = write(store, x)
        patch.setattr(LocalStore, "remote", data.draw(st.booleans()))
        patch.setattr(vectors, "_REMOTE_GAP", data.draw(st.sampled_from([0, 300, 2000])))
        found = VectorFiles(store).few(file, n, wanted)
        np.testing.assert_array_equal(np.concatenate([part.array for part in map_embeddings(store.local(file))]), x)
    if found is not None:  # not most of the file
        assert found.array.dtype == x.dtype
        np.testing.assert_array_equal(found.array, x[wanted])


def test_few_rows_cost_few_bytes(store: Store, read_bytes: list[int]) -> None:
    """60 of 40,000: a page for each and the end of the file; most of them: the whole file; what lies between in a bucket comes along."""
    x = np.random.default_rng(0).standard_normal((40_000, 100)).astype(np.float16)
    file = write(store, x)
    wanted = np.sort(np.random.default_rng(1).choice(len(x), 60, replace=False))
    found = VectorFiles(store).few(file, len(x), wanted)
    assert found is not None
    np.testing.assert_array_equal(found.array, x[wanted])
    assert (found.shape, found.rows, found.dimension) == ((60, 100), 60, 100)
    assert sum(read_bytes) < 60 * 4096 + (1 << 16) + (2000 * 60 if store.remote else 0) < file.size // 10
    assert len(read_bytes) <= 61
    assert VectorFiles(store).few(file, len(x), np.arange(0, len(x), 10)) is None
    # neighbours are read together
    read_bytes.clear()
    found = VectorFiles(store).few(file, len(x), np.arange(20_000, 20_200))
    assert found is not None
    np.testing.assert_array_equal(found.array, x[20_000:20_200])
    assert len(read_bytes) <= 2 + 1
    assert VectorFiles(store).few(file, len(x), np.empty(0, np.int64)) is None


def test_a_large_file_says_more_at_its_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashes of all pages take more than is read at first."""
    monkeypatch.setattr(vectors, "_TAIL_BYTES", 2000)
    x = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float16)
    file = write(store, x)
    found = VectorFiles(store).few(file, len(x), np.array([5, 19_999]))
    assert found is not None
    np.testing.assert_array_equal(found.array, x[[5, 19_999]])


@pytest.mark.parametrize("where", ["wanted", "another page", "footer", "hashes", "cut short"])
def test_damage_is_found_where_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A changed byte in a page that is wanted, or in what says where pages are, is an error; elsewhere it is no concern of these rows."""
    monkeypatch.setattr(vectors, "_WHOLE_BYTES", 0)
    store = LocalStore(str(tmp_path / "runs"))
    x = np.random.default_rng(0).standard_normal((20_000, 50)).astype(np.float16)
    file = write(store, x)
    path = store.path(file.name)
    data = bytearray(path.read_bytes())
    at = {"wanted": data.index(x[7_000].tobytes()) + 3, "another page": data.index(x[14_000].tobytes()), "footer": len(data) - 40,
          "hashes": data.index(b"raystream.pages") + 200, "cut short": 0}[where]  # fmt: skip
    if where == "hashes":
        start = data.index(x[0].tobytes())
        encoded = vectors.as_metadata(vectors.page_hashes(x))[vectors.KEY]
        at = data.index(encoded[:40]) + (7_000 * 100 // 4000) * 32 // 3
        assert at > start
    data[at] ^= 1
    path.write_bytes(data if where != "cut short" else data[:-5000])
    few = VectorFiles(store).few
    if where == "another page":
        found = few(file, len(x), np.array([7_000]))
        assert found is not None
        np.testing.assert_array_equal(found.array, x[[7_000]])
        return
    with pytest.raises(StoreError, match="is damaged: its content is not what was written"):
        few(file, len(x), np.array([7_000]))


def test_files_without_pages_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an earlier version wrote them."""
    monkeypatch.setattr(vectors, "_WHOLE_BYTES", 0)
    store = LocalStore(str(tmp_path / "runs"))
    kind = embedding_type(4, "float16")
    schema = pa.schema([pa.field("embedding", kind, nullable=False)])
    values = pa.array(np.arange(40_000, dtype=np.float16) % 1000)
    with store.writing(NAME) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([pa.FixedSizeListArray.from_arrays(values, type=kind)], schema=schema))
    assert VectorFiles(store).few(store.stored(NAME), 10_000, np.array([3])) is None


QUERIES: dict[str, dict[str, Any]] = {
    "k_means": {},
    "core_set": {"pool__labelled": "labels.csv", "select__strategy": "core_set", "select__candidates": 40},
    "badge": {"select__strategy": "badge", "select__candidates": 40},
    "cluster_margin": {"select__strategy": "cluster_margin", "select__candidates": 40},
    "batch_bald": {"select": {"strategy": "batch_bald", "budget": 4, "candidates": 20}, "acquire": {"score": "bald", "mc_samples": 3}},
    "similar": {"select": {"strategy": "combine", "budget": 5, "candidates": 30, "similar_to": ["r000007"], "terms": {"similarity": 1.0}}},
}


@pytest.mark.parametrize("changes", QUERIES.values(), ids=QUERIES)
def test_queries_choose_the_same(make_query: MakeQuery, store: Store, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """From pages or from whole files: embeddings, probabilities and samples of candidates and labelled rows; no file is read whole."""
    Path("labels.csv").write_text("rid\nr000003\nr000700\n")
    monkeypatch.setattr(vectors, "PAGE_BYTES", 64)
    monkeypatch.setattr(vectors, "_REMOTE_GAP", 0)
    whole: list[str] = []
    for kind in (LocalStore, ObjectStore):
        inner = kind.local
        monkeypatch.setattr(kind, "local", lambda self, file, inner=inner: whole.append(file.name) or inner(self, file))
    uri = {"store__uri": store.uri}
    by_pages = rs.run(make_query(**changes, **uri))
    assert not whole
    monkeypatch.setattr(VectorFiles, "few", lambda *args: None)
    by_files = rs.run(make_query(**changes, **uri, store__query="again"))
    assert whole
    assert by_files.selection.equals(by_pages.selection)
    assert by_files.manifest.certificate == by_pages.manifest.certificate
