"""Small pools to start from, drawn by a seed: images, texts, a table; each with labels for its first rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

LABELLED = 60


@dataclass(frozen=True)
class Generated:
    """A pool without its labels, and the labels of its first rows."""

    pool: pa.Table
    labelled: pa.Table


def images() -> Generated:
    """Draw 600 PNG images of 48 x 48 pixels, each with a circle, a square or a triangle."""
    draw = np.random.default_rng(0)
    classes = draw.choice(["circle", "square", "triangle"], 600, p=[0.5, 0.35, 0.15])
    pool = {"image_id": [f"image-{row:04d}" for row in range(600)], "image": [_image(str(name), draw) for name in classes],
            "camera": draw.choice(["north", "south"], 600)}  # fmt: skip
    return _with_labels(pool, classes)


def _image(shape: str, draw: np.random.Generator) -> bytes:
    colours = draw.integers(0, 256, (2, 3))
    image = Image.new("RGB", (48, 48), tuple(map(int, colours[0])))
    (x, y), radius = draw.integers(14, 34, 2), int(draw.integers(6, 13))
    box, pen = (int(x) - radius, int(y) - radius, int(x) + radius, int(y) + radius), ImageDraw.Draw(image)
    fill = tuple(map(int, colours[1]))
    if shape == "circle":
        pen.ellipse(box, fill)
    elif shape == "square":
        pen.rectangle(box, fill)
    else:
        pen.polygon([(int(x), box[1]), (box[0], box[3]), (box[2], box[3])], fill)
    noisy = np.asarray(image, np.float64) + draw.normal(0, 12, (48, 48, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


_SENTENCES = {
    "delivery": ("The parcel", "My order", "The courier", "It"), "refund": ("The invoice", "My money", "The amount", "It"),
    "praise": ("The support", "Your shop", "The quality", "It"),
}  # fmt: skip
_ENDS = {
    "delivery": ("has not arrived", "came to the wrong door", "is three days late", "was left in the rain"),
    "refund": ("was charged twice", "should be paid back", "is wrong by ten euros", "has not come back to my account"),
    "praise": ("was a pleasure", "is better than I hoped", "made my day", "deserves a thank you"),
}
_ASIDES = ("again", "as I said on the phone", "to be honest", "this week", "and I am not the only one", "for the second time", "so far")


def texts() -> Generated:
    """Write 600 short messages to a shop, about a delivery, a refund, or how good it was."""
    draw = np.random.default_rng(0)
    classes = draw.choice(list(_SENTENCES), 600, p=[0.5, 0.3, 0.2])
    said = []
    for name in classes:
        first, second = draw.choice(_ASIDES, 2)
        said.append(f"{draw.choice(_SENTENCES[name])} {draw.choice(_ENDS[name])}, {first}, {second}.")
    days = np.datetime64("2026-01-01") + draw.integers(0, 300, 600)
    return _with_labels({"message_id": [f"message-{row:04d}" for row in range(600)], "text": said, "sent": days}, classes)


def table() -> Generated:
    """Make up 2,000 customers, some of whom will leave."""
    draw, rows = np.random.default_rng(0), 2000
    age, visits = draw.integers(18, 90, rows), draw.poisson(6, rows)
    spent, days = draw.gamma(2.0, 60.0, rows).round(2), draw.integers(0, 400, rows)
    leaves = draw.random(rows) < 1 / (1 + np.exp(-(days - 180 - 12 * visits + 0.2 * (age - 50)) / 40))
    pool = {"customer_id": np.arange(1, rows + 1), "age": age, "visits": visits, "spent": spent, "days": days,
            "country": draw.choice(["DE", "FR", "IT", "PL"], rows), "minutes": draw.integers(1, 9, rows)}  # fmt: skip
    return _with_labels(pool, np.where(leaves, "leaves", "stays"))


def _with_labels(pool: Mapping[str, object], classes: np.ndarray) -> Generated:
    whole = pa.table(dict(pool))
    name = whole.column_names[0]
    return Generated(whole, pa.table({name: whole.column(name)[:LABELLED], "label": classes[:LABELLED].tolist()}))


GENERATED: Mapping[str, Callable[[], Generated]] = {"images": images, "texts": texts, "table": table}
"""By what a pool holds."""
