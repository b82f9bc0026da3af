"""`raystream export` and `raystream labels`, as people call them."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_batches import PEOPLE, PICTURES_ONLY
from label_queries import CLASSES, commit_query

from raystream.labels.annotation import Annotation
from raystream.labels.collect import LabelQueries, rows_of
from raystream.labels.tools import TOOLS
from raystream.store.result import Result, load_result

Cli = Callable[..., tuple[int, str, str]]
IDS = pa.array(range(100, 140), pa.int32())


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pool and a store with a committed query of 8 rows with integer ids."""
    folder = tmp_path_factory.mktemp("committed")
    commit_query(folder, IDS)
    return folder


@pytest.fixture
def first(committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """That query, in a store of the test's own below the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(committed / "runs", "runs")
    return load_result("runs", "first")


def exported(cli: Cli, tool: str) -> dict[str, bytes]:
    """What `raystream export` writes, by name."""
    out = f"to-{tool}" if tool not in ("csv", "jsonl", "parquet") else f"batch.{tool}"
    show = "image" if tool in PICTURES_ONLY else "text"
    code, printed, said = cli("export", "first", "--to", tool, "--out", out, "--show", show, "--json")
    assert code == 0, said
    summary = json.loads(printed)
    assert (summary["rows"], summary["pictures"]) == (8, 8 if tool in PICTURES_ONLY else 0)
    root = Path(summary["out"])
    return {name: (root / name if root.is_dir() else root).read_bytes() for name in summary["files"]}


def column_by_id(table: pa.Table, name: str) -> dict[int, Any]:
    return dict(zip(table.column("rid").to_pylist(), table.column(name).to_pylist(), strict=True))


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_a_batch_goes_out_and_labels_come_in(tool: str, first: Result, cli: Cli) -> None:
    """Each tool: exported twice alike, labelled by a person, read twice alike."""
    files = exported(cli, tool)
    assert exported(cli, tool) == files
    said = [CLASSES[rank % 3] if rank < 6 else None for rank in range(8)]
    name, data = PEOPLE[tool](files, said)
    Path(f"back-{name}").write_bytes(data)
    arguments = ["labels", f"back-{name}", "--from", tool, "--out", "labels.parquet", "--json"]
    if tool == "labelbox":
        arguments += ["--query", "first"]
    code, printed, stderr = cli(*arguments)
    assert code == 0, stderr
    summary = json.loads(printed)
    place = str(Path("labels.parquet").absolute())
    assert summary == {"rows": 6, "labelled": 6, "skipped": 0, "draft": 0, "rejected": 0, "deleted": 0, "unknown_ids": 0, "conflicts": 0,
                       "out": place}  # fmt: skip
    table = pq.read_table("labels.parquet")
    chosen = first.selection.column("rid").to_pylist()
    assert column_by_id(table, "label") == dict(zip(chosen, said[:6], strict=False))
    assert column_by_id(table, "rank") == {id_: rank for rank, id_ in enumerate(chosen[:6])}
    assert set(table.column("query").to_pylist()) == {"first"}
    assert cli(*arguments)[1] == printed
    assert pq.read_table("labels.parquet").equals(table)


def test_the_table_of_labels_is_what_the_next_query_takes(first: Result, cli: Cli, tmp_path: Path) -> None:
    """Rows labelled or skipped are never chosen again; drafts and rows that nobody touched are."""
    chosen = first.selection.column("rid").to_pylist()
    states = dict(zip(chosen, ["labelled"] * 4 + ["skipped", "draft"], strict=False))
    lines = [
        json.dumps({"raystream_id": str(id_), "state": state, "label": "cat", "raystream_query": "first"}) for id_, state in states.items()
    ]
    Path("back.jsonl").write_text("\n".join(lines))
    assert cli("labels", "back.jsonl", "--from", "jsonl", "--out", "labels/")[0] == 0
    second = commit_query(tmp_path, IDS, pool={"labelled": ["labels"]}, store={"query": "second"})
    assert set(second.selection.column("rid").to_pylist()) & set(chosen) == set(chosen[5:])
    assert second.manifest.counts.labelled == 4


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_a_file_of_another_tool_says_which(tool: str, first: Result, cli: Cli) -> None:
    """Exit 3 with one sentence that names the tool it looks like, and no table."""
    name, data = PEOPLE[tool](exported(cli, tool), ["cat"] * 8)
    Path(name).write_bytes(data)
    for other in sorted(set(TOOLS) - {tool})[:2]:
        code, _, stderr = cli("labels", name, "--from", other, "--out", "l.parquet", "--query", "first")
        assert (code, stderr.count("\n"), Path("l.parquet").exists()) == (3, 1, False)
        assert f"looks like one of {TOOLS[tool].title}, so try --from {tool}" in stderr


def test_labels_of_rows_that_no_export_wrote_are_said(first: Result, cli: Cli) -> None:
    """People add tasks of their own to a project: these are left out, which is said."""
    name, data = PEOPLE["label_studio"](exported(cli, "label_studio"), ["cat"] * 8)
    done = json.loads(data)
    del done[0]["data"]["raystream_id"]
    Path(name).write_text(json.dumps(done))
    code, printed, stderr = cli("labels", name, "--from", "label_studio", "--out", "l.parquet", "--json")
    assert (code, json.loads(printed)["rows"]) == (0, 7)
    assert "1 label stands in a row without raystream_id, which no export wrote: left out" in stderr


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_a_file_that_was_cut_off_says_so(tool: str, first: Result, cli: Cli) -> None:
    """Wherever it ends, whole lines of lists of lines aside: exit 3, one sentence, and no table."""
    name, data = PEOPLE[tool](exported(cli, tool), ["cat"] * 8)
    for share in (0.3, 0.6, 0.97):
        Path(name).write_bytes(data[: int(len(data) * share)])
        code, _, stderr = cli("labels", name, "--from", tool, "--out", "l.parquet", "--query", "first")
        assert (code, stderr.count("\n")) == (3, 1), stderr
        assert "cut off" in stderr
        assert not Path("l.parquet").exists()


def test_an_export_in_which_nobody_has_labelled_yet(first: Result, cli: Cli) -> None:
    """An empty table, not an error: its rows name their query."""
    name, data = PEOPLE["label_studio"](exported(cli, "label_studio"), [None] * 8)
    Path(name).write_bytes(data)
    code, printed, stderr = cli("labels", name, "--from", "label_studio", "--out", "l.parquet", "--json")
    assert (code, json.loads(printed)["rows"]) == (0, 0), stderr
    assert pq.read_schema("l.parquet").field("rid").type == pa.int32()


def test_folders_and_archives_are_read_whole(first: Result, cli: Cli) -> None:
    """An export in two files, beside what isn't one; a zip archive; what lies hidden is left alone."""
    files = exported(cli, "prodigy")
    Path("back").mkdir()
    for half, said in enumerate((["cat"] * 4 + [None] * 4, [None] * 4 + ["dog"] * 4)):
        name, data = PEOPLE["prodigy"](files, said)
        (Path("back") / f"{half}-{name}").write_bytes(data)
    (Path("back") / "notes.json").write_text('{"about": "us"}')
    (Path("back") / "_old.jsonl").write_text("{")
    code, printed, stderr = cli("labels", "back", "--from", "prodigy", "--out", "l.parquet", "--json")
    assert (code, json.loads(printed)["labelled"]) == (0, 8), stderr
    with zipfile.ZipFile("back.zip", "w") as archive:
        for path in Path("back").glob("[01]-*"):
            archive.write(path, path.name)
    assert json.loads(cli("labels", "back.zip", "--from", "prodigy", "--out", "l.parquet", "--json")[1])["rows"] == 8


def test_ids_and_classes_that_nobody_knows_are_kept_and_counted(first: Result, cli: Cli) -> None:
    """An id that the query never chose and a class that the model doesn't have stay; what can't be an id is left out, and said."""
    chosen = first.selection.column("rid").to_pylist()
    stranger = next(id_ for id_ in range(100, 140) if id_ not in chosen)
    rows = [(chosen[0], "cat"), (chosen[1], "zebra"), (stranger, "dog"), (7, "dog"), ("x1", "dog")]
    lines = [json.dumps({"raystream_id": str(id_), "label": label, "raystream_query": "first"}) for id_, label in rows]
    Path("back.jsonl").write_text("\n".join(lines) + "\n")
    code, printed, stderr = cli("labels", "back.jsonl", "--from", "jsonl", "--out", "l.parquet", "--json")
    summary = json.loads(printed)
    assert (code, summary["rows"], summary["unknown_ids"]) == (0, 4, 3)
    assert "3 ids are none that the query chose" in stderr
    assert "1 of these labels can't be ids of int32" in stderr
    assert "1 label is no class of the model's, first: 'zebra'; they are kept" in stderr
    assert sorted(pq.read_table("l.parquet").column("rid").to_pylist()) == sorted([chosen[0], chosen[1], stranger, 7])


def test_several_annotators(first: Result, cli: Cli) -> None:
    """All answers stay; agreement is printed; consolidated, there is one row an id, and the answers are still in the file."""
    chosen = first.selection.column("rid").to_pylist()
    said = [
        (chosen[0], "anna", "cat"),
        (chosen[0], "ben", "cat"),
        (chosen[0], "eva", "dog"),
        (chosen[1], "anna", "dog"),
        (chosen[1], "ben", "dog"),
    ]
    lines = [
        json.dumps({"raystream_id": str(id_), "label": label, "annotator": who, "labelled_at": "2026-03-01T12:00:00Z"})
        for id_, who, label in said
    ]
    Path("back.jsonl").write_text("\n".join(lines))
    arguments = ("labels", "back.jsonl", "--from", "jsonl", "--out", "l.parquet", "--query", "first", "--json")
    code, printed, stderr = cli(*arguments)
    assert (code, json.loads(printed)["rows"], json.loads(printed)["conflicts"]) == (0, 5, 1)
    assert "agreement of 3 annotators over 2 rows" in stderr
    for method in ("majority", "dawid_skene"):
        code, printed, _ = cli(*arguments, "--consolidate", method)
        assert (code, json.loads(printed)["rows"], json.loads(printed)["conflicts"]) == (0, 2, 0)
        found = pq.read_table("l.parquet")
        assert column_by_id(found, "label") == {chosen[0]: "cat", chosen[1]: "dog"}
    assert json.loads(cli(*arguments)[1])["rows"] == 5
    assert cli(*arguments, "--consolidate", "mean")[0] == 2


def test_nothing_of_other_peoples_is_written_over(first: Result, committed: Path, cli: Cli) -> None:
    """A spreadsheet that somebody filled in, a store, a pool, another file: refused with exit 2, and left as they are."""
    assert cli("export", "first", "--to", "csv", "--out", "batch.csv", "--show", "text")[0] == 0
    filled = Path("batch.csv").read_text() + "\n"
    Path("batch.csv").write_text(filled)
    code, _, stderr = cli("export", "first", "--to", "csv", "--out", "batch.csv", "--show", "text")
    assert (code, Path("batch.csv").read_text()) == (2, filled)
    assert "it may hold people's work" in stderr
    Path("back.jsonl").write_text('{"raystream_id": "100", "label": "cat"}\n')
    labels = ("labels", "back.jsonl", "--from", "jsonl", "--query", "first", "--out")
    for place in ("runs/labels.parquet", committed / "pool/labels.parquet", "batch.csv", "delta+folder"):
        assert cli(*labels, place)[0] == 2, place
    assert cli("export", "first", "--to", "prodigy", "--out", "runs/x", "--show", "text")[0] == 2
    assert cli("export", "first", "--to", "prodigy", "--out", "s3://b/x", "--show", "text")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "first", "--to", "labelstudio", "--out", "x"], "did you mean 'label_studio'"),
        (["export", "first", "--to", "cvat", "--out", "x", "--show", "text"], "CVAT shows pictures alone"),
        (["export", "first", "--to", "csv", "--out", "x", "--show", "txt"], "--show txt is no column of the pool; did you mean 'text'"),
        (["export", "first", "--to", "csv", "--out", "x", "--show", "p"], "--show p holds neither text nor"),
        (["export", "first", "--to", "csv"], "give either --out"),
        (["export", "first", "--to", "csv", "--push", "http://h"], "--push speaks to label_studio and cvat"),
        (["export", "first", "--to", "label_studio", "--push", "http://h"], "set it as LABEL_STUDIO_API_KEY"),
        (["export", "first", "--to", "csv", "--out", "x", "--presign", "8d", "--show", "url"], "at most 7d"),
        (["export", "first", "--to", "csv", "--out", "x", "--presign", "soon"], "--presign 'soon' is not a time"),
        (["export", "first", "--to", "csv", "--out", "x", "--presign", "1h", "--show", "text"], "column text holds none"),
        (["labels", "b.jsonl", "--from", "doccano", "--out", "l.parquet"], "--from doccano is no tool"),
        (["labels", "--from", "csv", "--out", "l.parquet"], "give either the tool's export"),
        (["labels", "b.jsonl", "--from", "jsonl", "--out", "l.parquet"], "name no query; give --query"),
        (["labels", "b.jsonl", "--from", "jsonl", "--out", "l.csv", "--query", "first"], "must end in .parquet"),
        (["labels", "b.jsonl", "--from", "jsonl", "--out", "l.parquet", "--query", "second"], "has no query second"),
    ],
)
def test_what_is_asked_wrongly_is_exit_2(
    arguments: list[str], words: str, first: Result, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence that says what to do."""
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    Path("b.jsonl").write_text('{"raystream_id": "100", "label": "cat"}\n')
    code, printed, stderr = cli(*arguments)
    assert (code, printed, stderr.count("\n")) == (2, "", 1), stderr
    assert words in stderr
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.jsonl", '{"label": "cat"}\n', "row 0 has no raystream_id"),
        ("b.jsonl", '{"raystream_id": "1", "label": "cat", "state": "done"}\n', "state of row 0 is 'done'"),
        ("b.csv", "raystream_id,label,label\n1,a,b\n", "2 columns named 'label'"),
        ("b.csv", "raystream_id,label\n1,a,b\n", "too many fields"),
        ("b.txt", "hello", "is neither JSON, XML, CSV nor Parquet"),
        ("b.json", "", "is empty"),
        ("b.jsonl", b"caf\xe9", "is no text in UTF-8 (byte 3); export it as UTF-8, which spreadsheets call CSV UTF-8"),
        ("b.xml", "<!DOCTYPE x><annotations/>", "declares a document type"),
        ("b.json", "[" * 100_000, "too deeply"),
        ("b.zip", b"PK\x03\x04 nothing", "damaged or cut off"),
    ],
)
def test_files_that_are_none(name: str, content: Any, words: str, first: Result, cli: Cli) -> None:
    """Exit 3 and one sentence."""
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, stderr = cli("labels", name, "--from", "csv" if name.endswith("csv") else "jsonl", "--out", "l.parquet", "--query", "first")
    assert (code, stderr.count("\n")) == (3, 1), stderr
    assert words in stderr


def as_zip(members: dict[str, bytes]) -> bytes:
    """An archive with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("tool", sorted(TOOLS))
@pytest.mark.parametrize("how", ["utf-16", "bom", "gz", "zip", "crlf"])
def test_an_export_as_other_programs_hand_it_on(tool: str, how: str, first: Result, cli: Cli) -> None:
    """A shell that writes UTF-16, an editor's mark and line ends, gzip, an archive from a Mac beside what such archives hold more."""
    name, data = PEOPLE[tool](exported(cli, tool), ["cat", None, "dog", "a <b> & c", "cat", "dog", "cat", "dog"])
    if tool == "parquet" and how in ("utf-16", "bom", "crlf"):
        pytest.skip("is no text")
    if how == "zip":
        mac = {f"__MACOSX/export/._{name}": b"\0\5\x16\7\0", "export/.DS_Store.json": b"\0", "export/images/1.png": b"PNG"}
        name, data = f"{name}.zip", as_zip({**mac, f"export/{name}": data})
    elif how == "gz":
        name, data = f"{name}.gz", gzip.compress(data)
    elif how == "utf-16":
        data = data.decode().encode("utf-16")
    elif how == "bom":
        data = b"\xef\xbb\xbf" + data
    else:
        data = data.replace(b"\n", b"\r\n")
    Path("back").mkdir()
    (Path("back") / name).write_bytes(data)
    for source in (f"back/{name}", "back"):
        code, printed, stderr = cli("labels", source, "--from", tool, "--out", "l.parquet", "--query", "first", "--json")
        assert (code, json.loads(printed or "{}").get("labelled")) == (0, 7), stderr
    ids = first.selection.column("rid").to_pylist()
    labels = column_by_id(pq.read_table("l.parquet"), "label")
    assert [labels.get(id_) for id_ in ids] == ["cat", None, "dog", "a <b> & c", "cat", "dog", "cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.jsonl.gz", gzip.compress(b'{"raystream_id": "100", "label": "cat"}\n' * 99)[:-9], "gzip archive that is damaged or cut off"),
        ("b.jsonl", '{"raystream_id": "100", "label": "cat"}\n'.encode("utf-16")[:-1], "UTF-16 that is damaged or cut off"),
        ("b.jsonl", b'{"raystream_id": "100", "label": "cat"}\n7\n', "has another shape; was it edited?"),
        ("b.zip", as_zip({"a.txt": b"x"}), "holds no file of"),
        ("b.jsonl", b'{"raystream_id": "1", "label": "cat", "labelled_at": "01.03.2026"}\n', "'01.03.2026' is no time; expected"),
        ("b.jsonl", b'{"raystream_id": "100", "label": "cat", "labelled_at": 46082.5}\n', "'46082.5' is no time; expected"),
    ],
)
def test_files_that_were_damaged_on_the_way(name: str, content: bytes, words: str, first: Result, cli: Cli) -> None:
    """Exit 3 and one sentence, and no table."""
    Path(name).write_bytes(content)
    code, _, stderr = cli("labels", name, "--from", "jsonl", "--out", "l.parquet", "--query", "first")
    assert (code, stderr.count("\n"), Path("l.parquet").exists()) == (3, 1, False), stderr
    assert words in stderr


def test_files_beside_an_export_are_said(first: Result, cli: Cli) -> None:
    """A spreadsheet of the same folder that lacks its head would be missed without a word."""
    Path("back").mkdir()
    (Path("back") / "1.csv").write_text("raystream_id,label\n100,cat\n")
    (Path("back") / "2.csv").write_text("101,cat\n102,dog\n")
    code, _, stderr = cli("labels", "back", "--from", "csv", "--out", "l.parquet", "--query", "first")
    assert (code, "1 file is no export of CSV, and left alone, first: " in stderr, "2.csv" in stderr) == (0, True, True)


def read_as(cli: Cli, folder: Path, ids: pa.Array, lines: list[dict[str, Any]], **changes: Any) -> tuple[pa.Table, str]:
    """What becomes of these lines, which are of a query over these ids, all of which it chose."""
    commit_query(folder, ids, len(ids), **changes)
    Path("b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, stderr = cli("labels", "b.jsonl", "--from", "jsonl", "--out", "l.parquet", "--query", "first")
    assert code == 0, stderr
    return pq.read_table("l.parquet"), stderr


def test_what_is_nearly_an_id_or_a_class_is_said(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another form of Unicode, a space, another case, a zero less: kept as they came, and named beside what they aren't."""
    monkeypatch.chdir(tmp_path)
    rows = [(unicodedata.normalize("NFD", "café"), "cat"), ("A ", "cat"), ("7", "cat"), ("b", "Cat"), ("b", "dog ")]
    lines = [{"raystream_id": id_, "label": label} for id_, label in rows]
    table, stderr = read_as(cli, tmp_path, pa.array(["café", "a", "007", "b"]), lines)
    assert sorted(table.column("rid").to_pylist()) == sorted(id_ for id_, _ in rows)
    assert f"3 ids are none that the query chose, first: {rows[0][0]!r}, which isn't 'café'; they are kept" in stderr
    assert "2 labels are no class of the model's, first: 'Cat', which isn't 'cat'; they are kept" in stderr


@pytest.mark.parametrize("classes", [None, ["0", "1", "2"]])
def test_a_numeral_means_the_class_of_its_value(
    classes: list[str] | None, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs write 1 as 1.0 beside gaps, in text and in numbers, and ids, too; truth values and other numbers stay strange."""
    monkeypatch.chdir(tmp_path)
    given = ["1", 1, 1.0, "1.0", "01", " ", True, "1.5"]
    lines = [{"raystream_id": float(number), "label": label, "annotator": 7.0} for number, label in enumerate(given)]
    table, stderr = read_as(cli, tmp_path, pa.array(range(8)), lines, model={"classes": classes})
    assert column_by_id(table, "label") == dict.fromkeys(range(5), "1") | {6: "true", 7: "1.5"}
    assert set(table.column("annotator").to_pylist()) == {"7"}
    assert "2 labels are no class of the model's, first: 'true'; they are kept" in stderr


def test_a_label_that_is_no_number_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decimal comma, a truth value: drafts, as no label at all is, but with what stands there, for a loop's people, too."""
    monkeypatch.chdir(tmp_path)
    result = commit_query(tmp_path, pa.array(range(8)))
    result.manifest.resolved["model"]["task"] = "regression"
    queries = LabelQueries(result.store, None, lambda _: None)
    queries._known["first"] = result
    said: list[Any] = ["1,5", True, [], None, "2.5", [3]]
    read = rows_of([Annotation(str(number), raw, query="first") for number, raw in enumerate(said)], "csv", queries)
    assert [(row.state, row.label) for row in read.rows] == [("draft", None)] * 4 + [("labelled", 2.5), ("labelled", 3.0)]
    assert read.of_unlabelled == [
        "2 annotations were submitted without a label and count as drafts",
        "2 labels are no numbers, first: '1,5'; they count as drafts: write them as 1.5",
    ]


def test_states_and_gaps_as_people_write_them(first: Result, cli: Cli) -> None:
    """A state in capitals is that state; a cell of spaces says nothing."""
    Path("b.csv").write_text("raystream_id,label,state\n100, , \n101,,Skipped\n102,cat,LABELLED \n103,cat,\n")
    code, _, stderr = cli("labels", "b.csv", "--from", "csv", "--out", "l.parquet", "--query", "first")
    assert code == 0, stderr
    assert column_by_id(pq.read_table("l.parquet"), "state") == {101: "skipped", 102: "labelled", 103: "labelled"}


def test_a_corrected_spreadsheet_without_times_says_how_to_settle_it(first: Result, cli: Cli) -> None:
    """Read, corrected and read again, it holds two answers of no time; with one, the newer answer wins."""
    for label, more in (("cat", ""), ("dog", ""), ("dog", "2026-03-01")):
        Path("b.csv").write_text(f"raystream_id,label,labelled_at\n100,{label},{more}\n")
        code, printed, stderr = cli("labels", "b.csv", "--from", "csv", "--out", "l.parquet", "--query", "first", "--json")
        assert code == 0, stderr
        assert ("a newer one settles them, by a column labelled_at" in stderr) == (label == "dog" and not more)
    assert column_by_id(pq.read_table("l.parquet"), "label") == {100: "dog"}
    assert json.loads(printed)["conflicts"] == 0


_TASK = {"id": 1, "data": {"raystream_id": "100", "raystream_query": "first"}}
_RECORD = {"id": "100", "fields": {}, "metadata": {}}
_ROW = {"data_row": {"global_key": "100"}}
_SAMPLE = {"raystream_id": "100", "filepath": "a.png"}


@pytest.mark.parametrize(
    ("tool", "content"),
    [
        ("label_studio", [_TASK | {"annotations": 3}]),
        ("label_studio", [_TASK | {"annotations": []}, {"id": 2, "annotations": []}]),
        ("label_studio", [_TASK | {"annotations": []}, 7]),
        ("argilla", [_RECORD | {"label.responses": ["cat", "dog"], "label.responses.users": ["u"]}]),
        ("labelbox", [_ROW | {"projects": 3}]),
        ("label_studio", [_TASK | {"annotations": [{"id": 1, "result": "cat"}]}]),
        ("label_studio", [_TASK | {"annotations": [{"id": 1, "result": [], "reviews": [1]}]}]),
        ("cvat", {"images": 3, "annotations": [], "categories": []}),
        ("cvat", {"images": [{"id": 1}], "annotations": [1], "categories": []}),
        ("argilla", [_RECORD | {"responses": 3}]),
        ("argilla", [_RECORD | {"label.responses": "cat"}]),
        ("labelbox", [_ROW | {"projects": {"p": 3}}]),
        ("labelbox", [_ROW | {"projects": {"p": {"labels": [{"annotations": {"classifications": [{"radio_answer": "cat"}]}}]}}}]),
        ("fiftyone", {"samples": [_SAMPLE | {"tags": 3, "ground_truth": {"label": "cat"}}]}),
        ("fiftyone", {"samples": [_SAMPLE | {"ground_truth": {"classifications": [3]}}]}),
    ],
)
def test_records_of_another_shape_are_the_files_fault(tool: str, content: Any, first: Result, cli: Cli) -> None:
    """Edited by hand, or by another version of the tool: exit 3 and one sentence, not a defect of ours, and nothing is written."""
    Path("edited.json").write_text(json.dumps(content))
    code, _, stderr = cli("labels", "edited.json", "--from", tool, "--out", "l.parquet", "--query", "first")
    assert (code, stderr.count("\n")) == (3, 1), stderr
    assert "has another shape; was it edited?" in stderr
    assert not Path("l.parquet").exists()


@pytest.mark.parametrize(
    ("tool", "content", "words"),
    [
        ("prodigy", [{"raystream_id": "1", "answer": "accept", "label": "x"}, {"answer": "Accept"}], "answer 'Accept' is none of accept"),
        ("argilla", [_RECORD | {"responses": [{"status": "pending", "values": {}}]}], "the status of a response is 'pending'; expected"),
        ("label_studio", [_TASK | {"annotations": [{"id": 1, "result": [], "updated_at": "soon"}]}], "'soon' is no time; expected"),
    ],
)
def test_words_that_a_tool_never_writes_are_named(tool: str, content: Any, words: str, first: Result, cli: Cli) -> None:
    """Taken for a label or for none, such a word would be a wrong answer: exit 3, and nothing is written."""
    Path("edited.json").write_text(json.dumps(content))
    code, _, stderr = cli("labels", "edited.json", "--from", tool, "--out", "l.parquet", "--query", "first")
    assert (code, stderr.count("\n"), Path("l.parquet").exists()) == (3, 1, False), stderr
    assert f"edited.json: {words}" in stderr


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_spreadsheet_saved_with_other_marks(mark: str, first: Result, cli: Cli) -> None:
    """Where commas are for decimals, programs part the fields by semicolons; commas inside the labels stay."""
    rid = str(first.selection.column("rid")[0])
    lines = [("raystream_id", "raystream_query", "label", "state"), (rid, "first", "a, b", ""), ("7", "first", "", "skipped")]
    Path("b.csv").write_text("".join(mark.join(line) + "\n" for line in lines))
    code, printed, stderr = cli("labels", "b.csv", "--from", "csv", "--out", "l.parquet", "--json")
    assert code == 0, stderr
    assert (json.loads(printed)["labelled"], json.loads(printed)["skipped"]) == (1, 1)
    assert "a, b" in pq.read_table("l.parquet").column("label").to_pylist()


def test_what_is_missing_of_a_file_is_said(first: Result, cli: Cli) -> None:
    """A spreadsheet without the columns to fill in, one in which nobody has filled in anything, and a list of questions and answers."""
    Path("b.csv").write_text("raystream_id,said\n100,cat\n")
    code, _, stderr = cli("labels", "b.csv", "--from", "csv", "--out", "l.parquet", "--query", "first")
    assert (code, "it needs raystream_id, and a column named label or state" in stderr) == (3, True), stderr
    Path("b.csv").write_text("raystream_id,label\n100,\n")
    code, _, stderr = cli("labels", "b.csv", "--from", "csv", "--out", "l.parquet", "--query", "first")
    assert (code, "nobody has labelled anything there yet" in stderr) == (0, True), stderr
    Path("b.jsonl").write_text('{"question": "?", "answer": ["!"]}\n')
    code, _, stderr = cli("labels", "b.jsonl", "--from", "label_studio", "--out", "l.parquet", "--query", "first")
    assert (code, "is no export of Label Studio" in stderr) == (3, True), stderr


def test_links_are_written_as_they_are_unless_signing_is_asked_for(first: Result, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credential is in a file without --presign; with it, each link opens by itself, for as long as asked."""
    for name, value in {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_REGION": "eu-central-1"}.items():
        monkeypatch.setenv(name, value)
    assert cli("export", "first", "--to", "prodigy", "--out", "plain", "--show", "url")[0] == 0
    plain = [json.loads(line)["image"] for line in Path("plain/tasks.jsonl").read_text().splitlines()]
    assert all(url.startswith("s3://bucket/pictures/") and "?" not in url for url in plain)
    code, _, stderr = cli("export", "first", "--to", "prodigy", "--out", "signed", "--show", "url", "--presign", "2h")
    assert code == 0, stderr
    signed = [json.loads(line)["image"] for line in Path("signed/tasks.jsonl").read_text().splitlines()]
    assert all(url.startswith("https://") and "X-Amz-Expires=7200" in url and "hidden" not in url for url in signed)


def test_what_people_see_by_default(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --show a kept column of links is shown; without any, tools that show something refuse, and a spreadsheet has the rest."""
    monkeypatch.chdir(tmp_path)
    commit_query(tmp_path, pa.array(["a", "b", "c"]), budget=2)
    assert cli("export", "first", "--to", "prodigy", "--out", "x")[0] == 0
    assert "s3://bucket/pictures/" in json.loads(Path("x/tasks.jsonl").read_text().splitlines()[0])["image"]
    commit_query(tmp_path, pa.array(["a", "b", "c"]), budget=2, pool={"keep": []}, store={"uri": str(tmp_path / "other"), "query": "first"})
    code, _, stderr = cli("export", "first", "--to", "prodigy", "--out", "y", "--store", "other")
    assert (code, "name a column of the pool by --show" in stderr) == (2, True)
    assert cli("export", "first", "--to", "csv", "--out", "y.csv", "--store", "other")[0] == 0
    assert load_result("other", "first").selection.num_rows == 2


def test_classes_that_are_called_by_numerals_stay_names(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratings 1 to 3 are the names of classes 0 to 2: the number 1 would be read as the second of them."""
    monkeypatch.chdir(tmp_path)
    result = commit_query(tmp_path, IDS, model={"classes": ["1", "2", "3"]})
    ids = result.selection.column("rid").to_pylist()
    Path("said.csv").write_text("raystream_id,raystream_query,label\n" + "".join(f"{id_},first,{1 + id_ % 3}\n" for id_ in ids))
    assert cli("labels", "said.csv", "--from", "csv", "--out", "labels.parquet")[0] == 0
    assert column_by_id(pq.read_table("labels.parquet"), "label") == {id_: str(1 + id_ % 3) for id_ in ids}
    result = commit_query(tmp_path, IDS, model={"classes": None}, store={"query": "unnamed"})
    Path("said.csv").write_text("raystream_id,raystream_query,label\n" + "".join(f"{id_},unnamed,{id_ % 3}\n" for id_ in ids))
    assert cli("labels", "said.csv", "--from", "csv", "--out", "numbers.parquet")[0] == 0
    assert column_by_id(pq.read_table("numbers.parquet"), "label") == {id_: id_ % 3 for id_ in ids}
