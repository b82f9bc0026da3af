"""Loops from their first batch to their end: what they ask, what they commit, what a call after a crash makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from campaigns import DyingStore, Killed, answer, asked, blobs, history, make_loop, simulated, write_pool
from pools import vectors

from raystream import ActiveLearningLoop
from raystream.errors import LabelsError, PoolError, QueryError
from raystream.loop.ledger import RoundLabels
from raystream.store.opening import open_store

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def truth(tmp_path: Path) -> dict[str, int]:
    """The classes of the pool's rows by their ids."""
    return write_pool(tmp_path)


def test_a_loop_waits_for_labels_and_goes_on(tmp_path: Path, truth: dict[str, int]) -> None:
    """Each call moves as far as the labels allow, asks for no row twice, and says what is missing."""
    loop = make_loop(tmp_path)
    seen: list[str] = []
    for number in (1, 2, 3):
        state = ActiveLearningLoop(loop).step()
        batch = asked(state)
        assert (state.state, state.round, state.missing, len(batch)) == ("waiting", number, 6, 6)
        assert not set(batch) & set(seen)
        seen += batch
        answer(tmp_path, f"{number}.csv", [(id_, truth[id_]) for id_ in batch[:4]])
        half = ActiveLearningLoop(loop).step()
        assert (half.state, half.round, half.missing, half.labels) == ("waiting", number, 2, len(seen) - 2)
        answer(tmp_path, f"{number}.csv", [(id_, truth[id_]) for id_ in batch])
    state = ActiveLearningLoop(loop).step()
    assert (state.state, state.missing, state.labels) == ("finished", 0, 18)
    summary = state.summary()
    assert [row["labels"] for row in summary["rounds"]] == [6, 12, 18]
    assert [row["query"] for row in summary["rounds"]] == ["small-r1", "small-r2", "small-r3"]
    assert [row["strategy"] for row in summary["rounds"]] == ["typiclust", "k_means", "k_means"]
    assert set(summary["rounds"][0]["metrics"]) == {"accuracy"}
    assert pq.read_table(state.history).column("round").to_pylist() == [1, 2, 3]
    again = ActiveLearningLoop(loop).step()
    assert again.summary() == summary


@pytest.mark.slow
def test_a_simulation_runs_to_its_end(tmp_path: Path, truth: dict[str, int]) -> None:
    """With `{column: label}` nobody is waited for; labels come from the pool, and the same seed gives the same history."""
    state = ActiveLearningLoop(simulated(tmp_path)).step()
    assert state.state == "finished"
    first = history(simulated(tmp_path))
    again = simulated(tmp_path, store__uri=str(tmp_path / "other"))
    ActiveLearningLoop(again).step()
    assert history(again) == first
    other = simulated(tmp_path, store__uri=str(tmp_path / "third"), seed=1)
    ActiveLearningLoop(other).step()
    assert history(other) != first


def writes(tmp_path: Path) -> int:
    """How many times an undisturbed loop of two rounds writes."""
    store = DyingStore(str(tmp_path / "counted"), 10**9, after=False)
    open_store(store.uri)
    ActiveLearningLoop(short(tmp_path, "counted"), store=store).step()
    return 10**9 - store.left


def short(tmp_path: Path, store: str) -> Any:
    return simulated(tmp_path, store__uri=str(tmp_path / store), loop__rounds=2, loop__control=0.34, loop__metrics=["accuracy", "nll"])


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_loop_that_is_killed_at_any_write_has_the_same_history(tmp_path: Path, truth: dict[str, int], after: bool) -> None:
    """Killed before or just after each of its own writes, and run again: the history, batches and labels of the undisturbed one."""
    count = writes(tmp_path)
    expected = history(short(tmp_path, "counted"))
    assert len(expected) == 2
    for at in range(1, count + 1):
        name = f"killed-{at}"
        loop = short(tmp_path, name)
        store = DyingStore(loop.store.uri, at, after=after)
        open_store(store.uri)
        with pytest.raises(Killed):
            ActiveLearningLoop(loop, store=store).step()
        assert ActiveLearningLoop(loop).step().state == "finished"
        assert history(loop) == expected, at
        asked_for = [asked(ActiveLearningLoop(loop)._ledger.batch(ActiveLearningLoop(loop).journal.asked(k))) for k in (1, 2)]
        assert len(set(asked_for[0]) | set(asked_for[1])) == 12


def test_control_rows_are_reserved_labelled_and_never_trained_on(tmp_path: Path, truth: dict[str, int]) -> None:
    """They are last in their batch, `why` says so, the model before never chose them, and training doesn't see them."""
    loop = simulated(tmp_path, loop__control=0.34, loop__rounds=3)
    state = ActiveLearningLoop(loop).step()
    journal = ActiveLearningLoop(loop).journal
    reserved = journal.reserved(1)
    assert reserved is not None
    control: list[str] = []
    for number in (1, 2, 3):
        table = journal.read_table(number, journal.asked(number).batch)  # type: ignore[union-attr]
        why = table.column("why").to_pylist()
        assert why[-2:] == ["control", "control"]
        assert "control" not in why[:-2]
        assert table.column("rank").to_pylist() == table.column("turn").to_pylist() == list(range(6))
        assert table.column("probability").to_pylist()[-2:] == [None, None]
        control += asked(table)[-2:]
    assert control == reserved.control[:6]
    labels = RoundLabels.from_table(journal.read_table(3, journal.closed(3).labels))  # type: ignore[union-attr]
    trained, _ = labels.labelled("train")
    assert len(trained) == 12
    assert not set(trained) & set(reserved.control)
    last = state.rows[-1]
    assert 0 <= last["control_low"] <= last["control_accuracy"] <= last["control_high"] <= 1
    assert last["labels"] == 18


@pytest.mark.slow
def test_more_rounds_reserve_further_control_rows(tmp_path: Path, truth: dict[str, int]) -> None:
    """Rounds may be added in the middle; the control rows that they need are drawn among rows never chosen, and that is said."""
    ActiveLearningLoop(simulated(tmp_path, loop__control=0.34, loop__rounds=1)).step()
    loop = simulated(tmp_path, loop__control=0.34, loop__rounds=3)
    state = ActiveLearningLoop(loop).step()
    assert state.state == "finished"
    assert [row["labels"] for row in state.rows] == [6, 12, 18]
    asked_then = ActiveLearningLoop(loop).journal.asked(2)
    assert asked_then is not None
    assert any("4 further control rows reserved in round 2" in warning for warning in asked_then.warnings)
    ids = [id_ for k in (1, 2, 3) for id_ in asked(pq.read_table(tmp_path / f"runs/loops/small/rounds/000{k}/selection.parquet"))]
    assert len(set(ids)) == 18


def test_skipped_and_rejected_rows_close_a_round_and_do_not_come_back(tmp_path: Path, truth: dict[str, int]) -> None:
    """Drafts don't count; deleted rows do, and are not trained on."""
    loop = make_loop(tmp_path, loop__rounds=2)
    batch = asked(ActiveLearningLoop(loop).step())
    rows = [(id_, truth[id_], "labelled") for id_ in batch[:3]]
    rows += [(batch[3], "", "skipped"), (batch[4], "", "rejected"), (batch[5], truth[batch[5]], "draft")]
    answer(tmp_path, "1.csv", rows, ("rid", "y", "state"))
    assert ActiveLearningLoop(loop).step().missing == 1
    answer(tmp_path, "1.csv", [*rows[:-1], (batch[5], truth[batch[5]], "deleted")], ("rid", "y", "state"))
    state = ActiveLearningLoop(loop).step()
    assert (state.round, state.rows[0]["labels"]) == (2, 3)
    assert not set(asked(state)) & set(batch)


def test_the_newest_answer_wins_and_ties_are_conflicts(tmp_path: Path, truth: dict[str, int]) -> None:
    """The same labels twice change nothing; two that differ at one time leave their row unlabelled until a newer one."""
    loop = make_loop(tmp_path, loop__rounds=2)
    batch = asked(ActiveLearningLoop(loop).step())
    columns = ("rid", "y", "labelled_at")
    rows = [(id_, truth[id_], "2026-01-01T10:00:00Z") for id_ in batch]
    answer(tmp_path, "1.csv", rows, columns)
    answer(tmp_path, "2.csv", [*rows, (batch[0], (truth[batch[0]] + 1) % 3, "2026-01-01T11:00:00+01:00")], columns)
    state = ActiveLearningLoop(loop).step()
    assert (state.state, state.missing) == ("waiting", 1)
    assert any("1 row has conflicting labels" in warning and batch[0] in warning for warning in state.warnings)
    answer(tmp_path, "3.csv", [(batch[0], truth[batch[0]], "2026-01-01T10:00:01Z")], columns)
    assert ActiveLearningLoop(loop).step().round == 2
    closed = ActiveLearningLoop(loop).journal.closed(1)
    assert closed is not None
    assert (closed.counts["labelled"], closed.counts["repeated"], closed.counts["conflicts"]) == (6, 6, 0)


def test_labels_edited_after_a_round_closed_enter_the_next(tmp_path: Path, truth: dict[str, int]) -> None:
    """A closed round trains on its snapshot, whatever is edited before it is trained; the next round sees the edit."""
    loop = make_loop(tmp_path, loop__rounds=2)
    batch = asked(ActiveLearningLoop(loop).step())
    answer(tmp_path, "1.csv", [(id_, truth[id_]) for id_ in batch])
    second = asked(ActiveLearningLoop(loop).step())
    journal = ActiveLearningLoop(loop).journal
    before = journal.closed(1)
    answer(tmp_path, "1.csv", [(id_, (truth[id_] + (id_ == batch[0])) % 3) for id_ in batch])
    answer(tmp_path, "2.csv", [(id_, truth[id_]) for id_ in second])
    ActiveLearningLoop(loop).step()
    assert journal.closed(1) == before
    label = {k: dict(zip(*labels_of(journal, k).labelled("train"), strict=True))[batch[0]] for k in (1, 2)}
    assert label == {1: truth[batch[0]], 2: (truth[batch[0]] + 1) % 3}


def labels_of(journal: Any, round_: int) -> RoundLabels:
    return RoundLabels.from_table(journal.read_table(round_, journal.closed(round_).labels))


def test_rows_labelled_by_others_count_and_unknown_ones_are_counted(tmp_path: Path, truth: dict[str, int]) -> None:
    """Labels of rows never asked are used; those of ids that the pool doesn't hold, and of no class, are left alone and counted."""
    loop = make_loop(tmp_path, loop__rounds=2, model__classes=["0", "1", "2"])
    batch = asked(ActiveLearningLoop(loop).step())
    others = [id_ for id_ in truth if id_ not in batch][:3]
    rows = [(id_, truth[id_]) for id_ in [*batch, *others]] + [("nobody", 1), (sorted(set(truth) - set(batch) - set(others))[0], 7)]
    answer(tmp_path, "1.csv", rows)
    state = ActiveLearningLoop(loop).step()
    assert state.rows[0]["labels"] == 9
    told = " ".join(state.warnings)
    assert "3 rows are labelled that nobody asked for" in told
    assert "1 row is labelled whose ids the pool doesn't hold" in told
    assert "1 row is labelled as what is no label" in told
    assert "first: 7 of" in told
    assert "expected one of 0, 1, 2" in told
    assert not set(asked(state)) & {*batch, *others}


def test_labels_that_were_there_before_are_learnt_from_first(tmp_path: Path, truth: dict[str, int]) -> None:
    """They are round 0; the first batch is then chosen by the loop's own strategy, and counts as round 1."""
    answer(tmp_path, "0.csv", [(id_, truth[id_]) for id_ in list(truth)[:10]])
    state = ActiveLearningLoop(make_loop(tmp_path, loop__rounds=1)).step()
    assert (state.round, state.missing) == (1, 6)
    assert [(row["round"], row["strategy"], row["labels"]) for row in state.rows] == [(0, "given", 10)]
    batch = asked(state)
    answer(tmp_path, "1.csv", [(id_, truth[id_]) for id_ in batch])
    state = ActiveLearningLoop(make_loop(tmp_path, loop__rounds=1)).step()
    assert (state.state, [row["strategy"] for row in state.rows]) == ("finished", ["given", "k_means"])


def test_one_class_alone_goes_on_by_diversity(tmp_path: Path, truth: dict[str, int]) -> None:
    """Nothing can be learnt of one class: the next batch is chosen as the first was, and that is said."""
    loop = make_loop(tmp_path, loop__rounds=2)
    batch = asked(ActiveLearningLoop(loop).step())
    answer(tmp_path, "1.csv", [(id_, 1) for id_ in batch])
    state = ActiveLearningLoop(loop).step()
    assert any("are of class 1, so that there is no model" in warning for warning in state.warnings)
    assert state.rows[0]["accuracy"] is None
    second = asked(state)
    assert len(second) == 6
    assert not set(second) & set(batch)
    answer(tmp_path, "2.csv", [(id_, truth[id_]) for id_ in second])
    assert ActiveLearningLoop(loop).step().rows[1]["accuracy"] is not None


def test_a_share_of_the_batch_may_close_a_round(tmp_path: Path, truth: dict[str, int]) -> None:
    """`complete: .5` of 6 is 3; rows left open are not asked for again."""
    loop = make_loop(tmp_path, loop__rounds=2, loop__complete=0.5)
    batch = asked(ActiveLearningLoop(loop).step())
    answer(tmp_path, "1.csv", [(id_, truth[id_]) for id_ in batch[:3]])
    state = ActiveLearningLoop(loop).step()
    assert (state.round, state.rows[0]["labels"], state.missing) == (2, 3, 3)
    assert not set(asked(state)) & set(batch)


def test_an_exhausted_pool_ends_the_loop(tmp_path: Path) -> None:
    """A last batch of what is left, then there is nothing to ask for."""
    write_pool(tmp_path, 15)
    state = ActiveLearningLoop(simulated(tmp_path, loop__rounds=9)).step()
    assert (state.state, state.labels, [row["labels"] for row in state.rows]) == ("finished", 15, [6, 12, 15])
    assert "no row of the pool is left" in state.reason


def test_a_budget_of_labels_cuts_the_last_batch(tmp_path: Path, truth: dict[str, int]) -> None:
    """`budget` counts all labels, control rows included."""
    state = ActiveLearningLoop(simulated(tmp_path, loop__rounds=None, loop__budget=15, loop__control=0.34)).step()
    assert [row["labels"] for row in state.rows] == [6, 12, 15]
    assert state.reason == "the budget of 15 labels is used up after round 3"


def test_a_spec_may_be_mended_until_something_is_asked(tmp_path: Path) -> None:
    """A first spec with a mistake doesn't stay under its name: rows are set apart anew, as if it had never been there."""
    write_pool(tmp_path)
    with pytest.raises(PoolError, match="column xx is missing"):
        ActiveLearningLoop(make_loop(tmp_path, pool__inputs=["xx"], seed=5)).step()
    mended = make_loop(tmp_path, loop__control=0.34)
    state = ActiveLearningLoop(mended).step()
    assert (state.state, state.round) == ("waiting", 1)
    fresh = ActiveLearningLoop(make_loop(tmp_path, loop__control=0.34, loop__name="fresh")).step()
    assert pq.read_table(state.batch).column("rid").equals(pq.read_table(fresh.batch).column("rid"))


def test_what_may_not_change_in_the_middle_is_named(tmp_path: Path, truth: dict[str, int]) -> None:
    """Rounds, budget, stop and wait may change, anything else is refused with what differs."""
    ActiveLearningLoop(simulated(tmp_path, loop__rounds=1)).step()
    with pytest.raises(QueryError, match=r"it differs in select.budget \(6 then, 7 now\)"):
        ActiveLearningLoop(simulated(tmp_path, select__budget=7)).step()
    state = ActiveLearningLoop(simulated(tmp_path, loop__rounds=2, loop__wait=0, loop__stop={"rules": ["kappa"]})).step()
    assert len(state.rows) == 2


def test_rules_stop_a_loop_or_only_say_so(tmp_path: Path, truth: dict[str, int]) -> None:
    """A rule that holds ends the loop, `advise` says what it would do; each rule has its column either way."""
    stop = {"rules": [{"target": {"value": 0.3}}]}
    state = ActiveLearningLoop(simulated(tmp_path, loop__stop=stop)).step()
    assert (state.state, len(state.rows)) == ("stopped", 1)
    assert state.reason.startswith("target after round 1")
    said = simulated(tmp_path, store__uri=str(tmp_path / "said"), loop__stop=stop | {"advise": True})
    state = ActiveLearningLoop(said).step()
    assert (state.state, len(state.rows)) == ("finished", 3)
    assert "target would stop after round 3" in state.warnings
    columns = {name for name in state.rows[0] if name.startswith("would_stop_")}
    assert {"would_stop_kappa", "would_stop_target", "would_stop_plateau", "would_stop_rounds"} <= columns


def test_the_parts_drive_a_loop_from_a_program(tmp_path: Path, truth: dict[str, int]) -> None:
    """The seed's names: first batch, train, evaluate, next batch; each repeats what it did when it is called again."""
    loop = ActiveLearningLoop(make_loop(tmp_path, loop__rounds=2))
    first = loop.select_initial_batch()
    assert loop.select_initial_batch().equals(first)
    with pytest.raises(LabelsError, match="misses 6 labels"):
        loop.train()
    with pytest.raises(QueryError, match="call train and evaluate first"):
        loop.query_next_batch()
    answer(tmp_path, "1.csv", [(id_, truth[id_]) for id_ in asked(first)])
    fitted = loop.train()
    assert fitted is not None
    assert set(fitted.classes or ()) <= {0, 1, 2}
    assert 0 <= loop.evaluate()["accuracy"] <= 1
    second = loop.query_next_batch()
    assert not set(asked(second)) & set(asked(first))
    assert loop.history.num_rows == 1
    # another process goes on from the records
    other = ActiveLearningLoop(make_loop(tmp_path, loop__rounds=2))
    assert (other.step().missing, other.history.num_rows) == (6, 1)


def test_waiting_takes_labels_that_appear_meanwhile(tmp_path: Path, truth: dict[str, int]) -> None:
    """With `wait` the call looks again and again; a wait that brings labels is one call from batch to batch."""
    loop = make_loop(tmp_path, loop__rounds=1, loop__wait=3600)
    waits: list[float] = []

    def label(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            batch = asked(pq.read_table(tmp_path / "runs/loops/small/rounds/0001/selection.parquet"))
            answer(tmp_path, "1.csv", [(id_, truth[id_]) for id_ in batch])

    state = ActiveLearningLoop(loop, wait=label).step()
    assert (state.state, waits) == ("finished", [1.0, 1.0])


def test_a_bad_label_file_is_one_sentence(tmp_path: Path, truth: dict[str, int]) -> None:
    """A missing column, a null id, an unknown state, a time that is none."""
    loop = make_loop(tmp_path)
    id_ = asked(ActiveLearningLoop(loop).step())[0]
    for columns, row, says in (
        (("rid", "label"), (id_, 1), "column y is missing in .*1.csv; "),
        (("rid", "y", "state"), (id_, 1, "done"), "column state of .*1.csv is 'done'"),
        (("rid", "y", "labelled_at"), (id_, 1, "soon"), "column labelled_at of .*1.csv holds 'soon'"),
        (("id", "y"), (id_, 1), "column rid is missing in .*1.csv; did you mean 'id'"),
    ):
        answer(tmp_path, "1.csv", [row], columns)
        with pytest.raises(LabelsError, match=says):
            ActiveLearningLoop(loop).step()


def test_a_share_of_a_simulated_pool_is_held_out(tmp_path: Path, truth: dict[str, int]) -> None:
    """`evaluate: .25` draws rows of each class, which are neither chosen nor trained on."""
    loop = simulated(tmp_path, loop__evaluate=0.25, loop__rounds=2)
    state = ActiveLearningLoop(loop).step()
    held = set(ActiveLearningLoop(loop).journal.reserved(1).evaluate)  # type: ignore[union-attr]
    counts = np.bincount([truth[id_] for id_ in held]), np.bincount(list(truth.values()))
    assert np.abs(counts[0] - 0.25 * counts[1]).max() <= 0.5
    ids = {id_ for k in (1, 2) for id_ in asked(pq.read_table(tmp_path / f"runs/loops/small/rounds/000{k}/selection.parquet"))}
    assert not held & ids
    assert state.rows[-1]["accuracy"] is not None


def test_rows_without_an_id_column_are_called_by_their_place(tmp_path: Path, truth: dict[str, int]) -> None:
    """Labels name them `path#row` in a column `id`; filters say which may be chosen."""
    loop = make_loop(tmp_path, pool__id=None, pool__filters=[["y", "!=", 1]], loop__rounds=2, loop__control=0.34, loop__evaluate=None)
    classes = list(truth.values())
    for number in (1, 2):
        state = ActiveLearningLoop(loop).step()
        table = pq.read_table(state.batch)
        ids = table.column("id").to_pylist()
        assert len(ids) == 6
        found = [classes[int(id_.rpartition("#")[2]) + (60 if "b.parquet" in id_ else 0)] for id_ in ids]
        assert 1 not in found
        answer(tmp_path, f"{number}.csv", list(zip(ids, found, strict=True)), ("id", "y"))
    assert ActiveLearningLoop(loop).step().state == "finished"


def test_costs_of_the_labels_are_summed(tmp_path: Path) -> None:
    """With `select.cost` the history says what all labels cost; the batch keeps to its own budget."""
    minutes = [1.0 + i % 3 for i in range(120)]
    write_pool(tmp_path, minutes=minutes)
    loop = simulated(tmp_path, select={"budget": 6, "cost": {"column": "minutes", "budget": 9.0}}, loop__rounds=2)
    state = ActiveLearningLoop(loop).step()
    ids = [id_ for k in (1, 2) for id_ in asked(pq.read_table(tmp_path / f"runs/loops/small/rounds/000{k}/selection.parquet"))]
    assert state.rows[-1]["cost"] == sum(minutes[int(id_[1:])] for id_ in ids)
    assert state.rows[0]["cost"] <= 9.0
    assert state.summary()["rounds"][1]["cost"] == state.rows[-1]["cost"]


def test_evaluation_rows_of_the_pool_are_never_chosen_or_trained_on(tmp_path: Path, truth: dict[str, int]) -> None:
    """Ids of the pool in `evaluate`, with labels and no inputs: judged by the pool's own inputs, and labels of theirs are counted."""
    ids = list(truth)[:40]
    pq.write_table(pa.table({"rid": ids, "y": [truth[id_] for id_ in ids]}), tmp_path / "held.parquet")
    loop = make_loop(tmp_path, loop__evaluate=str(tmp_path / "held.parquet"), loop__rounds=1)
    batch = asked(ActiveLearningLoop(loop).step())
    assert not set(batch) & set(ids)
    answer(tmp_path, "1.csv", [(id_, truth[id_]) for id_ in [*batch, *ids[:5]]])
    state = ActiveLearningLoop(loop).step()
    assert (state.state, state.rows[-1]["labels"]) == ("finished", 6)
    assert any("5 rows are labelled that loop.evaluate holds, too" in warning for warning in state.warnings)


def test_the_command_prints_one_object(tmp_path: Path, truth: dict[str, int], cli: Any) -> None:
    """`raystream loop SPEC --json`: the contract's keys, exit 0 while waiting, too; the file's stem is the loop's name."""
    loop = make_loop(tmp_path, loop__rounds=1)
    (tmp_path / "My-Loop.yaml").write_text(loop.to_yaml().replace("name: small", "rounds: 1").replace("  rounds: 1\n", "", 1))
    code, out, _ = cli("loop", tmp_path / "My-Loop.yaml", "--json")
    found = json.loads(out)
    assert (code, found["loop"], found["state"], found["missing"], found["rounds"]) == (0, "my-loop", "waiting", 6, [])
    wanted = {"loop", "state", "reason", "round", "labels", "missing", "batch", "history", "report", "rounds", "warnings"}
    assert wanted <= set(found)
    assert "What was asked for" in Path(found["report"]).read_text()
    answer(tmp_path, "1.csv", [(id_, truth[id_]) for id_ in asked(pq.read_table(found["batch"]))])
    code, out, _ = cli("loop", tmp_path / "My-Loop.yaml")
    assert code == 0
    assert "loop my-loop: finished" in out
    code, out, err = cli("loop", tmp_path / "My-Loop.yaml", "--set", "select.budget=9")
    assert (code, out) == (2, "")
    assert "select.budget" in err


def test_control_rows_are_planned_batch_by_batch(tmp_path: Path) -> None:
    """A share that is rounded up in each batch needs more of them than the share of all labels."""
    loop = simulated(tmp_path, select={"budget": 10}, loop__rounds=None, loop__budget=35, loop__control=0.15, loop__start={"budget": 4})
    assert loop.planned_batches == [4, 10, 10, 10, 1]
    assert simulated(tmp_path, loop__rounds=2).planned_batches == [6, 6]
    write_pool(tmp_path)
    state = ActiveLearningLoop(loop).step()
    assert state.labels == 35
    journal = ActiveLearningLoop(loop).journal
    assert journal.reserved(2) is None
    assert [journal.asked(k).controls for k in range(1, 6)] == [1, 2, 2, 2, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [pa.int32(), pa.binary()])
def test_ids_of_any_type(tmp_path: Path, kind: pa.DataType) -> None:
    """Integers are matched by value, and those beyond the pool's type are no rows of it; bytes are hexadecimal in text."""
    x, y = blobs()
    numbers = pa.array(range(100, 220), pa.int32())
    ids = numbers if pa.types.is_integer(kind) else pa.array([str(n.as_py()).encode() for n in numbers], kind)
    (tmp_path / "pool").mkdir()
    pq.write_table(pa.table({"rid": ids, "x": vectors(x)}), tmp_path / "pool" / "a.parquet", row_group_size=40)
    truth = dict(zip(ids.to_pylist(), y.tolist(), strict=True))
    loop = make_loop(tmp_path, loop__evaluate=None, loop__control=0.34, loop__rounds=2)
    for number in (1, 2):
        batch = asked(ActiveLearningLoop(loop).step())
        rows = [(id_.hex() if isinstance(id_, bytes) else id_, truth[id_]) for id_ in batch]
        answer(tmp_path, f"{number}.csv", [*rows, (2**40, 1)] if pa.types.is_integer(kind) else rows)
    state = ActiveLearningLoop(loop).step()
    assert (state.state, state.labels) == ("finished", 12)
    assert any("2 answers left alone" in warning for warning in state.warnings) == pa.types.is_integer(kind)
