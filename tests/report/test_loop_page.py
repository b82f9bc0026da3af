"""The page of a loop: what it shows of a history, in one file that needs nothing but itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raystream.report.curves import chart
from raystream.report.loop_page import LoopFacts, RoundFacts, gather_loop, write_loop_report
from raystream.store.local import LocalStore


def row(round_: int, **more: Any) -> dict[str, Any]:
    known = {"round": round_, "labels": 10 * round_, "strategy": "k_means", "query": f"mine-r{round_}", "cost": None}
    control = {"control_accuracy": None, "control_low": None, "control_high": None, "seconds_query": 1.0, "seconds_train": 2.0}
    return known | control | {"would_stop_kappa": round_ >= 2, "would_stop_rounds": False} | more


def facts(tmp_path: Path, history: list[dict[str, Any]], **changes: Any) -> LoopFacts:
    batch = pa.table({"rank": pa.array([0, 1], pa.int32()), "rid": ["a", "<b>"], "score": [0.5, None], "why": ["", "control"]})
    given: dict[str, Any] = {
        "store": LocalStore(str(tmp_path)),
        "folder": "loops/mine",
        "summary": {
            "loop": "mine", "state": "waiting", "reason": "2 labels of batch 3 are missing", "round": 3, "labels": 20, "batch": "b.parquet",
            "history": "h.parquet", "warnings": ["class <x> is rare"],
        },
        "history": history,
        "rounds": [
            RoundFacts(1, "mine-r1", classes={"cat": 9, "dog": 1}, predicted={"cat": 500, "dog": 500}),
            RoundFacts(3, "mine-r3", "so", batch, 1),
        ],
        "metrics": ["accuracy", "nll"],
        "rules": {"kappa": True, "rounds": False},
        "spec": "loop: {rounds: 3}",
        "judged_by": "the rows of loop.evaluate",
    }  # fmt: skip
    return LoopFacts(**(given | changes))


def test_a_page_is_one_file_that_says_it_all(tmp_path: Path) -> None:
    """Curves as SVG, in the colours of the reader's choice; text is escaped, nothing is fetched, no picture where rows are none."""
    history = [row(1, accuracy=0.5, nll=1.2), row(2, accuracy=0.7, nll=0.8, control_accuracy=0.6, control_low=0.4, control_high=0.8)]
    place = write_loop_report(facts(tmp_path, history))
    html = Path(place).read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert "data:image" not in html
    for said in (
        "2 rounds, 20 labels",
        "class &lt;x&gt; is rare",
        "&lt;b&gt;",
        "70.0%",
        "40.0 to 80.0%",
        "Lower is better",
        "control rows",
    ):
        assert said in html, said
    assert "<b>" not in html


def test_what_rules_would_have_done_is_marked(tmp_path: Path) -> None:
    """The first round at which each would have stopped; limits that the spec says are no news."""
    page = gather_loop(facts(tmp_path, [row(n, accuracy=0.1 * n, nll=1.0) for n in (1, 2, 3)]))
    assert page.rules == (("kappa", "asked for", "round 2, 20 labels"),)
    assert "named mark" in page.curves[0].chart


def test_classes_are_set_against_the_sample(tmp_path: Path) -> None:
    """Shares of the labels, and of what the last model says of the pool's sample."""
    page = gather_loop(facts(tmp_path, [row(1, accuracy=0.5, nll=1.0)]))
    assert [(one.name, one.rows, one.labelled, one.predicted) for one in page.balance] == [("cat", 9, 90.0, 50.0), ("dog", 1, 10.0, 50.0)]
    assert page.batches[0].heading == "Round 3"
    assert "waiting for labels" in page.batches[0].note


def test_costs_and_other_loops_have_curves(tmp_path: Path) -> None:
    """By what the labels cost where that is known; another loop's first metric beside."""
    history = [row(n, accuracy=0.1 * n, cost=5.0 * n) for n in (1, 2)]
    page = gather_loop(facts(tmp_path, history, metrics=["accuracy"], beside={"random rows": [row(1, accuracy=0.2), row(2, accuracy=0.3)]}))
    assert [curve.heading for curve in page.curves] == ["What the labels are worth", "By what the labels cost"]
    assert "accuracy, random rows" in page.curves[0].chart


@pytest.mark.parametrize(("metric", "headings"), [("rmse", ["rmse"]), ("micro_f1", ["What the labels are worth"]), ("r2", ["r2"])])
def test_every_metric_has_a_curve_over_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, headings: list[str]) -> None:
    """Of numbers and of many labels a row as of classes: the same values, another loop's beside, marks where they were paid."""
    drawn: list[tuple[str, Any, Any]] = []

    def watched(lines: Any, *, x_label: str, marks: Any = (), **more: Any) -> Any:
        drawn.append((x_label, [(line.name, line.x, line.y) for line in lines], [(mark.x, mark.name) for mark in marks]))
        return chart(lines, x_label=x_label, marks=marks, **more)

    monkeypatch.setattr("raystream.report.loop_page.chart", watched)
    costs = [7.0, 7.5, 30.0]
    history = [row(n, cost=costs[n - 1], **{metric: 2.0 / n}) for n in (1, 2, 3)]
    beside = {"random rows": [row(n, cost=2.0 * n, **{metric: 3.0 / n}) for n in (1, 2)]}
    page = gather_loop(facts(tmp_path, history, metrics=[metric], beside=beside))
    over = "By what the labels cost" if headings != [metric] else f"{metric} by what the labels cost"
    assert [curve.heading for curve in page.curves] == [*headings, over]
    by_label, by_cost = ([each for each in drawn if each[0] == words and each[1]] for words in ("labels", "what the labels cost"))
    values, others = [2.0, 1.0, 2 / 3], (f"{metric}, random rows", [3.0, 1.5])
    assert by_label == [("labels", [(metric, [10, 20, 30], values), (others[0], [10, 20], others[1])], [(20, "kappa")])]
    paid = [(metric, costs, values), (others[0], [2.0, 4.0], others[1])]
    assert by_cost == [("what the labels cost", paid, [(7.5, "kappa")])]
    assert ("Lower is better" in page.curves[0].caption) == (metric == "rmse")


def test_a_loop_that_nothing_judges_has_a_page(tmp_path: Path) -> None:
    """Of `recall` alone there is no column then."""
    page = gather_loop(facts(tmp_path, [row(1, cost=3.0)], metrics=[]))
    assert page.curves == ()
    assert [fact.name for fact in page.facts] == ["labels", "cost of the labels", "computing time"]


def test_a_loop_without_a_round_has_a_page(tmp_path: Path) -> None:
    """While the first batch waits there is nothing to draw."""
    page = gather_loop(facts(tmp_path, [], rounds=[]))
    assert (page.curves, page.balance, page.table.rows) == ((), (), ())
    assert Path(write_loop_report(facts(tmp_path, [], rounds=[]))).exists()
