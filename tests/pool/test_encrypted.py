"""Encrypted Parquet: what is encrypted is said, by file and column; pyarrow itself ends the process at such a column."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest

import raystream as rs
from raystream.errors import LabelsError, PoolError
from raystream.pool import has_columns, plan_pool, read_columns_at, read_labelled, read_unit
from raystream.pool.files import File, open_parquet
from raystream.pool.remote import RemoteParquet
from raystream.pool.scan import scan
from raystream.query import Pool


class InMemory(encryption.KmsClient):
    """Keys that are wrapped by nothing."""

    def __init__(self, _: object) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, _: str) -> bytes:
        return base64.b64decode(wrapped)


def write_encrypted(path: Path, columns: list[str], *, plain_footer: bool) -> Path:
    """Six rows in three row groups: k, the inputs x and v, the texts s; some columns with a key of their own."""
    table = pa.table({"k": range(6), "x": [0.5] * 6, "v": pa.array([[1.0, 2.0]] * 6, pa.list_(pa.float32())), "s": ["a"] * 6})
    keys = {"key": [f"{name}.list.element" if name == "v" else name for name in columns]}
    settings = encryption.EncryptionConfiguration(
        footer_key="footer", column_keys=keys, plaintext_footer=plain_footer, cache_lifetime=timedelta(minutes=5)
    )
    properties = encryption.CryptoFactory(InMemory).file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    path.parent.mkdir(exist_ok=True)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table, row_group_size=2)
    return path


@pytest.mark.parametrize("column", ["k", "x", "v", "s"])
@pytest.mark.parametrize("use", ["input", "id", "filter", "keep", "also"])
def test_an_encrypted_column_under_a_plain_footer_is_named(tmp_path: Path, column: str, use: str) -> None:
    """Whatever it is used for, while planning."""
    path = write_encrypted(tmp_path / "a.parquet", [column], plain_footer=True)
    value = "a" if column == "s" else 1
    pool = {
        "input": {"inputs": [column]}, "id": {"id": column, "inputs": ["x" if column != "x" else "v"]},
        "filter": {"inputs": ["x" if column != "x" else "k"], "filters": [[column, "==", value]]},
        "keep": {"inputs": ["x" if column != "x" else "k"], "keep": [column]}, "also": {"inputs": ["x" if column != "x" else "k"]},
    }[use]  # fmt: skip
    with pytest.raises(PoolError, match=rf"column {column} of {path} is encrypted, and raystream holds no keys; write it without"):
        plan_pool(Pool(uri=str(path), **pool), also=[column] if use == "also" else [], texts="taken")


def test_columns_beside_an_encrypted_one_are_read(tmp_path: Path) -> None:
    """The footer and they are plain: nothing of them is lost, by any reader."""
    path = write_encrypted(tmp_path / "a.parquet", ["s"], plain_footer=True)
    plan = plan_pool(Pool(uri=str(path), id="k", inputs=["v"], filters=[["x", "<", 1]], keep=["x"]))
    rows = [rows for unit in plan.units for rows in read_unit(unit, plan.read, 4)]
    assert [id_ for block in rows for id_ in block.ids.to_pylist()] == [*range(6)]
    assert read_columns_at([(plan.files[0], 5)], plan.keep_schema).to_pydict() == {"x": [0.5]}
    labelled = read_labelled([str(path)], "k", pa.int64())
    assert labelled.ids.to_pylist() == [*range(6)]
    assert has_columns(labelled.files, plan.read.columns) == [True]


@pytest.mark.parametrize("plain_footer", [True, False])
def test_encrypted_labels_are_named(tmp_path: Path, plain_footer: bool) -> None:
    """Their id column, or the file."""
    path = write_encrypted(tmp_path / "a.parquet", ["k"], plain_footer=plain_footer)
    with pytest.raises(LabelsError, match=rf"{path} can't be read.*: it is encrypted, .*and raystream holds no keys; write it"):
        read_labelled([str(path)], "k", pa.int64())


def test_a_file_that_is_encrypted_is_not_called_damaged(tmp_path: Path) -> None:
    """Its footer begins and ends with other magic numbers."""
    path = write_encrypted(tmp_path / "a.parquet", ["s"], plain_footer=False)
    with pytest.raises(PoolError, match=rf"^{path} can't be read: it is encrypted, footer and all, and raystream holds no keys; write it "):
        plan_pool(Pool(uri=str(path), inputs=["x"]))


class Source(io.FileIO):
    """A file read as an object is."""

    def read_at(self, count: int, at: int) -> bytes:
        self.seek(at)
        return self.read(count)


def test_encrypted_files_in_object_storage(tmp_path: Path) -> None:
    """An encrypted column is an error of its reader, an encrypted footer one of opening it, and others are read."""
    path = write_encrypted(tmp_path / "a.parquet", ["s"], plain_footer=True)
    size = path.stat().st_size
    file = File("s3://lake/a.parquet", size, "1")
    with RemoteParquet(Source(path), (file.path, size, "1")) as parquet:
        assert [batch.column("k").to_pylist() for _, batch in scan(file, parquet, ["k", "v"], 4)] == [[0, 1, 2, 3], [4, 5]]
        with pytest.raises(PoolError, match=r"s3://lake/a\.parquet can't be read near row 0: it is encrypted"):
            list(scan(file, parquet, ["k", "s"], 4))
    whole = write_encrypted(tmp_path / "b.parquet", ["s"], plain_footer=False)
    with Source(whole) as source, pytest.raises(ValueError, match="encrypted, footer and all"):
        RemoteParquet(source, ("s3://lake/b.parquet", whole.stat().st_size, "1"))


def test_a_query_over_encrypted_files_ends_with_the_file(
    make_query: Callable[..., rs.Query], workplace: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    """Exit 3 with the file; under skip such files are left out, and counted in a warning."""
    write_encrypted(workplace / "mixed" / "a.parquet", ["x"], plain_footer=True)
    write_encrypted(workplace / "mixed" / "b.parquet", ["x"], plain_footer=False)
    pq.write_table(pa.table({"k": range(6, 10), "x": [0.5, 1.0, 2.0, 3.0]}), workplace / "mixed" / "c.parquet")
    asked = {
        "pool": {"uri": "mixed", "id": "k", "inputs": ["x"]}, "model__args": {"d": 1}, "select": {"budget": 2, "strategy": "top_k"}
    }  # fmt: skip
    spec = workplace / "query.yaml"
    spec.write_text(make_query(**asked).to_yaml())
    code, _, told = cli("query", spec)
    assert code == 3
    assert f"column x of {workplace}/mixed/a.parquet is encrypted" in told.replace("\n", " ")
    result = rs.run(make_query(**asked, on_error="skip"))
    assert set(result.selection.column("k").to_pylist()) < {6, 7, 8, 9}
    assert any("2 files of the pool were left out" in warning and "encrypted" in warning for warning in result.manifest.warnings)
    with open_parquet(next(file for file in plan_pool(Pool(uri="mixed", inputs=["x"]), on_error="skip").files)) as parquet:
        assert parquet.metadata.num_rows == 4
