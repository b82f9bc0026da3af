"""Constraints around every strategy, through a whole query."""

from __future__ import annotations

import datetime
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
from raystream.loop import lure
from raystream.query.catalogue import TRAITS
from raystream.report.cards import sheet
from raystream.report.page import write_report
from raystream.report.text import constraints_met, describe_result, rows_as_text
from raystream.selection import draw, random_order, row_hash

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]
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
    table = result.selection
    assert table.column("why").to_pylist() == [""] * 9 + ["random_share"] * 3
    assert table.column("turn").to_pylist() == [*range(3, 12), 0, 1, 2]
    assert table.column("probability").to_pylist()[9:] == [1 / 1200, 1 / 1199, 1 / 1198]
    for shown in (rows_as_text(table, 12).split(), [name for name, _ in sheet(table, 12).columns]):
        assert {"rank", "why"} <= set(shown)
        assert not {"turn", "probability"} & set(shown)
    drawn = strategy in ("power", "softmax", "softrank", "random")
    assert table.column("probability").null_count == (0 if drawn else 9)
    assert len(set(ids(result))) == 12
    other = rs.run(make_query(select__strategy="random", select__random_share=0.25))
    assert ids(other)[9:] == ids(result)[9:]


def test_random_rows_come_from_all_that_are_eligible(make_query: MakeQuery, workplace: Path) -> None:
    """Caps, costs, candidates, repeats and demanded rows change nothing: the first by hash of those neither labelled nor excluded."""
    priced(workplace, lambda rows, german: 1.0 + rows % 5)
    pq.write_table(pa.table({"rid": [f"r{i:06d}" for i in range(100)]}), workplace / "labels.parquet")
    names = [f"r{i:06d}" for i in range(100, 1200) if i != 500]
    first = [names[i] for i in random_order(draw(row_hash(0, names), "random_share"), 20)]
    base = {
        "pool__uri": "priced.parquet", "pool__labelled": "labels.parquet", "pool__keep": ["country", "minutes"], "select__budget": 40,
        "select__random_share": 0.5, "select__exclude": ["r000500"], "select__strategy": "softmax",
    }  # fmt: skip
    must = [first[3], "r001100"]
    changes: dict[str, dict[str, object]] = {
        "plain": {}, "near": {"select__near_duplicates": 0.9}, "prefilter": {"select__candidates": 40},
        "must": {"select__must_include": must}, "cap": {"select__quotas": [{"by": "country", "max": 5}]},
        "cost": {"select__cost": {"column": "minutes", "budget": 0.5}},  # less than any row costs
    }  # fmt: skip
    results = {name: rs.run(make_query(**base, **more)) for name, more in changes.items()}
    for name, result in results.items():
        table = result.selection.sort_by("turn")
        assert table.column("rid").to_pylist()[:20] == first, name
        assert table.column("probability").to_pylist()[:20] == [1 / (1099 - i) for i in range(20)]
        assert table.column("probability").null_count == (0 if name == "plain" else table.num_rows - 20)
        assert table.column("turn").to_pylist() == list(range(table.num_rows))
        assert set(table.column("why").to_pylist()[:20]) == {"random_share"}
    assert ids(results["must"])[0] == "r001100"
    facts = results["must"].manifest.facts
    assert (facts["must_include"], facts["random_share"], results["must"].selection.num_rows) == (2, 20, 40)
    # the random rows alone go beyond the cap and the budget: they stay, no other row joins a full group, and a warning says it
    kept = results["cap"].selection
    random, others = kept.slice(kept.num_rows - 20), kept.slice(0, kept.num_rows - 20)
    counts = Counter(random.column("country").to_pylist())
    over = {country for country, count in counts.items() if count >= 5}
    assert not set(others.column("country").to_pylist()) & over
    assert f"{max(counts.values())} rows have country" in " ".join(results["cap"].manifest.warnings)
    assert "since rows of select.random_share are in the batch whatever their groups" in " ".join(results["cap"].manifest.warnings)
    assert results["cost"].selection.num_rows == 20
    spent = sum(results["cost"].selection.column("minutes").to_pylist())
    words = f"the batch costs {spent:g}, above select.cost.budget 0.5, since rows of select.random_share are in it whatever they cost"
    assert words in results["cost"].manifest.warnings
    with pytest.raises(QueryError, match=r"select\.random_share takes 20 of 40 places, which leaves 20 .* or lower select\.random_share$"):
        rs.run(make_query(**base, select__quotas=[{"by": "country", "value": "DE", "min": 39}]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["power", "softmax"])
def test_a_drawn_batch_says_the_mean_loss_of_the_pool(make_query: MakeQuery, workplace: Path, strategy: str) -> None:
    """LURE from `turn` and `probability`, over many seeds: the pool's mean within two standard errors; the plain mean is far from it."""
    base = {"select__strategy": strategy, "select__budget": 60, "select__random_share": 0.2, "select__args": {"beta": 6.0}}
    every = rs.run(make_query(select__strategy=strategy, select__budget=1200)).selection
    order = every.sort_by("score").column("rid").to_pylist()
    loss = dict(zip(order, np.linspace(0, 1, len(order)) ** 4, strict=True))  # most for the highest scores
    found = []
    for seed in range(40):
        result = rs.run(make_query(**base, seed=seed, store__query=f"q{seed}"))
        table = result.selection.sort_by("turn")
        losses = [loss[rid] for rid in table.column("rid").to_pylist()]
        found.append((lure(losses, table.column("probability").to_numpy(), result.manifest.counts.eligible), np.mean(losses)))
    means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    mean = np.mean(list(loss.values()))
    assert abs(means[0] - mean) < 2 * errors[0]
    assert means[1] - mean > 5 * errors[1]


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
        ({"select__strategy": "user_nets:nothing"}, "user_nets has no 'nothing'"),
        ({"select__strategy": "no_such_module:fn"}, "no module 'no_such_module'"),
    ],
)  # fmt: skip
def test_constraints_that_cannot_be_met(make_query: MakeQuery, changes: dict[str, object], says: str) -> None:
    """One sentence says which key, what is short, and by how much."""
    with pytest.raises((QueryError, PoolError, rs.errors.ModelError)) as error:
        rs.run(make_query(**changes))
    assert says in str(error.value)


def priced(folder: Path, minutes: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> pa.Table:
    """The pool with other costs: what `minutes` makes of the rows' numbers and of which are DE."""
    table = whole_pool(folder)
    german = np.asarray(table.column("country").to_pylist()) == "DE"
    column = pa.array(minutes(np.arange(len(table)), german).astype(np.float64))
    at = table.column_names.index("minutes")
    table = table.set_column(at, "minutes", column)
    pq.write_table(table, folder / "priced.parquet")
    return table


@every_strategy
def test_money_is_set_aside_for_minimums(make_query: MakeQuery, workplace: Path, strategy: str) -> None:
    """Every row costs 1 of 12 and 7 must be DE: at most 5 others come in, drawn and demanded rows among them."""
    priced(workplace, lambda rows, german: np.ones(len(rows)))
    query = make_query(
        **asked(strategy), pool__uri="priced.parquet", pool__keep=["country"], select__budget=20, select__random_share=0.2,
        select__must_include=["r000001"], select__cost={"column": "minutes", "budget": 12},
        select__quotas=[{"by": "country", "value": "DE", "min": 7}],
    )  # fmt: skip
    result = rs.run(query)
    assert Counter(result.selection.column("country").to_pylist())["DE"] >= 7
    assert result.selection.num_rows == 12
    assert Counter(result.selection.column("why").to_pylist())["random_share"] == 4
    assert result.manifest.facts["cost"] == 12


def test_minimums_that_need_each_others_rows_are_met(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """Nearly all rows of DE are in a group that has one place: the few others pass the pre-filter, and are kept for the minimum."""
    table = priced(workplace, lambda rows, german: np.where(german, rows > 1150, rows % 2))
    query = make_query(
        pool__uri="priced.parquet", pool__keep=["country", "minutes"], select__strategy="core_set", select__candidates=20,
        select__budget=8,
        select__quotas=[{"by": "country", "value": "DE", "min": 5}, {"by": "minutes", "value": 0, "max": 1}],
    )  # fmt: skip
    few = Counter(zip(table.column("country").to_pylist(), table.column("minutes").to_pylist(), strict=True))["DE", 1.0]
    assert 4 <= few < 40
    result = rs.run(query)
    assert Counter(result.selection.column("country").to_pylist())["DE"] >= 5
    assert result.selection.num_rows == 8
    assert Counter(result.selection.column("minutes").to_pylist())[0] <= 1
    assert cli("verify", result.query)[0] == 0


def test_the_cheapest_rows_of_a_minimum_pass_the_prefilter(make_query: MakeQuery, workplace: Path) -> None:
    """Where the best rows by score are too dear for a minimum, the cheapest of the group are candidates, too."""
    priced(workplace, lambda rows, german: np.where(german & (rows > 1000), 1.0, 50.0))
    query = make_query(
        pool__uri="priced.parquet", pool__keep=["country"], select__candidates=20, select__cost={"column": "minutes", "budget": 60},
        select__quotas=[{"by": "country", "value": "DE", "min": 9}],
    )  # fmt: skip
    result = rs.run(query)
    assert Counter(result.selection.column("country").to_pylist())["DE"] >= 9
    assert float(result.manifest.facts["cost"]) <= 60


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"select__cost": {"column": "minutes", "budget": 0.5}},
            "no row can be chosen: the cheapest of 1,200 eligible rows costs 1 by column minutes, but select.cost.budget is 0.5; raise",
        ),
        (
            {"select__quotas": [{"by": "country", "max": 0}], "select__candidates": "all"},
            "no row can be chosen: all 1200 candidates are in groups of country that are full (",
        ),
    ],
)
def test_no_batch_is_committed_that_the_query_itself_leaves_empty(
    make_query: MakeQuery, workplace: Path, changes: dict[str, object], says: str
) -> None:
    """Where its own numbers shut all rows out, that is an error, which says which."""
    priced(workplace, lambda rows, german: 1.0 + rows % 3)
    with pytest.raises(QueryError) as found:
        rs.run(make_query(pool__uri="priced.parquet", **changes))
    assert says in str(found.value)
    assert not list(workplace.glob("runs/queries/*/manifest.json"))


def test_a_warning_says_why_fewer_rows_came_back_once(make_query: MakeQuery, workplace: Path) -> None:
    """The numbers stand in it once; more candidates are advised where they might help, not when the money is spent."""
    priced(workplace, lambda rows, german: np.ones(len(rows)))
    changes = {"pool__uri": "priced.parquet", "select__candidates": 100}
    result = rs.run(make_query(**changes, select__cost={"column": "minutes", "budget": 5}))
    assert result.manifest.warnings == [
        "5 rows were chosen for a budget of 12: all 95 other candidates cost more than the 0 left of select.cost.budget 5"
    ]
    capped = rs.run(make_query(**changes, select__quotas=[{"by": "country", "max": 1}]))
    assert capped.manifest.warnings == [
        "3 rows were chosen for a budget of 12: all 97 other candidates are in groups of country that are full (US, FR, DE); "
        "raise select.candidates"
    ]
    every = rs.run(make_query(pool__uri="priced.parquet", select__candidates="all", select__quotas=[{"by": "country", "max": 1}]))
    assert "raise" not in every.manifest.warnings[0]


def test_how_constraints_were_met_is_shown(make_query: MakeQuery, workplace: Path) -> None:
    """The manifest, the text and the report say what was spent, what the quotas gave, and where rows come from."""
    priced(workplace, lambda rows, german: 1.0 + rows % 2)
    query = make_query(
        pool__uri="priced.parquet", pool__keep=["country", "minutes"], select__near_duplicates=0.99, select__random_share=0.25,
        select__must_include=["r000001"], select__cost={"column": "minutes", "budget": 30},
        select__quotas=[{"by": "country", "max": 7, "min": 1}, {"by": "country", "value": "DE", "min": 5}, {"by": "prediction", "max": 12}],
    )  # fmt: skip
    result = rs.run(query)
    table, facts = result.selection, result.manifest.facts
    countries, predictions = Counter(table.column("country").to_pylist()), Counter(table.column("prediction").to_pylist())
    assert facts["cost"] == sum(table.column("minutes").to_pylist())
    assert facts["quota country=DE"] == countries["DE"] >= 5
    assert (facts["quota country fullest"], facts["quota country emptiest"]) == (max(countries.values()), min(countries.values()))
    assert (facts["quota prediction fullest"], facts["must_include"], facts["random_share"]) == (max(predictions.values()), 1, 3)
    assert result.summary()["facts"] == facts
    text = describe_result(result, None)
    for line in (
        f"  cost        {facts['cost']:g} of 30 minutes",
        f"  quota       country DE {countries['DE']}, at least 5",
        f"  quota       country {max(countries.values())} in the fullest group, at most 7",
        f"  quota       country {min(countries.values())} in the emptiest group, at least 1",
        "  included    1 row by must_include",
        "  at random   3 rows by random_share 0.25",
        f"  left out    {facts['near_duplicates']} candidate",
    ):
        assert line in text
    page = Path(write_report(result)).read_text(encoding="utf-8")
    assert f"country DE {countries['DE']}" in page
    assert "of 30 minutes" in page


def test_near_duplicates_that_were_left_out_are_counted(make_query: MakeQuery, workplace: Path) -> None:
    """Candidates that are all but equal to a chosen or labelled row, and aren't chosen."""
    table = whole_pool(workplace).slice(0, 60)
    pq.write_table(
        pa.concat_tables([table, table.set_column(0, "rid", pa.array([f"copy{i}" for i in range(60)]))]), workplace / "two.parquet"
    )
    result = rs.run(make_query(pool__uri="two.parquet", select__near_duplicates=1.0, select__strategy="core_set", select__candidates="all"))
    assert result.manifest.facts["near_duplicates"] == 12


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0"])
def test_a_groups_value_is_meant_in_the_columns_type(make_query: MakeQuery, workplace: Path, value: object) -> None:
    """A whole number names a group of doubles, however it is written; an unquoted date one of dates."""
    priced(workplace, lambda rows, german: rows % 3)
    changes = {"pool__uri": "priced.parquet", "pool__keep": ["minutes"], "select__budget": 60}
    result = rs.run(make_query(**changes, select__quotas=[{"by": "minutes", "value": value, "max": 2}]))
    assert result.selection.column("minutes").to_pylist().count(1.0) == 2
    assert result.manifest.facts[f"quota minutes={value}"] == 2
    both = [{"by": "minutes", "value": value, "max": 2}, {"by": "minutes", "value": "1.00", "min": 1}]
    with pytest.raises(QueryError, match=r"name one group of minutes as 1(\.0)? and as 1\.00; spell it alike"):
        rs.run(make_query(**changes, select__quotas=both))


def test_quotas_by_a_column_of_nulls_and_of_dates(make_query: MakeQuery, workplace: Path) -> None:
    """Nulls are in no group: a max binds nothing, a min can't be met; dates are written as YAML reads them."""
    table = whole_pool(workplace)
    days = pa.array([datetime.date(2024, 1, 1 + i % 3) for i in range(table.num_rows)])
    table = table.append_column("nothing", pa.nulls(table.num_rows, pa.string())).append_column("day", days)
    pq.write_table(table, "more.parquet")
    changes = {"pool__uri": "more.parquet", "pool__keep": ["day"], "select__budget": 30}
    assert rs.run(make_query(**changes, select__quotas=[{"by": "nothing", "max": 3}])).selection.num_rows == 30
    with pytest.raises(QueryError, match="at least 3 rows with nothing"):
        rs.run(make_query(**changes, select__quotas=[{"by": "nothing", "min": 3}]))
    result = rs.run(make_query(**changes, select__quotas=[{"by": "day", "value": datetime.date(2024, 1, 2), "max": 1}]))
    assert result.selection.column("day").to_pylist().count(datetime.date(2024, 1, 2)) == 1


def test_what_must_be_included_may_go_beyond_limits_and_says_so(make_query: MakeQuery, workplace: Path) -> None:
    """The cost and the cap that it exceeds, each in a warning."""
    priced(workplace, lambda rows, german: np.ones(len(rows)))
    ids = pq.read_table("priced.parquet").column("rid").to_pylist()[:3]
    changes = {"pool__uri": "priced.parquet", "select__must_include": ids, "select__cost": {"column": "minutes", "budget": 2}}
    warnings = " ".join(rs.run(make_query(**changes)).manifest.warnings)
    assert "the batch costs 3, above select.cost.budget 2, since rows of select.must_include are in it whatever they cost" in warnings
    result = rs.run(make_query(pool__uri="priced.parquet", select__must_include=ids, select__quotas=[{"by": "minutes", "max": 2}]))
    assert "3 rows have minutes 1.0, above the 2 that select.quotas allow" in " ".join(result.manifest.warnings)


def test_without_constraints_nothing_is_added(make_query: MakeQuery) -> None:
    """No fact and no line of text tells of constraints that nobody asked for."""
    result = rs.run(make_query())
    assert constraints_met(result.manifest) == []
    assert not set(result.manifest.facts) & {"cost", "near_duplicates", "must_include", "random_share"}
    names = [line.split()[0] for line in describe_result(result, None).splitlines() if line.startswith("  ")]
    assert names[:6] == ["asked", "pool", "scored", "chosen", "certificate", "seconds"]


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
