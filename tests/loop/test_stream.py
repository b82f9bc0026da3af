"""A stream over files that arrive: their order, each row once, what changes in between, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pools import logits_and_embeddings, pool_table, vectors
from streams import NOW, arrive, decisions, make_stream, run

import raystream as rs
from raystream.acquisition import margin
from raystream.cluster.growing import Processes
from raystream.errors import ModelError, PoolError, QueryError, StoreError
from raystream.loop.streams import log as stream_log
from raystream.loop.streams import looks as stream_looks
from raystream.store.gc import collect
from raystream.store.life import SignOfLife
from raystream.store.opening import open_store

pytestmark = pytest.mark.usefixtures("workplace")


def ids(table: pa.Table) -> list[str]:
    return table.column("rid").to_pylist()


def test_each_row_is_decided_on_once_in_the_order_of_arrival() -> None:
    """By time, then path, then row; a later look goes on, and a look without news changes nothing."""
    late, first, second = pool_table(30, 0), pool_table(40, 100), pool_table(50, 200)
    arrive("a.parquet", late, NOW - 10)
    arrive("z/b.parquet", first, NOW - 30, rows_in_group=16)
    arrive("c.parquet", second, NOW - 30)
    result = run()
    assert ids(decisions()) == ids(second) + ids(first) + ids(late)
    assert (result.new_rows, result.seen) == (120, 120)
    again = run()
    assert (again.new_rows, again.seen, again.chosen) == (0, 120, result.chosen)
    more = pool_table(20, 300)
    arrive("0.parquet", more, NOW - 5)
    result = run()
    assert ids(decisions())[120:] == ids(more)
    assert (result.new_rows, result.seen, result.share) == (20, 140, result.chosen / 140)
    assert sum(decisions().column("chosen").to_pylist()) == result.chosen
    assert decisions().column("seen").to_pylist() == list(range(1, 141))
    assert decisions().column_names == ["rid", "score", "threshold", "chosen", "seen", "epoch"]


def test_scores_are_the_models_and_decisions_the_samplers() -> None:
    """Beside plain torch, and the sampler on the scores as they were written."""
    table = pool_table(200)
    arrive("a.parquet", table, rows_in_group=64)
    run(make_stream(acquire={"score": "margin"}, stream__strict=False))
    found = decisions()
    np.testing.assert_allclose(found.column("score"), margin(torch.log_softmax(logits_and_embeddings(table)[0], 1)), rtol=1e-5, atol=1e-6)
    assert found.column("chosen").to_pylist() == rs.StreamSampler(budget=0.2, strict=False).decide(found.column("score")).tolist()
    assert found.column("threshold").null_count == 200


def test_thresholds_are_written_where_the_manager_has_one() -> None:
    """Of `variable` before it moved."""
    arrive("a.parquet", pool_table(50))
    run(make_stream(acquire={"score": "least_confidence"}, stream__manager="variable"))
    found = decisions()
    used = rs.StreamSampler("variable", 0.2)
    expected = used.decide_all(found.column("score"))
    assert found.column("threshold").to_pylist() == [decision.threshold for decision in expected]
    assert found.column("chosen").to_pylist() == [decision.chosen for decision in expected]


def test_past_a_block_and_past_a_file_of_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit of 20,000 rows in files of 3,000 decisions: the same as in one, in as many files as that takes."""
    monkeypatch.setattr(stream_looks, "PART_ROWS", 3000)
    arrive("a.parquet", pool_table(20_000))
    arrive("b.parquet", pool_table(1000, 20_000), NOW - 50)
    run()
    found = decisions()
    assert [pq.read_metadata(path).num_rows for path in sorted(Path("runs/streams/s/decisions").iterdir())] == [3000] * 7
    assert ids(found) == ids(pool_table(21_000))
    assert found.column("chosen").to_pylist() == rs.StreamSampler(budget=0.2).decide(found.column("score")).tolist()


def test_files_that_are_too_young_wait() -> None:
    """Until two seconds after they were written: a call waits once, what is still too young is left to the next."""
    arrive("a.parquet", pool_table(10), NOW - 1)
    clock, waited = [NOW], []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        arrive("b.parquet", pool_table(10, 10), NOW + 0.5)
        clock[0] = NOW + seconds

    result = rs.run_stream(make_stream(), now=lambda: clock[0], wait=wait)
    assert waited == [2.0]
    assert (result.new_rows, result.wait) == (10, 1.5)
    assert run(now=NOW + 3).new_rows == 10


def test_an_older_name_or_an_older_time_that_appears_late_is_appended() -> None:
    """Decisions that were made stand."""
    arrive("b.parquet", pool_table(10), NOW - 20)
    run()
    before = decisions()
    arrive("a.parquet", pool_table(10, 10), NOW - 3600)
    run()
    assert decisions().slice(0, 10) == before
    assert ids(decisions())[10:] == ids(pool_table(10, 10))


def test_files_that_change_after_they_were_decided_on() -> None:
    """The decisions stand, and the call says so; new files are taken as ever."""
    arrive("a.parquet", pool_table(10))
    run()
    before = decisions()
    arrive("a.parquet", pool_table(30, 500), NOW - 10)
    arrive("b.parquet", pool_table(5, 10), NOW - 10)
    result = run()
    assert result.new_rows == 5
    assert decisions().slice(0, 10) == before
    assert any("a.parquet was changed after its rows were decided on" in warning for warning in result.warnings)
    Path("lake/a.parquet").unlink()
    assert run().warnings == ()


class Killed(BaseException):
    """As if the process were gone."""


def run_until_killed(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Be ended when so many files of decisions were written."""
    commit, count = stream_looks.Looks._commit, [0]

    def limited(self, *arguments):
        count[0] += 1
        if count[0] > after:
            raise Killed
        return commit(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(stream_looks.Looks, "_commit", limited)
        with pytest.raises(Killed):
            run()


def test_files_that_change_or_vanish_between_arrival_and_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of their rows is decided on: they are read as they are, or left out, and the call says so."""
    for name, start in (("a", 0), ("b", 100), ("c", 200)):
        arrive(f"{name}.parquet", pool_table(10, start))
    run_until_killed(monkeypatch, 0)
    arrive("b.parquet", pool_table(12, 500), NOW - 10)
    Path("lake/c.parquet").unlink()
    result = run()
    assert ids(decisions()) == ids(pool_table(10)) + ids(pool_table(12, 500))
    assert any("b.parquet was changed after it arrived and before it was decided on" in warning for warning in result.warnings)
    assert any("c.parquet has vanished" in warning and "its rows are left out" in warning for warning in result.warnings)


def test_a_file_that_changes_amid_its_decisions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of its rows were decided on can't be told; put back, the stream goes on."""
    monkeypatch.setattr(stream_looks, "PART_ROWS", 30)
    arrive("a.parquet", pool_table(100))
    run_until_killed(monkeypatch, 1)
    arrive("a.parquet", pool_table(101), NOW - 10)
    with pytest.raises(PoolError, match=r"a.parquet was changed after rows up to 29 of it were decided on"):
        run()
    arrive("a.parquet", pool_table(100))
    run()
    assert ids(decisions()) == ids(pool_table(100))


def test_rows_that_can_not_be_scored_are_decided_on_too() -> None:
    """Not chosen, without a score, not counted; the others are decided on as if they weren't there."""
    table = pool_table(400)
    arrive("a.parquet", table, rows_in_group=100)
    result = run(make_stream(model__source="user_nets:Nan", on_error="skip"))
    bad = np.stack(table.column("x").to_pylist())[:, 0] > 2.5
    found = decisions()
    assert bad.any()
    assert ids(found) == ids(table)
    assert np.asarray(found.column("score").is_null()).tolist() == bad.tolist()
    assert not np.asarray(found.column("chosen"))[bad].any()
    assert (result.new_rows, result.seen) == (400, 400 - bad.sum())
    assert found.column("seen").to_pylist() == np.cumsum(~bad).tolist()
    scores = np.asarray(found.column("score").drop_null())
    assert np.asarray(found.column("chosen"))[~bad].tolist() == rs.StreamSampler(budget=0.2).decide(scores).tolist()
    assert any("quarantined" in warning for warning in result.warnings)


def test_files_that_can_not_be_read() -> None:
    """Refused, until they are mended or gone; or left out, also where there is no other, and the stream goes on."""
    path = arrive("a.parquet", pool_table(10))
    path.write_bytes(path.read_bytes()[:200])
    os.utime(path, (NOW - 60, NOW - 60))
    with pytest.raises(PoolError, match=r"a.parquet can't be read as Parquet"):
        run()
    skipping = make_stream(on_error="skip")
    result = run(skipping)
    assert (result.new_rows, len(result.warnings)) == (0, 1)
    arrive("b.parquet", pool_table(10, 10))
    result = run(skipping)
    assert (result.new_rows, ids(decisions())) == (10, ids(pool_table(10, 10)))
    arrive("a.parquet", pool_table(10), NOW - 10)
    assert any("a.parquet was changed after its rows were decided on" in warning for warning in run().warnings)


def test_rows_that_repeat_a_chosen_one_are_not_chosen() -> None:
    """By their cosine, among the rows chosen within the last hundred; further away they may be."""
    rng = np.random.default_rng(0)
    table = pool_table(300)
    one = rng.standard_normal((1, 8)).astype(np.float32)
    wild = np.concatenate([np.repeat(one, 60, 0), rng.standard_normal((150, 8)), np.repeat(one, 90, 0)])
    table = table.set_column(1, "x", vectors(wild.astype(np.float32)))
    arrive("a.parquet", table)
    free = {"budget": 1.0, "strict": False, "name": "s"}
    run(make_stream(stream=free, select={"near_duplicates": 0.999}))
    chosen = np.asarray(decisions().column("chosen"))
    assert np.flatnonzero(chosen[:60]).tolist() == [0]
    assert chosen[60:210].all()
    assert np.flatnonzero(chosen[210:]).tolist() == [0]
    assert decisions().column("seen").to_pylist()[-1] == 300


def test_one_opinion_is_not_enough_for_a_score_that_compares_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of kind python that shows once it has scored; the unit is whole, and scoring it again would change nothing."""
    (tmp_path / "one_opinion.py").write_text("class One:\n    def predict(self, inputs):\n        return {'logits': inputs[0][:, :1]}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    arrive("a.parquet", pool_table(10))
    with pytest.raises(ModelError, match=r"variance compares several opinions of a row, but the model gave one in unit .*; use a com"):
        run(make_stream(model={"kind": "python", "source": "one_opinion:One", "task": "regression"}))


def test_labelled_rows_are_seen_and_not_chosen() -> None:
    """Whoever labelled them."""
    table = pool_table(50)
    arrive("a.parquet", table)
    pq.write_table(table.select(["rid"]).slice(0, 20), "labels.parquet")
    run(make_stream(stream={"budget": 1.0, "strict": False, "name": "s"}, pool__labelled=["labels.parquet"]))
    assert decisions().column("chosen").to_pylist() == [False] * 20 + [True] * 30


def test_a_model_that_changed_begins_an_epoch() -> None:
    """Said in the decisions; the budget is that of the whole stream, scores are compared within an epoch alone."""
    arrive("a.parquet", pool_table(100))
    run()
    arrive("b.parquet", pool_table(100, 100))
    changed = make_stream(model={"source": "user_nets:net", "args": {"hidden": 8}, "batch_size": 512})
    result = run(changed)
    assert decisions().column("epoch").to_pylist() == [1] * 100 + [2] * 100
    assert decisions().column("seen").to_pylist() == list(range(1, 201))
    assert any("epoch 2 begins after 100 rows" in warning for warning in result.warnings)
    assert (result.epoch, result.chosen <= 40) == (2, True)
    used = rs.StreamSampler(budget=0.2)
    scores = np.asarray(decisions().column("score"))
    first = used.decide(scores[:100])
    used.forget_scores()
    assert decisions().column("chosen").to_pylist() == [*first, *used.decide(scores[100:])]


def test_workers_are_kept_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are started once for the looks of a call; anew for another model, and where the files are gone that they began with."""
    started, sleeps = [], iter(range(4))
    begin = Processes.workers
    monkeypatch.setattr(Processes, "workers", lambda self, job, *amount: started.append(job.fingerprint) or begin(self, job, *amount))

    def wait(seconds: float) -> None:
        look = next(sleeps)
        if look == 3:
            raise Killed
        sys.path.append(f"/nowhere/{look}")  # as Ray does
        if look == 2:
            Path("lake/0.parquet").unlink()
        arrive(f"{look + 1}.parquet", pool_table(10, 10 * look + 10))

    monkeypatch.setattr(sys, "path", list(sys.path))
    arrive("0.parquet", pool_table(10))
    with pytest.raises(Killed):
        run(make_stream(stream__follow=1), wait=wait)
    assert len(decisions()) == 40
    assert len(started) == 2


def test_empty_folders_and_files_without_rows_are_no_error() -> None:
    """There is nothing yet; a folder that isn't there is a mistake."""
    with pytest.raises(PoolError, match="lake does not exist"):
        run()
    Path("lake").mkdir()
    assert run().new_rows == 0
    arrive("a.parquet", pool_table(10).slice(0, 0))
    assert run().new_rows == 0
    arrive("b.parquet", pool_table(10))
    assert run().new_rows == 10
    result = run(make_stream(stream__name="t", pool__filters=[["minutes", ">", 100.0]]))
    assert (result.new_rows, result.seen, result.share) == (0, 0, 0.0)


def test_hive_folders_are_columns_as_in_a_query(workplace: Path) -> None:
    """Filters go by them, and a new folder is new rows."""
    stream = make_stream(pool={"uri": "pool", "id": "rid", "inputs": ["x"], "filters": [["year", ">=", 2022]]})
    assert run(stream, NOW + 10**9).new_rows == 600
    assert sorted(ids(decisions())) == ids(pool_table(600, 600))


def test_what_may_not_change_in_the_middle() -> None:
    """One sentence says what differs; where the command runs and how often it looks may change."""
    arrive("a.parquet", pool_table(10))
    run()
    run(make_stream(stream={"budget": 0.2, "name": "s", "follow": 0}, cluster={"address": "in_process", "workers": 2}))
    with pytest.raises(QueryError, match=r"stream s was begun with another spec; it differs in stream.budget \(0.2 then, 0.3 now\)"):
        run(make_stream(stream__budget=0.3))


def test_a_mistake_may_be_mended_before_anything_is_decided() -> None:
    """A wrong folder and a wrong column leave nothing behind."""
    arrive("other/a.parquet", pool_table(10))
    arrive("right/b.parquet", pool_table(10, 10))
    with pytest.raises(PoolError):
        run(make_stream(pool__uri="lake/other", pool__id="nope"))
    result = run(make_stream(pool__uri="lake/right"))
    assert (ids(decisions()), result.warnings) == (ids(pool_table(10, 10)), ())


def test_files_of_the_stream_that_are_damaged() -> None:
    """One sentence names the file; nothing is decided."""
    arrive("a.parquet", pool_table(10))
    run()
    for folder in ("states", "arrivals", "decisions"):
        path = next(Path("runs/streams/s", folder).iterdir())
        data = path.read_bytes()
        path.write_bytes(data[:50])
        with pytest.raises(StoreError, match=rf"{path.name} is damaged"):
            run()
        path.write_bytes(data)
    state = next(Path("runs/streams/s/states").iterdir()).rename("away")
    with pytest.raises(StoreError, match=r"is damaged \(it is missing\); restore it"):
        run()
    assert state.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stream": {"budget": 0.1, "manger": "split"}}, "stream.manger is not a key of the query; did you mean 'manager'?"),
        ({"stream": {"budget": 0.1, "manager": "quantiles"}}, "did you mean 'quantile'?"),
        ({"stream": {}}, "stream.budget is missing"),
        ({"stream": {"budget": 0}}, "stream.budget is 0, expected a number above 0"),
        ({"stream": {"budget": True}}, "stream.budget is True"),
        ({"stream": {"budget": 0.1, "follow": -1}}, "stream.follow is -1"),
        ({"stream__manager": "split"}, "stream.manager split compares least_confidence"),
        (
            {"stream__manager": "fixed", "acquire": {"score": "least_confidence", "class_weights": {0: 2.0}}},
            "which acquire.class_weights would change",
        ),
        ({"acquire": {"score": "epig", "mc_samples": 4}}, "acquire asks for epig"),
        ({"pool__id": "seen"}, "pool.id names column seen, a name that decisions use"),
        ({"select": {"near_duplicate": 0.9}}, "select.near_duplicate is not a key of the query; did you mean 'near_duplicates'?"),
    ],
)
def test_specs_that_are_wrong(changes: dict, told: str) -> None:
    """Refused before anything is looked at."""
    with pytest.raises(QueryError) as raised:
        make_stream(**changes)
    assert told in str(raised.value)


def test_arrivals_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a call doesn't read a file a look; lost or damaged, they are read one by one."""
    monkeypatch.setattr(stream_log, "PACKED_LOOKS", 3)
    for number in range(8):
        arrive(f"{number}.parquet", pool_table(5, 5 * number))
        assert run().new_rows == 5
    packs = Path("runs/streams/s/packs")
    assert [path.name for path in packs.iterdir()] == ["00000006.parquet"]
    log = stream_log.StreamLog(open_store("runs"), "s")
    whole = log.arrivals()
    assert [arrival.look for arrival in whole] == list(range(1, 9))
    Path("runs/streams/s/arrivals/00000002.parquet").rename("away")
    assert log.arrivals() == whole
    Path("away").rename("runs/streams/s/arrivals/00000002.parquet")
    next(packs.iterdir()).write_bytes(b"PAR1")
    assert log.arrivals() == whole
    assert run().new_rows == 0


def test_gc_leaves_streams_alone() -> None:
    """Their files stay, and while one runs the units that it is about to decide on; others that no query needs go."""
    arrive("a.parquet", pool_table(50))
    run()
    store = open_store("runs")
    with SignOfLife() as life:
        life.begin(store, "streams/s")
        life.needs([path.name for path in Path("runs/units").glob("*/*")])
        assert collect(store, older_than=-60, delete=True).units.count == 0
    before = {path: path.read_bytes() for path in Path("runs/streams").rglob("*") if path.is_file()}
    assert collect(store, older_than=-60, delete=True).units.count == 1
    assert {path: path.read_bytes() for path in Path("runs/streams").rglob("*") if path.is_file()} == before
    arrive("b.parquet", pool_table(50, 50))
    assert run().seen == 100


def test_a_version_of_a_table_is_no_stream() -> None:
    """No row is ever added to it."""
    with pytest.raises(QueryError, match="names one version of a table"):
        run(make_stream(pool__uri="delta+lake?version=3"))


def test_the_command(cli) -> None:
    """The file's name is the stream's; a query file with a section `stream` serves both commands."""
    arrive("a.parquet", pool_table(100), NOW - 10**9)
    spec = make_stream(select={"budget": 5, "near_duplicates": 0.99}).to_yaml().replace("  name: s\n", "")
    Path("faces.yaml").write_text(spec)
    code, out, err = cli("stream", "faces.yaml", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found) == ["stream", "new_rows", "seen", "chosen", "share", "decisions", "drift"]
    assert (found["stream"], found["new_rows"]) == ("faces", 100)
    assert pq.read_table(found["decisions"]).num_rows == 100
    assert "Look 1: 1 file, 100 rows" in err
    code, out, err = cli("stream", "faces.yaml", "--set", "stream.budget=0.3")
    assert (code, "budget (0.2 then, 0.3 now)" in err) == (2, True)
    code, out, err = cli("plan", "faces.yaml", "--json")
    assert code == 0, err
    code, out, err = cli("stream", "faces.yaml")
    assert "100 rows since the beginning" in out
    Path("query.yaml").write_text("pool: {uri: lake}\n")
    assert cli("stream", "query.yaml")[0] == 2
