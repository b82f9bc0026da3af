"""Units that can't be scored: how many of them a query may do without, and all that is known of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import raystream as rs
from raystream.errors import QueryError, UnitsFailed
from raystream.query.part import MAX_QUARANTINED
from raystream.run import plan
from raystream.scoring.worker import Worker

MakeQuery = Callable[..., rs.Query]


def damage(*years: int) -> None:
    """Overwrite pages of these files of the pool; each is one unit of four."""
    for year in years:
        path = Path(f"pool/year={year}/part.parquet")
        data = bytearray(path.read_bytes())
        data[100:9000] = b"\xff" * 8900
        path.write_bytes(data)


def test_a_hundredth_of_the_units_may_be_left_out_unless_the_query_says_more(make_query: MakeQuery, workplace: Path) -> None:
    """One of four is too much by default; the others are scored and kept, so that raising the share scores nothing again."""
    damage(2021)
    query: dict[str, Any] = {"on_error": "skip", "select__strategy": "top_k"}
    with pytest.raises(UnitsFailed, match=r"1 of 4 units can't be scored, 25\.00% of them, and max_quarantined allows 1\.00%: ") as ended:
        rs.run(make_query(**query))
    assert ended.value.exit_code == 4
    assert "raise max_quarantined" in str(ended.value)
    result = rs.run(make_query(**query, max_quarantined=0.25))
    assert (result.manifest.units_scored, result.manifest.units_reused) == (0, 3)
    assert result.manifest.counts.scored == 900
    [warning] = [warning for warning in result.manifest.warnings if "left out" in warning]
    assert warning.startswith("1 unit was left out: ")
    assert warning.endswith("failed_units.jsonl has all causes")
    with pytest.raises(UnitsFailed, match=r"allows 24\.00%"):
        rs.run(make_query(**query, max_quarantined=0.24))


def test_it_counts_units_and_not_rows(make_query: MakeQuery, workplace: Path) -> None:
    """None may be left out, and rows of which the model makes NaN are, all the same."""
    result = rs.run(make_query(model__source="user_nets:Nan", select__strategy="top_k", on_error="skip", max_quarantined=0))
    assert result.manifest.counts.quarantined > 0


def test_two_of_four_are_more_than_one_of_four(make_query: MakeQuery, workplace: Path) -> None:
    """The share of all units that were asked for, those that were there before included."""
    damage(2021)
    assert rs.run(make_query(on_error="skip", max_quarantined=0.25)).manifest.units_scored == 3
    damage(2020, 2022)
    with pytest.raises(UnitsFailed, match=r"3 of 4 units can't be scored, 75\.00%"):
        rs.run(make_query(on_error="skip", max_quarantined=0.5))


def test_all_causes_of_all_units_are_kept(make_query: MakeQuery, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More units than a message names, each with the cause of every attempt, in a file that the message names."""
    numbers = count(1)

    def odd(self: Worker, *arguments: Any) -> Any:
        raise RuntimeError(f"odd {next(numbers)}")

    monkeypatch.setattr(Worker, "score", odd)
    with pytest.raises(UnitsFailed, match=r"4 of 4 units failed three times: .*\(and 1 more\); \S+failed_units\.jsonl has all causes"):
        rs.run(make_query(store__query="q"))
    lines = [json.loads(line) for line in Path("runs/queries/q/failed_units.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert all(line["unit"].endswith("part.parquet#rg0-4") for line in lines)
    causes = [cause for line in lines for cause in line["causes"]]
    assert len(causes) == 12
    assert sorted(int(cause.split("odd ")[1].split()[0]) for cause in causes) == list(range(1, 13))


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_one_cause_of_all_units_is_told_once(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch, on_error: str) -> None:
    """A model that fails on every unit: the cause once, each unit's name once, and no advice to do without all of them."""

    def failing(self: Worker, *arguments: Any) -> Any:
        raise RuntimeError("the tokenizer is odd")

    monkeypatch.setattr(Worker, "score", failing)
    with pytest.raises(UnitsFailed) as ended:
        rs.run(make_query(on_error=on_error))
    told = str(ended.value)
    assert (told.count("the tokenizer is odd"), told.count("part.parquet#rg0-4"), "raise max_quarantined" in told) == (1, 1, False)
    assert "part.parquet#rg0-4 and 3 other units: RuntimeError: the tokenizer is odd" in told


def test_a_share_is_a_share(make_query: MakeQuery) -> None:
    """Nothing below 0 or above 1, and no truth value; other numbers are other queries, the default is as if nothing were said."""
    for wrong in (-0.1, 1.5, True, "much"):
        with pytest.raises(QueryError, match="max_quarantined"):
            make_query(max_quarantined=wrong)
    names = [plan(query).query for query in (make_query(), *(make_query(max_quarantined=share) for share in (MAX_QUARANTINED, 0.5)))]
    assert names[0] == names[1] != names[2]


def test_a_share_of_a_hundred_is_not_cut_by_rounding(make_query: MakeQuery, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.29 x 100 is less than 29 in floating point; 29 of 100 are allowed nevertheless, as 1 of 4 is by 0.25."""
    from raystream.scoring.session import Session

    session: Any = Session.__new__(Session)
    session._keep_causes = lambda failed: None
    session._store, session._folder = type("Nowhere", (), {"place": staticmethod(str)}), "q"
    session._job = type("Job", (), {"skip_bad_rows": True, "max_quarantined": 0.29})
    session._asked, session._given_up, session._left_out = 100, 0, []
    tasks: Any = [type("Task", (), {"unit": type("Unit", (), {"name": "u"})})] * 30
    session._judge(tasks, {place: (ValueError("x"),) for place in range(29)})
    with pytest.raises(UnitsFailed):
        session._judge(tasks, {29: (ValueError("x"),)})
