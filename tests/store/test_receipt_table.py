"""Tables of receipts: what goes in comes out, by itself and through a pack, and damaged packs give nothing wrong away."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.store.protocol import StoredFile
from raystream.store.receipt_table import Keys, ReceiptTable
from raystream.store.receipts import Receipt, unit_folder
from raystream.store.unit_columns import ScoredUnits, check_same_model

OUTPUT = "scores-0123456789ab"
KEYS = Keys.of(hashlib.sha256(str(number).encode()).hexdigest() for number in range(40))


def receipt(place: int) -> Receipt:
    """One like those that workers write."""
    digits, key = hashlib.sha256(bytes([place])).hexdigest(), KEYS[place]
    return Receipt(
        key=key, output=OUTPUT, unit=f"/lake/é{place // 8}.parquet#rg{place % 8}", rows=place, positions=digits[:16],
        file=StoredFile(f"{unit_folder(key)}/{OUTPUT}-{digits[:12]}.parquet", 10_000 + place, digits[:32]), columns=("id", "margin", "row"),
        width=None, members=None, classes=4, batch_size=32, state_hash="0f" * 16, quarantined=0, quarantine_reasons=(), bytes_read=7 << 40,
        seconds=0.1 * place, repeated_reads=place % 3,
    )  # fmt: skip


ODD = (
    {"file": None},
    {"positions": "0"},
    {"positions": "ABCDEF0123456789"},
    {"positions": "01 23 45 67 89 ab cd ef"},
    {"quarantined": 2, "quarantine_reasons": ("a", "b"), "quarantine": StoredFile("units/q.parquet", 3, "ab")},
    {"file": StoredFile("units/elsewhere.arrow", 3, "0")},
    {"width": 256, "columns": (), "classes": None},
    {"members": 5, "class_labels": ("cat", 1, 2.5, True), "notes": ("it drifts",)},
    {"batch_size": 8, "state_hash": "other"},
    {},
)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 39), st.sampled_from(ODD)), max_size=40), st.integers(0, 39), st.integers(0, 39), st.booleans())
def test_what_goes_in_comes_out(given_: list[tuple[int, dict[str, object]]], one: int, other: int, named: bool) -> None:
    """Every field, whatever it holds; the same through a pack of any run; names of units are kept unless the plan has them."""
    start, stop = min(one, other), max(one, other) + 1
    expected = {place: replace(receipt(place), **changes) for place, changes in given_}  # type: ignore[arg-type]
    names = [receipt(place).unit for place in range(40)] if named else None
    table = ReceiptTable(OUTPUT, KEYS, names)
    for place, changes in given_:
        table.add(place, replace(receipt(place), **changes))  # type: ignore[arg-type]
    assert [table.at(place) for place in range(40)] == [expected.get(place) for place in range(40)]
    assert table.rows.tolist() == [expected[place].rows if place in expected else 0 for place in range(40)]
    files = {place: sorted((file.name, file.size) for file in found.files) for place, found in expected.items() if found.files}
    told: dict[int, list[tuple[str, int]]] = {}
    for place, name, size in table.files(np.arange(40)):
        told[place] = sorted([*told.get(place, []), (name, size)])
    assert told == files
    again = ReceiptTable(OUTPUT, KEYS, names)
    again.add(0, receipt(0))
    again.remove(0)
    assert again.unpack(start, stop, table.packed(start, stop))
    assert [again.at(place) for place in range(40)] == [expected.get(place) if start <= place < stop else None for place in range(40)]
    assert not again.loose.any()


@pytest.mark.parametrize(
    ("name", "xxh3"),
    [
        (f"{OUTPUT}-0123456789AB.parquet", "ab" * 16),
        (f"{OUTPUT}-0123456789ab.parquet", "AB" * 16),
        (f"{OUTPUT}-0123456789ab.parquet", "ab" * 15),
        (f"{OUTPUT}-0123456789.parquet", "ab" * 17),
        (f"{OUTPUT}-0123456789abcdef.parquet", "ab" * 16),
        (f"{OUTPUT}-0123456789ab", "ab" * 16),
        ("scores-ba9876543210-0123456789ab.parquet", "ab" * 16),
    ],
)
def test_files_of_any_name_and_hash(name: str, xxh3: str) -> None:
    """What isn't written as workers do, or is of another length, is given back as it came; through a pack, too."""
    table, again = ReceiptTable(OUTPUT, KEYS), ReceiptTable(OUTPUT, KEYS)
    kept = replace(receipt(3), file=StoredFile(f"{unit_folder(KEYS[3])}/{name}", 5, xxh3))
    assert table.add(3, kept)
    assert not table.add(3, kept)
    assert again.unpack(0, 40, table.packed(0, 40))
    assert table.at(3) == again.at(3) == kept
    assert table.files(np.arange(40)) == again.files(np.arange(40)) == [(3, kept.files[0].name, 5)]
    assert table.positions[3] == int.from_bytes(bytes.fromhex(kept.positions), "little")


def test_keys_are_64_digits_each() -> None:
    """Not 64 on the average, nor in capitals, nor with spaces between."""
    for wrong in (["a" * 63, "a" * 65], ["A" * 64], ["aa " * 20 + "aaaa"], ["g" * 64], ["a" * 128]):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            Keys.of(wrong)
    assert len(Keys.of([])) == 0
    assert Keys.of(["0f" * 32, "f0" * 32])[:] == ["0f" * 32, "f0" * 32]


@settings(max_examples=40)
@given(st.data())
def test_damaged_packs_are_no_receipts(data: st.DataObject) -> None:
    """Cut, changed in a byte, or of another run: refused, or read as a pack of as many units, and nothing is raised."""
    table = ReceiptTable(OUTPUT, KEYS)
    for place in range(20):
        table.add(place, replace(receipt(place), **ODD[place % len(ODD)]))  # type: ignore[arg-type]
    whole = table.packed(0, 20)
    again = ReceiptTable(OUTPUT, KEYS)
    assert not again.unpack(0, 20, whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert not again.unpack(0, 19, whole)
    assert not again.unpack(0, 20, b"{}\n" * 20)
    assert not again.there.any()
    at = data.draw(st.integers(0, len(whole) - 1))
    again.unpack(0, 20, whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    assert len([again.at(place) for place in range(20)]) == 20


def test_units_say_of_their_models_what_their_receipts_say() -> None:
    """Counts and sums over many units, and every different thing that is said, first said first, as one by one."""
    second = "embeddings-0123456789ab"
    tables = ReceiptTable(OUTPUT, KEYS), ReceiptTable(second, KEYS)
    for place in range(40):
        tables[0].add(place, replace(receipt(place), notes=("late",) if place > 30 else (), members=3 if place > 35 else None))
        file = StoredFile(f"{unit_folder(KEYS[place])}/{second}-0123456789ab.arrow", 5, "a" * 32)
        tables[1].add(place, replace(receipt(place), output=second, file=file, classes=None, width=8, quarantined=int(place == 7)))
    units = ScoredUnits(tables, np.arange(5, 40), {9: ({OUTPUT: np.arange(3), second: np.arange(3)}, 6)})
    each = list(units)
    assert units.rows.tolist() == [unit.rows for unit in each]
    assert units.rows[4] == 3
    assert units.quarantined.tolist() == [unit.quarantined for unit in each]
    assert units.say("members").tolist() == [unit.members is not None for unit in each]
    assert [unit.key for unit in units.with_losses()] == [KEYS[7]]
    assert [(found.unit, found.kind) for found in units.of_models()] == [
        (receipt(5).unit, "scores"), (receipt(5).unit, "embeddings"), (receipt(31).unit, "scores"), (receipt(36).unit, "scores")
    ]  # fmt: skip
    check_same_model(units)
    assert [unit.key for unit in units[2:4]] == KEYS[7:9]
    assert len(units.filled) == 35
