"""Pools of encoded images and of other libraries' tensors, from the files to the selection, against models run by hand."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scored import planned

import raystream as rs
from raystream.errors import ModelError, PoolError, QueryError
from raystream.model.source import build_network
from raystream.pool import images as images_module
from raystream.scoring.estimate import estimate
from raystream.scoring.plan import resolve

SIDE = 8
SHAPE = (3, SIDE, SIDE)
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, values=192):
        super().__init__()
        self.body, self.head = nn.Linear(values, 6), nn.Linear(6, 3)
    def forward(self, x):
        assert x.dtype == torch.float32
        return self.head(torch.tanh(self.body(x.flatten(1))))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.head, self.drop = nn.Linear(192, 5), nn.Linear(7, 3), nn.Dropout(0.3)
    def forward(self, image, *, side=None, age):
        return self.head(self.drop(torch.tanh(torch.cat([self.image(image.flatten(1)), age[:, None], side], 1))))
"""
FUNCTIONS = """
import io
import numpy as np
import torch
from PIL import Image

def open_(data):
    return np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32).transpose(2, 0, 1) / 255

def prepare(batch):
    return torch.from_numpy(np.stack([open_(data) for data in batch.column("image").to_pylist()]))

def by_name(batch):
    side, age = (batch.column(name).to_numpy().astype("f4") for name in ("side", "age"))
    return {"side": side[:, None], "image": prepare(batch), "age": age}

def too_few(batch):
    return prepare(batch)[1:]

def misspelt(batch):
    return {"imaeg": prepare(batch)}

def ragged(batch):
    return prepare(batch)[:, :, : 8 if batch.num_rows == 7 else 4]

def infinite(batch):
    found = prepare(batch)
    found[found[:, 0, 0, 0] > 0.8] = np.inf
    return found
"""


def encode(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def pixels() -> np.ndarray:
    """(90, 8, 8, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (90, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Writes columns beside ids as a pool of two files of three row groups, in the current folder, where nets can be imported."""
    (tmp_path / "image_nets.py").write_text(NETS)
    (tmp_path / "image_functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("image_nets", "image_functions"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)

    def write(columns: dict[str, Any]) -> None:
        rows = len(next(iter(columns.values())))
        table = pa.table({"rid": pa.array(np.arange(rows)).cast(pa.string()).dictionary_encode(), **columns})
        Path("pool").mkdir(exist_ok=True)
        for file in range(2):
            part = table.slice(file * rows // 2, rows // 2)
            pq.write_table(part, f"pool/{file}.parquet", row_group_size=-(-rows // 6))

    return write


def query(**changes: Any) -> rs.Query:
    spec: dict[str, Any] = {
        "pool": {"uri": "pool", "id": "rid", "inputs": ["image"]},
        "model": {"source": "image_nets:Net", "batch_size": 7, "preprocess": {"size": [SIDE, SIDE]}},
        "select": {"strategy": "top_k", "budget": 90},
        "cluster": {"address": "in_process"},
        "store": {"uri": "runs"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        target = spec.setdefault(section, {}) if name else spec
        target[name or section] = value
    return rs.Query(**spec)


def confidences(result: Any) -> dict[int, float]:
    """Row -> what the model was sure of."""
    ids = [int(rid) for rid in result.selection.column("rid").to_pylist()]
    return dict(zip(ids, result.selection.column("confidence").to_pylist(), strict=True))


def by_hand(inputs: np.ndarray, source: str = "image_nets:Net", **further: torch.Tensor) -> np.ndarray:
    """(n,) the top probability of the tests' net on float inputs (n, 3, 8, 8)."""
    with torch.inference_mode():
        x = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32))
        net = build_network(source, {}).eval()
        return (net(image=x, **further) if further else net(x)).softmax(1).amax(1).numpy()


def check(result: Any, expected: np.ndarray) -> None:
    found = confidences(result)
    assert sorted(found) == list(range(len(expected)))
    np.testing.assert_allclose([found[row] for row in range(len(expected))], expected, atol=1e-5)


def unit_pixels(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(0, 3, 1, 2) / 255


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("form", ["binary", "dictionary", "huggingface"])
def test_images_of_a_pool(place: Any, pixels: np.ndarray, form: str, threads: int) -> None:
    """PNG and lossless bytes in any column of bytes give what the model makes of the pixels themselves, whatever the threads."""
    data = [encode(image) for image in pixels]
    column = pa.array(data, pa.large_binary() if form == "binary" else pa.binary())
    if form == "dictionary":
        column = column.dictionary_encode()
    if form == "huggingface":
        column = pa.array([{"bytes": one, "path": None} for one in data], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    place({"image": column})
    check(rs.run(query(cluster__cpus_per_worker=threads)), by_hand(unit_pixels(pixels)))


def test_a_query_of_images_is_the_same_again(place: Any, pixels: np.ndarray) -> None:
    """Other settings are scored anew; the same ones and other budgets score nothing."""
    place({"image": pa.array([encode(image) for image in pixels])})
    first = rs.run(query())
    assert rs.run(query(select={"strategy": "top_k", "budget": 5})).manifest.units_scored == 0
    other = query(model__preprocess={"size": [SIDE, SIDE], "mean": 0.5, "std": [0.5, 0.25, 0.5]})
    again = rs.run(other)
    assert again.manifest.units_scored == first.manifest.units_scored > 0
    std = np.array([0.5, 0.25, 0.5])[:, None, None]
    check(again, by_hand((unit_pixels(pixels) - 0.5) / std))


def test_the_decoder_is_part_of_the_key(place: Any, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one decoder of JPEG made isn't taken for what another would make."""
    place({"image": pa.array([encode(image, "JPEG") for image in pixels])})
    keys = []
    for decoder in ("simplejpeg", "pillow"):
        monkeypatch.setattr("raystream.pool.plan.installed_decoder", lambda found=decoder: found)
        keys.append(set(planned(query())[1].keys))
    assert keys[0].isdisjoint(keys[1])


def bomb() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


BAD = [
    (bomb(), r"holds a PNG of 30000 x 30000 pixels, more than model.preprocess.max_pixels allows \(50000000\)"),
    (encode(np.zeros((8, 8, 3), np.uint8))[:-30], r"holds a PNG that can't be decoded: "),
    (b"GIF89a..", r"holds bytes that start with 47 49 46 38 39 61 2e 2e, expected a JPEG, PNG or WebP image"),
    (b"", r"holds no bytes, expected"),
    (None, r"is null"),
]


@pytest.mark.parametrize(("data", "reason"), BAD, ids=["bomb", "cut", "gif", "empty", "null"])
def test_a_bad_image_is_named(place: Any, pixels: np.ndarray, data: bytes | None, reason: str) -> None:
    """File, row group, row, column and reason; left out and counted under skip, with all other rows scored."""
    files: list[bytes | None] = [encode(image) for image in pixels]
    files[50] = data
    place({"image": pa.array(files)})
    with pytest.raises(PoolError, match=rf"1\.parquet#rg0 row 5: column image {reason}") as caught:
        rs.run(query())
    assert "Traceback" not in str(caught.value)
    result = rs.run(query(on_error="skip", select={"strategy": "top_k", "budget": 89}))
    expected = by_hand(unit_pixels(pixels))
    found = confidences(result)
    assert sorted(found) == [row for row in range(90) if row != 50]
    np.testing.assert_allclose([found[row] for row in sorted(found)], np.delete(expected, 50), atol=1e-5)
    assert result.manifest.counts.quarantined == 1


def test_paths_without_bytes_are_named(place: Any, pixels: np.ndarray) -> None:
    """Hugging Face's images that were not embedded lie somewhere else, where no key could follow them."""
    rows = [{"bytes": encode(image), "path": "a.png"} for image in pixels]
    rows[3] = {"bytes": None, "path": "b.png"}
    place({"image": pa.array(rows)})
    with pytest.raises(PoolError, match=r"row 3: column image holds a path without bytes; embed"):
        rs.run(query())


def test_what_preprocess_is_for(place: Any, pixels: np.ndarray) -> None:
    """Images without it, and it without images, are errors that say what to write."""
    place({"image": pa.array([encode(image) for image in pixels]), "x": pa.array([[0.5] * 3] * 90), "other": pa.array([b"abc"] * 90)})
    plain = {"source": "image_nets:Net"}
    with pytest.raises(QueryError, match=r"column image holds encoded images, but model.preprocess is missing"):
        resolve(query(model=plain))
    with pytest.raises(QueryError, match=r"no input column holds encoded ones \(x\)"):
        resolve(query(pool__inputs=["x"]))
    with pytest.raises(PoolError, match=r"column other holds bytes that start with 61 62 63, expected JPEG"):
        resolve(query(pool__inputs=["other"], model=plain))
    for wrong, message in (
        ({"sise": [8, 8]}, r"model.preprocess.sise is not a key of the query; did you mean 'size'"),
        ({"resize": "fit"}, r"model.preprocess.resize is 'fit'"),
        ({"mean": [0.1, 0.2]}, r"model.preprocess.mean has 2 numbers, but channels: rgb makes 3"),
        ({"size": [9000, 9000]}, r"model.preprocess.size is 9000 x 9000, more than its max_pixels"),
        ("image_functions", r"model.preprocess is 'image_functions', expected a mapping"),
    ):
        with pytest.raises(QueryError, match=message):
            query(model__preprocess=wrong)


def test_what_is_in_flight_is_bounded(place: Any, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large a batch, images are decoded some at a time, and a row group never at once."""
    monkeypatch.setattr("raystream.scoring.batch_reader._IMAGES_BYTES", 5 * 4 * 3 * SIDE * SIDE)
    sizes: list[int] = []
    decode = images_module.decode_images
    monkeypatch.setattr("raystream.pool.reader.decode_images", lambda array, *rest: sizes.append(len(array)) or decode(array, *rest))
    place({"image": pa.array([encode(image) for image in pixels])})
    check(rs.run(query(model__batch_size=1000)), by_hand(unit_pixels(pixels)))
    assert max(sizes) == 5
    assert sum(sizes) == 90 + 5  # those that the model is probed with are decoded twice


def test_a_row_group_is_warned_of_by_its_encoded_bytes(place: Any, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a row group's images would take decoded is never in memory, and says nothing."""
    place({"image": pa.array([encode(image) for image in pixels])})
    monkeypatch.setattr("raystream.pool.plan.LARGE_ROW_GROUP", 1 << 20)
    huge = query(model__preprocess={"size": [512, 512]})
    assert not resolve(huge).pool.warnings
    monkeypatch.setattr("raystream.pool.plan.LARGE_ROW_GROUP", 100)
    assert "the largest row group" in resolve(huge).pool.warnings[0]


def test_large_batches_are_warned_of(place: Any, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what they take decoded: two of the unit that is scored and two of the next, none of more rows than a unit has."""
    place({"image": pa.array([encode(image) for image in pixels])})
    for batch_size, rows in ((1000, 45), (7, 7)):
        ask = query(model__preprocess={"size": [50, 40]}, model__batch_size=batch_size)
        held = 4 * rows * 50 * 40 * 3 * 4
        monkeypatch.setattr("raystream.scoring.plan.LARGE_BATCHES", held)
        assert not resolve(ask).pool.warnings
        monkeypatch.setattr("raystream.scoring.plan.LARGE_BATCHES", held - 1)
        (said,) = resolve(ask).pool.warnings
        assert f"up to 4 batches of {rows} decoded rows, {held / 2**30:.1f} GiB" in said


def ray_tensors(values: np.ndarray, version: int) -> tuple[pa.Array, dict[bytes, bytes]]:
    """(n, *shape) as Ray Data stores it, without Ray: a list of a row's values, and the shape in the field's metadata."""
    offsets = np.arange(len(values) + 1) * int(np.prod(values.shape[1:]))
    flat = pa.array(values.reshape(-1))
    array = pa.ListArray.from_arrays(offsets.astype(np.int32), flat) if version == 1 else pa.LargeListArray.from_arrays(offsets, flat)
    name = b"ray.data.arrow_tensor" + (b"_v2" if version == 2 else b"")
    return array, {b"ARROW:extension:name": name, b"ARROW:extension:metadata": json.dumps(values.shape[1:]).encode()}


def npy(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["ray", "ray_v2", "arrow", "nested", "npy", "npy in fortran's order"])
def test_tensors_of_other_libraries(place: Any, pixels: np.ndarray, form: str) -> None:
    """All of them arrive at the model in their shape, as float32."""
    values = unit_pixels(pixels).astype(np.float32)
    metadata: dict[bytes, bytes] = {}
    if form.startswith("ray"):
        column, metadata = ray_tensors(values, 2 if form == "ray_v2" else 1)
    elif form == "arrow":
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
    elif form == "nested":
        column = pa.array(values.tolist(), pa.list_(pa.list_(pa.list_(pa.float64()))))
    else:
        column = pa.array([npy(np.asfortranarray(row.astype(">f8")) if "fortran" in form else row) for row in values])
    place({"image": column})
    if metadata:  # the column again, under its metadata
        for file in range(2):
            table = pq.read_table(f"pool/{file}.parquet")
            field = table.schema.field("image").with_metadata(metadata)
            pq.write_table(table.cast(table.schema.set(1, field)), f"pool/{file}.parquet", row_group_size=15)
    plain = {"source": "image_nets:Net", "batch_size": 7}
    check(rs.run(query(model=plain)), by_hand(values))
    [column] = resolve(query(model=plain)).pool.read.columns
    assert column.shape == SHAPE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), "Python objects, which are pickled and never read"),
        (npy(np.zeros((2, 2))), r"float64 \(2, 2\), expected float32 \(3, 8, 8\)"),
        (npy(np.zeros(SHAPE, np.float32))[:-1], "767 bytes of values, expected 768"),
        (npy(np.full(SHAPE, np.nan)), "holds NaN"),
        (b"\x93NUMPY\x01\x00\x10\x00{", "header is damaged"),
    ],
)
def test_bad_npy_files_are_named(place: Any, pixels: np.ndarray, data: bytes, reason: str) -> None:
    """Pickles are never read, and nothing is allocated for what a header alone announces."""
    place({"image": pa.array([npy(image) for image in unit_pixels(pixels)[:80]] + [data] + [npy(unit_pixels(pixels)[0])] * 9)})
    with pytest.raises(PoolError, match=rf"1\.parquet#rg2 row 35: column image .*{reason}"):
        rs.run(query(model={"source": "image_nets:Net"}))


def two_inputs(place: Any, pixels: np.ndarray) -> dict[str, Any]:
    """A pool for the net of three arguments, and these as it should see them."""
    rng = np.random.default_rng(1)
    side, age = rng.normal(size=(90, 1)).astype(np.float32), rng.normal(size=90).astype(np.float32)
    place({"years": pa.array(age), "photo": pa.array([encode(image) for image in pixels]), "extra": pa.array(side.tolist())})
    return {"side": torch.from_numpy(side), "age": torch.from_numpy(age)}


def test_inputs_by_name(place: Any, pixels: np.ndarray) -> None:
    """Images, lists and single numbers side by side, as the arguments of forward that the query names."""
    further = two_inputs(place, pixels)
    expected = by_hand(unit_pixels(pixels), "image_nets:Two", **further)
    named = query(pool__inputs={"age": "years", "image": "photo", "side": "extra"}, model__source="image_nets:Two")
    check(rs.run(named), expected)
    with_samples = query(
        pool__inputs={"age": "years", "image": "photo", "side": "extra"},
        model__source="image_nets:Two",
        acquire={"score": "bald", "mc_samples": 4},
        select={"strategy": "k_means", "budget": 5},
    )
    assert rs.run(with_samples).selection.num_rows == 5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"age": "years", "imge": "photo", "side": "extra"},
            r"'imge', which .*image_nets:Two doesn't take; did you mean 'image'",
        ),
        ({"image": "photo", "side": "extra"}, r"gives model.source image_nets:Two nothing for 'age'"),
    ],
)
def test_names_that_the_model_does_not_take(place: Any, pixels: np.ndarray, inputs: dict[str, str], message: str) -> None:
    """Names are checked against forward's signature before anything runs."""
    two_inputs(place, pixels)
    with pytest.raises(ModelError, match=message):
        rs.run(query(pool__inputs=inputs, model__source="image_nets:Two"))


def test_names_need_a_model_that_has_them() -> None:
    """A scikit-learn model's inputs have none."""
    with pytest.raises(QueryError, match=r"pool.inputs gives names, which kind: sklearn doesn't know"):
        query(pool__inputs={"x": "image"}, model={"kind": "sklearn", "source": "m.skops"})


def test_a_function_makes_the_inputs(place: Any, pixels: np.ndarray) -> None:
    """A user's function on record batches takes the place of decoding; its code is part of what a unit is kept under."""
    place({"image": pa.array([encode(image) for image in pixels])})
    by_function = query(model__preprocess="image_functions:prepare")
    check(rs.run(by_function), by_hand(unit_pixels(pixels)))
    before = set(planned(by_function)[1].keys)
    assert before.isdisjoint(planned(query())[1].keys)
    source = Path("image_functions.py")
    source.write_text(source.read_text() + "\n# changed\n")
    assert before.isdisjoint(planned(by_function)[1].keys)


def test_a_function_makes_named_inputs(place: Any, pixels: np.ndarray) -> None:
    """A mapping by the model's names, from columns of which one may serve several inputs."""
    further = two_inputs(place, pixels)
    numbers = {name: pa.array(values.flatten().numpy()) for name, values in further.items()}
    place({"image": pa.array([encode(image) for image in pixels]), **numbers})
    named = query(
        pool__inputs={"side": "side", "age": "age", "image": "image"},
        model__source="image_nets:Two",
        model__preprocess="image_functions:by_name",
    )
    check(rs.run(named), by_hand(unit_pixels(pixels), "image_nets:Two", **further))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_few", r"model.preprocess image_functions:too_few returned values of shape \(6, 3, 8, 8\) for 7 rows, expected \(7, ...\)"),
        ("misspelt", r"returned 'imaeg', which is no name in pool.inputs \(image\); did you mean 'image'"),
        ("ragged", r"returned float32 \('rows', 3, 4, 8\) after float32 \('rows', 3, 8, 8\) for other rows"),
        ("nothing", r"model.preprocess image_functions:nothing: image_functions has no 'nothing'"),
    ],
)
def test_a_function_that_returns_something_else(place: Any, pixels: np.ndarray, function: str, message: str) -> None:
    """The function is named, with what it returned and what was expected."""
    place({"image": pa.array([encode(image) for image in pixels])})
    with pytest.raises(ModelError, match=message):
        rs.run(query(model__preprocess=f"image_functions:{function}"))


def test_rows_that_a_function_can_not_take(place: Any, pixels: np.ndarray) -> None:
    """A row on which it raises, or that becomes infinite, is named, or left out under skip."""
    data = [encode(image) for image in pixels]
    data[20] = b"no image"
    place({"image": pa.array(data)})
    by_function = {"model__preprocess": "image_functions:infinite", "select": {"strategy": "top_k", "budget": 1}}
    with pytest.raises(PoolError, match=r"row \d+: column image (becomes a tensor that holds a value|makes model.preprocess)"):
        rs.run(query(**by_function))
    infinite = {row for row in range(90) if row != 20 and pixels[row, 0, 0, 0] / 255 > 0.8}
    result = rs.run(query(**(by_function | {"on_error": "skip", "select": {"strategy": "top_k", "budget": 89 - len(infinite)}})))
    assert set(confidences(result)) == set(range(90)) - {20} - infinite


def test_what_travels_and_what_is_written_down(place: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    """The way to read reaches workers as it is, a query survives YAML, and the estimate decodes images and calls functions, too."""
    place({"image": pa.array([encode(image) for image in pixels])})
    asked = query(model__preprocess={"size": [SIDE, SIDE], "mean": [0.1, 0.2, 0.3]}, pool__inputs={"x": "image"})
    read = resolve(asked).pool.read
    assert pickle.loads(pickle.dumps(read)) == read
    Path("query.yaml").write_text(asked.to_yaml())
    assert rs.Query.load("query.yaml") == asked
    for one in (asked, query(model__preprocess="image_functions:prepare")):
        assert estimate(one).measured_on.endswith("rows scored here")


def test_queries_without_preprocess_are_what_they_were() -> None:
    """The key leaves no trace in the identity of a query that doesn't use it."""
    assert "preprocess" not in query(model={"source": "m:f"}).model_dump(mode="json")["model"]


def test_labelled_images_outside_the_pool_count_as_covered(place: Any, pixels: np.ndarray) -> None:
    """Labelled rows of a file of their own are decoded, too: core_set stays away from the image that they repeat."""
    flat = np.repeat(np.array([0, 255], np.uint8), 45)[:, None, None, None] + np.zeros((90, SIDE, SIDE, 3), np.uint8)
    place({"image": pa.array([encode(image) for image in flat])})
    pq.write_table(pa.table({"rid": ["900"], "image": [encode(flat[0])]}), "labelled.parquet")
    pool = {"uri": "pool", "id": "rid", "inputs": ["image"], "labelled": ["labelled.parquet"]}
    result = rs.run(query(pool=pool, select={"strategy": "core_set", "budget": 1, "candidates": "all"}))
    assert int(result.selection.column("rid")[0].as_py()) >= 45
