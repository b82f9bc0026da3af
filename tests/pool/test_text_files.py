"""Labels in CSV and JSON Lines mean what the same labels in Parquet mean, whatever their ids look like."""

from __future__ import annotations

import csv
import io
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import LabelsError, PoolError
from raystream.pool import has_columns, labelled_units, list_pool, plan_pool, read_labelled, read_unit, text_files
from raystream.pool.text_files import text_format
from raystream.query import Pool

STRINGS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8) | st.sampled_from(
    ["007", "7", "NA", "null", "NaN", "true", "1e3", "2024-01-01", " x ", '"', "a,b", "a\nb", "-"]
)
IDS = {
    "string": (pa.string(), STRINGS),
    "large_string": (pa.large_string(), STRINGS),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "int16": (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    "binary": (pa.binary(), st.binary(max_size=9)),
    "binary(3)": (pa.binary(3), st.binary(min_size=3, max_size=3)),
}


def spelt(id_: Any) -> Any:
    return id_.hex() if isinstance(id_, bytes) else id_


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    """As Python's own writer has it: strings in quotes, so that an empty one isn't nothing."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {"csv": as_csv, "jsonl": as_jsonl}


@settings(deadline=None, max_examples=25)
@given(data=st.data(), kind=st.sampled_from(sorted(IDS)), suffix=st.sampled_from(sorted(FORMATS)))
def test_ids_are_read_as_the_pools(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, suffix: str) -> None:
    """Strings verbatim, integers of any width, bytes from hexadecimal digits: the ids that were written, sorted, each once."""
    type_, values = IDS[kind]
    ids = data.draw(st.lists(values, min_size=1, max_size=12))
    path = tmp_path_factory.mktemp("labels") / f"labels.{suffix}"
    path.write_bytes(FORMATS[suffix]([{"k": spelt(id_), "label": "a"} for id_ in ids]))
    labelled = read_labelled([str(path)], "k", type_)
    assert labelled.ids.to_pylist() == sorted(set(ids), key=lambda id_: id_.encode() if isinstance(id_, str) else id_)
    assert labelled.find(pa.array(ids, type_)).all()


@pytest.mark.parametrize(
    ("name", "text", "type_", "expected"),
    [
        ("a.csv", 'k\n007\n7\nNA\n""\n', pa.string(), ["", "007", "7", "NA"]),
        ("a.csv", "\ufeffk\n007\n+8\n -9 \n", pa.int64(), [-9, 7, 8]),
        ("a.csv", "k\r\n00ff\r\nAB\r\n", pa.binary(), [b"\x00\xff", b"\xab"]),
        ("a.CSV", "label,k\nx,1\n", pa.int8(), [1]),
        ("a.jsonl", '{"k": 7}\n\n{"k": "8"}\n', pa.int64(), [7, 8]),
        ("a.ndjson", '{"k": "007"}\n{"k": "7", "more": {}}\n', pa.string(), ["007", "7"]),
        ("a.jsonl", '{"k": 7}\n{"k": 18446744073709551615}\n', pa.string(), ["18446744073709551615", "7"]),
        ("a.jsonl", "\n", pa.string(), []),
        ("a.csv", "k,label\n", pa.binary(), []),
    ],
)  # fmt: skip
def test_spellings(tmp_path: Path, name: str, text: str, type_: pa.DataType, expected: list[Any]) -> None:
    """Leading zeros, signs, words that other readers take for nothing, marks at the beginning, numbers for strings, no rows at all."""
    (tmp_path / name).write_text(text)
    assert read_labelled([str(tmp_path / name)], "k", type_).ids.to_pylist() == expected


@pytest.mark.parametrize(
    ("name", "text", "type_", "says"),
    [
        ("a.csv", "k\n7\nx7\nx8\n", pa.int64(), r"k of .*a\.csv holds 'x7' in row 1 and 1 more such, but the pool's ids are int64"),
        ("a.csv", "k\n7.5\n", pa.int64(), r"holds '7.5' in row 0, but the pool's ids are int64; expected whole numbers"),
        ("a.csv", "k\n-1\n18446744073709551615\n", pa.uint64(), "holds '18446744073709551615' in row 1, .*; expected integers of 64 bits"),
        ("a.csv", "k\nab\nabc\n", pa.binary(), "holds 'abc' in row 1, but the pool's ids are binary; expected pairs of hexadecimal digits"),
        ("a.csv", "k\nzz\n", pa.binary(1), "holds 'zz' in row 0"),
        ("a.csv", "k,l\n1,2\n3\n", pa.int64(), r"a\.csv can't be read as CSV: CSV parse error: .* got 1: 3; correct the file"),
        ("a.csv", "", pa.int64(), r"a\.csv can't be read as CSV: Empty CSV file"),
        ("a.csv", "kk,l\n1,2\n", pa.int64(), r"id column k is missing in the labelled file .*a\.csv; did you mean 'kk'"),
        ("a.csv", "k,l\n1,2\n,3\n", pa.int64(), r"id column k of .*a\.csv holds 1 nulls"),
        ("a.csv", "k,l,l\n1,2,3\n", pa.int64(), r"column l stands 2 times in .*a\.csv"),
        ("a.jsonl", '{"k": 1}\n{"k"\n', pa.int64(), r"a\.jsonl can't be read as JSON Lines: .* in row 1; correct the file"),
        ("a.jsonl", '[{"k": 1}]\n', pa.int64(), r"a\.jsonl can't be read as JSON Lines"),
        ("a.jsonl", '{"k": 1.5}\n', pa.int64(), r"a\.jsonl can't be read as JSON Lines: Failed to convert JSON to decimal"),
        ("a.jsonl", '{"l": 1}\n', pa.int64(), r"id column k is missing in the labelled file .*a\.jsonl"),
        ("a.jsonl", '{"k": 1}\n{"l": 1}\n', pa.int64(), r"id column k of .*a\.jsonl holds 1 nulls"),
        ("a.jsonl", '{"k": "a"}\n{"k": true}\n', pa.string(), r"a\.jsonl can't be read as JSON Lines: .*from string to boolean"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_used(tmp_path: Path, name: str, text: str, type_: pa.DataType, says: str) -> None:
    """Each is an error of the labels that names file, row and value; none is called damaged Parquet."""
    (tmp_path / name).write_text(text)
    with pytest.raises(LabelsError, match=says) as caught:
        read_labelled([str(tmp_path / name)], "k", type_)
    assert "Parquet" not in str(caught.value)


def test_many_rows_in_files_of_every_kind(write: Callable[..., Path], tmp_path: Path) -> None:
    """More rows than a row group or a batch holds, from a folder with Parquet, CSV and JSON Lines; what else lies there is left alone."""
    ids = np.random.default_rng(0).permutation(305_000)
    (tmp_path / "labels" / "deep").mkdir(parents=True)
    (tmp_path / "labels" / "a.csv").write_text("k,label\n" + "".join(f"{i:09d},{i % 7}\n" for i in ids[:300_000].tolist()))
    (tmp_path / "labels" / "deep" / "b.ndjson").write_bytes(as_jsonl([{"k": i} for i in ids[300_000:303_000].tolist()]))
    write("labels/c.parquet", {"k": ids[303_000:]})
    (tmp_path / "labels" / "notes.txt").write_text("not labels")
    labelled = read_labelled([str(tmp_path / "labels")], "k", pa.int32())
    np.testing.assert_array_equal(labelled.ids.to_numpy(), np.arange(305_000))
    assert len(read_labelled([f"{tmp_path}/labels/**/*.ndjson"], "k", pa.int32())) == 3_000


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    """What was made of it is kept for as long as it stays what it was."""
    path = tmp_path / "a.csv"
    for ids in (["1", "22"], ["333"]):
        path.write_text("k\n" + "\n".join(ids))
        assert read_labelled([str(path)], "k", pa.string()).ids.to_pylist() == ids
        assert read_labelled([str(path)], "k", pa.int64()).ids.to_pylist() == [int(id_) for id_ in ids]


def test_what_is_kept_of_texts_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes, the first read going first; more than that is read anew, to the same ids."""
    monkeypatch.setattr(text_files, "_KEPT_BYTES", 3000)
    monkeypatch.setattr(text_files, "_converted", OrderedDict())
    for number in range(9):
        (tmp_path / f"{number}.csv").write_text(f"k\n{number}\n{number + 1}\n")
    assert read_labelled([str(tmp_path)], "k", pa.int64()).ids.to_pylist() == list(range(10))
    assert 0 < sum(content.size for content in text_files._converted.values()) <= 3000


def test_inputs_stand_in_texts_too(write: Callable[..., Path], vectors: Callable[..., pa.Array], tmp_path: Path) -> None:
    """Lists in JSON Lines, numbers in either, become the pool's tensors; a file without them gives its ids back."""
    plan = plan_pool(Pool(uri=str(write("pool.parquet", {"k": ["p"], "v": vectors(1)})), id="k", inputs=["v"]))
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([{"k": f"a{i}", "v": [i, 0.5, 2]} for i in range(3)]))
    (tmp_path / "b.csv").write_text("k\na1\nb\n")
    labelled = read_labelled([f"{tmp_path}/[ab].*"], "k", plan.id_type)
    assert has_columns(labelled.files, plan.read.columns) == [True, False]
    units, rest = labelled_units(labelled, plan.read)
    [rows] = [rows for unit in units for rows in read_unit(unit, plan.read, 10)]
    assert (rows.ids.to_pylist(), rows.inputs[0].tolist()) == (["a0", "a1", "a2"], [[0, 0.5, 2], [1, 0.5, 2], [2, 0.5, 2]])
    assert rest.ids.to_pylist() == ["b"]
    numbers = plan_pool(Pool(uri=str(write("numbers.parquet", {"k": ["p"], "x": [1.0], "y": [2]})), id="k", inputs=["x", "y"]))
    (tmp_path / "c.csv").write_text("y,k,x\n3,007,0.25\n4,008,1e-1\n")
    labelled = read_labelled([f"{tmp_path}/c.csv"], "k", numbers.id_type)
    [rows] = [rows for unit in labelled_units(labelled, numbers.read)[0] for rows in read_unit(unit, numbers.read, 10)]
    assert (rows.ids.to_pylist(), rows.inputs[0].tolist()) == (["007", "008"], [[0.25, 3.0], [np.float32(0.1), 4.0]])


@pytest.mark.parametrize("key", ["pool.uri", "acquire.targets"])
def test_rows_to_score_are_parquet(tmp_path: Path, key: str) -> None:
    """A CSV named as a pool is told from damaged Parquet; a folder of nothing else holds no Parquet."""
    (tmp_path / "a.csv").write_text("k\n1\n")
    with pytest.raises(PoolError, match=rf"{key} .*a\.csv is CSV, which is taken for labels alone; expected Parquet"):
        list_pool([str(tmp_path / "a.csv")], key)
    with pytest.raises(PoolError, match="holds no Parquet file"):
        list_pool([str(tmp_path)], key)
    with pytest.raises(LabelsError, match=r"holds no file of labels; expected names that end in \.parquet, .*\.csv, \.jsonl, \.ndjson"):
        read_labelled([str(tmp_path / "a.csv").replace("a.csv", "*.tsv")], "k", pa.string())
    assert text_format("s3://b/x.Jsonl") == "JSON Lines"
