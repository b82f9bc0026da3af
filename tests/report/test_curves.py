"""Line charts: where points, ticks, bands and gaps lie, and that names are text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raystream.report.curves import Level, Line, Mark, _axis, chart, number


def paths(html, kind):
    """The `d` of the paths of a class, in their order."""
    return re.findall(rf'<path class="{kind}[^"]*" d="([^"]*)"', html)


def places(d):
    return [tuple(float(n) for n in pair.split()) for pair in re.findall(r"-?[\d.]+ -?[\d.]+", d)]


def test_points_lie_where_they_should():
    """The first number of labels at the left edge, the last at the right one; higher values higher up, on one scale with the ticks."""
    html = chart([Line("margin", [20, 30, 40], [0.5, 0.6, 0.9], [0.4, 0.6, 0.8], [0.6, 0.6, 1.0])], x_label="labels", y_label="accuracy")
    (line,), (band,) = paths(html, "line"), paths(html, "band")
    assert [x for x, _ in places(line)] == [0, 500, 1000]
    y = {value: place for value, (_, place) in zip((0.5, 0.6, 0.9), places(line), strict=True)}
    assert (y[0.5] - y[0.9]) / (y[0.5] - y[0.6]) == pytest.approx(4, abs=0.01)
    assert [x for x, _ in places(band)] == [0, 500, 1000, 1000, 500, 0]
    assert places(band)[0][1] < y[0.5] < places(band)[-1][1]
    at = {float(text): float(top) * 10 for top, text in re.findall(r'tick y" style="top: ([\d.]+)%">([\d.]+)<', html)}
    assert at[0.6] == pytest.approx(y[0.6], abs=0.1)


def test_gaps_and_single_points():
    """A value that isn't there breaks the line; a point alone is a dot."""
    html = chart([Line("a", [1, 2, 3, 4], [0.1, None, float("nan"), 0.4], [0.1, None, 0.2, 0.3], [0.2] * 4)], x_label="x", y_label="y")
    (line,), (band,) = paths(html, "line"), paths(html, "band")
    assert line.count("M") == line.count("h0") == 2
    assert [x for x, _ in places(band)] == pytest.approx([667, 1000, 1000, 667], abs=0.5)
    assert chart([], x_label="x", y_label="y") == chart([Line("a", [1], [None])], x_label="x", y_label="y") == ""


def test_names_are_text():
    """Whatever a class or a strategy is called."""
    html = chart(
        [Line("<b>", [1, 2], [0, 1])], x_label='"x"', y_label="<y>", levels=[Level(2, "all & everything")], marks=[Mark(1.5, "<kappa>")]
    )
    assert "<b>" not in html
    assert "<kappa>" not in html
    assert "all &amp; everything" in html
    assert len(paths(html, "level")) == len(paths(html, "mark")) == 1


def test_the_control_is_behind_and_grey():
    """It is drawn first, takes no colour, and keeps its place in the legend; beyond eight colours lines are dashed."""
    lines = [Line(f"s{i}", [1, 2], [0, 1], control=i == 1) for i in range(10)]
    html = chart(lines, x_label="x", y_label="y")
    drawn = re.findall(r'<path class="line ([^"]*)"', html)
    assert drawn == ["control", "c0", *(f"c{i}" for i in range(1, 8)), "c0 far"]
    assert re.findall(r"<li class=\"([^\"]*)\">(s\d)", html)[:3] == [("c0", "s0"), ("control", "s1"), ("c1", "s2")]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
@example([5e-324])
@example([1.0, 1.0000000000000002])
def test_an_axis_holds_its_values(values):
    """With a few ticks at round numbers, told apart by their texts."""
    axis = _axis(values, tight=False)
    assert axis.low < axis.high
    assert axis.low <= min(values) <= max(values) <= axis.high
    assert 2 <= len(axis.ticks) <= 12
    texts = [number(tick, axis.step, False) for tick in axis.ticks]
    assert len(set(texts)) == len(texts)


def test_numbers_of_ticks():
    """No more digits than tell them apart."""
    assert number(0.9, 0.05, True) == "90%"
    assert number(0.975, 0.005, True) == "97.5%"
    assert number(1200, 200, False) == "1,200"
    assert number(0.25, 0.05, False) == "0.25"


@pytest.mark.parametrize("low", [0.0, -3e-14, 1e-300, 0.1, 123.4, 1e6])
@pytest.mark.parametrize("span", [1e-13, 7e-5, 0.3, 1.0, 19.99, 4e7])
def test_ticks_are_multiples_of_1_2_or_5(low: float, span: float) -> None:
    """About as many as asked for, within the range, whatever its size; none is -0 or has digits that rounding left."""
    from raystream.report.svg import ticks

    found = ticks(low, low + span, 5)
    if low + span == low:
        assert found == [low]
        return
    assert 2 <= len(found) <= 7 or span < 1e-6 * low
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)
    assert all(len(repr(tick).partition("e")[0].replace(".", "").strip("-0")) <= 15 for tick in found)
    assert "-0.0" not in map(repr, found)
