"""`raystream gc`: removes what nobody needs, keeps what anybody does, and changes nothing unless told to."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pools import pool_table

import raystream as rs
from raystream.run import score
from raystream.store.gc import _by_output, _is_plain, collect
from raystream.store.opening import open_store
from raystream.store.protocol import Entry
from raystream.store.queries import PLAN_OUTPUTS, parquet_bytes
from raystream.store.receipts import unit_folder

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]
DAY = 86400


@pytest.fixture
def gc(cli: Cli) -> Callable[..., dict]:
    """`raystream gc --json` with these options; what it prints."""

    def run(*options: str) -> dict:
        code, out, err = cli("gc", "--json", *options)
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def files(store: Path) -> set[str]:
    return {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}


def age(folder: Path, days: float) -> None:
    """Make everything below a folder look older."""
    for path in [folder, *folder.rglob("*")]:
        found = path.stat()
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - int(days * DAY * 1e9)))


def test_a_dry_run_changes_nothing_and_a_delete_does_what_it_said(make_query: MakeQuery, workplace: Path, gc: Callable) -> None:
    """The units of a dropped query go, with the same counts and bytes as announced; the other query and its units stay, byte for byte."""
    kept = rs.run(make_query(store__query="kept"))
    before = files(workplace / "runs")
    rs.run(make_query(store__query="other", model__args={"hidden": 9}))
    after = files(workplace / "runs")
    age(workplace / "runs", 2)
    dry = gc("--drop", "othe")
    assert files(workplace / "runs") == after
    assert not dry["deleted"]
    assert (dry["queries_kept"], dry["dropped"]) == (1, ["other"])
    assert (dry["units_kept"]["count"], dry["units"]["count"], dry["leftovers"]["count"]) == (4, 4, 0)
    assert dry["bytes"] == sum((workplace / "runs" / name).stat().st_size for name in after - before)
    done = gc("--drop", "other", "--delete")
    assert done == dry | {"deleted": True}
    assert files(workplace / "runs") == before
    assert not [path for path in (workplace / "runs" / "units").glob("*/*") if not any(path.iterdir())]
    again = rs.run(make_query(select__budget=5))
    assert (again.manifest.units_scored, again.manifest.units_reused) == (0, 4)
    assert rs.run(make_query(store__query="kept")).selection.equals(kept.selection)
    assert gc()["bytes"] == 0


def test_of_many_units_each_has_its_own_fate(tmp_path: Path) -> None:
    """More units, and more folders of them, than are looked at together; beside them a folder that is no unit's."""
    store, output = open_store(str(tmp_path / "runs")), "scores-0123456789ab"
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(600)]
    keys = [f"00{key[2:]}" if number < 300 else key for number, key in enumerate(keys)]
    for number, key in enumerate(keys):
        store.put(f"{unit_folder(key)}/{output}-{key[:12]}.parquet", b"x" * number)
        if number % 3 < 2:
            store.put(f"{unit_folder(key)}/{output}.receipt.json", b"{}")
    store.put("units/00/notes/read.me", b"mine")
    store.put(f"units/00/{keys[2]}/deeper/x", b"more")  # goes with the half of a unit that it lies in
    age(tmp_path / "runs/units", 2)
    aside = next(path for path in (tmp_path / "runs/units").iterdir() if path.name != "00")
    aside.symlink_to(aside.rename(tmp_path / "other disk"))
    needed = keys[::3]
    plan = pa.table({"unit": needed, "key": needed, "first_row": pa.array([0] * len(needed), pa.int64())})
    store.put("queries/running/plan.parquet", parquet_bytes(plan, {PLAN_OUTPUTS: json.dumps([output])}))
    found = collect(store, delete=True)
    assert (found.units_kept.count, found.units_kept.bytes) == (200, sum(range(0, 600, 3)) + 2 * 200)
    assert (found.units.count, found.units.bytes) == (200, sum(range(1, 600, 3)) + 2 * 200)
    assert (found.leftovers.count, found.leftovers.bytes) == (202, sum(range(2, 600, 3)) + len(b"mine" + b"more"))
    assert {path.name for path in (tmp_path / "runs/units").glob("*/*")} == set(needed)


_STEMS = ("scores-0123456789ab", "embeddings-0123456789ab", "scores-ba9876543210", ".scores-0123456789ab", "scores")
_ENDS = (
    *(".receipt.json", "-00112233aabb.parquet", "-00112233aabb.parquet", "-ffeeddccbbaa.arrow", "-00112233aabb.quarantined.parquet"),
    *("-00112233aab.arrow", ""),
)


@given(st.lists(st.tuples(st.sampled_from(_STEMS), st.sampled_from(_ENDS)), max_size=3), st.sets(st.sampled_from(_STEMS)), st.randoms())
@example([], {"scores-0123456789ab"}, random.Random(0))
@example([], set(_STEMS[:3]), random.Random(0))
@example([("scores-0123456789ab", "-ffeeddccbbaa.arrow")], set(_STEMS[:3]), random.Random(0))
def test_a_unit_is_plain_if_there_is_nothing_to_decide(more: list[tuple[str, str]], whole: set[str], order: random.Random) -> None:
    """A receipt and one attempt of each output, all of them needed, in whichever order they are listed; no other file at all."""
    names = {f"{stem}{end}" for stem in whole for end in _ENDS[:2]} | {f"{stem}{end}" for stem, end in more} or {"x"}
    listed = [Entry(f"units/ab/{'ab' * 32}/{name}", 1, 0.0) for name in sorted(names)]
    order.shuffle(listed)
    needed = frozenset(_STEMS[:2])
    found = _by_output(listed)
    plain = all(output in needed and len(own) == 2 and len(attempts) == 1 for output, (own, attempts) in found.items())
    assert _is_plain(listed, needed) == (plain and not any(".quarantined." in name for name in names))
    if names == {f"{stem}{end}" for stem in needed for end in _ENDS[:2]}:
        assert _is_plain(listed, needed)


def test_units_that_two_queries_share_outlive_one_of_them(make_query: MakeQuery, workplace: Path, gc: Callable) -> None:
    """Forgetting one of two queries over the same scores removes no unit; forgetting both removes all."""
    rs.run(make_query(store__query="one"))
    rs.run(make_query(store__query="two", select__budget=5))
    age(workplace / "runs", 2)
    assert gc("--drop", "one", "--delete")["units"]["count"] == 0
    assert gc("--drop", "two", "--delete")["units"]["count"] == 4
    assert files(workplace / "runs") == {"format.json"}


def test_what_is_young_stays(make_query: MakeQuery, workplace: Path, gc: Callable) -> None:
    """Units that nobody needs, unfinished queries and half-written attempts stay for the grace period, and no longer."""
    score(make_query())
    [unit, *_] = (workplace / "runs" / "units").glob("*/*")
    (unit / "scores-0123456789ab.parquet").write_bytes(b"half")
    young = gc("--delete")
    assert (young["bytes"], young["units_kept"]["count"], len(young["running"])) == (0, 4, 1)
    age(workplace / "runs", 0.5)
    assert gc("--delete")["bytes"] == 0
    assert gc("--older-than", "11h")["units"]["count"] == 4
    age(workplace / "runs", 0.6)
    old = gc("--delete")
    assert (old["units"]["count"], len(old["unfinished"]), old["running"]) == (4, 1, [])
    assert files(workplace / "runs") == {"format.json"}


def test_a_running_query_keeps_old_units(make_query: MakeQuery, workplace: Path, gc: Callable) -> None:
    """Units scored long ago that a query planned just now is about to use stay, although nothing is committed."""
    score(make_query())
    age(workplace / "runs", 9)
    score(make_query(select__budget=3))  # plans, finds all units scored, and commits nothing
    found = gc("--delete")
    assert (found["units"]["count"], found["units_kept"]["count"]) == (0, 4)
    assert (len(found["running"]), len(found["unfinished"])) == (1, 1)


def test_halves_of_attempts_go_and_the_winner_stays(make_query: MakeQuery, workplace: Path, gc: Callable) -> None:
    """Beside a receipt, old files that it doesn't name are removed, temporaries and tokens too; what it names is not."""
    rs.run(make_query(store__query="q"))
    whole = files(workplace / "runs")
    [unit, *_] = (workplace / "runs" / "units").glob("*/*")
    lost = [
        unit / "embeddings-0123456789ab.arrow",
        unit / f".scores-0123456789ab.receipt.json.{'0' * 32}",
        workplace / "runs/queries/q" / f"token-{'0' * 32}",
        workplace / "runs/queries/q" / "selection-0123456789ab.parquet",
        unit.parent / ("f" * 64) / "scores-0123456789ab.parquet",
    ]
    lost[-1].parent.mkdir()
    for path in lost:
        path.write_bytes(b"1234567")
    (workplace / "runs/queries/q/notes.txt").write_text("mine")
    age(workplace / "runs", 2)
    young = unit / "scores-ba9876543210.parquet"
    young.write_bytes(b"being written")
    found = gc("--delete")
    assert (found["leftovers"], found["units"]["count"]) == ({"count": 5, "bytes": 35}, 0)
    assert files(workplace / "runs") == whole | {"queries/q/notes.txt", young.relative_to(workplace / "runs").as_posix()}


def test_units_over_labelled_rows_outside_the_pool_are_needed(make_query: MakeQuery, workplace: Path, gc: Callable) -> None:
    """A committed query needs the units of labelled rows that lie in files of their own, and of those that its filters exclude."""
    pq.write_table(pool_table(30, 5000, seed=3), workplace / "labels.parquet")
    pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(40)]}), workplace / "ids.parquet")
    changes = {
        "pool__labelled": ["labels.parquet", "ids.parquet"],
        "pool__filters": [["country", "!=", "US"]],
        "select__strategy": "core_set",
    }
    scored = rs.run(make_query(**changes)).manifest.units_scored
    age(workplace / "runs", 2)
    found = gc("--delete")
    assert found["bytes"] == 0
    assert found["units_kept"]["count"] == scored > 5
    assert rs.run(make_query(**changes, seed=1)).manifest.units_scored == 0


def test_a_query_whose_plan_is_gone_stops_it(make_query: MakeQuery, workplace: Path, gc: Callable, cli: Cli) -> None:
    """What it needs is unknown, so nothing is removed and the message names both ways out."""
    rs.run(make_query(store__query="q"))
    age(workplace / "runs", 2)
    (workplace / "runs/queries/q/plan.parquet").write_bytes(b"PAR1")
    code, _, err = cli("gc", "--delete")
    assert code == 3
    assert "plan.parquet is damaged" in err
    assert "raystream gc --drop q" in err
    (workplace / "runs/queries/q/plan.parquet").unlink()
    assert "plan.parquet is missing" in cli("gc")[2]
    assert gc("--drop", "q")["units"]["count"] == 4


def test_as_text(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """A dry run says what --delete would do; --delete says what it did."""
    score(make_query())
    age(workplace / "runs", 2)
    assert "--delete does it" in cli("gc")[1]
    assert "4 removed" in cli("gc", "--delete")[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--older-than", "yesterday"], "--older-than 'yesterday' is not a time"),
        (["--drop", "nothing"], "has no query nothing"),
        (["--older-than", "-3h"], "--older-than '-3h' is not a time"),
    ],
)
def test_wrong_arguments(workplace: Path, cli: Cli, options: list[str], says: str) -> None:
    """Exit 2 and a sentence."""
    open_store("runs")
    code, out, err = cli("gc", *options)
    assert (code, out) == (2, "")
    assert says in err


@pytest.mark.parametrize("folder", ["nowhere", "mine"])
def test_what_is_no_store_is_left_alone(workplace: Path, cli: Cli, folder: str) -> None:
    """A folder of somebody else's, though its folders have the same names, or none at all: exit 2, and nothing is made or removed."""
    for name in ("units/ab/abc/notes.txt", "queries/old/notes.txt"):
        (workplace / "mine" / name).parent.mkdir(parents=True)
        (workplace / "mine" / name).write_text("mine")
    age(workplace / "mine", 9)
    before = sorted(workplace.rglob("*"))
    for command in (["gc", "--delete"], ["show", "old"], ["verify", "old"], ["scores", "old", "--out", "x.parquet"]):
        code, out, err = cli(*command, "--store", folder)
        assert (code, out) == (2, "")
        assert f"{folder} is no store of raystream's" in err
    assert sorted(workplace.rglob("*")) == before


def test_a_store_that_cannot_be_changed_is_an_error(
    make_query: MakeQuery, workplace: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No permission to remove: exit 3, and the file is named."""
    score(make_query())
    age(workplace / "runs", 2)

    def refuse(path: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    code, _, err = cli("gc", "--delete")
    assert code == 3
    assert "can't be removed: Permission denied" in err


def test_a_damaged_query_can_be_dropped_and_nothing_else_goes(make_query: MakeQuery, workplace: Path, cli: Cli, gc: Callable) -> None:
    """Until it is, no unit goes, for it may need any; the error names the file and the way out. Then the others keep their units."""
    rs.run(make_query(store__query="whole"))
    kept = files(workplace / "runs")
    rs.run(make_query(store__query="broken", model__args={"hidden": 9}))
    manifest = workplace / "runs/queries/broken/manifest.json"
    manifest.write_text("{")
    age(workplace / "runs", 2)
    before = files(workplace / "runs")
    code, out, err = cli("gc", "--delete")
    assert (code, out) == (3, "")
    assert str(manifest) in err
    assert "raystream gc --drop broken" in err
    assert files(workplace / "runs") == before
    done = gc("--drop", "broken", "--delete")
    assert (done["queries_kept"], done["dropped"], done["units"]["count"]) == (1, ["broken"], 4)
    assert files(workplace / "runs") == kept


def test_a_query_that_was_never_committed_can_be_dropped(make_query: MakeQuery, workplace: Path, cli: Cli, gc: Callable) -> None:
    """By its name or the beginning of it, whether its plan can be read or not; other commands don't know it."""
    score(make_query(store__query="halfway"))
    plan = workplace / "runs/queries/halfway/plan.parquet"
    plan.write_bytes(b"half")
    code, _, err = cli("gc")
    assert code == 3
    assert f"{plan} is damaged" in err
    assert "raystream gc --drop halfway" in err
    assert cli("show", "halfway")[0] == 2
    assert gc("--drop", "half")["dropped"] == ["halfway"]
    assert plan.exists()
    assert gc("--drop", "halfway", "--delete")["dropped"] == ["halfway"]
    assert not plan.parent.exists()
    assert cli("gc", "--drop", "halfway")[0] == 2


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
@pytest.mark.parametrize("command", [["show"], ["verify"], ["scores", "--out", "x.parquet"], ["gc", "--delete", "--drop"]])
def test_no_name_is_no_query(make_query: MakeQuery, workplace: Path, cli: Cli, command: list[str], name: str) -> None:
    """An unset variable of the shell names nothing, although the only query of the store begins with it: exit 2, nothing is removed."""
    rs.run(make_query(store__query="only"))
    before = files(workplace / "runs")
    code, out, err = cli(*command, name)
    assert (code, out) == (2, "")
    assert "the name of a query of store" in err
    assert "is empty (it holds only)" in err
    assert files(workplace / "runs") == before


def test_a_short_beginning_drops_nothing(make_query: MakeQuery, workplace: Path, cli: Cli, gc: Callable) -> None:
    """What is forgotten is named by four characters at least, or whole; what would be forgotten is printed before."""
    rs.run(make_query(store__query="round-1"))
    rs.run(make_query(store__query="ab", select__budget=3))
    for short in ("r", "rou", "a"):
        code, out, err = cli("gc", "--drop", short, "--delete")
        assert (code, out) == (2, "")
        assert f"--drop {short} is the beginning of query" in err
    code, out, _ = cli("gc", "--drop", "roun", "--drop", "ab")
    assert code == 0
    assert "to forget   2 queries: ab, round-1" in out
    code, _, err = cli("gc", "--drop", "nope")
    assert (code, "has no query nope (it holds ab, round-1)" in err) == (2, True)
    assert sorted(gc("--drop", "round-1", "--drop", "ab", "--delete")["dropped"]) == ["ab", "round-1"]
