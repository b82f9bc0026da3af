"""The reader: every row that passes, once, in whole inference batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import RaystreamError
from raystream.pool import Unit, cut_units, plan_pool, units_at
from raystream.pool.files import Deletes
from raystream.query import Pool
from raystream.scoring import batch_reader as feeding
from raystream.scoring.batch_reader import CHUNK_ROWS, BatchReader


def test_a_full_block_after_a_partly_filled_buffer_is_handed_over_once(tmp_path: Path) -> None:
    """A filter leaves 6,344 of the first block's rows; of the full block that follows, no row comes twice."""
    k = np.arange(60_000)
    pq.write_table(pa.table({"x": k.astype(np.float32), "k": k}), tmp_path / "a.parquet", row_group_size=10_240)
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"], filters=[["k", ">=", 10_040]]))
    [unit] = plan.units
    rows, values = [], []
    with BatchReader(unit, plan.read, 64, pin=False) as reader:
        for chunk in reader:
            rows.append(chunk.rows.copy())
            values.append(chunk.inputs[0].numpy().ravel().copy())
    assert max(map(len, rows)) == CHUNK_ROWS
    assert np.array_equal(np.concatenate(rows), k[10_040:])
    assert np.array_equal(np.concatenate(values), k[10_040:].astype(np.float32))


def column(kind: str, rows: int, bad: Sequence[int]) -> pa.Array:
    """Row i holds i, as the kind of input asks; bad rows are null, or NaN where they can be."""
    nan = {row for row in bad if row % 2}
    null = np.isin(np.arange(rows), [row for row in bad if kind == "text" or row not in nan])
    values = np.array([np.nan if row in nan else row for row in range(rows)], np.float32)
    if kind == "text":
        return pa.array([None if gone else str(row) for row, gone in enumerate(null)])
    flat = pa.array(values, mask=null)
    return flat if kind == "scalar" else pa.FixedSizeListArray.from_arrays(flat, 1)


def check(
    kind: str, rows: int, group: int, passing: np.ndarray, gone: Sequence[int], bad: Sequence[int], batch: int, cut: int,
    work_rows: int | None = None,
) -> None:  # fmt: skip
    """All rows of a file that pass its filter and that its table hasn't deleted come once, clean ones as chunks, bad ones as such."""
    with TemporaryDirectory() as folder:
        table = pa.table({"x": column(kind, rows, bad), "passes": passing, "k": range(rows)})
        pq.write_table(table, f"{folder}/a.parquet", row_group_size=group)
        pool = Pool(uri=folder, id="k", inputs=["x"], filters=[["passes", "==", True]])
        if not passing.any() or not set(range(rows)) - set(bad):
            return
        plan = plan_pool(pool, on_error="skip", texts="taken" if kind == "text" else "refused")
        [footer] = plan.footers
        deleted = replace(footer, file=replace(footer.file, deletes=Deletes.of([gone])))
        units: list[Unit] = cut_units(deleted, plan.filters, cut, work_rows=work_rows)
        units += units_at(footer, bad[::2]) + units_at(footer, np.flatnonzero(~passing).tolist(), target_bytes=cut)
        expected = sorted(set(np.flatnonzero(passing).tolist()) - set(gone)) + list(bad[::2]) + np.flatnonzero(~passing).tolist()
        became: list[int] = []
        for unit in units:
            clean, left_out = [], []
            with BatchReader(unit, plan.read, batch, pin=False) as reader:
                sizes = []
                for chunk in reader:
                    sizes.append(len(chunk))
                    clean += chunk.rows.tolist()
                    assert chunk.ids.to_pylist() == chunk.rows.tolist()
                    [values] = chunk.inputs
                    assert np.array_equal(np.asarray(values).astype(np.int64).ravel(), chunk.rows)
            left_out = [found.row for found in reader.bad]
            assert all(size % batch == 0 for size in sizes[:-1])
            assert clean == sorted(clean)
            assert set(left_out) <= set(bad)
            reader.check(np.array(clean, np.int64), np.array(left_out, np.int64))
            became += sorted(clean + left_out)
        assert became == expected


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(["scalar", "list", "text"]), st.integers(1, 300), st.integers(1, 80), st.integers(1, 60))
def test_rows_in_are_rows_out(data: st.DataObject, kind: str, rows: int, group: int, block: int) -> None:
    """For any row groups, filters, deletes, bad rows, labelled positions, batches, blocks and cuts, blocks far smaller than units."""
    some = st.lists(st.integers(0, rows - 1), unique=True, max_size=rows).map(sorted)
    passing = np.isin(np.arange(rows), data.draw(some, "excluded"), invert=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeding, "CHUNK_ROWS", block)
        batch, cut = data.draw(st.integers(1, 70), "batch"), data.draw(st.sampled_from([1, 500, 1 << 20]), "cut")
        work_rows = data.draw(st.sampled_from([None, 1, 7, 40]), "work_rows")
        check(kind, rows, group, passing, data.draw(some, "deleted"), data.draw(some, "bad"), batch, cut, work_rows)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["scalar", "list"]), st.integers(2 * CHUNK_ROWS, 5 * CHUNK_ROWS), st.integers(500, 3 * CHUNK_ROWS),
    st.integers(0, 2**32 - 1), st.tuples(*[st.sampled_from([0.0, 1e-5, 0.01])] * 3), st.sampled_from([64, 1000, CHUNK_ROWS, 20_000]),
)  # fmt: skip
def test_rows_in_are_rows_out_past_the_largest_block(
    kind: str, rows: int, group: int, seed: int, shares: tuple[float, float, float], batch: int
) -> None:
    """The same with blocks as they are; what a filter excludes are some rows, and a run at the beginning, as of a filter by time."""
    rng = np.random.default_rng(seed)
    excluded, gone, bad = (np.flatnonzero(rng.random(rows) < share) for share in shares)
    passing = np.isin(np.arange(rows), excluded, invert=True) & (np.arange(rows) >= rng.integers(0, 2 * CHUNK_ROWS))
    check(kind, rows, group, passing, gone.tolist(), bad.tolist(), batch, 1 << 25, seed % 3 * CHUNK_ROWS or None)


@pytest.mark.parametrize(("wrong", "row"), [([0, 1, 3], 2), ([0, 1, 1, 2, 3], 1), ([0, 1, 2, 3, 4], 4), ([], 0), ([1, 0, 2, 3], 0)])
def test_a_row_that_is_lost_or_comes_twice_is_an_error(tmp_path: Path, wrong: list[int], row: int) -> None:
    """With the numbers and the first row at fault; the same rows, some of them left out, are none."""
    pq.write_table(pa.table({"x": [1.0, 2.0, 3.0, 4.0]}), tmp_path / "a.parquet")
    plan = plan_pool(Pool(uri=str(tmp_path), inputs=["x"]))
    with BatchReader(plan.units[0], plan.read, 2, pin=False) as reader:
        for _ in reader:
            pass
    reader.check(np.array([0, 3]), np.array([2, 1]))
    with pytest.raises(RaystreamError, match=f"of 4 rows that pass the filters {len(wrong)} were scored and 0 left out, .* row {row};"):
        reader.check(np.array(wrong, np.int64), np.empty(0, np.int64))
