"""What footers say of column chunks, against pyarrow's own reader."""

from __future__ import annotations

import io
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.pool.footer_bytes import DamagedFooterError, EncryptedFooterError, find_groups, footer_bytes, read_groups

ENCODED = {"INT32": "<i", "INT64": "<q", "FLOAT": "<f", "DOUBLE": "<d", "BOOLEAN": "<?"}
COLUMNS = {
    "i": (pa.int8(), st.integers(-128, 127)),
    "l": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "f": (pa.float32(), st.sampled_from([-1.5, 0.25, 3e38, 1e-40])),
    "d": (pa.float64(), st.floats(allow_nan=False).filter(bool)),  # of two zeros pyarrow tells another one than is written
    "b": (pa.bool_(), st.booleans()),
    "s": (pa.string(), st.text(max_size=20)),
    "v": (pa.list_(pa.int32()), st.lists(st.integers(0, 9), max_size=3)),
    "a name far beyond the hundred and twenty-seven bytes whose length takes one byte: " + "x" * 60: (pa.int16(), st.integers(0, 9)),
}


def written(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def footer(data: bytes) -> bytes:
    return footer_bytes(lambda count, at: data[at : at + count], len(data))


@settings(max_examples=20, deadline=None)
@given(st.data(), st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, unique=True), st.integers(1, 10), st.integers(1, 9))
def test_chunks_are_what_pyarrow_says(data: st.DataObject, names: list[str], rows: int, group: int) -> None:
    """Rows, values, sizes, places, nulls and bounds of the leaves that are asked for, and of no other."""
    table = pa.table(
        {
            name: pa.array(data.draw(st.lists(st.none() | COLUMNS[name][1], min_size=rows, max_size=rows)), COLUMNS[name][0])
            for name in names
        }
    )
    options = data.draw(
        st.fixed_dictionaries({"use_dictionary": st.booleans(), "write_statistics": st.booleans(), "write_page_index": st.booleans()})
    )
    content = written(table, row_group_size=group, **options)
    metadata = pq.read_metadata(io.BytesIO(content))
    leaves = data.draw(st.sets(st.integers(0, metadata.num_columns - 1)))
    groups = read_groups(footer(content), leaves, metadata.num_columns, len(content))
    assert find_groups(footer(content), {leaf: metadata.schema.column(leaf).path for leaf in leaves}, metadata, len(content)) == groups
    assert [found.rows for found in groups] == [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    for number, found in enumerate(groups):
        assert found.chunks.keys() == leaves
        for leaf, chunk in found.chunks.items():
            theirs = metadata.row_group(number).column(leaf)
            start = min(theirs.data_page_offset, theirs.dictionary_page_offset or theirs.data_page_offset)
            sizes = (theirs.num_values, start, theirs.total_compressed_size, theirs.total_uncompressed_size)
            assert (chunk.values, chunk.start, chunk.stored, chunk.size, chunk.encrypted) == (*sizes, False)
            if theirs.statistics is None:
                assert (chunk.nulls, chunk.least, chunk.greatest) == (None, None, None)
                continue
            assert chunk.nulls == theirs.statistics.null_count
            if theirs.statistics.has_min_max:
                form = ENCODED.get(theirs.physical_type)
                bounds = (theirs.statistics.min_raw, theirs.statistics.max_raw)
                assert (chunk.least, chunk.greatest) == tuple(struct.pack(form, bound) if form else bound for bound in bounds)


def test_many_columns_and_row_groups() -> None:
    """Lists of more than fourteen items say their lengths otherwise."""
    table = pa.table({f"c{i}": range(40) for i in range(20)})
    content = written(table, row_group_size=2)
    groups = read_groups(footer(content), [0, 19], 20, len(content))
    assert [found.rows for found in groups] == [2] * 20
    assert [int.from_bytes(found.chunks[19].greatest or b"", "little") for found in groups] == [*range(1, 40, 2)]


def test_a_footer_larger_than_its_first_read() -> None:
    """It is read whole, and of a file that is smaller than one read, too."""
    content = written(pa.table({f"column {i:04}": [1] for i in range(2000)}))
    asked: list[int] = []

    def read_at(count: int, at: int) -> bytes:
        asked.append(count)
        return content[at : at + count]

    assert len(read_groups(footer_bytes(read_at, len(content)), [1999], 2000, len(content))) == 1
    assert asked == [1 << 16, int.from_bytes(content[-8:-4], "little") + 8]


def test_what_no_footer_can_say_is_damage() -> None:
    """Cut anywhere, with another number of columns, or with pages beyond the file's end."""
    content = written(pa.table({"a": [1, 2], "b": ["x", "y"]}))
    whole = footer(content)
    for length in range(0, len(whole) - 8, 7):
        with pytest.raises(DamagedFooterError):
            read_groups(whole[:length], [0, 1], 2, len(content))
    with pytest.raises(DamagedFooterError, match="a row group has 2 columns, expected the schema's 3"):
        read_groups(whole, [0], 3, len(content))
    with pytest.raises(DamagedFooterError, match="a column chunk that can't be"):
        read_groups(whole, [1], 2, 50)
    with pytest.raises(EncryptedFooterError, match="encrypted"):
        footer(content[:-4] + b"PARE")


def test_values_that_look_like_a_columns_path_lead_nowhere() -> None:
    """A chunk is found by its column's path only where that stands as often as there are row groups."""
    table = pa.table({"k": range(4), "s": ["\x19\x18\x01k"] * 4, "a.b": range(4), "a": [{"b": i} for i in range(4)]})
    content = written(table, row_group_size=2)
    metadata = pq.read_metadata(io.BytesIO(content))
    paths = {leaf: metadata.schema.column(leaf).path for leaf in range(4)}
    assert sorted(paths.values()) == ["a.b", "a.b", "k", "s"]
    expected = read_groups(footer(content), paths, 4, len(content))
    assert expected[1].chunks[0].least == (2).to_bytes(8, "little")
    for leaf in paths:
        found = find_groups(footer(content), {leaf: paths[leaf]}, metadata, len(content))
        assert [group.chunks[leaf] for group in found] == [group.chunks[leaf] for group in expected]


@pytest.mark.parametrize(
    ("change", "known"), [((b"\x19\x2c\x1c", b"\x49\x2c\x1c"), [True, False]), ((b"\x19\x2c\x1c", b"\x19\x2c\x2c"), [False, True])]
)
def test_bounds_without_an_order(change: tuple[bytes, bytes], known: list[bool]) -> None:
    """Of a writer that says no order, those of numbers hold; of one that says another order, none does."""
    content = written(pa.table({"k": [1, 2], "s": ["x", "y"]}))
    data = footer(content)
    assert data.count(change[0]) == 1
    changed = data.replace(*change)
    metadata = pq.read_metadata(pa.BufferReader(changed))
    for groups in (read_groups(changed, [0, 1], 2, len(content)), find_groups(changed, {0: "k", 1: "s"}, metadata, len(content))):
        assert [groups[0].chunks[leaf].least is not None for leaf in (0, 1)] == known
