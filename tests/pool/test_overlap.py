"""What is written among the files of a pool is refused; what lies beside it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystream.errors import QueryError
from raystream.pool import list_files, refuse_in_pool


@pytest.mark.parametrize("uri", [".", "lake", "lake/a.parquet", "lake/*.parquet", "lake/*", "lake/**/*.parquet", "la*", "link"])
@pytest.mark.parametrize(
    "place", ["lake", "lake/a.parquet", "lake/new.parquet", "lake/runs", "lake/_runs", "lake/.runs", "runs", "lakes", "link/runs"]
)
def test_it_refuses_what_the_pool_would_list(uri: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written there, does listing the pool find it? Folders, files, globs, hidden names and links agree with `list_files`."""
    monkeypatch.chdir(tmp_path)
    Path("lake").mkdir()
    Path("link").symlink_to("lake")
    pq.write_table(pa.table({"x": [1]}), "lake/a.parquet")
    written = Path(place if place.endswith(".parquet") else f"{place}/results.parquet")
    written.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": [2]}), written)
    listed = {Path(file.path).resolve() for file in list_files([uri])}
    if written.resolve() not in listed:
        refuse_in_pool(place, [uri], "output")
        return
    with pytest.raises(QueryError, match=re.escape(f"output {place} lies in pool.uri {uri}, ")):
        refuse_in_pool(place, [uri], "output")


@pytest.mark.parametrize(
    ("uri", "place", "inside"),
    [
        ("s3://lake/images", "s3a://lake/images/runs?region=x", True),
        ("s3://lake/images?region=x", "s3://lake/runs?region=x", False),
        ("s3://lake", "gs://lake/runs", False),
        ("s3://lake/images/*.parquet", "s3://lake/images", True),
        ("delta+s3://lake/images", "s3://lake/images", False),
        ("s3://lake/images", "iceberg://lake/ns.out", False),
        ("s3://lake/images", "images", False),
    ],
)
def test_object_storage_and_tables(uri: str, place: str, inside: bool) -> None:
    """By bucket and key, whatever the options; a table's log says what is in it, so its folder is no pool."""
    if not inside:
        refuse_in_pool(place, [uri], "output")
        return
    with pytest.raises(QueryError, match=r"lies in pool\.uri"):
        refuse_in_pool(place, [uri], "output")
