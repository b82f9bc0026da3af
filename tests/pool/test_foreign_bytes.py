"""Bytes that aren't what they should be: texts that are no UTF-8, pages whose checksum is wrong, and anything flipped or cut."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystream.errors import DataError, LabelsError, PoolError
from raystream.pool import plan_pool, read_columns_at, read_labelled, read_unit
from raystream.pool.reader import Prepared
from raystream.query import Pool

BROKEN = pa.array([b"fine", b"\xff\xfe", None, b"c\xe9", "é".encode()]).cast(pa.binary())


def not_utf8() -> pa.Array:
    """Five texts, of which rows 1 and 3 are no UTF-8, and row 2 is null."""
    return BROKEN.view(pa.string())


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
@pytest.mark.parametrize("use", ["texts", "a function's", "ids"])
def test_texts_that_are_no_utf8_are_bad_rows(write, use: str, type_: pa.DataType) -> None:
    """By row: errors under fail, left out under skip; as inputs, as what a function of the user's gets, and as ids."""
    texts = not_utf8().dictionary_encode() if pa.types.is_dictionary(type_) else not_utf8().cast(type_)
    path = write("a.parquet", {"s": texts, "x": [1.0] * 5}, 3)
    prepared = Prepared("module:function", "0") if use == "a function's" else None
    pool = Pool(uri=str(path), id="s", inputs=["x"]) if use == "ids" else Pool(uri=str(path), inputs=["s"])

    def prepare(batch: pa.RecordBatch) -> tuple:
        batch.column("s").to_pylist()
        return (np.zeros((len(batch), 1), np.float32),), {}

    def read(on_error: str) -> list:
        plan = plan_pool(pool, on_error=on_error, texts="refused" if use == "ids" else "taken", prepared=prepared)
        return [rows for unit in plan.units for rows in read_unit(unit, plan.read, 2, prepare=prepare)]

    with pytest.raises(PoolError, match=r"a\.parquet#rg0 row 1: column s is no UTF-8; correct the row"):
        read("fail")
    blocks = read("skip")
    null = [] if use != "texts" else [(2, "is null")]
    bad = [(bad.row, bad.reason) for block in blocks for bad in block.bad]
    assert bad == sorted([(1, "is no UTF-8"), (3, "is no UTF-8"), *null])
    assert [row for block in blocks for row in block.rows.tolist()] == ([0, 4] if use == "texts" else [0, 2, 4])
    assert [value for block in blocks for value in block.ids.to_pylist()][-1:] == (["é"] if use == "ids" else [f"{path}#4"])


def test_kept_texts_and_labelled_ids_that_are_no_utf8(write) -> None:
    """By file and column, and not before they are wanted."""
    path = write("a.parquet", {"s": not_utf8().fill_null("n"), "x": [1.0] * 5})
    plan = plan_pool(Pool(uri=str(path), inputs=["x"], keep=["s"]))
    assert read_columns_at([(plan.files[0], 4), (plan.files[0], 0)], plan.keep_schema)["s"].to_pylist() == ["é", "fine"]
    with pytest.raises(PoolError, match=r"column s of .*a\.parquet is damaged: Invalid UTF8 .*; write it anew"):
        read_columns_at([(plan.files[0], 3)], plan.keep_schema)
    with pytest.raises(LabelsError, match=r"id column s of .*a\.parquet is damaged: Invalid UTF8"):
        read_labelled([str(path)], "s", pa.string())


def test_pages_are_checked_where_they_carry_a_checksum(tmp_path: Path) -> None:
    """One flipped bit of a page is an error, and not another number."""
    path = tmp_path / "a.parquet"
    table = pa.table({"x": np.arange(100, dtype=np.float32)})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    plan = plan_pool(Pool(uri=str(path), inputs=["x"]))
    content = bytearray(path.read_bytes())
    place = content.index(np.float32(50).tobytes())
    content[place + 2] ^= 1
    path.write_bytes(content)
    plan = plan_pool(Pool(uri=str(path), inputs=["x"]))
    with pytest.raises(DataError, match=r"a\.parquet#rg0 can't be read near row 0: .*CRC checksum"):
        list(read_unit(plan.units[0], plan.read, 10))


CHILD = """
import random, sys
from raystream.errors import DataError, QueryError
from raystream.pool import locate_labelled, plan_pool, read_columns_at, read_labelled, read_unit
from raystream.query import Pool

source, path, part, seed, count = *sys.argv[1:4], *map(int, sys.argv[4:])
content = open(source, "rb").read()
footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
filters = [["k", ">=", 3], ["i8", "<", 100], ["b", "==", True], ["s", "!=", "zz"], ["f", "<", 1e9], ["t", "!=", "2001-01-01T00:00:00"]]


def read():
    plan = plan_pool(Pool(uri=path, id="s", inputs=["v", "l"], filters=filters, keep=["d", "dec", "t", "h", "e", "n"]))
    ids = [id_ for unit in plan.units for rows in read_unit(unit, plan.read, 16) for id_ in rows.ids.to_pylist()]
    table = read_columns_at([(plan.files[0], row) for row in range(0, plan.rows, 7)], plan.keep_schema)
    locate_labelled(plan, read_labelled([path], "s", plan.id_type))
    return ids, table.num_rows


rng = random.Random(seed)
for number in range(count):
    damaged = bytearray(content)
    if part == "cut":
        damaged = damaged[: rng.randrange(len(content))]
    else:
        low, high = (footer, len(content)) if part == "footer" else (4, footer)
        damaged[rng.randrange(low, high)] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
    open(path, "wb").write(damaged)
    print(number, flush=True)
    try:
        read()
    except DataError as error:
        assert path in str(error), error
    except QueryError as error:
        assert "pool.filters compares column" in str(error)  # the file has another type now
print("ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"}], ids=["snappy", "plain"]
)
@pytest.mark.parametrize(("part", "count"), [("footer", 400), ("pages", 250), ("cut", 60)])
def test_no_damage_ends_the_process(tmp_path: Path, part: str, count: int, options: dict) -> None:
    """Flipped bits, other bytes and cut ends, in a process of their own: an error with the file, or rows. The seed is written out."""
    rows = 40
    table = pa.table(
        {
            "s": [f"row {i}" for i in range(rows)], "k": range(rows), "i8": pa.array(range(rows), pa.int8()),
            "b": [True, False] * (rows // 2), "f": np.arange(rows, dtype=np.float32), "h": np.arange(rows, dtype=np.float16),
            "v": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2.0 * rows), pa.float32()), 2),
            "l": [[float(i)] for i in range(rows)], "d": pa.array(range(rows), pa.date32()),
            "dec": pa.array(range(rows)).cast(pa.decimal128(21, 2)), "t": pa.array(range(rows), pa.timestamp("us")),
            "e": pa.array(["p", "q"] * (rows // 2)).dictionary_encode(), "n": pa.nulls(rows),
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "whole", row_group_size=10, use_deprecated_int96_timestamps=not options, **options)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "whole"), str(tmp_path / "damaged.parquet"), part, "7", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.returncode, done.stdout.split()[-1:], done.stderr[-1000:])
    assert done.stdout.endswith("ended\n")
