"""The report's plots: the scores of pool and selection, a map of the pool, and how reliable confidence is."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from raystream.store.calibration import Calibration, Reliability

NUMBERED = 20
_INK, _MUTED, _RULE, _POOL, _CHOSEN = "#1f2933", "#5f6b76", "#d5dae0", "#b6c0ca", "#b3401f"
# Paul Tol's muted scheme, which colour-blind readers can tell apart; black for its grey, which is the pool's here.
_CLASSES = ("#332288", "#cc6677", "#117733", "#ddcc77", "#88ccee", "#aa4499", "#44aa99", "#882255", "#999933", "#111111")
_DENSITY = LinearSegmentedColormap.from_list("density", ["#eef1f4", "#c3ccd5", "#8d9aa7"])
_SETTINGS: Any = {
    "font.size": 8.5,
    "text.parse_math": False,  # names of classes are text, dollar signs included
    "svg.fonttype": "none",
    "svg.hashsalt": "raystream",
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}
_FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_BINS = 50
_RASTER_DPI = 144
_MANY = 300
_LONGEST_NAME = 22

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Projection:
    """A map's two axes: the directions in which the pool's embeddings vary most.

    Attributes:
        mean: (d,).
        axes: (d, 2), orthonormal.
        share: of the variance that the two axes show.
    """

    mean: Floats
    axes: Floats
    share: float

    def __call__(self, embeddings: Floats) -> Floats:
        """(n, d) -> (n, 2)."""
        plane: Floats = (embeddings - self.mean) @ self.axes
        return plane


def project(embeddings: Floats) -> Projection | None:
    """The principal plane of (n, d) embeddings by subspace iteration; None where there is no plane to see.

    An exact decomposition takes seconds for 4,096 dimensions; a picture needs two digits.
    """
    if embeddings.ndim != 2 or min(embeddings.shape) < 2:
        return None
    mean = embeddings.mean(axis=0)
    centred = embeddings - mean
    variance = float(np.square(centred).sum())
    if not np.isfinite(variance) or variance <= 0:
        return None
    axes = np.random.default_rng(0).standard_normal((embeddings.shape[1], min(8, *embeddings.shape))).astype(np.float32)
    for _ in range(12):
        axes = np.linalg.qr(centred.T @ (centred @ axes))[0]
    scores = centred @ axes
    _, _, rotation = np.linalg.svd(scores, full_matrices=False)
    axes = axes @ rotation[:2].T
    # An axis may point either way: its largest entry is made positive, so that the map never flips.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return Projection(mean, axes, float(np.square(centred @ axes).sum()) / variance)


def score_histogram(pool: Floats, chosen: Floats, score: str) -> str:
    """The shares of pool and selection over the score, as a data URI."""
    low, high = float(min(pool.min(), chosen.min())), float(max(pool.max(), chosen.max()))
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(7.6, 2.9), layout="constrained", dpi=_RASTER_DPI)
        axes = figure.add_subplot()
        for values, colour, alpha, name in ((pool, _POOL, 1.0, "pool"), (chosen, _CHOSEN, 0.28, "chosen")):
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=alpha, linewidth=0)
            axes.stairs(
                shares, edges, color=_CHOSEN if name == "chosen" else "#8d9aa7", linewidth=1.2, label=f"{name} ({len(values):,} rows)"
            )
        axes.set_xlabel(f"{score} (higher: label sooner)")
        axes.set_ylabel("share of the rows")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_xlim(edges[0], edges[-1])
        axes.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.16))
        axes.grid(axis="y", color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        _quiet(axes, keep=("bottom",))
        return _data_uri(figure)


def pool_map(pool: Floats, chosen: Floats, ranks: Sequence[int], groups: Sequence[str] | None) -> str:
    """The pool's density with the chosen rows on it, as a data URI.

    Args:
        pool: (n, 2).
        chosen: (k, 2).
        ranks: (k,), ascending; the first 20 are written beside their points.
        groups: (k,) what the points are coloured by, at most ten different ones; None for one colour.
    """
    names = sorted(set(groups), key=_natural) if groups is not None else []
    colour_of = dict(zip(names, _CLASSES, strict=False))
    colours = [colour_of[group] for group in groups] if groups is not None else [_CHOSEN] * len(chosen)
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(7.6, 5.4), layout="constrained", dpi=_RASTER_DPI)
        axes = figure.add_subplot()
        low, high = np.quantile(np.concatenate([pool, chosen]), [0.001, 0.999], axis=0)
        low, high = np.minimum(low, chosen.min(axis=0)), np.maximum(high, chosen.max(axis=0))
        margin = 0.04 * (high - low) + 1e-9
        extent = (low[0] - margin[0], high[0] + margin[0], low[1] - margin[1], high[1] + margin[1])
        axes.hexbin(
            pool[:, 0], pool[:, 1], gridsize=(56, 34), bins="log", mincnt=1, cmap=_DENSITY, linewidths=0.1, extent=extent, rasterized=True
        )
        axes.set_xlim(extent[:2])
        axes.set_ylim(extent[2:])
        _draw_points(axes, chosen, np.asarray(ranks), np.asarray(colours))
        for name in names:
            axes.plot([], [], "o", markersize=7, color=colour_of[name], label=_short(name))
        if names:
            figure.legend(frameon=False, loc="outside right upper", handletextpad=0.2, title="prediction")
        axes.set_xticks([])
        axes.set_yticks([])
        _quiet(axes, keep=())
        return _data_uri(figure)


def reliability_diagram(calibration: Calibration) -> str:
    """Accuracy by confidence before and after a temperature was fitted, above the rows of each bin; as a data URI."""
    with rc_context(_SETTINGS):
        return _data_uri(_reliability(calibration))


def reliability_png(calibration: Calibration) -> bytes:
    """`reliability_diagram` as a PNG file."""
    buffer = io.BytesIO()
    with rc_context(_SETTINGS):
        FigureCanvasAgg(_reliability(calibration)).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _reliability(calibration: Calibration) -> Figure:
    figure = Figure(figsize=(7.6, 4.6), layout="constrained", dpi=_RASTER_DPI)
    (left, right), (below_left, below_right) = figure.subplots(
        2, 2, sharex="col", sharey="row", gridspec_kw={"height_ratios": [3.4, 1], "hspace": 0.04}
    )
    _reliability_half(left, below_left, calibration.before, 1.0, calibration.ece_before)
    _reliability_half(right, below_right, calibration.after, calibration.temperature, calibration.ece_after)
    left.set_ylabel("predicted right")
    below_left.set_ylabel("rows")
    return figure


def _reliability_half(above: Axes, below: Axes, bins: Reliability, temperature: float, error: float) -> None:
    edges = np.linspace(0, 1, len(bins.count) + 1)
    filled = [i for i, count in enumerate(bins.count) if count]
    confidence = np.array([bins.confidence[i] for i in filled], dtype=float)
    accuracy = np.array([bins.accuracy[i] for i in filled], dtype=float)
    width = 0.9 / len(bins.count)
    middle = (edges[:-1] + edges[1:])[filled] / 2
    above.plot([0, 1], [0, 1], color="#8d9aa7", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    above.bar(middle, accuracy, width, color=_POOL, zorder=2)
    # the gap is what the error sums up: from what was predicted right to what the model was confident of
    above.vlines(middle, accuracy, confidence, color=_CHOSEN, linewidth=1.4, zorder=3)
    above.plot(middle, confidence, "o", markersize=4, color=_CHOSEN, markeredgecolor="white", markeredgewidth=0.5, zorder=4)
    above.set_title(f"temperature {temperature:g}: calibration error {error:.3f}", fontsize=9.5, loc="left", color=_INK)
    above.set_xlim(0, 1)
    above.set_ylim(0, 1.02)
    above.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    below.bar((edges[:-1] + edges[1:]) / 2, bins.count, width, color=_POOL)
    below.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    below.set_xlabel("confidence")
    below.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in (above, below):
        axes.grid(axis="y", color=_RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        _quiet(axes, keep=("bottom",))


def _data_uri(figure: Figure) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    # Matplotlib measures in the font that it ships; readers have better ones.
    svg = buffer.getvalue().replace("'DejaVu Sans'", _FONTS)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _draw_points(axes: Axes, points: Floats, ranks: npt.NDArray[np.integer], colours: npt.NDArray[np.str_]) -> None:
    """Dots a colour at a time, as pixels when there are many, since each takes a hundred bytes; above them the numbered ones."""
    many = len(points) > _MANY
    for colour in np.unique(colours).tolist():
        x, y = points[(ranks >= NUMBERED) & (colours == colour)].T
        axes.plot(x, y, "o", markersize=4 if many else 6, color=colour, markeredgecolor="white", markeredgewidth=0.6, rasterized=many)
    for index in np.flatnonzero(ranks < NUMBERED).tolist():
        (x, y), rank, colour = points[index], int(ranks[index]), str(colours[index])
        above = 3 + NUMBERED - rank  # a dot and its number together over the next one's
        axes.plot(x, y, "o", markersize=12, color=colour, markeredgecolor="white", markeredgewidth=0.9, zorder=above)
        axes.text(x, y, str(rank), fontsize=7, ha="center", va="center_baseline", color=_legible_on(colour), zorder=above)


def _quiet(axes: Axes, keep: Sequence[str]) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in keep)
    axes.tick_params(length=0)


def _legible_on(colour: str) -> str:
    red, green, blue = to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.6 else _INK


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _natural(name: str) -> tuple[int, str]:
    """Numbers in their own order, before anything else."""
    return (int(name) if name.isdecimal() else 1 << 62, name)
