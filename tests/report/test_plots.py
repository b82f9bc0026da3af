import dataclasses
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raystream.report.pool_map import Histogram, MapPoints, pool_map, project, reliability_diagram, score_histogram, spread
from raystream.report.svg import NARROW, WIDE, Scale, decimals, ticks
from raystream.store.calibration import Calibration, Reliability


def drawings(markup):
    """The charts in a piece of a page, parsed: they are well-formed."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", str(markup), flags=re.DOTALL)]


@pytest.mark.parametrize("dimension", [2, 5, 300])
def test_the_map_shows_the_principal_plane(dimension):
    """The plane is that of an exact decomposition."""
    draw = np.random.default_rng(dimension)
    points = (draw.normal(size=(400, dimension)) * np.geomspace(10, 0.1, dimension)).astype(np.float32)
    plane = project(points)
    exact = np.linalg.svd(points - points.mean(axis=0))[2][:2]
    assert np.linalg.svd(exact @ plane.axes)[1] == pytest.approx([1, 1], abs=1e-2)
    variance = np.square(points - points.mean(axis=0)).sum(axis=0)
    assert plane.share == pytest.approx(np.square((points - points.mean(axis=0)) @ exact.T).sum() / variance.sum(), rel=1e-3)


def test_the_map_of_many_rows_shows_nearly_as_much():
    """The plane that is fitted to some thousand of them shows all but a hundredth of what the best one of all rows does."""
    draw = np.random.default_rng(0)
    points = (draw.normal(size=(12_345, 40)) * np.geomspace(10, 0.1, 40)).astype(np.float32)
    spread = np.square(points - points.mean(axis=0)).sum()
    seen = np.square(project(points)(points) - project(points)(points).mean(axis=0)).sum() / spread
    best = (np.linalg.svd(points - points.mean(axis=0))[1][:2] ** 2).sum() / spread
    assert 0.99 * best <= seen <= 1.0001 * best
    assert project(points).share == pytest.approx(best, rel=0.05)


@pytest.mark.parametrize("points", [np.empty((0, 0)), np.ones((5, 3)), np.ones((1, 3)), np.arange(4.0)[:, None]])
def test_what_has_no_plane_has_no_map(points):
    """No rows, one row, one dimension, or no variance."""
    assert project(points.astype(np.float32)) is None


def points_of(chosen, groups=None, labelled=0):
    draw = np.random.default_rng(0)
    return MapPoints(draw.normal(size=(500, 2)), draw.normal(size=(labelled, 2)), chosen, list(range(len(chosen))), groups)


def test_names_of_classes_are_text():
    """Neither markup nor too long."""
    chosen = np.random.default_rng(0).normal(size=(3, 2))
    markup = str(pool_map(points_of(chosen, ["<b>", "$x_1$", "n" * 100])))
    assert "&lt;b&gt;" in markup
    assert "$x_1$" in markup
    assert "n" * 50 not in markup


def test_charts_are_drawn_for_wide_and_narrow_pages():
    """Twice, each as wide as its page, with letters of the same size: nothing is only scaled down."""
    draw = np.random.default_rng(0)
    half = Reliability([5, 0, 1200], [0.1, None, 0.9], [0.2, None, 0.8])
    numbers = dict.fromkeys((field.name for field in dataclasses.fields(Calibration)), 0.5)
    fitted = Calibration(**numbers | {"before": half, "after": half, "files": []})
    charts = [
        pool_map(points_of(draw.normal(size=(9, 2)), labelled=4)),
        score_histogram(draw.random(99), draw.random(9), "margin"),
        reliability_diagram(fitted),
    ]
    for markup in charts:
        wide, narrow = drawings(markup)
        assert [svg.get("viewBox").split()[2] for svg in (wide, narrow)] == [str(WIDE), str(NARROW)]
        for svg in (wide, narrow):
            right = float(svg.get("viewBox").split()[2])
            for text in svg.iter("text"):
                at, width = float(text.get("x")), 6.5 * len(text.text)
                start = {"start": at, "middle": at - width / 2, "end": at - width}[text.get("text-anchor")]
                assert start >= 0, text.text
                assert start + width <= right, text.text
        assert not list(wide.iter("image"))


@given(st.lists(st.tuples(st.floats(0, 364), st.floats(0, 328)), min_size=1, max_size=20))
def test_marks_never_overlap(points):
    """Also of twenty rows in one and the same place; the first of them stays where it is."""
    places = spread(points, 9.5, 364, 328)
    assert len(places) == len(points)
    assert places[0] == points[0]
    for number, place in enumerate(places):
        assert all(math.dist(place, other) >= 19 for other in places[:number])


def test_a_histogram_holds_every_row():
    """Shares that add up to one, for pool and selection; one bar is none."""
    pool, chosen = np.random.default_rng(0).random(1000), np.array([0.2, 3.0])
    shares = Histogram.of(pool, chosen)
    assert (shares.pool.sum(), shares.chosen.sum()) == (pytest.approx(1), pytest.approx(1))
    assert "margin (higher: label sooner)" in score_histogram(pool, chosen, "margin")
    assert score_histogram(np.zeros(5), np.zeros(2), "margin") is None
    assert score_histogram(np.full(5, 1e9), np.full(2, 1e9), "margin") is None


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9), st.integers(1, 12))
@example(5.456156518334663e-07, 1e-09, 2)
def test_ticks_are_few_and_round(low, span, about):
    """Within the range, evenly apart, not many more than asked for, and told apart in writing."""
    high = low + span
    if high - low < 1e-6 * max(abs(low), abs(high)):
        return
    found = ticks(low, high, about)
    assert 0 <= len(found) <= about + 1
    assert all(low - span * 1e-6 <= value <= high + span * 1e-6 for value in found)
    write = decimals(found)
    assert len({write(value) for value in found}) == len(found)


def test_a_scale_maps_ends_to_ends():
    """Also downwards, as on a page."""
    scale = Scale(2, 4, 100, 0)
    assert (scale(2), scale(3), scale(4)) == (100, 50, 0)
