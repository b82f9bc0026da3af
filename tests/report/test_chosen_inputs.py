"""Inputs of chosen rows in runs: each row group is read once, whatever is asked for first and by how many at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from raystream.pool import scan
from raystream.report import pictures as chosen_inputs
from raystream.report.pictures import RunsOfInputs

ROWS, BUDGET, RUN = 240, 60, 7
NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3))
"""


@pytest.fixture
def batch(ask, tmp_path, monkeypatch):
    """60 rows of four files of three row groups each, and what every row group read since is called."""
    (tmp_path / "runs_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    table = pa.table({"name": [f"r{i}" for i in range(ROWS)], "x": np.arange(ROWS, dtype=np.float32), "y": np.zeros(ROWS, np.float32)})
    pool = {"id": "name", "inputs": ["x", "y"]}
    result = ask(table, pool=pool, model={"source": "runs_nets:net"}, select={"budget": BUDGET, "strategy": "random"}, files=4)
    read = []

    def counted(file, *given, real=scan.scan, **more):
        read.append(more["what"])
        return real(file, *given, **more)

    monkeypatch.setattr(scan, "scan", counted)
    return result, read


def values_of(result, runs, order, threads=1):
    """The values by rank, and how many rows each run was found to hold, when runs are asked for in an order."""
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda number: runs.read(number, lambda field: field.name == "x"), order))
    assert [one.asked for one in found] == [len(range(result.selection.num_rows)[number * RUN :][:RUN]) for number in order]
    return {rank: value for one in found for rank, value in zip(one.ranks, one.values.to_pylist(), strict=True)}


@pytest.mark.parametrize(("order", "threads"), [(range(9), 1), ((4, 8, 0, 7, 1, 6, 2, 5, 3), 1), (range(9), 9)])
def test_each_row_group_is_read_once(batch, order, threads):
    """Also when all runs are asked for at the same time; each rank has the value of its own row."""
    result, read = batch
    found = values_of(result, RunsOfInputs(result, result.selection, RUN), order, threads)
    named = result.selection.column("name").to_pylist()
    assert found == {rank: float(name[1:]) for rank, name in enumerate(named)}
    assert len(read) == len(set(read)) == 12


def test_a_run_that_is_asked_for_again_is_read_again(batch):
    """Nothing is kept for longer than until it was shown."""
    result, read = batch
    runs = RunsOfInputs(result, result.selection, RUN)
    first = values_of(result, runs, [2, 5])
    assert values_of(result, runs, [5, 2]) == first
    assert len(read) > len(set(read))


@pytest.mark.parametrize("room", [0, 100])
def test_without_room_rows_are_read_when_they_are_asked_for(batch, monkeypatch, room):
    """What is shown stays the same."""
    monkeypatch.setattr(chosen_inputs, "_KEPT_BYTES", room)
    result, read = batch
    found = values_of(result, RunsOfInputs(result, result.selection, RUN), range(9))
    assert sorted(found) == list(range(BUDGET))
    assert len(read) > 12


def test_a_run_reads_what_it_may_and_the_next_one_goes_on(batch, monkeypatch):
    """At least one row group each; what an earlier run brought along is there as well, and counts for nothing."""
    monkeypatch.setattr(chosen_inputs, "_READ_BYTES", 1)
    result, read = batch
    runs = RunsOfInputs(result, result.selection, RUN)
    for number in range(9):
        before = len(read)
        found = runs.read(number, lambda field: field.name == "x")
        assert len(read) - before <= 1
        assert found.ranks
        assert set(found.ranks) <= set(range(number * RUN, (number + 1) * RUN))
    assert runs.read(9, lambda field: True) is runs.read(-1, lambda field: True) is runs.read(0, lambda field: False) is None
