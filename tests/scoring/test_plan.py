"""Which units are scored already: what is taken for what, and at what cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

import raystream as rs
from raystream.pool import ReadSpec, Unit
from raystream.pool.files import File
from raystream.scoring.asked import Asked
from raystream.scoring.keys import UnitKeys, Wanted
from raystream.scoring.plan import find_scored
from raystream.scoring.session import score_warnings
from raystream.store.local import LocalStore
from raystream.store.protocol import StoredFile
from raystream.store.receipts import Receipt, unit_folder

MakeQuery = Callable[..., rs.Query]
SPEC = ReadSpec("rid", pa.string(), ())
EVERY = [Wanted(*outputs) for outputs in product((False, True), repeat=4)]


def some_units(count: int) -> list[Unit]:
    return [Unit(File(f"/lake/part-{i // 8}.parquet", 1000, "1"), (i % 8,), 100 * (i % 8), 100, 10_000) for i in range(count)]


def keep_receipt(store: LocalStore, key: str, repeated: int = 0) -> Receipt:
    """Have the store hold a unit, whole."""
    scores = f"{unit_folder(key)}/scores-0123456789ab.parquet"
    store.path(scores).parent.mkdir(parents=True, exist_ok=True)
    store.path(scores).write_bytes(b"scores")
    receipt = Receipt(
        key=key, unit="p#rg0", rows=3, scores=StoredFile(scores, 6, "0"), embeddings=None, probabilities=None, samples=None,
        members=None, dimension=None, classes=4, batch_size=32, state_hash="s", quarantined=0, quarantine_reasons=(),
        bytes_read=1, seconds=0.1, repeated_reads=repeated,
    )  # fmt: skip
    store.path(f"{unit_folder(key)}/receipt.json").write_bytes(receipt.to_json())
    return receipt


def keys_of(query: rs.Query) -> UnitKeys:
    return UnitKeys(query, SPEC, "f" * 64, Asked())


@pytest.mark.parametrize("others", [0, 8])
def test_a_query_takes_units_that_hold_what_it_needs_or_more(make_query: MakeQuery, tmp_path: Path, others: int) -> None:
    """All pairs of what a unit holds and what is needed; asked for one by one, and where so many are looked for that folders are listed."""
    query = make_query()
    store = LocalStore(str(tmp_path / "store"))
    [unit, *more] = some_units(1 + others)
    for given in EVERY:
        [key] = keys_of(query).of(unit, [given])
        receipt = keep_receipt(store, key)
        for needed in EVERY:
            tasks, receipts = find_scored(query, store, [unit, *more], SPEC, "f" * 64, Asked(), needed)
            enough = all(a >= b for a, b in zip(given, needed, strict=True))
            assert receipts == (receipt if enough else None, *[None] * others)
            assert tasks[0].key == (key if enough else keys_of(query).of(unit, [needed])[0])
            assert len({task.key for task in tasks}) == 1 + others
        store.discard(f"{unit_folder(key)}/receipt.json")


def test_the_unit_that_holds_exactly_what_is_needed_comes_first(make_query: MakeQuery, tmp_path: Path) -> None:
    """Where one with more is there, too; if its files are gone, that one is taken."""
    query, store = make_query(), LocalStore(str(tmp_path / "store"))
    [unit] = some_units(1)
    plain, rich = (keep_receipt(store, keys_of(query).of(unit, [wanted])[0]) for wanted in (EVERY[0], EVERY[-1]))
    assert find_scored(query, store, [unit], SPEC, "f" * 64, Asked(), EVERY[0])[1] == (plain,)
    store.discard(plain.scores.name)
    assert find_scored(query, store, [unit], SPEC, "f" * 64, Asked(), EVERY[0])[1] == (rich,)


class Counting(LocalStore):
    """A store that counts what it is asked."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.lists = self.reads = 0

    def names(self, folder: str) -> list[str]:
        self.lists += 1
        return super().names(folder)

    def read_if_there(self, name: str) -> bytes | None:
        self.reads += 1
        return super().read_if_there(name)


@pytest.mark.parametrize("count", [100, 200])
def test_a_lookup_costs_the_same_however_many_units_there_are(
    make_query: MakeQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Of a new pool, in a store that holds others, nothing is read; of a scored one, each receipt once and under one key."""
    hashed = []
    texts = UnitKeys.texts
    monkeypatch.setattr(UnitKeys, "texts", lambda self, unit, outputs: hashed.append(len(outputs)) or texts(self, unit, outputs))
    query, store, units = make_query(), Counting(str(tmp_path / "store")), some_units(count)
    for i in range(256):
        (tmp_path / f"store/units/{i:02x}/{i:02x}{'0' * 62}").mkdir(parents=True)
    find_scored(query, store, units, SPEC, "f" * 64, Asked(), EVERY[0])
    assert (store.lists, store.reads, sum(hashed)) == (257, 0, 16 * count)
    for unit in units:
        keep_receipt(store, keys_of(query).of(unit, [EVERY[0]])[0])
    hashed.clear()
    store.lists = 0
    assert None not in find_scored(query, store, units, SPEC, "f" * 64, Asked(), EVERY[0])[1]
    assert store.lists <= 257
    assert (store.reads, sum(hashed)) == (count, count)


def test_an_empty_store_is_not_searched(make_query: MakeQuery, tmp_path: Path) -> None:
    """One listing says that no unit is there."""
    store = Counting(str(tmp_path / "store"))
    find_scored(make_query(), store, some_units(500), SPEC, "f" * 64, Asked())
    assert (store.lists, store.reads) == (1, 0)


@pytest.mark.parametrize("casts", [(), (("x", pa.int64()),)])
def test_a_key_hashes_canonical_json(make_query: MakeQuery, casts: Any) -> None:
    """The text is pieced together, and is that of all parts: sorted keys, no spaces, whatever characters names and filters hold."""
    query = make_query(pool={"uri": "pool", "id": 'a"\\é\0', "inputs": ["x"]})
    filters = ((("s", "==", '\0","file":'),),)
    unit = Unit(File('/lake/"é\0.parquet', 1, "2"), (0, 1), 0, 3, 4, filters=filters, positions=(1, 2), casts=casts)
    texts = keys_of(query).texts(unit, EVERY)
    assert len(set(texts)) == len(EVERY)
    for text, outputs in zip(texts, EVERY, strict=True):
        found = json.loads(text)
        assert json.dumps(found, sort_keys=True, separators=(",", ":")) == text
        assert (found["file"], found["positions"], found["id"]) == (['/lake/"é\0.parquet', 1, "2"], [1, 2], 'a"\\é\0')
        assert ("casts" in found, found["samples"], found["filters"]) == (bool(casts), outputs.samples, [[["s", "==", '\0","file":']]])


def test_what_was_scored_now_is_listed_once(make_query: MakeQuery, tmp_path: Path) -> None:
    """Warnings look at a receipt, not at all units for each receipt; those that were there before don't count."""
    looked = []

    class Prepared(SimpleNamespace):
        @property
        def missing(self) -> list[Any]:
            looked.append(1)
            return [SimpleNamespace(key=f"new-{i}") for i in range(100)]

    prepared: Any = Prepared(calibration=None, pool=SimpleNamespace(warnings=()), query=make_query())
    store = LocalStore(str(tmp_path / "store"))
    receipts = [keep_receipt(store, f"{kind}-{i}", repeated=i % 2) for kind in ("new", "old") for i in range(100)]
    session: Any = SimpleNamespace(warnings=[])
    assert score_warnings(prepared, receipts, session) == ["50 requests to object storage broke and were made again"]
    assert len(looked) == 1
