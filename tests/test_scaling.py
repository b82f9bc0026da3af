"""benchmarks/scaling.py: its terms are figures of the results, its tables are those of docs/scaling.md, and they follow from the terms."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks/scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


def test_every_term_stands_in_the_results(scaling: ModuleType) -> None:
    """In the line of the day that it names, to the digits that are written."""
    for name, term in scaling.TERMS.items():
        assert term.value == pytest.approx(term.recorded(), rel=2e-3), name


def test_the_page_has_the_tables_that_are_printed(scaling: ModuleType) -> None:
    """`python benchmarks/scaling.py` would print nothing else."""
    assert scaling.tables() in (ROOT / "docs/scaling.md").read_text()


def test_stages_grow_as_they_should(scaling: ModuleType) -> None:
    """Ten times the rows are ten times the bytes, requests and work; rounds stay; what workers share out shrinks with them."""
    small, large = (scaling.stages(rows) for rows in scaling.ROWS[:2])
    for one, ten in zip(small, large, strict=True):
        for name in ("read", "written", "gets", "puts", "work"):
            assert getattr(ten, name) == pytest.approx(10 * getattr(one, name), rel=1e-3), (one.name, name)
        assert (ten.rounds, ten.name) == (one.rounds, one.name)
        assert one.seconds(64) <= one.seconds(1)
        alone = one.serial + one.talk
        assert one.seconds(64) - alone == pytest.approx((one.seconds(1) - alone) / 64)
    score = next(stage for stage in small if stage.name == "score")
    assert score.read == 100_000_000 * 512
    assert score.seconds(1) == pytest.approx(100_000_000 / scaling.TERMS["rate"].value * scaling.TERMS["from_bucket"].value + score.serial)
    slow = scaling.stages(scaling.ROWS[0], rate=scaling.TERMS["rate"].value / 10)
    assert slow[1].work == pytest.approx(10 * score.work)


def test_prices_and_limits(scaling: ModuleType) -> None:
    """A machine's price goes into its line as it is; the driver's memory over the bytes of a row is where it ends."""
    machine = scaling.MACHINES[0]
    twice = scaling.Machine("twice", machine.cores, machine.memory_gib, machine.gbit, 2 * machine.dollars)
    assert scaling.cost(10**9, twice, 64) == pytest.approx(2 * scaling.cost(10**9, machine, 64))
    found = scaling.limits()
    assert found["rows of the driver"] == pytest.approx(128 * 2**30 / scaling.TERMS["row_bytes"].value)
    assert found["rows chosen from whole by k-means"] < found["rows of the driver"]
    assert all(value > 0 for value in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("more", ["--scores", "--without-files"])
def test_bookkeeping_is_measured(more: str) -> None:
    """By the session, the scheduler and the packs as they are: what stands in for workers keeps to what a session asks of them."""
    command = [sys.executable, str(ROOT / "benchmarks/units.py"), "--units", "300", more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout.splitlines()[-1])["results"]
    assert found["units"] == 300
    assert {"plan", "lookup", "write", "scheduling"} <= set(found["us"])


@pytest.mark.slow
def test_it_measures(scaling: ModuleType) -> None:
    """One JSON line with passes, rounds and bytes of each strategy: those that stand in the results, and bytes that grow with shards."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/scaling.py"), "--measure"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    found, recorded = ([(run["strategy"], run["rounds"]) for run in of["runs"]] for of in (line, scaling.measured()))
    assert found == recorded
    few, *_, many = (run["bytes"] for run in line["runs"] if run["strategy"] == "core_set")
    assert few < many
