"""Queries over HTTP: asked, watched, fetched, stopped, by owners who see their own alone."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from served import Served, query, told

import raystream as rs

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def served(workplace: Path) -> Served:
    return Served()


def test_a_query_is_the_same_as_by_the_local_api(served: Served) -> None:
    """Submitted, run, fetched: the rows, their order and their scores are those of `rs.run`; the report comes along."""
    run = served.submit()
    assert served.ask("GET", f"/v1/queries/{run}").json()["state"] == "queued"
    assert served.ask("GET", f"/v1/queries/{run}/selection").status_code == 409
    assert served.play(run) == 0
    state = served.ask("GET", f"/v1/queries/{run}").json()
    assert state["state"] == "committed"
    local = rs.run(rs.Query(**query(), cluster={"address": "in_process"}, store={"uri": "elsewhere"})).selection
    for name in (run, state["query"]):
        answer = served.ask("GET", f"/v1/queries/{name}/selection", headers={"accept": "application/vnd.apache.parquet"})
        assert pq.read_table(io.BytesIO(answer.content)).replace_schema_metadata(None).equals(local.replace_schema_metadata(None))
    rows = served.ask("GET", f"/v1/queries/{run}/selection").json()["rows"]
    assert [row["rid"] for row in rows] == local.column("rid").to_pylist()
    assert [row["score"] for row in rows] == local.column("score").to_pylist()
    text = served.ask("GET", f"/v1/queries/{run}/selection", headers={"accept": "text/csv"})
    assert pyarrow.csv.read_csv(io.BytesIO(text.content)).column("rid").to_pylist() == local.column("rid").to_pylist()
    again = served.ask("GET", f"/v1/queries/{run}/selection", headers={"accept": "text/csv", "if-none-match": text.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert served.ask("GET", f"/v1/queries/{run}/selection", headers={"accept": "image/png"}).status_code == 406
    report = served.ask("GET", f"/v1/queries/{run}/report")
    assert report.status_code == 200
    assert "sandbox" in report.headers["content-security-policy"]


def test_events_come_once_each_and_go_on_behind_the_last(served: Served) -> None:
    """From the beginning, or behind any event by `Last-Event-ID`; who has seen all gets 204, so that a browser stops asking."""
    run = served.submit()
    served.play(run)
    events = told(served.ask("GET", f"/v1/queries/{run}/events").text)
    kinds = [event["kind"] for _, event in events]
    assert kinds[:3] == ["queued", "started", "named"]
    assert {"planned", "committed"} <= set(kinds)
    assert kinds[-1] == "committed"
    assert len({number for number, _ in events}) == len(events)
    for place, (number, _) in enumerate(events):
        rest = served.ask("GET", f"/v1/queries/{run}/events", headers={"last-event-id": number})
        assert (rest.status_code == 204) == (place == len(events) - 1)
        assert (told(rest.text) if rest.content else []) == events[place + 1 :]
    assert served.ask("GET", f"/v1/queries/{run}/events", headers={"last-event-id": "1;drop"}).status_code == 400


def test_others_see_nothing_of_a_query(served: Served) -> None:
    """Whatever is asked of it, by its run's id or by its name, the answer is that of what isn't there."""
    run = served.submit()
    served.play(run)
    name = served.ask("GET", f"/v1/queries/{run}").json()["query"]
    for asked in (run, name):
        for path in ("", "/selection", "/report", "/events"):
            theirs = served.ask("GET", f"/v1/queries/{asked}{path}", "b")
            nothing = served.ask("GET", f"/v1/queries/{'0' * len(asked)}{path}", "b")
            assert theirs.status_code == nothing.status_code == 404
            assert theirs.text == nothing.text.replace("0" * len(asked), asked)
        assert served.ask("DELETE", f"/v1/queries/{asked}", "b").status_code == 404
        assert served.ask("GET", f"/v1/queries/{asked}", "root").status_code == 200
    assert served.ask("GET", "/v1/queries", "b").json()["queries"] == []


def test_the_same_question_is_one_run_for_all_who_ask(served: Served) -> None:
    """However it is written; each sees it, and it is stopped once nobody wants it any more. Asked again later, it is another run."""
    mine = served.submit("a")
    theirs = served.submit("b", select={"budget": 12, "strategy": "k_means"}, seed=0)
    assert mine == theirs
    assert served.submit("a") == mine
    assert served.submit("a", select__budget=13) != mine
    assert served.ask("DELETE", f"/v1/queries/{mine}", "a").json()["state"] == "stopped"
    assert served.ask("GET", f"/v1/queries/{mine}", "b").json()["state"] == "queued"
    assert served.ask("DELETE", f"/v1/queries/{mine}", "b").status_code == 202
    assert served.play(mine) == 0
    assert served.runs.state(mine) == "stopped"
    again = served.submit("b")
    assert again == mine.replace("-1", "-2")
    assert served.play(again) == 0
    assert served.runs.state(again) == "committed"


def test_a_committed_query_is_dropped_by_admins_alone(served: Served) -> None:
    """Whoever asked for it keeps being told what it was."""
    run = served.submit()
    served.play(run)
    assert served.ask("DELETE", f"/v1/queries/{run}").status_code == 403
    assert served.ask("DELETE", f"/v1/queries/{run}", "root").status_code == 204
    assert served.ask("GET", f"/v1/queries/{run}/selection").status_code == 409
    assert not list(Path("runs/queries").glob("*/selection.parquet"))


def test_a_key_asks_once(served: Served) -> None:
    """The same key and body give the first answer, also after the run has ended; another body is refused, and a key is its owner's."""
    key = {"idempotency-key": "k-1"}
    first = served.ask("POST", "/v1/queries", json=query(), headers=key)
    served.play(first.json()["id"])
    again = served.ask("POST", "/v1/queries", json=query(), headers=key)
    assert (again.status_code, again.json()["id"], again.json()["state"]) == (202, first.json()["id"], "committed")
    other = served.ask("POST", "/v1/queries", json=query(select__budget=3), headers=key)
    assert other.status_code == 422
    assert served.ask("POST", "/v1/queries", "b", json=query(select__budget=3), headers=key).status_code == 202
    wrong = served.ask("POST", "/v1/queries", json=query(select__budget=-1), headers={"idempotency-key": "k-2"})
    assert wrong.status_code == 422
    assert served.ask("POST", "/v1/queries", json=query(select__budget=5), headers={"idempotency-key": "k-2"}).status_code == 202


def test_a_key_whose_server_died_unanswered_is_taken_over(served: Served) -> None:
    """One that is being answered is 409 until it is."""
    began, done = threading.Event(), threading.Event()

    def slow() -> None:
        with served.runs.once("a", "key", "asked") as once:
            began.set()
            done.wait(10)
            once.run = "the-run"

    thread = threading.Thread(target=slow)
    thread.start()
    assert began.wait(10)
    with pytest.raises(Exception, match="not answered yet"), served.runs.once("a", "key", "asked"):
        pass
    done.set()
    thread.join()
    with served.runs.once("a", "key", "asked") as once:
        assert once.run == "the-run"
    files = list(Path("runs/service/keys/a").iterdir())
    died = {"asked": "asked", "host": json.loads(json.dumps(__import__("platform").node())), "process": 2**22 + 1, "began": 1.0}
    files[0].write_text(json.dumps(died))
    with served.runs.once("a", "key", "asked") as once:
        assert once.run is None
        once.run = "another"


def test_an_owner_has_so_many_in_the_queue(workplace: Path) -> None:
    """The next is 429 and says when to come back; others are not touched by it."""
    served = Served(limits={"queued": 2, "running": 1})
    for budget in (1, 2, 3):
        served.submit("a", select__budget=budget)
    refused = served.ask("POST", "/v1/queries", json=query(select__budget=4))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    assert served.submit("a", select__budget=3)  # joins what is there
    assert served.submit("b", select__budget=4)


def test_a_list_is_read_page_by_page(served: Served) -> None:
    """The newest first, each once, also when further ones come in between; admins see those of all, and of other means."""
    runs = [served.submit("a", select__budget=budget) for budget in range(1, 6)]
    page = served.ask("GET", "/v1/queries?limit=2").json()
    found = [item["id"] for item in page["queries"]]
    served.submit("a", select__budget=9)
    while page["next"]:
        page = served.ask("GET", "/v1/queries", params={"limit": 2, "cursor": page["next"]}).json()
        found += [item["id"] for item in page["queries"]]
    assert found == runs[::-1]
    rs.run(rs.Query(**query(), cluster={"address": "in_process"}, store={"uri": "runs", "query": "by-hand"}))
    everything = served.ask("GET", "/v1/queries", "root").json()["queries"]
    assert {item["id"] for item in everything} > {*runs, "by-hand"}
    assert served.ask("GET", "/v1/queries/by-hand", "root").json()["state"] == "committed"
    assert served.ask("GET", "/v1/queries/by-hand", "a").status_code == 404
    for wrong in ("limit=0", "limit=x", "limit=9999999999", "cursor=%00"):
        assert served.ask("GET", f"/v1/queries?{wrong}").status_code == 422


def test_a_run_that_fails_says_why_and_no_more(served: Served) -> None:
    """The user's own mistakes in words, without places of the server; a defect without any."""
    run = served.submit(pool__id="nope")
    assert served.play(run) in (2, 3)
    state = served.ask("GET", f"/v1/queries/{run}").json()
    assert state["state"] == "failed"
    assert "nope" in state["error"]
    assert str(Path.cwd()) not in state["error"]


def test_a_pool_of_too_many_rows_is_refused_before_it_is_scored(workplace: Path) -> None:
    """The pool of 1,200 rows; nothing is in the store of its units."""
    served = Served(limits={"rows": 1199})
    run = served.submit()
    assert served.play(run) == 3
    assert "1200 rows" in str(served.runs.ended(run))
    assert not Path("runs/units").exists()


@pytest.mark.slow
def test_a_plan_is_made_by_a_process_of_its_own(served: Served) -> None:
    """Its figures are those of `raystream plan`; what can't end well is said by the same sentence, as a field's."""
    answer = served.ask("POST", "/v1/plan", json=query())
    assert (answer.status_code, answer.json()["rows"]) == (200, 1200)
    wrong = served.ask("POST", "/v1/plan", json=query(pool__id="nope"))
    assert (wrong.status_code, "nope" in wrong.text) == (422, True)
