from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.errors import LabelsError
from raystream.pool import (
    Labelled,
    LabelledMarks,
    has_columns,
    labelled_units,
    list_files,
    locate_labelled,
    plan_pool,
    read_labelled,
    read_unit,
)
from raystream.pool.columns import plain_type
from raystream.query import Pool


def collect(units: list, read) -> dict:
    """id -> the first input's first value."""
    blocks = [block for unit in units for block in read_unit(unit, read, 2)]
    ids = [k for block in blocks for k in block.ids.to_pylist()]
    return dict(zip(ids, [x for block in blocks for x in block.inputs[0].reshape(len(block.rows), -1)[:, 0].tolist()], strict=True))


@settings(deadline=None)  # files are written, and the disk has other work, too
@given(
    known=st.lists(st.integers(0, 20), max_size=25),
    asked=st.lists(st.none() | st.integers(0, 20), max_size=12),
    few=st.booleans(),
    text=st.booleans(),
)
def test_finding_agrees_with_a_set(tmp_path_factory, known: list[int], asked: list, few: bool, text: bool) -> None:
    """For integers and strings, few or many, nulls among them: membership, what is missing, and each id once in order."""

    def spell(values: list) -> list:
        return [None if v is None else f"id {v}" for v in values] if text else values

    asked = [v for v in asked if v is not None][: max(0, len(set(known)) // 4)] if few else asked
    folder = tmp_path_factory.mktemp("labels")
    type_ = pa.string() if text else pa.int32()
    pq.write_table(pa.table({"k": pa.array(spell(known), pa.large_string() if text else pa.int64())}), folder / "a.parquet")
    labelled = read_labelled([str(folder)], "k", type_)
    assert labelled.ids.to_pylist() == sorted(set(spell(known)))
    ids = pa.chunked_array([pa.array(spell(asked), type_)])
    assert labelled.find(ids).tolist() == [v is not None and v in known for v in asked]
    assert labelled.only(LabelledMarks.of(labelled, ids).missing).ids.to_pylist() == sorted(set(spell(known)) - set(spell(asked)))


def test_the_digest_is_that_of_the_set(write, tmp_path: Path) -> None:
    """Order, repeats, files and integer width leave it; another id changes it, and so does another split of the same letters."""
    one = read_labelled([str(write("1/a.parquet", {"k": [3, 1, 3]}))], "k", pa.int64())
    write("2/a.parquet", {"k": pa.array([1], pa.int8())})
    write("2/b.parquet", {"k": pa.array([3], pa.uint16())})
    two = read_labelled([str(tmp_path / "2")], "k", pa.int64())
    assert one.digest == two.digest
    assert len(one) == len(two) == 2
    assert one.only(one.ids.to_numpy() == 1).digest != one.digest

    def texts(*ids: str) -> Labelled:
        return read_labelled([str(write(f"{len(list(tmp_path.iterdir()))}.parquet", {"k": ids}))], "k", pa.string())

    assert texts("ab", "c").digest == texts("c", "ab").digest != texts("a", "bc").digest
    assert texts("ab", "c").only(LabelledMarks.of(texts("ab", "c"), pa.array(["ab"])).missing).digest == texts("c").digest
    assert len(read_labelled([], "k", pa.int64())) == 0


@pytest.mark.parametrize(
    ("column", "type_", "message"),
    [
        ({"kk": [1]}, pa.int64(), r"id column k is missing in the labelled file .*a\.parquet; did you mean 'kk'"),
        ({"k": [1, None]}, pa.int64(), "holds 1 nulls"),
        ({"k": ["1"]}, pa.int64(), "is string, but the pool's is int64"),
        ({"k": [1]}, pa.string(), "is int64, but the pool's is string"),
    ],
)
def test_labelled_files_that_cannot_be_used(write, column: dict, type_: pa.DataType, message: str) -> None:
    """Each mistake is an error of the labels that names the file, the column and both types."""
    with pytest.raises(LabelsError, match=message):
        read_labelled([str(write("a.parquet", column))], "k", type_)


@settings(deadline=None)  # files are written, and the disk has other work, too
@given(
    files=st.lists(
        st.tuples(
            st.sampled_from(["int8", "uint8", "int32", "int64", "uint64"]), st.lists(st.integers(-(2**63), 2**64 - 1) | st.integers(0, 130))
        ),
        max_size=3,
    ),
    pool=st.sampled_from(["int8", "uint8", "int16", "int64", "uint64"]),
)
def test_integers_of_every_width_match_by_value(tmp_path_factory, files: list, pool: str) -> None:
    """Exactly the ids that the pool's type can hold are kept, whatever widths the files have; the others match nothing and are counted."""
    folder, given_ = tmp_path_factory.mktemp("labels"), []
    for number, (width, ids) in enumerate(files):
        limits = np.iinfo(width)
        held = [i for i in ids if limits.min <= i <= limits.max]
        pq.write_table(pa.table({"k": pa.array(held, width)}), folder / f"{number}.parquet")
        given_ += held
    labelled = read_labelled([str(folder)] if files else [], "k", pa.type_for_alias(pool))
    limits = np.iinfo(pool)
    inside = [i for i in given_ if limits.min <= i <= limits.max]
    assert labelled.ids.to_pylist() == sorted(set(inside))
    assert labelled.ids.type == pa.type_for_alias(pool)
    outside = len(given_) - len(inside)
    assert bool(labelled.warnings) == bool(outside)
    assert not outside or f"{outside} labelled ids are beyond {pool}" in labelled.warnings[0]
    asked = pa.array([*sorted(set(inside))[:2], 5, None], pa.type_for_alias(pool))
    assert labelled.find(asked).tolist() == [i in inside for i in asked.to_pylist()]


@pytest.mark.parametrize("type_", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())], ids=str)
@pytest.mark.parametrize("pool", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.large_string())], ids=str)
def test_texts_of_every_layout_match(write, tmp_path: Path, type_: pa.DataType, pool: pa.DataType) -> None:
    """Strings, large strings, views and dictionaries are the same ids, from several files and folders together."""
    one = write("a/1.parquet", {"k": pa.array(["b", "a", "ä"]).cast(type_)})
    write("b/deep/2.parquet", {"k": ["c", "a"]})
    labelled = read_labelled([str(one), str(tmp_path / "b")], "k", plain_type(pool))
    assert labelled.ids.to_pylist() == ["a", "b", "c", "ä"]
    assert labelled.find(pa.array(["ä", "z", "c", None]).cast(pool)).tolist() == [True, False, True, False]


def test_an_id_in_several_files_is_read_from_the_first_that_can_give_it(write, vectors, tmp_path: Path) -> None:
    """A file without the inputs doesn't hide the same id in a later file that has them."""
    plan = plan_pool(Pool(uri=str(write("pool.parquet", {"k": [1], "v": vectors(1)})), id="k", inputs=["v"]))
    write("labels/a.parquet", {"k": [5, 6, 300]})
    write("labels/b.parquet", {"k": [6, 7, 6], "v": vectors(3)})
    write("labels/c.parquet", {"k": [7, 8], "v": vectors(2, start=30)})
    labelled = read_labelled([str(tmp_path / "labels")], "k", plan.id_type)
    units, rest = labelled_units(labelled, plan.read)
    assert collect(units, plan.read) == {6: 0, 7: 3, 8: 33}
    assert rest.ids.to_pylist() == [5, 300]


def test_missing_labelled_files_are_errors_of_the_labels(tmp_path: Path) -> None:
    """The key of the query is named."""
    with pytest.raises(LabelsError, match=r"pool.labelled .*nothing does not exist"):
        read_labelled([str(tmp_path / "nothing")], "k", pa.int64())


@pytest.mark.parametrize("id_name", ["k", None])
def test_labelled_rows_outside_the_filters_are_located(write, tmp_path: Path, id_name: str | None) -> None:
    """In pruned files, pruned row groups and filtered rows; those that pass are left to the plan's own units."""
    for split, start in (("a", 0), ("b", 10), ("c", 20)):
        write(f"pool/split={split}/x.parquet", {"k": range(start, start + 10), "x": range(start, start + 10)})
    filters = [[("split", "==", "a"), ("x", "in", [1, 2, 3])], [("split", "==", "b")]]
    pool = Pool(uri=str(tmp_path / "pool"), id=id_name, inputs=["x"], filters=filters)
    plan = plan_pool(pool)

    def name(k: int) -> object:
        return k if id_name else f"{plan.files[k // 10].path}#{k % 10}"

    ids = [name(k) for k in (0, 2, 9, 15, 21, 29)] + [99 if id_name else "/elsewhere#0"]
    labelled = read_labelled([str(write("labels.parquet", {id_name or "id": ids}))], id_name, plan.id_type)
    units, rest = locate_labelled(plan, labelled)
    assert collect(units, plan.read) == {name(k): k for k in (0, 9, 21, 29)}
    assert set(rest.ids.to_pylist()) == {name(2), name(15), ids[-1]}
    scored = collect(list(plan.units), plan.read)
    assert rest.only(LabelledMarks.of(rest, pa.array(scored, plan.id_type)).missing).ids.to_pylist() == [ids[-1]]


def test_nothing_is_located_without_filters(write) -> None:
    """A pool without filters holds its labelled rows in its own units."""
    path = str(write("a.parquet", {"k": [1, 2]}))
    plan = plan_pool(Pool(uri=path, id="k", inputs=["k"]))
    units, rest = locate_labelled(plan, read_labelled([path], "k", plan.id_type))
    assert (units, len(rest)) == ([], 2)


@pytest.mark.parametrize("id_name", ["k", None])
def test_labelled_files_that_hold_the_inputs_are_read(write, vectors, tmp_path: Path, id_name: str | None) -> None:
    """Under the pool's id type and dtype, though written otherwise; ids of files without the inputs are given back."""
    column = id_name or "id"
    pool = {"v": vectors(2)} | ({"k": pa.array(["p", "q"], pa.large_string())} if id_name else {})
    plan = plan_pool(Pool(uri=str(write("pool.parquet", pool)), id=id_name, inputs=["v"]))
    lists = pa.array([[i, 0, 0] for i in range(6)], pa.list_(pa.float64()))
    write("labels/a.parquet", {column: ["e", "d", "c", "b", "a", "a"], "v": lists}, rows_per_group=2)
    write("labels/b.parquet", {column: ["c", "z"]})
    labelled = read_labelled([str(tmp_path / "labels")], id_name, plan.id_type)
    units, rest = labelled_units(labelled, plan.read)
    assert collect(units, plan.read) == {"e": 0, "d": 1, "c": 2, "b": 3, "a": 4}
    assert rest.ids.to_pylist() == ["z"]
    assert {block.ids.type for unit in units for block in read_unit(unit, plan.read, 9)} == {plan.id_type}


def test_some_of_the_inputs_may_be_enough(write, vectors, tmp_path: Path) -> None:
    """Files that hold no more than those are read for them alone; files that hold everything give everything, in the files' order."""
    plan = plan_pool(Pool(uri=str(write("pool.parquet", {"k": [1], "z": vectors(1), "e": vectors(1, 2)})), id="k"), ["z", "e"])
    write("labels/a.parquet", {"k": [5, 6], "e": vectors(2, 2, start=9)})
    write("labels/b.parquet", {"k": [7], "z": vectors(1), "e": vectors(1, 2)})
    write("labels/c.parquet", {"k": [8], "z": vectors(1)})
    labelled = read_labelled([str(tmp_path / "labels")], "k", plan.id_type)
    units, rest = labelled_units(labelled, plan.read, enough=["e"])
    assert [(Path(unit.file.path).name, unit.columns) for unit in units] == [("a.parquet", ("e",)), ("b.parquet", None)]
    assert rest.ids.to_pylist() == [8]
    (part,), (full,) = (list(read_unit(unit, plan.read, 9)) for unit in units)
    assert [block.tolist() for block in part.inputs] == [[[9, 10], [11, 12]]]
    assert (part.ids.to_pylist(), [block.shape for block in full.inputs]) == ([5, 6], [(1, 3), (1, 2)])
    without, rest = labelled_units(labelled, plan.read)
    assert ([unit.columns for unit in without], rest.ids.to_pylist()) == ([None], [5, 6, 8])


def test_labelled_inputs_may_be_narrower_integers(write) -> None:
    """As a pool's own files may be; wider ones could hold what the pool's tensors can't."""
    types = {32: pa.int32(), 64: pa.int64()}
    files = {size: write(f"{size}.parquet", {"v": pa.array([[1, 2]], pa.list_(type_))}) for size, type_ in types.items()}
    wide, narrow = (plan_pool(Pool(uri=str(files[size]), inputs=["v"])).read.columns for size in (64, 32))
    assert has_columns(list_files([str(files[32])]), wide) == [True]
    with pytest.raises(LabelsError, match=r"column v of the labelled file .*64\.parquet is list<element: int64>; expected .* int32"):
        has_columns(list_files([str(files[64])]), narrow)


def test_labelled_inputs_of_another_shape_or_kind_are_refused(write, vectors) -> None:
    """An input that is there but can't become the pool's tensor is an error, not a row left out."""
    plan = plan_pool(Pool(uri=str(write("pool.parquet", {"v": vectors(2)})), inputs=["v"]))
    wide = list_files([str(write("wide.parquet", {"v": vectors(2, 4)}))])
    with pytest.raises(LabelsError, match=r"column v of the labelled file .*wide\.parquet .* expected .*float32 of shape \(3,\)"):
        has_columns(wide, plan.read.columns)
    text = list_files([str(write("text.parquet", {"v": ["x"]}))])
    with pytest.raises(LabelsError, match=r"text\.parquet: column v is string"):
        has_columns(text, plan.read.columns)
