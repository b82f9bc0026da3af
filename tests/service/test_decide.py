"""Streams by request: each request once, the same decisions as for rows that come in files, whoever dies in between."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import pool_table
from served import Served
from streams import arrive, decisions, make_stream
from streams import run as look

from raystream.errors import DataError, StoreUnreachable
from raystream.loop.streams.log import StreamLog
from raystream.loop.streams.requests import RequestedRows, StreamRequest
from raystream.loop.streams.segment import Segment
from raystream.pool.columns import Column, decode
from raystream.service.edge import Problem
from raystream.service.stream_model import Found, WarmModel, _array, _type
from raystream.store.opening import open_store

pytestmark = pytest.mark.usefixtures("workplace")


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    return [{"rid": row["rid"], "x": row["x"]} for row in table.to_pylist()]


@pytest.fixture
def served(workplace: Path) -> Served:
    """A server of a stream that has decided on 100 rows of a file."""
    arrive("a.parquet", pool_table(100))
    look()
    server = Served(streams=["s"])
    server.client.app.state.deciders.load(wait=True)  # type: ignore[attr-defined]
    return server


def decide(served: Served, request: str, rows: list[dict[str, Any]], status: int = 200) -> dict[str, Any]:
    answer = served.ask("POST", "/v1/streams/s/decide", json={"request_id": request, "rows": rows})
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def test_requests_are_decided_on_as_files_would_be(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows in the same order, some by file, some by request: the same scores to rounding, and the same choice."""
    table = pool_table(260, 100)
    chosen: list[bool] = []
    for start in range(0, 260, 13):
        answer = decide(served, f"r{start}", rows_of(table.slice(start, 13)))
        assert [decision["rid"] for decision in answer["decisions"]] == table.slice(start, 13).column("rid").to_pylist()
        chosen += [decision["chosen"] for decision in answer["decisions"]]
    by_request = decisions()
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    for number, start in enumerate((0, 100)):
        arrive(f"{number}.parquet", pool_table(100 if not start else 260, start))
    look()
    by_file = decisions()
    assert by_request.column("rid").equals(by_file.column("rid"))
    np.testing.assert_allclose(by_request.column("score"), by_file.column("score"), atol=1e-6)
    assert by_request.column("chosen").to_pylist() == by_file.column("chosen").to_pylist()
    assert by_file.column("chosen").to_pylist()[100:] == chosen
    assert by_request.column("seen").to_pylist() == list(range(1, 361))


def test_a_request_is_decided_on_once(served: Served) -> None:
    """Again, also of another server after the first was killed: the same answer, and nothing more in the log; other rows are refused."""
    rows = rows_of(pool_table(5, 500))
    first = decide(served, "r", rows)
    assert decide(served, "r", rows)["decisions"] == first["decisions"]
    decide(served, "r", rows[:4], 422)
    other = Served(streams=["s"])
    other.client.app.state.deciders.load(wait=True)  # type: ignore[attr-defined]
    assert decide(other, "r", rows)["decisions"] == first["decisions"]
    assert decisions().num_rows == 105
    decide(other, "s", rows_of(pool_table(3, 600)))
    decide(served, "t", rows_of(pool_table(2, 700)))  # which has to read on first
    assert decide(served, "s", rows_of(pool_table(3, 600)))["decisions"]
    assert decisions().column("seen").to_pylist() == list(range(1, 111))
    arrive("b.parquet", pool_table(10, 100))
    assert look().seen == 120


def test_many_at_a_time_lose_and_double_nothing(served: Served) -> None:
    """Forty requests of forty threads, each sent twice: each has its rows' decisions, and the log each row once."""
    table = pool_table(80, 1000)
    answers: dict[int, list[Any]] = {i: [] for i in range(40)}

    def ask(place: int) -> None:
        answers[place].append(decide(served, f"r{place}", rows_of(table.slice(2 * place, 2)))["decisions"])

    threads = [threading.Thread(target=ask, args=(i % 40,)) for i in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, found in answers.items():
        assert len(found) == 2
        assert found[0] == found[1]
        assert [decision["rid"] for decision in found[0]] == table.slice(2 * place, 2).column("rid").to_pylist()
    log = decisions()
    assert sorted(log.column("rid").to_pylist()[100:]) == table.column("rid").to_pylist()
    assert sum(log.column("chosen").to_pylist()) <= -(-log.num_rows // 5)


def test_a_quick_decision_is_made_where_the_request_came_in(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody waits; the thread for the others makes the first, those of many rows, and what comes after a slow or a failed one."""
    where: list[str] = []
    through = WarmModel.decide
    fails = False

    def noted(model: WarmModel, batch: Any) -> Any:
        where.append("others" if threading.current_thread().name == "raystream-decide" else "own")
        if fails:
            raise DataError("no number")
        return through(model, batch)

    monkeypatch.setattr(WarmModel, "decide", noted)
    monkeypatch.setattr("raystream.service.streams._QUICK_SECONDS", 60.0)
    table = pool_table(30, 1000)

    def asked(place: int, count: int = 1, status: int = 200) -> list[str]:
        where.clear()
        decide(served, f"r{place}", rows_of(table.slice(place, count)), status)
        return list(where)

    assert asked(0) == ["others"]
    assert asked(1) == asked(2) == ["own"]
    assert asked(3, 9) == ["others"]
    assert asked(12) == ["own"]
    assert decide(served, "r2", rows_of(table.slice(2, 1)))["decisions"][0]["rid"] == table["rid"][2].as_py()
    decide(served, "r2", rows_of(table.slice(3, 1)), 422)
    monkeypatch.setattr("raystream.service.streams._QUICK_SECONDS", 0.0)
    assert asked(13) == asked(14) == ["others"]
    monkeypatch.setattr("raystream.service.streams._QUICK_SECONDS", 60.0)
    assert asked(15) == ["own"]
    fails = True
    assert asked(16, status=422) == ["own", "others", "others"]
    assert asked(16, status=422) == ["others", "others"]
    fails = False
    assert asked(16) == ["others"]
    assert decisions().column("rid").to_pylist()[100:] == table["rid"].to_pylist()[:17]
    decider = served.client.app.state.deciders._deciders["s"]  # type: ignore[attr-defined]
    assert (decider._waiting, decider._held) == (0, 0)


def test_what_rows_can_not_be_is_said_by_field(served: Served) -> None:
    """And decides nothing."""
    good = rows_of(pool_table(2, 500))
    for rows, path in (
        ([], "rows"), ([1], "rows.0"), ([{"x": good[0]["x"]}], "rows.0.rid"), ([{"rid": "a"}], "rows.0.x"),
        ([good[0], {"rid": "a", "x": [1.0]}], "rows.1.x"), ([good[0], {"rid": "a", "x": "text"}], "rows.1.x"),
        ([good[0], {"rid": "a", "x": [None] * 8}], "rows.1.x"), ([{"rid": {"a": 1}, "x": good[0]["x"]}], "rows.0.rid"),
        ([good[0], good[0]], "rows"),
    ):  # fmt: skip
        assert decide(served, "bad", rows, 422)["errors"][0]["path"] == path
    answer = served.ask("POST", "/v1/streams/s/decide", json={"request_id": "", "rows": good, "more": 1})
    assert {error["path"] for error in answer.json()["errors"]} == {"request_id", "more"}
    assert served.ask("POST", "/v1/streams/other/decide", json={"request_id": "a", "rows": good}).status_code == 404
    assert served.ask("POST", "/v1/streams/s/decide", "reader", json={"request_id": "a", "rows": good}).status_code == 403
    assert decisions().num_rows == 100


def test_numbers_are_what_was_sent_or_refused() -> None:
    """No integer loses what stood behind its point, as an id or a pixel; one among floats is the float next to it, as in a file."""
    pixels = pa.list_(pa.uint8(), 2)
    for value, kind in ((1.5, pa.int64()), ([1, 2.5], pixels), (float("nan"), pa.int64()), ([1, 256], pixels), (1e300, pa.int64())):
        with pytest.raises(Problem, match=re.escape("rows.1.x can't become")):
            _array([1 if kind == pa.int64() else [0, 0], value], kind, "x")
    assert _array([1.0, 2**62 + 1], pa.int64(), "x").to_pylist() == [1, 2**62 + 1]
    assert _array([[1.0, 2]], pixels, "x").to_pylist() == [[1, 2]]
    column = Column("x", (2,), "float32")
    exact = _array([[16777217, 0.1]], _type(column), "x")
    np.testing.assert_array_equal(decode(exact, column), np.float32([[16777217, 0.1]]))


def test_a_batch_larger_than_an_inference_batch_and_a_model_of_embeddings(workplace: Path) -> None:
    """`density` compares embeddings: by request as by file."""
    for name, start in (("a.parquet", 0), ("b.parquet", 600)):
        arrive(name, pool_table(600, start))
    changes: dict[str, Any] = {"stream__manager": "density", "model__batch_size": 256}
    look(make_stream(**changes))
    by_file = decisions()
    Path("lake/b.parquet").unlink()
    whole = make_stream(**changes, stream__name="t")
    look(whole)
    log = StreamLog(open_store("runs"), "t")
    assert log.progress()[0].rows == 600
    server = Served(streams=["t"])
    server.client.app.state.deciders.load(wait=True)  # type: ignore[attr-defined]
    table = rows_of(pool_table(600, 600))
    answer = server.ask("POST", "/v1/streams/t/decide", json={"request_id": "r", "rows": table})
    assert answer.status_code == 200
    assert [d["chosen"] for d in answer.json()["decisions"]] == by_file.column("chosen").to_pylist()[600:]


def told(answers: Sequence[Any]) -> list[list[dict[str, Any]]]:
    """What was decided, as Python has it."""
    return [rows.in_columns("rid").to_pylist() for rows in answers]


def test_requests_are_known_past_what_is_merged(workplace: Path) -> None:
    """Past sizes at which what is known of requests becomes one piece, and another one; before they have their file, too."""
    arrive("a.parquet", pool_table(1))
    look()
    make: Callable[[], RequestedRows] = lambda: RequestedRows(make_stream(), StreamLog(open_store("runs"), "s"), "m", 4)  # noqa: E731
    rows = make()
    requests = [StreamRequest(f"r{i}", f"{i}", pa.array([f"id{i}"]), np.array([float(i)]), None) for i in range(30)]
    first = []
    for i in range(0, 30, 4):
        first.append(told(rows.decide(requests[i : i + 4]))[0])
        assert told(rows.decide(requests[i : i + 1])) == first[-1:]
        rows.fold()
    for again in (rows, make()):
        found = told(again.decide(requests))
        assert [len(rows) for rows in found] == [1] * 30
        assert found[::4] == first
    assert decisions().num_rows == 31
    assert len(list(Path("runs/streams/s/decisions").iterdir())) == 9
    assert pq.read_table(sorted(Path("runs/streams/s/decisions").iterdir())[-1]).num_rows == 2


def test_a_server_that_ends_leaves_files_of_decisions_alone(served: Served) -> None:
    """What was answered lies in the log until then, and in a file of decisions afterwards; of the log nothing stays."""
    first = decide(served, "r", rows_of(pool_table(5, 500)))
    folder = Path("runs/streams/s")
    assert [path.name for path in (folder / "log").iterdir()] == ["00000002.open"]
    served.client.app.state.deciders.close()  # type: ignore[attr-defined]
    assert list((folder / "log").iterdir()) == []
    table = pq.read_table(folder / "decisions" / "00000002.parquet")
    assert [row["chosen"] for row in table.to_pylist()] == [decision["chosen"] for decision in first["decisions"]]


def test_what_a_loaded_model_holds_is_no_more_looked_through(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a server's own process; whoever only makes the application has their garbage collected as before."""
    frozen = threading.Event()
    monkeypatch.setattr("raystream.service.streams.gc.collect", lambda: 0)
    monkeypatch.setattr("raystream.service.streams.gc.freeze", frozen.set)
    server = Served(streams=["s"])
    server.client.app.state.deciders.load(wait=True)  # type: ignore[attr-defined]
    assert not frozen.is_set()
    with server.client:
        frozen.wait()


def test_a_disk_that_refuses_is_said_and_nothing_is_decided_twice(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """503, or an answer that a file of decisions has; asked again, each gets the answer it got, and each row is in the decisions once."""
    rows = rows_of(pool_table(40, 500))
    decide(served, "before", rows[:4])
    told: dict[int, Any] = {}

    def ask(at: int) -> None:
        answer = served.ask("POST", "/v1/streams/s/decide", json={"request_id": f"r{at}", "rows": rows[at : at + 4]})
        told[at] = answer.json().get("decisions", answer.status_code)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        some = [threading.Thread(target=ask, args=(at,)) for at in range(4, 40, 4)]
        for thread in some:
            thread.start()
        for thread in some:
            thread.join()
    for at in range(4, 40, 4):
        answer = decide(served, f"r{at}", rows[at : at + 4])
        assert [decision["rid"] for decision in answer["decisions"]] == [row["rid"] for row in rows[at : at + 4]]
        assert told[at] in (503, answer["decisions"])
    table = decisions()
    assert sorted(table.column("rid").to_pylist()[100:]) == [row["rid"] for row in rows]
    assert table.column("seen").to_pylist() == list(range(1, 141))


@pytest.mark.parametrize("fails", ["the disk", "the answer"])
@pytest.mark.parametrize("own", [True, False])
def test_an_error_that_nobody_foresaw_is_said_and_ends_no_thread(
    served: Served, own: bool, fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever the request is decided on; nothing waits for ever, and asked again it is answered."""
    monkeypatch.setattr("raystream.service.streams._QUICK_SECONDS", 60.0 if own else 0.0)
    table = pool_table(40, 1000)
    decide(served, "first", rows_of(table.slice(0, 1)))
    decider = served.client.app.state.deciders._deciders["s"]  # type: ignore[attr-defined]

    def broken(*given: object) -> None:
        raise ZeroDivisionError("nobody foresaw it")

    for number in range(1, 4):  # more often than there are threads that wait for the disk
        with monkeypatch.context() as patched:
            patched.setattr(*((Segment, "sync", broken) if fails == "the disk" else (Found, "answers", broken)))
            decide(served, f"r{number}", rows_of(table.slice(number, 1)), 503)
        assert (decider._waiting, decider._held) == (0, 0)
    assert "nobody foresaw it" in caplog.text
    assert all(thread.is_alive() for thread in decider._threads)
    for number in range(1, 40):
        assert decide(served, f"r{number}", rows_of(table.slice(number, 1)))["decisions"][0]["rid"] == table["rid"][number].as_py()
    assert decisions().column("rid").to_pylist()[100:] == table["rid"].to_pylist()


def test_a_store_that_does_not_answer_is_said_as_by_every_route(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(model: WarmModel, rows: object) -> None:
        raise StoreUnreachable("store: no route to it")

    monkeypatch.setattr(WarmModel, "read", gone)
    answer = served.ask("POST", "/v1/streams/s/decide", json={"request_id": "r", "rows": rows_of(pool_table(1))})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_score_of_the_users_own_may_differentiate(workplace: Path) -> None:
    (workplace / "user_scores.py").write_text(
        "import torch\n\n\n"
        "def slope(logits):\n"
        "    with torch.enable_grad():\n"
        "        z = logits.detach().requires_grad_()\n"
        "        (found,) = torch.autograd.grad(torch.logsumexp(z, 1).sum(), z)\n"
        "    return found.norm(dim=1)\n"
    )
    stream: dict[str, Any] = {"acquire__score": "user_scores:slope"}
    arrive("a.parquet", pool_table(100))
    look(make_stream(**stream))
    server = Served(streams=["s"], imports=["user_nets:net", "user_scores:slope"])
    server.client.app.state.deciders.load(wait=True)  # type: ignore[attr-defined]
    found = decide(server, "r", rows_of(pool_table(100, 200)))["decisions"]
    arrive("b.parquet", pool_table(100, 200))
    whole = make_stream(**stream, stream__name="t")
    look(whole)
    by_file = pq.read_table("runs/streams/t/decisions").to_pylist()
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in by_file[100:]], atol=1e-6)


def test_requests_are_answered_again_from_any_piece_of_what_is_open(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From pieces, and from rows that are in none yet; of several rows and of none, whose columns have the types of all others."""
    monkeypatch.setattr("raystream.loop.streams.requests.may_append", lambda store: True)
    monkeypatch.setattr("raystream.loop.streams.requests._PIECES", 3)
    log = StreamLog(open_store("runs"), "s")
    arrive("a.parquet", pool_table(1))
    look()
    rows = RequestedRows(make_stream(), log, "m", 4)
    sizes = [0, 2, 1, 3, 2, 0, 2, 1]
    requests = [
        StreamRequest(f"r{i}", f"{i}", pa.array([f"id{i}-{j}" for j in range(size)], pa.string()), np.linspace(0.1, 0.9, size) + i, None)
        for i, size in enumerate(sizes)
    ]
    first = []
    for one in requests:
        first.append(told(rows.decide([one]))[0])
        assert told(rows.decide([one])) == first[-1:]
    assert [len(one) for one in first] == sizes
    assert told(rows.decide(requests)) == first
    rows.fold()
    assert told(rows.decide(requests)) == first
    assert told(RequestedRows(make_stream(), log, "m", 4).decide(requests)) == first
    assert pq.read_table("runs/streams/s/decisions").num_rows == 1 + sum(sizes)
