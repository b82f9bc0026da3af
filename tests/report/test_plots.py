import base64

import numpy as np
import pytest

from raystream.report.plots import pool_map, project, score_histogram


def svg(uri):
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


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


@pytest.mark.parametrize("points", [np.empty((0, 0)), np.ones((5, 3)), np.ones((1, 3)), np.arange(4.0)[:, None]])
def test_what_has_no_plane_has_no_map(points):
    """No rows, one row, one dimension, or no variance."""
    assert project(points.astype(np.float32)) is None


def test_names_of_classes_are_text():
    """Neither markup nor mathematics; long ones are cut."""
    draw = np.random.default_rng(0)
    uri = pool_map(draw.normal(size=(50, 2)), draw.normal(size=(3, 2)), [0, 1, 2], ["<b>", "$x_1$", "n" * 100])
    assert "&lt;b&gt;" in svg(uri)
    assert "$x_1$" in svg(uri)
    assert "n" * 30 not in svg(uri)


def test_a_histogram_of_one_value():
    """All scores alike is a pool like any other."""
    assert "margin" in svg(score_histogram(np.zeros(5, np.float32), np.zeros(2, np.float32), "margin"))
