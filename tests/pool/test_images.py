"""Encoded images against Pillow's own way of opening, scaling and normalising them."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from raystream.pool.images import Decoding, UndecodableError, decode_images, installed_decoder, open_image, orientation
from raystream.query import Preprocess


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, so that orientation, scaling and colours all show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([255 * x / width, 255 * y / height, 127 + 90 * np.sin((x + y) / 9)], axis=2) + rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(planes.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decode(*files: bytes, jpeg: str = "pillow", **options: object) -> tuple[np.ndarray, dict[int, str]]:
    return decode_images(pa.array(files, pa.binary()), Decoding(Preprocess(**options), jpeg), map)


def reference(data: bytes, size: tuple[int, int], resize: str, resample: Image.Resampling, mode: str = "RGB") -> np.ndarray:
    """(h, w, c) float64 in 0 to 1: opened, set upright, scaled as torchvision's Resize and CenterCrop do, all by Pillow."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode)
    height, width = size
    if resize == "stretch":
        image = image.resize((width, height), resample)
    elif resize == "pad":
        image = ImageOps.pad(image, (width, height), resample, color=0)
    else:
        ratio = max(width / image.width, height / image.height)
        image = image.resize((max(width, int(image.width * ratio + 1e-9)), max(height, int(image.height * ratio + 1e-9))), resample)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image, dtype=np.float64).reshape(height, width, -1) / 255


@pytest.mark.parametrize("jpeg", sorted({"pillow", installed_decoder()}))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_images_are_what_pillow_makes_of_them(jpeg: str, form: str, resize: str) -> None:
    """Scaled and normalised, channel by channel, within a step of a pixel's 256."""
    files = [encoded(picture(*sides, seed=i), form) for i, sides in enumerate([(90, 60), (48, 100), (32, 24), (20, 20)])]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    block, flaws = decode(*files, jpeg=jpeg, size=(24, 32), resize=resize, mean=mean, std=std)
    assert not flaws
    assert block.shape == (4, 3, 24, 32)
    assert block.dtype == np.float32
    for found, data in zip(block, files, strict=True):
        expected = reference(data, (24, 32), resize, Image.Resampling.BILINEAR)
        shown = found.transpose(1, 2, 0) * std + mean
        assert np.abs(shown - expected).max() <= 2.01 / 255


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_stretching_is_exact(interpolation: str) -> None:
    """A lossless image that is scaled once is Pillow's result to the bit, in either layout."""
    data = encoded(picture(50, 70), "PNG")
    expected = reference(data, (20, 30), "stretch", Image.Resampling[interpolation.upper()])
    for layout, axes in (("hwc", (0, 1, 2)), ("chw", (2, 0, 1))):
        block, _ = decode(data, size=(20, 30), resize="stretch", interpolation=interpolation, layout=layout)
        np.testing.assert_allclose(block[0], expected.transpose(axes), atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_a_crop_is_the_centre_of_the_scaled_image(width: int, height: int, across: int, down: int) -> None:
    """Whatever the sizes; the image is never scaled as a whole, yet comes out the same."""
    data = encoded(picture(width, height), "PNG")
    block, flaws = decode(data, size=(down, across), layout="hwc")
    assert not flaws
    assert np.abs(block[0] - reference(data, (down, across), "crop", Image.Resampling.BILINEAR)).max() <= 2.01 / 255


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_is_honoured(turn: int, form: str) -> None:
    """A photograph that lies on its side is set upright, in all eight ways, in every format."""
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(picture(40, 24), form, exif=exif)
    for jpeg in {"pillow", installed_decoder()}:
        block, _ = decode(data, jpeg=jpeg, size=(16, 16), resize="stretch", layout="hwc")
        assert np.abs(block[0] - reference(data, (16, 16), "stretch", Image.Resampling.BILINEAR)).max() <= 2.01 / 255


@given(st.binary(max_size=60))
def test_damaged_exif_is_upright(junk: bytes) -> None:
    """EXIF data are the camera's, and nothing in them makes an image unreadable."""
    for start in (b"", b"Exif\0\0", b"II*\0\x08\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08"):
        assert 1 <= orientation(start + junk) <= 8


@pytest.mark.parametrize(
    ("mode", "form"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("L", "JPEG"), ("CMYK", "JPEG")],
)
@pytest.mark.parametrize("channels", ["rgb", "gray"])
def test_every_kind_of_pixel(mode: str, form: str, channels: str) -> None:
    """Bilevel, gray, palettes, alpha and CMYK are what Pillow's own conversion makes of them."""
    image = picture(32, 32).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(picture(32, 32, "L", seed=3))
    data = encoded(image, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    for jpeg in {"pillow", installed_decoder()}:
        block, flaws = decode(data, jpeg=jpeg, size=(32, 32), channels=channels, layout="hwc")
        assert not flaws
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB" if channels == "rgb" else "L")) / 255
        assert np.abs(block[0].squeeze() - expected).max() <= 1.01 / 255


def test_a_palette_with_transparency_does_not_warn() -> None:
    """Its colours count; warnings are errors in these tests."""
    data = encoded(picture(16, 16, "P"), "PNG", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, flaws = decode(data, size=(16, 16))
    assert not flaws


def test_sixteen_bits_are_cut_to_eight() -> None:
    """The high byte of a 16-bit gray image counts, as Pillow does for colours; nothing is clipped to white."""
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    block, _ = decode(encoded(Image.fromarray(values), "PNG"), size=(32, 32), channels="gray", scale=1.0)
    assert (block[0, 0] == values >> 8).all()


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_the_first_frame_counts(form: str) -> None:
    """Of an animation."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {}))
    block, _ = decode(data, size=(4, 4))
    assert block[0, :, 0, 0].tolist() == [1, 0, 0]


def test_padding_is_black_around_the_middle() -> None:
    """Black before normalisation."""
    block, _ = decode(encoded(Image.new("RGB", (20, 10), "white"), "PNG"), size=(8, 8), resize="pad", mean=0.5, std=0.5)
    rows = block[0, 0, :, 4]
    assert rows.tolist() == [-1, -1, 1, 1, 1, 1, -1, -1]


@pytest.mark.parametrize("jpeg", sorted({"pillow", installed_decoder()}))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_what_is_cut_short_is_no_image(jpeg: str, form: str, part: float) -> None:
    """Not gray pixels in place of the missing ones; its neighbours are untouched."""
    data = encoded(picture(80, 80), form)
    block, flaws = decode(data, data[: int(part * len(data))], data, jpeg=jpeg, size=(16, 16))
    assert list(flaws) == [1]
    assert flaws[1].startswith(f"holds a {form.replace('WEBP', 'WebP')} that can't be decoded: ")
    assert (block[0] == block[2]).all()


def test_simplejpeg_refuses_what_pillow_fills_with_gray() -> None:
    """A JPEG whose data stop, but whose end is there: where simplejpeg is installed, it is a bad row."""
    pytest.importorskip("simplejpeg")
    data = encoded(picture(80, 80), "JPEG")
    _, flaws = decode(data[: len(data) // 2] + b"\xff\xd9", jpeg="simplejpeg", size=(16, 16))
    assert "premature end" in flaws[0]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 2000), st.binary(min_size=1, max_size=8))
def test_damage_never_raises(form: str, where: int, junk: bytes) -> None:
    """A damaged image is a flaw of its row, or decodes to finite numbers; nothing else ever happens."""
    data = bytearray(encoded(picture(24, 24), form))
    at = where % len(data)
    data[at : at + len(junk)] = junk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block, flaws = decode(bytes(data), jpeg=installed_decoder(), size=(8, 8), max_pixels=1_000_000)
    assert flaws or np.isfinite(block).all()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that announces a size; its pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def webp_bomb(kind: bytes) -> bytes:
    """A WebP whose header announces the largest sides there are."""
    body = {
        b"VP8X": bytes(4) + b"\xff\x3f\x00\xff\x3f\x00",
        b"VP8L": b"\x2f" + struct.pack("<I", 0x0FFFFFFF),
        b"VP8 ": b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 0x3FFF, 0x3FFF),
    }[kind]
    return b"RIFF" + struct.pack("<I", 100) + b"WEBP" + kind + struct.pack("<I", len(body)) + body + bytes(64)


@pytest.mark.parametrize(
    "data",
    [png_bomb(30_000, 30_000), webp_bomb(b"VP8X"), webp_bomb(b"VP8L"), webp_bomb(b"VP8 ")],
    ids=["png", "webp", "lossless", "lossy"],
)
def test_bombs_are_refused_by_their_headers(data: bytes) -> None:
    """The size alone decides: these files hold no pixels, so that it is all that can be read of them."""
    with pytest.raises(UndecodableError, match=r"of \d+ x \d+ pixels, more than model.preprocess.max_pixels allows \(50000000\)"):
        open_image(data, 50_000_000)


def test_a_jpeg_bomb_is_refused_by_its_header() -> None:
    """A header that was patched to 30,000 x 30,000."""
    data = bytearray(encoded(picture(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    _, flaws = decode(bytes(data), jpeg=installed_decoder(), size=(8, 8))
    assert "JPEG of 30000 x 30000 pixels, more than" in flaws[0]


def test_an_elongated_image_is_refused() -> None:
    """Few pixels, but scaled in one direction first it would be 224 x 40,000,000."""
    with pytest.raises(UndecodableError, match="1 x 40000000 pixels, too elongated"):
        open_image(png_bomb(1, 40_000_000), 50_000_000, (224, 224))


def test_the_limit_itself_is_allowed() -> None:
    """As many pixels as max_pixels says, and not one more."""
    data = encoded(picture(10, 10), "PNG")
    assert not decode(data, size=(4, 4), max_pixels=100)[1]
    assert decode(data, size=(4, 4), max_pixels=99)[1]
