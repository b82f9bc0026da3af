"""What `raystream gc` removes of requests that are over, and what stays: who asked for the queries that the store has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from served import Served, query

from raystream.service.runs import Runs
from raystream.store.gc import GRACE, collect
from raystream.store.opening import open_store
from raystream.store.service_records import finished

SERVICE = Path("runs/service")


@pytest.fixture
def served(workplace: Path) -> Served:
    return Served()


def submit(served: Served, key: str, owner: str = "a", **sections: Any) -> str:
    answer = served.ask("POST", "/v1/queries", owner, json=query(**sections), headers={"idempotency-key": key})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def files() -> set[str]:
    return {str(path.relative_to(SERVICE)) for path in SERVICE.rglob("*") if path.is_file()}


def test_what_is_over_goes_and_who_asked_for_what_stays(served: Served) -> None:
    """One query committed, one failed, one committed and dropped, one that waits: only the first and the last are seen afterwards."""
    kept, failed, dropped, waits = (submit(served, f"k{i}", select={"budget": 2 + i}) for i in range(4))
    served.play(kept)
    served.runs.end(failed, "failed", error="no", exit_code=3)
    served.play(dropped)
    names = [served.runs.query(run) for run in (kept, dropped)]
    assert served.ask("DELETE", f"/v1/queries/{dropped}", "root").status_code == 204
    before = files()
    store = open_store("runs")
    assert collect(store, older_than=GRACE, delete=True).service.count == 0
    assert files() == before
    told = collect(store, older_than=0)
    assert files() == before
    swept = collect(store, older_than=0, delete=True)
    assert swept.service == told.service
    assert swept.service.count == len(before) - len(files()) > 0
    assert served.ask("GET", f"/v1/queries/{kept}").json()["state"] == "committed"
    assert served.ask("GET", f"/v1/queries/{kept}/selection").status_code == 200
    assert served.ask("GET", f"/v1/queries/{names[0]}", "b").status_code == 404
    assert served.ask("GET", f"/v1/queries/{waits}").json()["state"] == "queued"
    for run in (failed, dropped):
        assert served.ask("GET", f"/v1/queries/{run}").status_code == 404
    listed = served.ask("GET", "/v1/queries").json()["queries"]
    assert [one["id"] for one in listed] == [waits, kept]
    left = files()
    assert not [file for file in left if failed in file or dropped in file or file.startswith("keys/")]
    assert not [file for file in left if file.startswith(f"runs/{kept}/events")]
    assert {f"names/{names[0]}"} == {file for file in left if file.startswith("names/")}
    assert "events.jsonl" in left  # who asked what, when
    assert collect(store, older_than=0, delete=True).service.count == 0
    again = submit(served, "k1", select={"budget": 3})
    assert served.play(again) == 0  # the same key and question, after both were forgotten
    assert served.ask("GET", f"/v1/queries/{again}").json()["state"] == "committed"


def test_a_name_stays_its_owners_as_long_as_its_query_is_there(served: Served) -> None:
    """The run that gave it failed or ended long ago, and others come: they get neither the name nor the query."""
    section = {"query": "mine"}
    run = submit(served, "k", store=section)
    served.play(run)
    collect(open_store("runs"), older_than=0, delete=True)
    other = submit(served, "k", "b", store=section, select={"budget": 3})
    assert served.play(other) == 2
    assert served.ask("GET", "/v1/queries/mine", "b").status_code == 404
    assert served.ask("GET", "/v1/queries/mine").json()["state"] == "committed"


def test_what_is_asked_for_again_meanwhile_stays(served: Served) -> None:
    """Between looking and removing, a run of the same query has begun; and a removal that ended halfway is done by the next."""
    run = submit(served, "k")
    served.play(run)
    store, name = open_store("runs"), str(served.runs.query(run))
    found = finished(store, (), 2.0**40)
    assert name in found.names
    (SERVICE / "queries" / name / "another-1").write_bytes(b"{}")
    found.remove(store)
    assert served.runs.order(run) is None
    assert (SERVICE / "names" / name).exists()
    (SERVICE / "queries" / name / "another-1").unlink()
    folder = SERVICE / "runs" / run
    os.makedirs(folder)
    (folder / "ended.json").write_text('{"state": "committed"}')
    finished(store, (), 2.0**40).remove(store)
    assert not folder.exists()
    assert Runs(store, served.config.limits).of_query(name) == []
    assert {file for file in files() if file != "events.jsonl"} == set()
