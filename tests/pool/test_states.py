"""States of labelled rows: which ids are labelled, which are only never chosen, which count as absent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import LabelsError
from raystream.pool import File, Labelled, LabelledMarks, labelled_units, list_files, plan_pool, read_labelled, read_unit
from raystream.pool.labelled_ids import STATES, labelled_rows
from raystream.query import Pool

Write = Callable[..., Path]
Rows = list[tuple[int, str | None]]


def put(path: Path, ids: list[Any], states: list[str | None]) -> None:
    """Labels in the format that the file's name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"k": ids, "state": pa.array(states, pa.string())}), path)
    elif path.suffix == ".csv":
        path.write_text("k,state\n" + "".join(f"{id_},{state or ''}\n" for id_, state in zip(ids, states, strict=True)))
    else:
        path.write_text("".join(json.dumps({"k": i} | ({"state": s} if s else {})) + "\n" for i, s in zip(ids, states, strict=True)))


@settings(deadline=None, max_examples=50)
@given(
    files=st.lists(
        st.tuples(
            st.sampled_from(["parquet", "csv", "jsonl"]),
            st.lists(st.tuples(st.integers(0, 9), st.sampled_from([None, *STATES])), min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=3,
    ),
    text=st.booleans(),
)
def test_what_the_states_say(tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, Rows]], text: bool) -> None:
    """Labelled anywhere is labelled; else skipped or rejected anywhere is excluded; drafts and deleted rows are as if absent."""
    folder = tmp_path_factory.mktemp("labels")
    for number, (suffix, rows) in enumerate(files):
        put(folder / f"{number}.{suffix}", [f"i{i}" if text else i for i, _ in rows], [s for _, s in rows])
    every = [row for _, rows in files for row in rows]
    labelled = {i for i, state in every if state in (None, "labelled")}
    excluded = {i for i, state in every if state in ("skipped", "rejected")} - labelled
    found = read_labelled([str(folder)], "k", pa.string() if text else pa.int64())

    def spelt(ids: set[int]) -> list[Any]:
        return sorted(f"i{i}" if text else i for i in ids)

    assert found.ids.to_pylist() == spelt(labelled)
    assert found.excluded.to_pylist() == spelt(excluded)
    asked = pa.array(spelt(set(range(10))))
    assert found.find(asked).tolist() == [i in labelled for i in range(10)]
    assert LabelledMarks.of(found, asked).excluded.tolist() == [i in excluded for i in range(10)]
    assert found.every.ids.to_pylist() == spelt(labelled | excluded)


def test_states_of_many_rows(tmp_path: Path) -> None:
    """Past what is read at a time, in a type of its own; integers that can't be the pool's are counted in every state."""
    n = 300_000
    states = np.array(["labelled", "skipped", "draft"])[np.arange(n) % 3]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"k": np.arange(n) * 10_000, "state": pa.array(states).dictionary_encode()}), path)
    found = read_labelled([str(path)], "k", pa.int32())
    fits = np.arange(n)[np.arange(n) * 10_000 < 2**31]
    np.testing.assert_array_equal(found.ids.to_numpy(), fits[fits % 3 == 0] * 10_000)
    np.testing.assert_array_equal(found.excluded.to_numpy(), fits[fits % 3 == 1] * 10_000)
    assert found.outside == int((np.arange(len(fits), n) % 3 < 2).sum())
    (file,) = list_files([str(path)])
    np.testing.assert_array_equal(labelled_rows(file), np.arange(0, n, 3))


def test_the_digest_tells_states_apart(tmp_path: Path) -> None:
    """Another state is another query; the order, the format and a draft more are not. Without states it is what it was before."""

    def digest(name: str, ids: list[int], states: list[str | None]) -> str:
        put(tmp_path / name, ids, states)
        return read_labelled([str(tmp_path / name)], "k", pa.int64()).digest

    one = digest("a.parquet", [1, 2], ["labelled", "skipped"])
    assert digest("b.csv", [2, 1, 3], ["rejected", None, "draft"]) == one
    assert digest("c.csv", [1, 2], ["skipped", "labelled"]) != one
    assert digest("d.csv", [1, 2], [None, None]) not in (one, digest("e.csv", [1], [None]))
    pq.write_table(pa.table({"k": [1]}), tmp_path / "f.parquet")
    plain = read_labelled([str(tmp_path / "f.parquet")], "k", pa.int64())
    assert plain.digest == digest("g.csv", [1], [None])
    assert plain.digest == hashlib.sha256(b"int64 1" + (1).to_bytes(8, "little")).hexdigest()


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_states_that_are_none(tmp_path: Path, suffix: str) -> None:
    """A word that is no state, or numbers: an error that names the row and the words that are."""
    put(tmp_path / f"a.{suffix}", [1, 2, 3], ["labelled", "Skipped", None])
    says = rf"column state of .*a\.{suffix} is 'Skipped' in row 1; expected labelled, skipped, rejected, draft or deleted, or nothing"
    with pytest.raises(LabelsError, match=says):
        read_labelled([str(tmp_path / f"a.{suffix}")], "k", pa.int64())
    pq.write_table(pa.table({"k": [1], "state": [1]}), tmp_path / "b.parquet")
    with pytest.raises(LabelsError, match=r"column state of .*b\.parquet is int64; expected text"):
        read_labelled([str(tmp_path / "b.parquet")], "k", pa.int64())


def test_states_of_folders(write: Write, tmp_path: Path) -> None:
    """A hive folder gives all of its rows one state."""
    for state, ids in (("labelled", [1, 2]), ("skipped", [3]), ("draft", [4])):
        write(f"labels/state={state}/a.parquet", {"k": ids})
    found = read_labelled([str(tmp_path / "labels")], "k", pa.int64())
    assert (found.ids.to_pylist(), found.excluded.to_pylist()) == ([1, 2], [3])
    rows = {file.path.split("=")[1].split("/")[0]: labelled_rows(file) for file in list_files([str(tmp_path / "labels")])}
    assert rows["labelled"] is None
    assert [rows[state].tolist() for state in ("skipped", "draft")] == [[], []]  # type: ignore[union-attr]
    (file,) = list_files([str(write("b.parquet", {"k": [1]}))])
    assert labelled_rows(file) is None


def test_only_labelled_rows_are_scored_from_their_own_files(write: Write, vectors: Callable[..., pa.Array], tmp_path: Path) -> None:
    """Rows that were skipped, rejected, drafts or deleted aren't, nor do they hide the row of the same id that is labelled."""
    plan = plan_pool(Pool(uri=str(write("pool.parquet", {"k": [0], "v": vectors(1)})), id="k", inputs=["v"]))
    states = ["draft", "labelled", "skipped", "rejected", "deleted", None]
    write("labels/a.parquet", {"k": [1, 1, 2, 3, 4, 5], "state": states, "v": vectors(6)})
    found: Labelled = read_labelled([str(tmp_path / "labels")], "k", plan.id_type)
    units, rest = labelled_units(found, plan.read)
    rows = [rows for unit in units for rows in read_unit(unit, plan.read, 10)]
    assert [id_ for block in rows for id_ in block.ids.to_pylist()] == [1, 5]
    assert [row for block in rows for row in block.rows.tolist()] == [1, 5]
    assert not len(rest)
    assert all(isinstance(file, File) for file in found.files)
