"""Constraints around every strategy, through a whole query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_run import whole_pool

import raystream as rs
from raystream.errors import PoolError, QueryError
from raystream.strategies import TRAITS

MakeQuery = Callable[..., rs.Query]
STRATEGIES = list(TRAITS)
every_strategy = pytest.mark.parametrize("strategy", sorted(STRATEGIES))


def asked(strategy: str) -> dict[str, object]:
    """The strategy, and what it can't do without."""
    needs_samples = {"acquire": {"score": "bald", "mc_samples": 3}} if TRAITS[strategy].samples else {}
    return {"select__strategy": strategy, **needs_samples}


def ids(result: rs.Result) -> list[str]:
    return result.selection.column("rid").to_pylist()


@every_strategy
def test_rows_that_must_be_in_it_come_first_and_excluded_ones_never(make_query: MakeQuery, strategy: str) -> None:
    """`must_include` takes the first ranks and says so, whatever its score; `exclude` never comes back; the budget holds."""
    plain = ids(rs.run(make_query(**asked(strategy))))
    must = ["r001100", "r000003"]
    exclude = [rid for rid in plain if rid not in must][:5]
    result = rs.run(make_query(**asked(strategy), select__must_include=must, select__exclude=exclude))
    assert ids(result)[:2] == must
    assert result.selection.column("why").to_pylist()[:2] == ["must_include"] * 2
    assert not set(ids(result)) & set(exclude)
    assert len(set(ids(result))) == 12
    assert result.manifest.counts.eligible == 1200 - 5


@every_strategy
def test_caps_and_floors_hold(make_query: MakeQuery, workplace: Path, strategy: str) -> None:
    """No group exceeds its cap, every floor is met, and the rows that a floor brought in say so."""
    quotas = [{"by": "country", "max": 5}, {"by": "country", "value": "DE", "min": 4}, {"by": "prediction", "max": 6}]
    result = rs.run(make_query(**asked(strategy), select__quotas=quotas, pool__keep=["country"]))
    countries = Counter(result.selection.column("country").to_pylist())
    assert max(countries.values()) <= 5
    assert countries["DE"] >= 4
    assert max(Counter(result.selection.column("prediction").to_pylist()).values()) <= 6
    assert result.selection.num_rows == 12
    floors = rs.run(make_query(**asked(strategy), select__quotas=[{"by": "country", "value": "DE", "min": 12}], pool__keep=["country"]))
    assert set(floors.selection.column("country").to_pylist()) == {"DE"}
    assert set(floors.selection.column("why").to_pylist()) == {"quota country DE: at least 12"}


@every_strategy
def test_a_cost_budget_holds(make_query: MakeQuery, strategy: str) -> None:
    """Costs never add up to more than the budget, and the warning says that money was what ran out."""
    query = make_query(**asked(strategy), select__budget=40, select__cost={"column": "minutes", "budget": 25}, pool__keep=["minutes"])
    result = rs.run(query)
    spent = sum(result.selection.column("minutes").to_pylist())
    assert 17 < spent <= 25
    assert "select.cost.budget 25" in result.manifest.warnings[-1]


@every_strategy
def test_a_share_is_drawn_at_random(make_query: MakeQuery, strategy: str) -> None:
    """The share is the same for every strategy and score, is drawn from the whole pool, comes last and is marked."""
    result = rs.run(make_query(**asked(strategy), select__random_share=0.25))
    why = result.selection.column("why").to_pylist()
    assert why == [""] * 9 + ["random_share"] * 3
    assert len(set(ids(result))) == 12
    other = rs.run(make_query(select__strategy="random", select__random_share=0.25))
    assert ids(other)[9:] == ids(result)[9:]


def test_everything_at_once(make_query: MakeQuery, workplace: Path) -> None:
    """Labelled, excluded and demanded rows, quotas, costs, near-duplicates and a random share in one query."""
    pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(0, 200)]}), workplace / "labels.parquet")
    query = make_query(
        pool__labelled=["labels.parquet"], pool__keep=["country", "minutes"], select__budget=40, select__near_duplicates=0.999,
        select__must_include=["r000700"], select__exclude=["r000701"], select__random_share=0.1,
        select__quotas=[{"by": "country", "max": 15}, {"by": "country", "value": "FR", "min": 10}],
        select__cost={"column": "minutes", "budget": 150},
    )  # fmt: skip
    result = rs.run(query)
    table = result.selection
    assert Counter(table.column("why").to_pylist())["random_share"] == 4
    assert ids(result)[0] == "r000700"
    assert all(rid >= "r000200" and rid != "r000701" for rid in ids(result))
    countries = Counter(table.column("country").to_pylist())
    assert countries["FR"] >= 10
    assert max(countries.values()) <= 15
    assert sum(table.column("minutes").to_pylist()) <= 150
    assert np.isfinite(table.column("distance").to_numpy()).all()
    assert rs.run(query).new is False


def test_floors_reach_below_the_prefilter(make_query: MakeQuery, workplace: Path) -> None:
    """A floor brings in the best rows of its group even when none of them is among the candidates by score."""
    names = whole_pool(workplace).column("country").to_pylist()
    result = rs.run(
        make_query(
            select__strategy="top_k",
            select__budget=20,
            select__candidates=20,
            pool__keep=["country"],
            select__quotas=[{"by": "country", "value": country, "min": 6} for country in ("DE", "FR", "US")],
        )
    )
    assert min(Counter(result.selection.column("country").to_pylist()).values()) >= 6
    assert set(names) == {"DE", "FR", "US"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"select__must_include": ["r9", "r000001"]}, "1 of 2 ids of select.must_include are not in the pool after its filters: 'r9'"),
        ({"select__strategy": "core_set", "select__must_include": [3]}, "select.must_include are not in the pool after its filters: 3"),
        ({"select__quotas": [{"by": "country", "value": "AT", "min": 3}]}, "country AT are asked for, but 0 candidates have it, 3 short"),
        ({"select__quotas": [{"by": "country", "min": 5}]}, "select.quotas by country ask for 15 rows in all, 3 above select.budget 12"),
        ({"select__quotas": [{"by": "contry", "max": 5}]}, "column contry is missing"),
        ({"select__quotas": [{"by": "country"}]}, "neither max nor min"),
        ({"select__quotas": [{"by": "country", "min": 5, "max": 2}]}, "min 5 above max 2"),
        ({"select__cost": {"column": "country", "budget": 5}}, "select.cost.column country is string, expected numbers"),
        ({"select__cost": {"column": "minutes", "budget": 0}}, "select.cost.budget is 0"),
        ({"select__random_share": 1.5}, "select.random_share is 1.5"),
        ({"select__must_include": ["r000001"], "select__exclude": ["r000001"]}, "both name 'r000001'"),
        ({"select__must_include": [f"r{i:06d}" for i in range(13)]}, "names 13 rows, above select.budget 12"),
        ({"select__strategy": "user_nets:nothing"}, "'nothing' is not in user_nets"),
        ({"select__strategy": "no_such_module:fn"}, "no module 'no_such_module'"),
    ],
)  # fmt: skip
def test_constraints_that_cannot_be_met(make_query: MakeQuery, changes: dict[str, object], says: str) -> None:
    """One sentence says which key, what is short, and by how much."""
    with pytest.raises((QueryError, PoolError, rs.errors.ModelError)) as error:
        rs.run(make_query(**changes))
    assert says in str(error.value)


def test_more_like_these(make_query: MakeQuery, workplace: Path) -> None:
    """`similar_to` with `combine` finds the rows nearest in direction to the examples, which may be labelled themselves."""
    table = whole_pool(workplace)
    pq.write_table(table.select(["rid"]).slice(0, 1), workplace / "labels.parquet")
    query = make_query(
        pool__labelled=["labels.parquet"], model={"kind": "columns", "embedding": "x"}, pool__inputs=[],
        select={"strategy": "combine", "budget": 5, "similar_to": ["r000000"], "terms": {"similarity": 1.0}},
    )  # fmt: skip
    x = np.stack(table.column("x").to_pylist()).astype(np.float16).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    order = np.argsort(-(x @ x[0]), kind="stable")[1:6]
    assert ids(rs.run(query)) == [f"r{i:06d}" for i in order]


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ({"strategy": "combine", "terms": {"typicallity": 1}}, "did you mean 'typicality'"),
        ({"strategy": "combine", "terms": {"score": -1}}, "select.terms.score is -1"),
        ({"strategy": "combine", "terms": {"similarity": 1}}, "similar_to"),
        ({"strategy": "combine", "similar_to": ["nobody"]}, "select.similar_to are not in the pool after its filters: 'nobody'"),
        ({"strategy": "k_means", "similar_to": ["r000001"]}, "select.similar_to is not used by strategy k_means (only by combine)"),
        ({"strategy": "u_herding", "args": {"delta": 0}}, "select.args.delta is 0; expected a number above 0"),
        ({"strategy": "prob_cover", "args": {"delta": -1.0}}, "select.args.delta is -1.0; expected a number above 0"),
        ({"strategy": "diverse", "mix": 1.5}, "select.mix is 1.5"),
    ],
)
def test_parameters_that_make_no_sense(make_query: MakeQuery, select: dict[str, object], says: str) -> None:
    """Each is refused by name before anything is scored."""
    with pytest.raises(QueryError) as error:
        rs.run(make_query(select={"budget": 5, **select}))
    assert says in str(error.value)


def test_badge_may_count_labelled_rows_as_covered(make_query: MakeQuery, workplace: Path) -> None:
    """With `covered` a labelled row's gradient is a centre: the first pick is no longer the largest gradient of all."""
    pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(300)]}), workplace / "labels.parquet")
    query = {"pool__labelled": ["labels.parquet"], "select__strategy": "badge", "select__candidates": "all"}
    plain = rs.run(make_query(**query)).selection.column("gain").to_numpy()
    covered = rs.run(make_query(**query, select__args={"covered": True})).selection.column("gain").to_numpy()
    assert plain[0] > covered[0] > 0


def test_a_missing_excluded_id_is_a_warning(make_query: MakeQuery) -> None:
    """What isn't in the pool is excluded already."""
    result = rs.run(make_query(select__exclude=["nobody"]))
    assert any("1 of 1 ids of select.exclude are not in the pool: 'nobody'" in warning for warning in result.manifest.warnings)


def test_a_strategy_of_the_users_own(make_query: MakeQuery, workplace: Path) -> None:
    """An import path is run like any other strategy, and editing it makes another query."""
    (workplace / "mine.py").write_text(
        "import numpy as np\n"
        "from raystream.selection import Picked, walk\n\n"
        "def last(candidates, request):\n"
        "    order = np.arange(len(candidates))[::-1].copy()\n"
        "    rows = walk(order, request.budget, request.constraints, candidates.shards.gather)\n"
        "    return Picked(rows, np.full(len(rows), np.nan))\n"
    )
    query = make_query(select__strategy="mine:last", select__candidates="all", select__exclude=["r001199"])
    result = rs.run(query)
    assert ids(result) == [f"r{i:06d}" for i in range(1198, 1186, -1)]
    with (workplace / "mine.py").open("a") as file:
        file.write("# edited\n")
    assert rs.run(query).query != result.query


VALUES = {
    "beta": 2.0, "bias": True, "clusters": 5, "configurations": 50, "covered": True, "delta": 3.0, "edges": 2000, "eps": 0.5,
    "iterations": 3, "m": 100, "neighbours": 5, "outliers": 2, "piece": 400, "purity": 0.9, "targets": 300,
}  # fmt: skip


@pytest.mark.parametrize(("strategy", "arg"), sorted((name, arg) for name, traits in TRAITS.items() for arg in traits.args))
def test_every_parameter_reaches_its_strategy(make_query: MakeQuery, strategy: str, arg: str) -> None:
    """Each parameter that a strategy declares is taken in a query, and refused by name with a value of the wrong kind."""
    result = rs.run(make_query(**asked(strategy), select__args={arg: VALUES[arg]}))
    assert len(set(ids(result))) == 12
    with pytest.raises(QueryError, match=f"select.args.{arg} is 'x'; expected"):
        make_query(**asked(strategy), select__args={arg: "x"})


def test_every_parameter_in_the_readme_is_one() -> None:
    """The table of strategies names as parameters exactly what queries take."""
    lines = (Path(__file__).parents[1] / "README.md").read_text().splitlines()
    taken = {strategy: {*traits.args, *traits.keys} for strategy, traits in TRAITS.items()}
    table = [
        [cell.split("`")[1::2] for cell in line.split("|")] for line in lines if line.startswith("| `") and line.split("`")[1] in TRAITS
    ]
    assert {name for row in table for name in row[1]} == set(TRAITS)
    for row in table:
        named = {text.split(":")[0] for text in row[3]}
        for strategy in row[1]:
            assert set(TRAITS[strategy].args) <= named <= taken[strategy], strategy
