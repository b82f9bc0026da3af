"""Requests of a bucket over a whole scored pool: files of units are read, and nothing is asked of units one by one beside that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pyarrow.parquet as pq
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore
from pools import pool_table
from scored import planned

import raystream as rs
from raystream.choosing.scores_table import write_scores
from raystream.choosing.verify import verify
from raystream.report.page import write_report
from raystream.run import score
from raystream.scoring.estimate import estimate
from raystream.store import bucket as bucket_module
from raystream.store import packs
from raystream.store.bucket import ObjectStore
from raystream.store.gc import collect

MakeQuery = Callable[..., rs.Query]
UNITS = 70


class Requests:
    """`obstore`, noting what is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(obstore, name)

        def call(bucket: Any, path: str, *more: Any, **options: Any) -> Any:
            self.asked.append((name, path))
            return real(bucket, path, *more, **options)

        return call if name in ("get", "get_range", "head", "put", "delete", "list", "list_with_delimiter") else real

    def taken(self) -> Counter[tuple[str, str]]:
        """What was asked since the last time: by request, of how many units' files, receipts, or other things."""
        found = Counter((name, _kind(path)) for name, path in self.asked)
        self.asked.clear()
        return found


def _kind(path: str) -> str:
    if path.startswith("units/") and "." in path:
        return "receipt" if path.endswith(".receipt.json") else path.rpartition("/")[2].partition("-")[0]
    return path.partition("/")[0]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Those of the only bucket there is, in this process."""
    memory, asked = MemoryStore(), Requests()
    monkeypatch.setattr(bucket_module, "bucket_of", lambda uri, storage: memory)
    monkeypatch.setattr(bucket_module, "obstore", asked)
    return asked


@pytest.fixture
def ask(make_query: MakeQuery, tmp_path: Path) -> Callable[..., rs.Query]:
    """Queries over a pool of many units."""
    (tmp_path / "many").mkdir()
    for file in range(UNITS):
        pq.write_table(pool_table(8, 8 * file), tmp_path / "many" / f"{file:03}.parquet")
    return lambda **changes: make_query(store__uri="s3://bucket/runs", pool__uri="many", select__strategy="core_set", **changes)


@pytest.mark.slow
def test_nothing_is_asked_of_units_one_by_one(ask: Callable[..., rs.Query], requests: Requests, tmp_path: Path) -> None:
    """Once scored: what a further query, `verify`, `scores`, the report, `plan` and `gc` read are files of outputs, each once or twice."""
    result = rs.run(ask())
    requests.taken()
    steps: dict[str, tuple[Callable[[], Any], int]] = {
        "lookup": (lambda: planned(ask()), 0),
        "plan": (lambda: estimate(ask(seed=1)), 0),
        "another query": (lambda: rs.run(ask(select__budget=5)), 2),
        "verify": (lambda: verify(result.store, result.query, _nobody), 2),
        "scores": (lambda: write_scores(result.store, result.query, str(tmp_path / "s.parquet"), embeddings=True), 2),
        "report": (lambda: write_report(result), 3),
        "gc": (lambda: collect(result.store), 0),
    }
    for step, (do, most) in steps.items():
        do()
        asked = requests.taken()
        assert not [key for key in asked if key[1] == "receipt" or (key[0] == "head" and key[1] in ("scores", "embeddings"))], (step, asked)
        read = Counter[str]()
        for (_, kind), count in asked.items():
            read["outputs" if kind in ("scores", "embeddings") else "else"] += count
        assert read["outputs"] <= most * 2 * UNITS, (step, asked)
        assert read["else"] < UNITS, (step, asked)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["one listing", "a listing a folder", "each by itself"])
def test_what_a_bucket_lacks_is_scored_again(
    ask: Callable[..., rs.Query], requests: Requests, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A file that is gone or cut, in spite of its pack; a receipt that no pack has is read by itself. However it is looked up."""
    if way != "one listing":
        monkeypatch.setattr(packs, "_PAGE", 1)
    if way == "a listing a folder":
        monkeypatch.setattr(packs, "_FOLDERS", -(1 << 30))
    query = ask()
    score(query)
    asked, plan = planned(query)
    store = asked.store
    gone, cut = (plan.found[0].at(place) for place in (3, 30))
    assert gone is not None
    assert gone.file is not None
    assert cut is not None
    assert cut.file is not None
    store.remove(gone.file.name)
    store.put(cut.file.name, b"PAR1")
    requests.taken()
    assert planned(query)[1].to_compute.tolist() == [3, 30]
    found = requests.taken()
    assert found["get", "receipt"] == 2
    assert found["head", "embeddings"] == (UNITS if way == "each by itself" else 0)
    assert (found["list", "units"] > 1) == (way == "a listing a folder")
    score(query)
    again = planned(query)[1]
    assert again.to_compute.tolist() == []
    assert again.found[0].rows.tolist() == [8] * UNITS
    for name in [entry.name for entry in store.walk("receipts")]:
        store.remove(name)
    requests.taken()
    assert planned(query)[1].to_compute.tolist() == []
    assert requests.taken()["get", "receipt"] == 2 * UNITS


def test_a_listing_goes_on_where_it_broke(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of many pages: each file comes once."""
    monkeypatch.setattr(bucket_module, "FIRST_PAUSE_BEYOND", 0.001)
    store = ObjectStore("s3://bucket/runs")
    names = [f"units/{number:04d}" for number in range(170)]
    for name in names:
        store.put(name, b"x")
    broken = []

    def listed(bucket: Any, prefix: str, offset: str | None = None) -> Iterator[Any]:
        for number, page in enumerate(obstore.list(bucket, prefix, offset=offset)):
            if number == 1 and len(broken) < 2:
                broken.append(offset)
                raise GenericError("connection reset")
            yield page

    monkeypatch.setattr(requests, "list", listed, raising=False)
    assert [entry.name for entry in store.walk("units")] == names
    assert broken == [None, names[49]]


def _nobody(query: rs.Query) -> Any:
    from raystream.cluster.growing import Processes
    from raystream.scoring.progress import Silent

    return Processes(query.cluster, Silent())
