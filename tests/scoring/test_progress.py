"""What is said while units are scored."""

from __future__ import annotations

import pytest

from raystream.figures import number_of
from raystream.scoring import progress
from raystream.scoring.progress import Lines


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """A line for each event, whenever it comes."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    return Lines()


def test_a_line_says_how_long_it_still_takes(lines: Lines, capfd: pytest.CaptureFixture[str]) -> None:
    """At the pace of the units that are done, counted down from when the last of them was; not before one is done, nor once overdue."""
    for done, seconds in [(0, 5.0), (1, 6.0), (1, 10.0), (1, 18.0), (2, 20.0), (3, 24.0)]:
        lines.units(done, 3, done * 120, seconds)
    assert capfd.readouterr().err.splitlines() == [
        "scored 0 of 3 units",
        "scored 1 of 3 units, 20 rows/s, about 12 s left",
        "scored 1 of 3 units, 12 rows/s, about 8 s left",
        "scored 1 of 3 units, 7 rows/s",
        "scored 2 of 3 units, 12 rows/s, about 10 s left",
        "scored 3 of 3 units, 15 rows/s",
    ]


def test_long_times_are_told_in_minutes_and_hours(lines: Lines, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody counts thousands of seconds."""
    for total in (21, 2001):
        lines.units(1, total, 0, 30.0)
    assert [line.split(", ")[1] for line in capfd.readouterr().err.splitlines()] == ["about 10 min left", "about 16.7 h left"]


def test_one_unit_is_a_unit(lines: Lines, capfd: pytest.CaptureFixture[str]) -> None:
    """The word agrees with the number."""
    lines.units(1, 1, 10, 1.0)
    assert capfd.readouterr().err == "scored 1 of 1 unit, 10 rows/s\n"
    assert (number_of(1, "unit"), number_of(0, "unit"), number_of(2, "unit")) == ("1 unit", "0 units", "2 units")
