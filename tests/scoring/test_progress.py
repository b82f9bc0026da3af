"""What is said while units are scored."""

from __future__ import annotations

import pytest

from raystream.scoring import progress
from raystream.scoring.progress import Lines, ScoringProgress


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """A line for each event, whenever it comes."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    return Lines()


def test_a_line_says_how_far_it_is_and_how_long_it_still_takes(lines: Lines, capfd: pytest.CaptureFixture[str]) -> None:
    """Rows and units, the pace and the time left, as far as they are known; never that none is left while there is something to do."""
    for far in [
        ScoringProgress(0, 3, 0, 33_798, None, None),
        ScoringProgress(0, 3, 120, 33_798, 48.4, 700.0),
        ScoringProgress(2, 3, 33_798, 33_798, 4.25, 0.0),
        ScoringProgress(1, 1, 1, 1, 12345.0, None),
    ]:
        lines.units(far)
    assert capfd.readouterr().err.splitlines() == [
        "scored 0 of 33,798 rows and 0 of 3 units",
        "scored 120 of 33,798 rows and 0 of 3 units, 48 rows/s, about 12 min left",
        "scored 33,798 of 33,798 rows and 2 of 3 units, 4.2 rows/s, about 1 s left",
        "scored 1 of 1 row and 1 of 1 unit, 12,345 rows/s",
    ]


def test_the_bar_takes_what_a_run_tells() -> None:
    """Rows are what it fills by."""
    with progress.Bar() as bar:
        bar.stage("Scoring")
        bar.units(ScoringProgress(1, 3, 120, 400, 60.0, 5.0))
        [task] = bar._progress.tasks
        assert (task.completed, task.total, task.fields) == (120, 400, {"units": "1/3", "pace": "60 rows/s, about 5 s left"})
