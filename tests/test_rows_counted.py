"""Rows in = rows out, through whole queries over units far larger than a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored import planned

import raystream as rs
from raystream.choosing.candidates import read_pool
from raystream.cluster.growing import Processes
from raystream.errors import UnitsFailed
from raystream.scoring import batch_reader
from raystream.scoring.batch_reader import BatchReader, BufferedRows
from raystream.scoring.calibrate import fitted_temperature
from raystream.scoring.progress import Silent
from raystream.store.unit_columns import whole_units

MakeQuery = Callable[..., rs.Query]
ROWS, FIRST = 60_000, 10_040


def write_pool(folder: Path, x: np.ndarray | pa.Array) -> None:
    """One file whose row groups end inside blocks."""
    folder.mkdir()
    columns = {"x": x, "k": np.arange(len(x)), "label": np.arange(len(x)) % 4}
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=10_240)


def large(make_query: MakeQuery, uri: str, **changes: object) -> rs.Query:
    return make_query(
        pool={"uri": uri, "id": "k", "inputs": ["x"], "filters": [["k", ">=", FIRST]]}, model__args={"d": 1}, model__batch_size=1024,
        select={"budget": 5, "strategy": "top_k"}, **changes,
    )  # fmt: skip


def test_a_filter_over_many_blocks_scores_each_row_once(make_query: MakeQuery, workplace: Path) -> None:
    """49,960 of 60,000 rows pass, and as many have scores, with the ids in order."""
    write_pool(workplace / "large", np.linspace(-1, 1, ROWS, dtype=np.float32))
    query = large(make_query, "large")
    rs.run(query)
    asked, plan = planned(query)
    scored = read_pool(asked, plan, whole_units(asked.store, plan.found))
    assert [unit.rows for unit in scored.units] == [ROWS - FIRST]
    assert np.array_equal(scored.ids.to_numpy(), np.arange(FIRST, ROWS))


def test_a_temperature_is_fitted_on_each_good_row_once(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the first block's rows are bad and skipped; those of the second are counted once."""
    monkeypatch.setattr(batch_reader, "CHUNK_ROWS", 512)
    x = np.arange(1024, dtype=np.float32) / 512
    write_pool(workplace / "labels", pa.array(x, mask=np.arange(1024) < 256))
    query = make_query(
        pool={"uri": "labels", "inputs": ["x"], "label": "label"}, model__args={"d": 1}, model__batch_size=64,
        model__temperature=str(workplace / "labels"), on_error="skip",
    )  # fmt: skip
    with Processes(query.cluster, Silent()) as processes:
        fitted = fitted_temperature(query, Silent(), processes)
    assert fitted is not None
    assert fitted.calibration.rows == 768


@pytest.mark.parametrize("fault", ["twice", "lost"])
def test_a_unit_whose_rows_dont_add_up_gets_no_receipt(
    make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Whatever goes wrong between reading and writing: an error that says how many and which row, and nothing is left of the unit."""

    def faulty(self: BatchReader, iterate: Callable[..., Iterator[BufferedRows]] = BatchReader.__iter__) -> Iterator[BufferedRows]:
        for chunk in iterate(self):
            yield from [chunk, chunk] if fault == "twice" else []

    monkeypatch.setattr(BatchReader, "__iter__", faulty)
    scored = 600 if fault == "twice" else 0
    with pytest.raises(UnitsFailed, match=f"of 300 rows that pass the filters {scored} were scored and 0 left out, .* is row 0;"):
        rs.run(make_query(pool__uri="pool/year=2020"))
    assert not [path for path in (workplace / "runs" / "units").rglob("*") if path.is_file()]
