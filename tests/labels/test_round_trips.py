"""Ids and texts through every tool: out as it imports, back as it exports, nothing changed on the way."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_batches import PEOPLE, PICTURES_ONLY, batch_of

from raystream.labels.annotation import IdColumn, as_text, parse
from raystream.labels.batch import file_stem
from raystream.labels.tools import TOOLS, looks_like
from raystream.labels.tools.plain import escaped, unescaped

every_tool = pytest.mark.parametrize("tool", sorted(TOOLS))
_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_IDS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "string": (pa.string(), _TEXT | st.sampled_from(["=1+1", "'=1+1", "''x", "'x", "@a", "\t", "\r\n", "007", "a,b", '"', "NaN", "null"])),
    "binary": (pa.binary(), st.binary(max_size=20)),
    "uuid": (pa.binary(16), st.binary(min_size=16, max_size=16)),
}


def back(tool: str, ids: list[Any], type_: pa.DataType, texts: list[str] | None = None) -> list[tuple[Any, Any, Any, Any]]:
    """(id, label, query, rank) of rows that went through a tool, by rank; every second was labelled."""
    batch = batch_of(ids, type_, texts, kind="image" if tool in PICTURES_ONLY else "text")
    said = ["dog" if rank % 2 else "cat" if rank % 4 else None for rank in range(len(ids))]
    name, data = PEOPLE[tool](TOOLS[tool].write(batch).files, said)
    document = parse(name, data)
    if any(said):
        assert looks_like(document, TOOLS.values()) is TOOLS[tool]
    names = {batch.file_name(item): item.id for item in batch.items}
    found = []
    for each in TOOLS[tool].annotations(document):
        text = names[each.id] if tool == "cvat" else each.id
        raw = each.raw[0] if isinstance(each.raw, list) else each.raw
        found.append((batch.ids.parse(text), raw, each.query, each.rank))
    return found


@every_tool
@pytest.mark.parametrize("kind", sorted(_IDS))
def test_two_hundred_rows_come_back_as_they_went(tool: str, kind: str) -> None:
    """Each labelled row has its id, of the pool's type, its label, and its query and rank where the tool can hold these."""
    type_, _ = _IDS[kind]
    numbers = range(-100, 100) if kind in ("int64", "int8") else range(2**63, 2**63 + 200) if kind == "uint64" else range(200)
    ids = [
        number if pa.types.is_integer(type_) else f"={number}#ü" if kind == "string" else number.to_bytes(16, "big") for number in numbers
    ]
    labelled = [(id_, "dog" if rank % 2 else "cat", rank) for rank, id_ in enumerate(ids) if rank % 4]
    found = back(tool, ids, type_)
    assert [(id_, label) for id_, label, _, _ in found] == [(id_, label) for id_, label, _ in labelled]
    assert all(type(mine) is type(theirs) for (mine, *_), (theirs, *_) in zip(found, labelled, strict=True))
    if tool not in ("labelbox", "cvat"):
        assert [(query, rank) for _, _, query, rank in found] == [("round-1", rank) for _, _, rank in labelled]


@every_tool
@settings(max_examples=12)
@given(data=st.data())
def test_hostile_ids_and_texts_change_nothing(tool: str, data: st.DataObject) -> None:
    """Whatever characters ids and texts hold, the ids come back."""
    type_, ids = _IDS[data.draw(st.sampled_from(sorted(_IDS)))]
    given_ = data.draw(st.lists(ids, min_size=1, max_size=8, unique=True))
    texts = data.draw(st.lists(_TEXT, min_size=len(given_), max_size=len(given_)))
    assert [id_ for id_, *_ in back(tool, given_, type_, texts)] == [id_ for rank, id_ in enumerate(given_) if rank % 4]


@given(text=_TEXT)
def test_no_spreadsheet_runs_a_cell(text: str) -> None:
    """A cell never begins as a formula does, what was escaped comes back, and text that was never escaped stays."""
    assert not escaped(text).startswith(("=", "+", "@", "\t", "\r"))
    assert not escaped(text).startswith("-") or text[1:].replace(".", "").isdecimal()
    assert unescaped(escaped(text)) == text
    assert unescaped("'quoted'") == "'quoted'"
    assert [escaped(cell) for cell in ("-8", "-1.5", "-8+1", "-", "=1", "'=1")] == ["-8", "-1.5", "'-8+1", "'-", "'=1", "''=1"]


@given(texts=st.lists(_TEXT, min_size=1, max_size=5))
def test_texts_arrive_in_every_tool(texts: list[str]) -> None:
    """What people read is what the pool holds; in a spreadsheet, formulas are escaped."""
    batch = batch_of(list(range(len(texts))), pa.int64(), texts)
    tasks = json.loads(TOOLS["label_studio"].write(batch).files["tasks.json"])
    assert [task["data"]["text"] for task in tasks] == texts
    for tool, file, key in [
        ("prodigy", "tasks.jsonl", "text"),
        ("ground_truth", "manifest.jsonl", "source"),
        ("jsonl", "batch.jsonl", "text"),
    ]:
        data = TOOLS[tool].write(batch).files[file]
        assert [json.loads(line)[key] for line in data.decode().splitlines()] == texts  # also by a reader that knows U+2028
    rows = csv.DictReader(io.StringIO(TOOLS["csv"].write(batch).files["batch.csv"].decode(), newline=""))
    assert [unescaped(row["text"]) for row in rows] == texts


@pytest.mark.parametrize(
    ("type_", "text", "id_"),
    [
        (pa.int8(), "127", 127), (pa.int8(), "128", None), (pa.uint8(), "-1", None), (pa.int64(), "7.0", None), (pa.int64(), "x", None),
        (pa.string(), "007", "007"), (pa.string(), "", ""), (pa.binary(), "0aFF", b"\x0a\xff"), (pa.binary(), "abc", None),
        (pa.binary(2), "0a", None), (pa.binary(16), "00000000-0000-0000-0000-00000000000a", b"\0" * 15 + b"\n"),
    ],
)  # fmt: skip
def test_only_ids_of_the_pools_type_come_back(type_: pa.DataType, text: str, id_: Any) -> None:
    """What can't be one of the pool's ids is none; a uuid may have hyphens, as other programs write it."""
    assert IdColumn("rid", type_).parse(text) == id_


@given(ids=st.lists(_TEXT, min_size=2, max_size=2, unique=True))
def test_names_of_pictures_are_safe_and_distinct(ids: list[str]) -> None:
    """Letters, digits, dots, hyphens and underscores, whatever the id; two ids have two names, of one rank, too."""
    names = [file_stem("round-1", 3, as_text(id_)) for id_ in ids]
    assert names[0] != names[1]
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_") for name in names)
