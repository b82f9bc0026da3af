import base64
import io
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raystream.report import pictures as chosen_inputs
from raystream.report import pictures as module
from raystream.report.pictures import ChosenInputs, pictures, pictures_of

NET = {"source": "raystream.loop.demos.mnist:network"}


def opened(picture):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2]))).convert("RGB"))


def test_each_rank_shows_its_own_row(ask, digits):
    """The pictures are the pool's images of the chosen rows, pixel by pixel, enlarged by the page."""
    table, pixels = digits
    result = ask(table, pool={"id": "name", "inputs": ["pixels"]}, model=NET, select={"budget": 7}, files=2)
    found = pictures(result, 5)
    assert sorted(found.by_rank) == [0, 1, 2, 3, 4]
    for rank, picture in found.by_rank.items():
        name = result.selection.column("name")[rank].as_py()
        row = int(name.removeprefix("digit-"))
        assert (opened(picture)[:, :, 0] == pixels[row, 0]).all()
        assert picture.small


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((28, 28), (0, 1)),
        ((1, 28, 30), (1, 2, 0)),
        ((3, 8, 512), (1, 2, 0)),
        ((28, 28, 1), (0, 1, 2)),
        ((32, 40, 3), (0, 1, 2)),
        ((2, 28, 28), None),
        ((7, 28), None),
        ((513, 28), None),
        ((784,), None),
        ((), None),
        ((None, None), None),
        ((1, 1, 28, 28), None),
    ],
)
def test_what_counts_as_an_image(shape, layout):
    """Grey or three colours, first or last, with sides of 8 to 512 pixels."""
    assert module._layout(shape) == layout


def test_floats_share_one_scale():
    """The smallest value of all pictures is black, the largest white: pictures stay comparable."""
    low, high = module._as_bytes([np.full((8, 8), -2.0, np.float32), np.full((8, 8), 6.0, np.float32)])
    assert low.max() == 0
    assert high.min() == 255


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(400, 200), (400, 200, 3)])
def test_large_images_are_shrunk(dtype, shape):
    """At most 176 pixels a side, in the image's proportions, with its mean."""
    image = np.random.default_rng(0).uniform(0, 255, shape).astype(dtype)
    small = module._shrunk(image, module.SIDE)
    assert small.shape == (176, 88, *shape[2:])
    assert small.mean() == pytest.approx(image.mean(), rel=0.02)


def test_a_report_reads_a_bounded_amount(ask, digits, monkeypatch):
    """Rows whose row groups would cost too much have no picture, and the page says so."""
    monkeypatch.setattr(chosen_inputs, "_READ_BYTES", 1)
    result = ask(digits[0], pool={"id": "name", "inputs": ["pixels"]}, model=NET, select={"budget": 12}, files=4)
    found = pictures(result, 12)
    assert 0 in found.by_rank
    assert 1 <= len(found.by_rank) < 12
    assert f"Pictures of {len(found.by_rank)} of these 12 rows" in found.note


def test_other_inputs_are_no_pictures(ask, columns_pool):
    """A pool without an image column has none."""
    model, select = {"kind": "columns", "logits": "logits"}, {"budget": 3, "strategy": "top_k"}
    result = ask(columns_pool, pool={"id": "name"}, model=model, select=select)
    assert pictures(result, 3) is None


NETS = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(1), nn.Linear(3 * 8 * 8, 3))
"""


@pytest.mark.parametrize("named", [False, True])
def test_encoded_images_are_shown(ask, tmp_path, monkeypatch, named):
    """The pool's own files, upright and unscaled, whatever size the model sees them in."""
    (tmp_path / "picture_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "picture_nets", raising=False)
    pixels = np.random.default_rng(2).integers(0, 256, (12, 20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", exif=exif)
        files.append({"bytes": buffer.getvalue(), "path": "x.png"})
    table = pa.table({"name": [f"image-{i}" for i in range(12)], "photo": files})
    inputs = {"input": "photo"} if named else ["photo"]
    model = {"source": "picture_nets:net", "preprocess": {"size": [8, 8]}}
    result = ask(table, pool={"id": "name", "inputs": inputs}, model=model, select={"budget": 4, "strategy": "top_k"})
    found = pictures(result, 4)
    for rank, picture in found.by_rank.items():
        row = int(result.selection.column("name")[rank].as_py().removeprefix("image-"))
        assert (opened(picture) == np.rot90(pixels[row], -1)).all()
    assert len(found.by_rank) == 4


@pytest.mark.parametrize("size", [(1600, 1200), (700, 180), (300, 200), (90, 60)])
@pytest.mark.parametrize("turn", [1, 6])
def test_a_large_photograph_is_not_decoded_whole(monkeypatch, size, turn):
    """Its thumbnail is that of all of its pixels nearly, of the same sides and as upright, but made from at most twice as many a side."""
    seen = []

    def shrunk(image, side, real=module._shrunk):
        seen.append(image.shape)
        return real(image, side)

    monkeypatch.setattr(module, "_shrunk", shrunk)
    across, down = np.meshgrid(*(np.linspace(0, 255, side) for side in size))
    image = np.stack([across, down, across / 6], 2)
    exif = Image.Exif()
    exif[0x0112] = turn
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(buffer, "JPEG", quality=95, exif=exif)
    found = module._decoded(memoryview(buffer.getvalue()), module.SIDE)
    upright = image if turn == 1 else np.rot90(image, -1)
    whole = module._shrunk(upright.astype(np.uint8), module.SIDE)
    assert found.shape == whole.shape
    assert np.abs(found.astype(float) - whole).mean() < 3
    assert min(max(size), module.SIDE) <= max(seen[0]) <= 2 * module.SIDE


def stored(image, format_, **more):
    buffer = io.BytesIO()
    image.save(buffer, format_, **more)
    return buffer.getvalue()


def test_a_row_that_is_no_image_has_no_picture():
    """Those beside it keep their ranks; a column in which nothing is one holds no pictures."""
    photo = stored(Image.new("RGB", (200, 100), (255, 0, 0)), "JPEG")
    rows = [photo, photo[:300], b"<svg onload='alert(1)'/>", b"", None, stored(Image.new("RGB", (9, 9)), "GIF"), photo]

    def read(accepts):
        field = pa.field("photo", pa.binary())
        assert accepts(field)
        return ChosenInputs(field, list(range(10, 17)), pa.chunked_array([rows], pa.binary()), 7)

    assert list(pictures_of(read).by_rank) == [10, 16]
    rows[0] = rows[-1] = b"none either"
    assert pictures_of(read) is None


@pytest.mark.parametrize(
    ("mode", "format_", "size", "shown"),
    [
        ("RGB", "PNG", (1, 1), (1, 1)),
        ("RGB", "PNG", (10_000, 10), (176, 1)),
        ("RGB", "JPEG", (10, 10_000), (1, 176)),
        ("RGBA", "PNG", (200, 150), (176, 132)),
        ("CMYK", "JPEG", (200, 150), (176, 132)),
        ("I;16", "PNG", (200, 150), (176, 132)),
        ("P", "PNG", (200, 150), (176, 132)),
        ("1", "PNG", (88, 44), (88, 44)),
        ("L", "WEBP", (400, 300), (176, 132)),
    ],
)
def test_odd_images_are_shown_in_their_proportions(mode, format_, size, shown):
    """In colour as far as they have any, of the first frame, whatever their mode."""
    image = Image.new(mode, size, 1 if mode == "1" else None if mode == "P" else 0)
    files = pa.chunked_array([[stored(image, format_)]], pa.binary())
    found = pictures_of(lambda accepts: ChosenInputs(pa.field("photo", pa.binary()), [0], files, 1))
    assert opened(found.by_rank[0]).shape[1::-1] == shown
