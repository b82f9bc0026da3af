"""`raystream verify --rescore`: units scored again are what the store holds, and each that isn't is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

import raystream as rs
from raystream.scoring.rescore import drawn

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]

QUERIES = {
    "embeddings": {},
    "samples": {"acquire": {"score": "bald", "mc_samples": 4}, "select": {"budget": 6, "strategy": "batch_bald"}},
    "probabilities": {"select__strategy": "badge", "pool__filters": [["country", "!=", "US"]]},
}  # fmt: skip


@pytest.mark.parametrize("changes", QUERIES.values(), ids=QUERIES)
def test_units_scored_again_are_the_same(make_query: MakeQuery, workplace: Path, cli: Cli, changes: dict) -> None:
    """Byte for byte, in the same process; as many as asked for, the store stays as it is, and the seed draws the same ones."""
    result = rs.run(make_query(**changes))
    before = {p: p.stat().st_mtime_ns for p in (workplace / "runs").rglob("*")}
    code, out, err = cli("verify", result.query, "--rescore", 2, "--seed", 5, "--json")
    assert code == 0, err
    found = json.loads(out)["rescored"]
    assert (found["units"], found["identical"], found["close"], found["among"]) == (2, 2, [], result.manifest.units_scored)
    assert {p: p.stat().st_mtime_ns for p in (workplace / "runs").rglob("*")} == before
    code, out, _ = cli("verify", result.query, "--rescore", 1000)
    assert code == 0
    assert f"scored again {result.manifest.units_scored} of {result.manifest.units_scored} units" in out


def _change(workplace: Path, kind: str, steps: int) -> str:
    """Move the first number of a kind of a unit's outputs by so many neighbours, and write the receipt as if that were right."""
    (receipt_file, *_) = sorted((workplace / "runs/units").glob(f"*/*/{kind}-*.receipt.json"))
    receipt = json.loads(receipt_file.read_text())
    file = workplace / "runs" / receipt["file"]["name"]
    if kind == "scores":
        table = pq.read_table(file)
        margin = table.column("margin").to_numpy().copy()
        margin[0] += steps * np.spacing(margin[0])
        pq.write_table(table.set_column(table.column_names.index("margin"), "margin", pa.array(margin)), file)
    else:
        data = bytearray(file.read_bytes())
        with pa.ipc.open_file(pa.BufferReader(bytes(data))) as reader:
            values = reader.get_batch(0).column(0).flatten().to_numpy()
        place = int(np.flatnonzero(values)[0])
        at = bytes(data).index(values[:64].tobytes()) + 2 * place
        data[at : at + 2] = (values[place] + steps * np.spacing(values[place])).tobytes()
        file.write_bytes(data)
    data = file.read_bytes()
    receipt["file"] |= {"size": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}
    receipt_file.write_text(json.dumps(receipt))
    for pack in (workplace / "runs/receipts").rglob("*"):
        if pack.is_file():
            pack.unlink()
    return str(receipt["unit"])


@pytest.mark.parametrize(("kind", "column", "near", "far"), [("scores", "margin", 3, 100_000), ("embeddings", "embeddings", 1, 4)])
def test_a_unit_that_differs_is_named_with_how_much(
    make_query: MakeQuery, workplace: Path, cli: Cli, kind: str, column: str, near: int, far: int
) -> None:
    """Within the tolerance it is said, beyond it exit 3 with the unit, the column and the difference."""
    result = rs.run(make_query(select__strategy="random", model__embedding="2"))
    unit = _change(workplace, kind, near)
    code, out, err = cli("verify", result.query, "--rescore", 1000, "--json")
    assert code == 0, err
    [close] = json.loads(out)["rescored"]["close"]
    assert (close["unit"], close["column"]) == (unit, column)
    assert 0 < close["difference"] <= (1e-6 if kind == "scores" else 2.0**-10)
    assert "1 within the tolerance" in cli("verify", result.query, "--rescore", 1000)[1]
    unit = _change(workplace, kind, far)
    code, out, err = cli("verify", result.query, "--rescore", 1000)
    assert (code, out) == (3, "")
    assert f"differ from what is stored by more than 1e-06: {unit} ({column} by " in err


def test_what_can_no_longer_be_scored(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """A rewritten file, one that is gone, another model: exit 3 with what to restore. --seed alone, --rescore 0: exit 2."""
    rs.run(make_query(store__query="q"))
    file = workplace / "pool/year=2021/part.parquet"
    there = file.stat().st_mtime_ns
    os.utime(file, ns=(1, 1))
    code, _, err = cli("verify", "q", "--rescore", 1000)
    assert code == 3
    assert f"{file} was rewritten since query q was committed" in err
    os.utime(file, ns=(there, there))
    assert cli("verify", "q", "--rescore", 1)[0] == 0
    file.rename(workplace / "away.parquet")
    code, _, err = cli("verify", "q", "--rescore", 1000)
    assert code == 3
    assert f"{file} is gone" in err
    (workplace / "away.parquet").rename(file)
    nets = workplace / "user_nets.py"
    nets.write_text(nets.read_text() + "\n# changed\n")
    code, _, err = cli("verify", "q", "--rescore", 1)
    assert code == 3
    assert "the model is not that of query q" in err
    assert cli("verify", "q", "--seed", 1)[0] == 2
    assert cli("verify", "q", "--rescore", 0)[0] == 2


def test_units_are_drawn_by_their_keys() -> None:
    """The same ones whatever their order, other ones by another seed, all when there are fewer; each has the same chance."""
    keys = [bytes([i]) * 32 for i in range(200)]
    first = {keys[place] for place in drawn(keys, 10, 3)}
    assert len(first) == 10
    assert {keys[::-1][place] for place in drawn(keys[::-1], 10, 3)} == first
    assert {keys[place] for place in drawn(keys, 10, 4)} != first
    assert drawn(keys, 1000, 3) == list(range(200))
    counts = np.bincount([place for seed in range(400) for place in drawn(keys, 10, seed)], minlength=200)
    assert abs(float(((counts - 20) ** 2 / 19).sum()) - 200) < 5 * 20  # chi-square of 199 degrees, 5 standard deviations
