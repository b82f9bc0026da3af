"""Packs of receipts: what is read instead of each, and when a pack is not believed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import planned

import raystream as rs
from raystream.run import score
from raystream.store import packs
from raystream.store.gc import collect
from raystream.store.local import LocalStore
from raystream.store.protocol import StoredFile
from raystream.store.receipt_table import Keys, ReceiptTable
from raystream.store.receipts import Receipt, unit_folder

MakeQuery = Callable[..., rs.Query]


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@given(count=st.integers(0, 9000), at=st.integers(0, 9000), more=st.integers(1, 40))
def test_files_that_are_added_move_one_run_alone(count: int, at: int, more: int) -> None:
    """Runs cover all units in order; of new units in the middle, only the runs that they fall into have other names."""
    keys = [key(number) for number in range(count)]
    runs = list(packs.runs(Keys.of(keys)))
    assert [place for start, stop in runs for place in range(start, stop)] == list(range(count))
    grown = [*keys[:at], *(key(-number - 1) for number in range(more)), *keys[at:]]
    before, after = (set(packs.pack_names(Keys.of(some), ["scores-0"])) for some in (keys, grown))
    assert len(before - after) <= 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read of a store in which few units make a pack."""
    monkeypatch.setattr(packs, "FEWEST", 1)
    monkeypatch.setattr(packs, "_RUN_BITS", 1)
    read: list[str] = []
    real = LocalStore.read_if_there
    monkeypatch.setattr(LocalStore, "read_if_there", lambda self, name: read.append(name) or real(self, name))
    return read


def receipts(asked: list[str]) -> int:
    found = sum(name.endswith(".receipt.json") for name in asked)
    asked.clear()
    return found


def test_a_second_lookup_reads_packs_alone(make_query: MakeQuery, asked: list[str]) -> None:
    """Of scored units, no receipt is read again; a kind that is computed later is packed beside the others."""
    score(make_query(select__strategy="top_k"))
    asked.clear()
    assert not planned(make_query(select__strategy="top_k"))[1].missing
    assert receipts(asked) == 0
    missing = planned(make_query())[1].missing
    assert [[output.kind for output in task.outputs] for task in missing] == [["embeddings"]] * 4
    assert receipts(asked) == 4
    rs.run(make_query())
    asked.clear()
    plan = planned(make_query())[1]
    assert (len(plan.missing), receipts(asked)) == (0, 0)
    assert [table.rows.tolist() for table in plan.found] == [[300] * 4] * 2


@pytest.mark.parametrize("first", [0, 700])
def test_a_disk_is_asked_by_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Of more files than one question is for, of which the first may have no receipts yet: each is asked for once, and what isn't there in
    full is no receipt."""
    keys, output = Keys.of(key(number) for number in range(4000)), "scores-0123456789ab"
    store, table = LocalStore(str(tmp_path)), ReceiptTable(output, keys)
    for place in range(first, 4000):
        file = StoredFile(f"{unit_folder(keys[place])}/{output}-0123456789ab.parquet", place, "ab" * 16)
        table.add(place, Receipt(keys[place], output, "a", 1, "ab" * 8, file, (), *[None] * 3, 1, "", 0, (), 0, 0.0))
    packs.write_packs(store, [table])
    (tmp_path / "units/00").mkdir(parents=True)
    asking, most, names = 0, 0, list[str]()

    def sizes(self: LocalStore, some: list[str]) -> list[int | None]:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        time.sleep(0.02)
        names.extend(some)
        asking -= 1
        return [table.files(np.array([number]))[0][2] if number % 7 else None for number in map(place_of.__getitem__, some)]

    place_of = {file: place for place, file, _ in table.files(np.arange(4000))}
    monkeypatch.setattr(LocalStore, "sizes", sizes)
    [found] = packs.read_receipts(store, keys, [output])
    assert sorted(names) == sorted(place_of)
    assert most > 1
    assert found.there.tolist() == [number >= first and number % 7 > 0 for number in range(4000)]


@pytest.mark.parametrize("fault", ["a file is gone", "a file is cut", "a pack is cut", "a pack is gone", "a pack is none"])
def test_packs_are_not_believed(make_query: MakeQuery, workplace: Path, asked: list[str], fault: str) -> None:
    """What they name is looked for; what can't be read of them is read of the receipts."""
    query = make_query(select__strategy="top_k")
    before = rs.run(query).selection
    [pack, *_] = sorted((workplace / "runs/receipts").rglob("*.arrow"))
    [file, *_] = sorted((workplace / "runs/units").rglob("*.parquet"))
    whole = pack.read_bytes()
    harm: dict[str, Callable[[], Any]] = {
        "a file is gone": file.unlink,
        "a file is cut": lambda: os.truncate(file, 100),
        "a pack is cut": lambda: pack.write_bytes(whole[:-9]),
        "a pack is gone": pack.unlink,
        "a pack is none": lambda: pack.write_bytes(b"{}\n" * 4),
    }
    harm[fault]()
    again = rs.run(make_query(select__strategy="top_k", store__query="again"))
    assert again.selection.equals(before)
    assert again.manifest.units_scored == ("file" in fault)


def test_gc_removes_packs_before_what_they_name(make_query: MakeQuery, workplace: Path, asked: list[str]) -> None:
    """Those of forgotten queries go with the units, whatever their age; those of kept ones stay, and count as nothing when old."""
    kept = rs.run(make_query(select__strategy="top_k"))
    before = {path.relative_to(workplace) for path in (workplace / "runs/receipts").rglob("*.arrow")}
    rs.run(make_query(store__query="other", pool__uri="pool/year=2020", model__args={"hidden": 9}))
    for path in (workplace / "runs/units").rglob("*"):
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - int(2 * 86400e9)))
    more = {path.relative_to(workplace) for path in (workplace / "runs/receipts").rglob("*.arrow")} - before
    found = collect(kept.store, drop=["other"], delete=True)
    assert (found.units.count, found.leftovers.count) == (1, len(more))
    assert {path.relative_to(workplace) for path in (workplace / "runs/receipts").rglob("*.arrow")} == before
    assert not planned(make_query(select__strategy="top_k"))[1].missing
