"""Which units are scored already: what is taken for what, and at what cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import compress, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raystream as rs
from raystream.pool import ReadSpec, Unit, UnitNames, Units
from raystream.pool.files import File
from raystream.scoring.class_labels import class_weights_of
from raystream.scoring.job import UnitTask
from raystream.scoring.output_kinds import Output, QueryOutputs, UnitKeys
from raystream.scoring.plan import plan_scoring, resolve, write_plan
from raystream.store.local import LocalStore
from raystream.store.protocol import StoredFile
from raystream.store.receipts import Receipt, receipt_name, unit_folder

MakeQuery = Callable[..., rs.Query]
SPEC = ReadSpec("rid", pa.string(), ())


def some_units(count: int) -> list[Unit]:
    return [Unit(File(f"/lake/part-{i // 8}.parquet", 1000, "1"), (i % 8,), 100 * (i % 8), 100, 10_000) for i in range(count)]


def keep_receipt(store: LocalStore, key: str, output: Output) -> Receipt:
    """Have the store hold an output of a unit, whole."""
    name = f"{unit_folder(key)}/{output.name}-0123456789ab.parquet"
    store.put(name, b"scores")
    receipt = Receipt(
        key=key, output=output.name, unit="p#rg0", rows=3, positions="0", file=StoredFile(name, 6, "0"), columns=("id",), width=None,
        members=None, classes=4, batch_size=32, state_hash="s", quarantined=0, quarantine_reasons=(), bytes_read=1, seconds=0.1,
    )  # fmt: skip
    store.put(receipt_name(key, output.name), receipt.to_json())
    return receipt


def keys_of(query: rs.Query) -> UnitKeys:
    return UnitKeys(query, SPEC, "f" * 64)


def key_of(query: rs.Query, unit: Unit) -> str:
    return keys_of(query).of(Units.of([unit]))[0]


@pytest.mark.parametrize("others", [0, 8])
def test_what_is_there_is_left_alone(make_query: MakeQuery, tmp_path: Path, others: int) -> None:
    """Every set of kinds that a unit holds: the others are to be computed, and no more; asked for one by one or by listed folders."""
    query = make_query(select__strategy="badge", acquire={"score": "egl"})
    outputs = QueryOutputs(query, None).needed()
    assert [output.kind for output in outputs] == ["scores", "embeddings", "probabilities", "gradients"]
    [unit, *more] = some_units(1 + others)
    for held in product((False, True), repeat=4):
        store = LocalStore(str(tmp_path / "-".join(map(str, held))))
        receipts = [keep_receipt(store, key_of(query, unit), output) for output in compress(outputs, held)]
        plan = plan_scoring(store, keys_of(query), [unit, *more], outputs)
        assert [receipt for table in plan.found if (receipt := table.at(0)) is not None] == receipts
        lacking = tuple(output for output, there in zip(outputs, held, strict=True) if not there)
        expected = [UnitTask(each, key_of(query, each), lacking if each is unit else outputs) for each in [unit, *more]]
        assert list(plan.missing) == [task for task in expected if task.outputs]


def test_tasks_are_the_same_in_any_order(make_query: MakeQuery, tmp_path: Path) -> None:
    """Past what is made at once: one after the other, once more, from the end, and parts of them; each lacks what its unit lacks."""
    query, units = make_query(select__strategy="badge", acquire={"score": "egl"}), some_units(700)
    outputs, store = QueryOutputs(query, None).needed(), LocalStore(str(tmp_path))
    held = {place: [output for i, output in enumerate(outputs) if place >> i & 1] for place in range(0, 700, 3)}
    for place, some in held.items():
        for output in some:
            keep_receipt(store, key_of(query, units[place]), output)
    plan = plan_scoring(store, keys_of(query), units, outputs)
    lacking = {place: tuple(output for output in outputs if output not in held.get(place, ())) for place in range(700)}
    expected = [UnitTask(units[place], key_of(query, units[place]), some) for place, some in lacking.items() if some]
    tasks = plan.missing
    assert len(tasks) == len(expected) > 600
    assert list(tasks) == expected
    assert list(tasks) == expected
    assert [tasks[i] for i in range(len(tasks) - 1, -1, -1)] == expected[::-1]
    assert [plan.missing[i] for i in (64, 0, 1, 0, len(expected) - 1)] == [expected[i] for i in (64, 0, 1, 0, -1)]
    assert list(plan.missing[60:140]) == expected[60:140]
    shuffled = plan.missing
    for i in np.random.default_rng(0).permutation(len(expected)).tolist():
        assert shuffled[i] == expected[i]
    with pytest.raises(IndexError):
        plan.missing[len(expected)]
    with pytest.raises(IndexError):
        tasks[len(expected)]


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"model__temperature": 2.0}, {"scores", "probabilities"}),
        ({"model__embedding_dtype": "float32"}, {"embeddings", "probabilities"}),
        ({"acquire": {"mc_samples": 3}}, {"scores"}),
        ({"acquire": {"class_weights": [1, 2, 3, 4]}}, {"scores"}),
        ({"acquire": {"score": "bald", "mc_samples": 3}, "seed": 1}, {"scores"}),
        ({"seed": 1}, set()),
        ({"select__budget": 3}, set()),
    ],
)
def test_parameters_name_the_kinds_that_depend_on_them(make_query: MakeQuery, changes: dict[str, Any], differ: set[str]) -> None:
    """And none is part of a unit's key."""
    query = make_query(select__strategy="badge", **changes)
    plain = make_query(select__strategy="badge")
    [unit] = some_units(1)
    assert key_of(query, unit) == key_of(plain, unit)
    outputs = {output.kind: (output.name, QueryOutputs(plain, None).of(output.kind).name) for output in QueryOutputs(query, None).needed()}
    weights = class_weights_of(query, None)
    outputs |= {"scores": (QueryOutputs(query, weights).of("scores").name, QueryOutputs(plain, None).of("scores").name)}
    assert {kind for kind, (name, before) in outputs.items() if name != before} == differ


class Counting(LocalStore):
    """A store that counts what it is asked."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.lists = self.reads = 0

    def names(self, folder: str) -> list[str]:
        self.lists += 1
        return super().names(folder)

    def read_if_there(self, name: str) -> bytes | None:
        self.reads += name.endswith(".receipt.json")
        return super().read_if_there(name)


@pytest.mark.parametrize("count", [100, 200])
def test_a_lookup_costs_the_same_however_many_units_there_are(make_query: MakeQuery, tmp_path: Path, count: int) -> None:
    """Of a new pool, in a store that holds others, nothing is read; of a scored one, each receipt once."""
    query, store, units = make_query(select__strategy="badge"), Counting(str(tmp_path / "store")), some_units(count)
    for i in range(256):
        (tmp_path / f"store/units/{i:02x}/{i:02x}{'0' * 62}").mkdir(parents=True)
    outputs = QueryOutputs(query, None).needed()
    assert len(plan_scoring(store, keys_of(query), units, outputs).missing) == count
    assert (store.lists, store.reads) == (257, 0)
    for unit in units:
        for output in outputs:
            keep_receipt(store, key_of(query, unit), output)
    store.lists = 0
    assert not plan_scoring(store, keys_of(query), units, outputs).missing
    assert store.lists <= 257
    assert store.reads == 3 * count


def test_an_empty_store_is_not_searched(make_query: MakeQuery, tmp_path: Path) -> None:
    """One listing says that no unit is there."""
    query, store = make_query(), Counting(str(tmp_path / "store"))
    plan_scoring(store, keys_of(query), some_units(500), QueryOutputs(query, None).needed())
    assert (store.lists, store.reads) == (1, 0)


@pytest.mark.parametrize("casts", [(), (("x", pa.int64()),)])
def test_a_key_hashes_canonical_json(make_query: MakeQuery, casts: Any) -> None:
    """The text is pieced together, and is that of all parts: sorted keys, no spaces, whatever characters names and filters hold."""
    query = make_query(pool={"uri": "pool", "id": 'a"\\é\0', "inputs": ["x"]})
    filters = ((("s", "==", '\0","file":'),),)
    unit = Unit(File('/lake/"é\0.parquet', 1, "2"), (0, 1), 0, 3, 4, filters=filters, positions=(1, 2), casts=casts)
    text = keys_of(query).text(unit)
    found = json.loads(text)
    assert json.dumps(found, sort_keys=True, separators=(",", ":")) == text
    assert (found["file"], found["positions"], found["id"]) == (['/lake/"é\0.parquet', 1, "2"], [1, 2], 'a"\\é\0')
    assert "span" not in found
    assert json.loads(keys_of(query).text(unit._replace(span=(1, 3)))) == found | {"span": [1, 3]}
    assert ("casts" in found, found["filters"]) == (bool(casts), [[["s", "==", '\0","file":']]])


def test_keys_are_made_of_units_together(make_query: MakeQuery) -> None:
    """Each is the hash of its own unit's text, whatever the units around it share, past a block of the table."""
    query, few = make_query(), some_units(40)
    few += [unit._replace(file=replace(unit.file, path=f"/other/{i}.parquet")) for i, unit in enumerate(few)]  # one a file
    odd = [few[3]._replace(positions=(1, 5)), few[4], few[5]._replace(filters=((("s", "==", 1),),)), few[6]._replace(row_groups=(6, 7, 8))]
    odd += [few[7]._replace(span=(low, low + 5)) for low in (0, 5, 10)]
    units = [*few, *odd, odd[0]._replace(id="other", columns=("y",)), *some_units(20_000)]
    keys = keys_of(query).of(Units.of(units))
    sample = [*range(100), 16_383, 16_384, len(units) - 1]
    assert [keys[i] for i in sample] == [hashlib.sha256(keys_of(query).text(units[i]).encode()).hexdigest() for i in sample]
    assert len(set(keys[:])) == len(set(map(keys_of(query).text, units)))


def test_a_table_of_units_gives_back_what_it_was_made_of() -> None:
    """Units, their names, slices and parts of them, whichever fields they have."""
    few = some_units(30)
    units = [
        *few,
        few[0]._replace(positions=(3, 4)),
        few[9]._replace(row_groups=(1, 2, 3), casts=(("x", pa.int64()),)),
        few[9]._replace(id="k", columns=("y",), filters=((("s", "!=", None),),)),
        few[2]._replace(positions=()),
        few[2]._replace(span=(0, 4)),
        few[2]._replace(span=(4, 9)),
    ]
    table = Units.of(iter(units))
    assert list(table) == units
    assert [table[-4], table[-1]] == [units[-4], units[-1]]
    assert list(table[5:33]) == units[5:33]
    assert list(table.take(np.array([33, 0, 30]))) == [units[33], units[0], units[30]]
    assert UnitNames(table)[:] == [UnitNames(table)[i] for i in range(len(units))] == [unit.name for unit in units]
    assert [int(table.rows.sum()), int(table.bytes.sum())] == [sum(u.rows for u in units), sum(u.bytes for u in units)]
    assert list(Units.of([])) == list(Units.of([]).alike()) == []


def test_a_plan_that_is_there_is_not_written_again(make_query: MakeQuery) -> None:
    """The second time, as before a commit, nothing is written; another plan takes the place of the first, which comes back."""
    asked = resolve(make_query(), None)
    plan = asked.plan(asked.pool.units)
    files = [asked.store.root / asked.folder / name for name in ("query.yaml", "plan.parquet")]

    def written() -> list[tuple[int, bytes]]:
        return [(file.stat().st_ino, file.read_bytes()) for file in files]

    assert write_plan(asked, plan) is None
    first = written()
    assert write_plan(asked, plan) is None
    assert written() == first
    files[0].write_text("damaged")
    fewer = asked.plan(asked.pool.units[:1])
    assert write_plan(asked, fewer) == first[1][1]
    assert written()[0][1] == first[0][1]
    assert written()[1][1] != first[1][1]
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["plan.parquet", "query.yaml"]
