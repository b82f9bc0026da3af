"""The store: one winner, whole files, and clear words when it can't be used."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from raystream.errors import QueryError, StoreError, StoreVersionError
from raystream.lake.retry import Patience
from raystream.store import local
from raystream.store.local import LocalStore
from raystream.store.opening import FORMAT, open_store, refuse_in_store
from raystream.store.protocol import StoredFile
from raystream.store.receipts import Receipt, read_receipt, receipt_name


def test_of_many_writers_one_wins(tmp_path: Path) -> None:
    """Sixteen racers put the same name: exactly one is told that it won, and its content is there whole."""
    store = LocalStore(str(tmp_path))
    barrier, wins = threading.Barrier(16), []

    def race(number: int) -> None:
        barrier.wait()
        if store.put_if_absent("queries/q/manifest.json", bytes([number]) * 10_000):
            wins.append(number)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert store.read("queries/q/manifest.json") == bytes([wins[0]]) * 10_000
    assert [p.name for p in (tmp_path / "queries" / "q").iterdir()] == ["manifest.json"]


def test_a_written_file_is_known_by_size_and_hash(tmp_path: Path) -> None:
    """Both are those of the bytes on disk."""
    store = LocalStore(str(tmp_path))
    with store.writing("units/a/x.arrow") as file:
        file.write(b"one")
        file.write(b"two")
    assert (tmp_path / "units/a/x.arrow").read_bytes() == b"onetwo"
    assert store.stored("units/a/x.arrow") == StoredFile("units/a/x.arrow", 6, xxhash.xxh3_128_hexdigest(b"onetwo"))


def test_a_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Half a file is no file."""
    store = LocalStore(str(tmp_path))

    def write_half() -> None:
        with store.writing("units/a/x.arrow") as file:
            file.write(b"half")
            raise KeyError("model broke")

    with pytest.raises(KeyError):
        write_half()
    assert list((tmp_path / "units/a").iterdir()) == []


def test_format_is_written_once_and_checked(tmp_path: Path) -> None:
    """A store of this version opens again; a newer or damaged one is refused."""
    open_store(str(tmp_path))
    open_store(str(tmp_path))
    assert json.loads((tmp_path / "format.json").read_text()) == {"version": FORMAT}
    (tmp_path / "format.json").write_text(json.dumps({"version": FORMAT + 1}))
    with pytest.raises(StoreVersionError, match=f"version {FORMAT + 1}"):
        open_store(str(tmp_path))
    (tmp_path / "format.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        open_store(str(tmp_path))


def test_an_uri_of_another_kind_is_refused() -> None:
    """No folder called `s3:` is made."""
    with pytest.raises(QueryError, match="s3://bucket/runs is not a local folder"):
        LocalStore("s3://bucket/runs")


def receipt(**changes: object) -> Receipt:
    fields = {
        "key": "ab" * 32, "output": "scores-0", "unit": "p#rg0", "rows": 3, "positions": "0", "columns": ("id", "margin"),
        "file": StoredFile("units/ab/scores.parquet", 5, "0"), "width": None, "members": None, "classes": 4,
        "batch_size": 32, "state_hash": "s", "quarantined": 0,
        "quarantine_reasons": ("x",), "bytes_read": 1, "seconds": 0.1,
    }  # fmt: skip
    return Receipt(**(fields | changes))  # type: ignore[arg-type]


def test_receipts_survive_json() -> None:
    """What is read is what was written."""
    for file in (None, StoredFile("e.arrow", 9, "1")):
        written = receipt(file=file, quarantine=file, members=3, class_labels=("a", 1), notes=("note",))
        assert Receipt.from_json(written.to_json()) == written


def test_a_receipt_counts_only_if_its_files_are_whole(tmp_path: Path) -> None:
    """A unit whose scores are gone or cut short is not scored."""
    store = LocalStore(str(tmp_path))
    proof = receipt()
    store.put_if_absent(receipt_name(proof.key, proof.output), proof.to_json())
    assert read_receipt(store, proof.key, proof.output) is None
    store.put("units/ab/scores.parquet", b"12345")
    assert read_receipt(store, proof.key, proof.output) == proof
    store.put("units/ab/scores.parquet", b"1234")
    assert read_receipt(store, proof.key, proof.output) is None


@pytest.mark.parametrize(
    ("place", "store", "inside"),
    [
        ("s3://bucket/runs/x.parquet", "s3://bucket/runs", True),
        ("s3://bucket/runs", "s3://bucket/runs/", True),
        ("s3://bucket/runs-2/x.parquet", "s3://bucket/runs", False),
        ("delta+s3://bucket/runs/t?region=eu-west-1", "s3://bucket/runs?region=eu-west-1", True),
        ("s3://other/runs/x.parquet", "s3://bucket/runs", False),
        ("/bucket/runs/x.parquet", "s3://bucket/runs", False),
        ("iceberg://lake/ns.runs", "runs", False),
        ("runs", "file:///elsewhere/runs", False),
        ("/x.parquet", "/", True),
    ],
)
def test_what_lies_in_a_store_is_refused(place: str, store: str, inside: bool) -> None:
    """By the place, whatever stands around it in the URIs."""
    if not inside:
        refuse_in_store(place, store, "output")
        return
    with pytest.raises(QueryError, match=r"output \S+ lies in the store"):
        refuse_in_store(place, store, "output")


_ODD: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda folder: None,
    "a pipe beside": lambda folder: os.mkfifo(folder / "pipe"),
    "a file beside": lambda folder: (folder / "notes.txt").write_text("x"),
    "a folder that is empty": lambda folder: (folder / "other").mkdir(),
    "a folder in a unit's": lambda folder: [(folder / "key1/more").mkdir(), (folder / "key1/more/x.parquet").write_text("more")],
    "a link to a file": lambda folder: (folder / "key1/link").symlink_to("scores.parquet"),
    "a link to nothing": lambda folder: (folder / "key1/link").symlink_to("nowhere"),
    "links to folders": lambda folder: [(folder / f"key{i}/{name}").symlink_to(folder) for i in (1, 2) for name in ("one", "two")],
    "a link to a unit": lambda folder: (folder / "link").symlink_to(folder / "key1", target_is_directory=True),
    "a pipe": lambda folder: os.mkfifo(folder / "key1/pipe"),
    "a name that is no text": lambda folder: Path(os.fsdecode(os.fsencode(folder / "key1") + b"/\xff\xfe")).write_text("x"),
    "before 1970": lambda folder: os.utime(folder / "key1/scores.parquet", ns=(0, -1)),
    "after 2262": lambda folder: os.utime(folder / "key1/scores.parquet", ns=(0, 10_000_000_000 * 10**9)),
}


@pytest.mark.parametrize("odd", _ODD)
def test_files_of_units_are_listed_as_others_are(tmp_path: Path, odd: str) -> None:
    """Whatever lies among them, by names, sizes and times; links in a unit's folder lead nowhere, a unit may be one."""
    store = LocalStore(str(tmp_path))
    for number in range(300):
        (tmp_path / f"units/ab/key{number}").mkdir(parents=True)
        for name in ("scores.parquet", "scores.receipt.json"):
            (tmp_path / f"units/ab/key{number}/{name}").write_text(name * (number % 7))
    _ODD[odd](tmp_path / "units/ab")
    expected = list(store.walk(*(f"units/ab/{name}" for name in store.names("units/ab"))))
    expected += [file for file in store._walk(["units/ab"]) if file.name.count("/") == 2]
    expected.sort()
    assert len(expected) >= 600
    found = sorted(store.walk("units/ab"))
    assert [file[:2] for file in found] == [file[:2] for file in expected]
    assert [file.modified for file in found] == pytest.approx([file.modified for file in expected], abs=1e-6)
    files = [file for file in expected if (tmp_path / file.name).is_file()]
    names = [*(file.name for file in files), "units/none", "units/ab/key1/none"]
    assert store.sizes(names) == [*(file.size for file in files), None, None]
    assert (list(store.walk("units/none")), list(store.walk("units/ab/notes.txt")), store.sizes([])) == ([], [], [])
    (tmp_path / "units/file").write_text("x")
    assert list(store.walk("units/file")) == []


def test_a_disk_that_goes_away_while_files_are_looked_at_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Arrow raises is an outage, or final, as what Python raises is; and told in the same words."""
    (tmp_path / "units/ab/key").mkdir(parents=True)
    (tmp_path / "units/ab/key/x").write_text("four")
    store, asked = LocalStore(str(tmp_path), Patience(seconds=30.0, from_start=True)), 0

    class Away:
        def get_file_info(self, what: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked % 2:
                raise OSError(errno.ESTALE, f"Failed stat()ing path '{what}'. Detail: [errno 116] Stale file handle")
            return files.get_file_info(what)

    files = local._FILES
    monkeypatch.setattr(local, "_FILES", Away())
    assert store.sizes(["units/ab/key/x", "units/ab/key/y"]) == [4, None]
    assert [file[:2] for file in store.walk("units/ab")] == [("units/ab/key/x", 4)]
    assert asked == 4
    monkeypatch.setattr(local, "_FILES", files)
    with pytest.raises(StoreError, match=r"xx can't be read: File name too long$"):
        store.sizes(["units/" + "x" * 300])
