"""What is written among the files of a pool is refused; what lies beside it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystream.errors import QueryError
from raystream.pool import list_files, refuse_among

URIS = [".", "lake", "lake/a.parquet", "lake/*.parquet", "lake/*", "lake/**/*.parquet", "la*", "link"]
URIS += ["[l]ake", "lake/[a].parquet", "odd[1]", "odd[1]/*.parquet", "odd?1?"]
PLACES = ["lake", "lake/a.parquet", "lake/new.parquet", "lake/runs", "lake/_runs", "lake/.runs", "runs", "lakes", "link/runs"]


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize("place", [*PLACES, "odd[1]/new.parquet"])
def test_it_refuses_what_the_pool_would_list(uri: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written there, does listing the pool find it? Folders, files, globs, hidden names and links agree with `list_files`."""
    monkeypatch.chdir(tmp_path)
    Path("lake").mkdir()
    Path("link").symlink_to("lake")
    pq.write_table(pa.table({"x": [1]}), "lake/a.parquet")
    Path("odd[1]").mkdir()
    pq.write_table(pa.table({"x": [1]}), "odd[1]/a.parquet")
    written = Path(place if place.endswith(".parquet") else f"{place}/results.parquet")
    written.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": [2]}), written)
    listed = {Path(file.path).resolve() for file in list_files([uri])}
    if written.resolve() not in listed:
        refuse_among(place, {"pool.uri": [uri]}, "output")
        return
    with pytest.raises(QueryError, match=re.escape(f"output {place} lies in pool.uri {uri}, ")):
        refuse_among(place, {"pool.uri": [uri]}, "output")


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
        ("delta+s3://lake/out?region=x&version=3", "delta+s3a://lake/out/", True),
        ("delta+s3://lake/out", "delta+s3://lake/other", False),
        ("s3://lake/images", "delta+s3://lake/images/out", True),
        ("s3://lake/images/*.parquet", "delta+s3://lake/images", True),
        ("s3://lake/images", "delta+s3://lake/out", False),
        ("delta+file:///lake/out", "delta+/lake/out", True),
        ("iceberg://lake/ns.out?snapshot_id=3", "iceberg://lake/ns.out", True),
        ("iceberg://lake/ns.out", "iceberg://lake/ns.other", False),
    ],
)
def test_object_storage_and_tables(uri: str, place: str, inside: bool) -> None:
    """By bucket and key, whatever the options; a table's log says what is in it, so its folder is no pool."""
    if not inside:
        refuse_among(place, {"pool.uri": [uri]}, "output")
        return
    with pytest.raises(QueryError, match=r"lies in pool\.labelled"):
        refuse_among(place, {"pool.uri": ["elsewhere"], "pool.labelled": [uri]}, "output")


@pytest.mark.parametrize("uri", ["outs/selection-*.parquet", "outs/selection-fix.parquet"])
def test_the_name_that_a_folder_gets_counts(uri: str) -> None:
    """A pattern of exactly the files that are written there would read them from then on."""
    refuse_among("outs", {"pool.labelled": [uri]}, "output", "scores-fix.parquet")
    with pytest.raises(QueryError, match=r"output outs lies in pool\.labelled"):
        refuse_among("outs", {"pool.labelled": [uri]}, "output", "selection-fix.parquet")
