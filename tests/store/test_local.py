"""The store: one winner, whole files, and clear words when it can't be used."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import xxhash

from raystream.errors import QueryError, StoreError, StoreVersionError
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
