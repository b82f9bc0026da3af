"""Rows with equal embeddings, through a whole query: what is passed over before candidates are counted, and while they are chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pools import vectors

import raystream as rs
from raystream.acquisition import margin
from raystream.errors import QueryError
from raystream.report.text import constraints_met
from raystream.selection import k_means, select

MakeQuery = Callable[..., rs.Query]
MakePool = Callable[..., tuple[np.ndarray, np.ndarray, MakeQuery]]
MODEL = {"kind": "columns", "logits": "z", "embedding": "h"}


@pytest.fixture
def make_pool(workplace: Path, make_query: MakeQuery) -> MakePool:
    """Write a pool of n rows, of which a share are three repeated ones; its embeddings, its scores, and queries over it."""

    def make(n: int, share: float, seed: int = 0, row_group: int = 500) -> tuple[np.ndarray, np.ndarray, MakeQuery]:
        rng = np.random.default_rng(seed)
        x = rng.integers(-8, 9, (n, 6)).astype(np.float32) / 4
        few = np.abs(rng.integers(1, 9, (3, 6)).astype(np.float32) / 8)
        few[:, 0] = 0
        repeated = rng.random(n) < share
        x[repeated] = few[rng.integers(0, 3, int(repeated.sum()))]
        x[repeated & (rng.random(n) < 0.5), 0] *= -1  # -0.0
        z = np.where(repeated[:, None], 0.1, 1) * rng.standard_normal((n, 3))  # repeated rows are the uncertain ones
        columns = {
            "rid": np.arange(n),
            "z": vectors(z),
            "h": vectors(x),
            "country": rng.choice(["DE", "FR", "US"], n),
            "minutes": rng.integers(1, 9, n).astype(np.float32),
        }
        pq.write_table(pa.table(columns), workplace / "repeats.parquet", row_group_size=row_group)

        def over(**changes: object) -> rs.Query:
            return make_query(**{"pool": {"uri": "repeats.parquet", "id": "rid"}, "model": MODEL, **changes})

        return x, margin(torch.from_numpy(z.astype(np.float32))).numpy(), over

    return make


def chosen(query: rs.Query) -> list[int]:
    return rs.run(query).selection.column("rid").to_pylist()


def distinct_first(x: np.ndarray, score: np.ndarray, limit: int, covered: list[int] = []) -> list[int]:  # noqa: B006
    """Brute force: the first rows by score, each different from all before it and from covered ones."""
    seen, rows = {tuple(x[row] + 0.0) for row in covered}, []
    for row in np.lexsort((np.arange(len(x)), -score)).tolist():
        if tuple(x[row] + 0.0) not in seen and row not in covered:
            seen.add(tuple(x[row] + 0.0))
            rows.append(row)
    return sorted(rows[:limit])


@pytest.mark.parametrize(("n", "budget"), [(1500, 20), pytest.param(20_000, 150, marks=pytest.mark.slow)])
def test_the_default_chooses_no_repeats(make_pool: MakePool, n: int, budget: int) -> None:
    """With 80 % of the pool three rows, ten times as many different rows as are asked for are candidates; the batch is all different."""
    x, score, over = make_pool(n, 0.8)
    rows = distinct_first(x, score, 10 * budget)
    result = rs.run(over(select__budget=budget))
    batch = result.selection.column("rid").to_numpy()
    np.testing.assert_array_equal(batch, np.asarray(rows)[k_means(x[rows].astype(np.float16), budget, score=score[rows])])
    assert len(np.unique(x[batch] + 0.0, axis=0)) == budget
    assert result.manifest.counts.candidates == 10 * budget
    last = min(score[row] for row in rows)
    assert result.manifest.facts["exact_repeats"] == int((score >= last).sum()) - 10 * budget
    assert any("exact repeats" in met.line for met in constraints_met(result.manifest))
    np.testing.assert_array_equal(batch, select(x.astype(np.float16), budget, score=score))


def test_rows_in_the_pool_and_outside_that_are_labelled(make_pool: MakePool, workplace: Path) -> None:
    """Repeats of labelled rows are passed over, whether these lie in the pool, in its filtered rows or in files of their own."""
    x, score, over = make_pool(1500, 0.8)
    of = {tuple(row) for row in x + 0.0}
    inside = next(row for row in range(1500) if (np.abs(x[:, 1:]) == np.abs(x[row, 1:])).all(axis=1).sum() > 100)
    outside = next(row for row in range(1500) if (x[row] != x[inside]).any() and (x == x[row]).all(axis=1).sum() > 100)
    table = pa.table({"rid": [5000], "z": vectors(np.zeros((1, 3))), "h": vectors(x[[outside]])})
    pq.write_table(table, workplace / "outside.parquet")
    pq.write_table(pa.table({"rid": [inside]}), workplace / "inside.parquet")
    result = rs.run(over(pool__labelled=["inside.parquet", "outside.parquet"], select__budget=20, select__strategy="core_set"))
    batch = result.selection.column("rid").to_numpy()
    known = {tuple(x[inside] + 0.0), tuple(x[outside] + 0.0)}
    assert not {tuple(row) for row in x[batch] + 0.0} & known
    rows = [row for row in distinct_first(x, score, 1500, [inside, outside]) if row != inside]
    ranked = sorted(rows, key=lambda row: (-score[row], row))[:200]
    labelled = x[[inside, outside]].astype(np.float16)
    expected = select(x.astype(np.float16), 20, strategy="core_set", score=score, labelled=labelled, exclude=[inside])
    np.testing.assert_array_equal(batch, expected)
    assert set(batch.tolist()) <= set(ranked)
    assert len(of) > 200


def test_repeats_are_chosen_when_nothing_else_is_left(make_pool: MakePool) -> None:
    """A budget above the number of different rows: these first, then repeats; near_duplicates false knows no difference."""
    x, score, over = make_pool(60, 0.8)
    different = distinct_first(x, score, 60)
    for strategy in ("k_means", "core_set", "typiclust", "k_means_pp"):
        result = rs.run(over(select__budget=40, select__strategy=strategy))
        batch = result.selection.column("rid").to_pylist()
        assert len(batch) == len(set(batch)) == 40
        first = batch[: len(different)]
        assert len({tuple(row) for row in x[first] + 0.0}) == len(different)
        assert result.manifest.facts["exact_repeats_chosen"] == 40 - len(different)
    off = rs.run(over(select__budget=10, select__near_duplicates=False))
    assert "exact_repeats" not in off.manifest.facts
    expected = select(x.astype(np.float16), 10, score=score, near_duplicates=False)
    np.testing.assert_array_equal(off.selection.column("rid").to_numpy(), expected)


def test_constraints_beside_repeats(make_pool: MakePool) -> None:
    """Caps, floors, costs and rows that must be in it: no repeats as long as others fit, and a repeat where the first is kept out."""
    x, _, over = make_pool(1500, 0.8)
    base = {"select__budget": 20, "pool__keep": ["country", "minutes"]}
    quotas = [{"by": "country", "max": 8}, {"by": "country", "value": "DE", "min": 7}]
    cost = {"column": "minutes", "budget": 110}
    result = rs.run(over(**base, select__quotas=quotas, select__cost=cost, select__must_include=[3], select__random_share=0.1))
    batch = result.selection.column("rid").to_pylist()
    assert len({tuple(row) for row in x[batch[:-2]] + 0.0}) == 18  # the random rows know of no repeats
    assert batch[0] == 3
    countries = result.selection.column("country").to_pylist()
    assert max(map(countries.count, countries)) <= 8
    assert countries.count("DE") >= 7
    assert sum(result.selection.column("minutes").to_pylist()) <= 110


@pytest.mark.parametrize(
    "asked", [{"select__strategy": "diverse", "select__mix": 0.0}, {"select__strategy": "top_k", "select__near_duplicates": 1.0}]
)
def test_a_repeat_takes_the_place_of_a_row_that_a_cap_keeps_out(make_pool: MakePool, workplace: Path, asked: dict[str, object]) -> None:
    """What no constraint keeps out is ranked as if there were nothing else: the first of equal rows that may be chosen."""
    x, score, over = make_pool(1500, 0.8)
    country = pq.read_table(workplace / "repeats.parquet").column("country").to_pylist()
    rows = distinct_first(x, np.where(np.asarray(country) == "DE", -1, score), 20)
    quotas = [{"by": "country", "value": "DE", "max": 0}]
    query = over(**asked, select__budget=20, select__candidates=60, select__quotas=quotas)
    assert chosen(query) == sorted(rows, key=lambda row: (-score[row], row))


def test_near_duplicates_pass_over_repeats_before_candidates_are_counted(make_pool: MakePool) -> None:
    """`top_k` reads no embeddings and takes repeats; under near_duplicates its candidates are different rows."""
    x, _, over = make_pool(1500, 0.8)
    plain = chosen(over(select__strategy="top_k", select__budget=20, select__candidates=20))
    assert len({tuple(row) for row in x[plain] + 0.0}) < 10
    alike = chosen(over(select__strategy="top_k", select__budget=20, select__candidates=100, select__near_duplicates=1.0))
    assert len({tuple(row) for row in x[alike] + 0.0}) == 20


def test_near_duplicates_is_a_cosine_or_false(make_query: MakeQuery) -> None:
    """`true` says nothing."""
    assert make_query(select__near_duplicates=False).select.near_duplicates is False
    assert make_query(select__near_duplicates=1).select.near_duplicates == 1.0
    for wrong in (True, 0, 1.5, "no"):
        with pytest.raises(QueryError, match=r"select\.near_duplicates is"):
            make_query(select__near_duplicates=wrong)
