"""What selection says of arguments is said of a query's keys."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import raystream as rs
from raystream import selection
from raystream.choosing.constraints import BatchLimits, exceeded, in_query, words_of_query
from raystream.errors import DataError, LabelsError, QueryError
from raystream.query import Select
from raystream.query.catalogue import TRAITS
from raystream.selection import Quota

MakeQuery = Callable[..., rs.Query]


def test_names_between_backticks_are_translated() -> None:
    """Arguments of `select`, of strategies, and parts of both; other words are left."""
    assert in_query("`k` is 3; lower `cost.budget` or `terms.x`") == "select.budget is 3; lower select.cost.budget or select.terms.x"
    assert in_query("`beta` and `near_duplicates`, but k and `frobnicate`") == (
        "select.args.beta and select.near_duplicates, but k and `frobnicate`"
    )
    for error in (QueryError, DataError, LabelsError):
        with pytest.raises(error, match=r"^select\.weight is -1$"), words_of_query():
            raise error("`weight` is -1")


def test_every_name_that_selection_quotes_has_a_key() -> None:
    """In messages of its modules, so that no query is told of an argument that it hasn't."""
    known = {*Select.model_fields, *(name for traits in TRAITS.values() for name in traits.args)}
    known |= {"k", "score", "x", "labelled", "probabilities", "labelled_probabilities", "log_probs"}
    arrays_alone = {"max", "min", "values", "seed", "args", "ids", "name", "keys", "note"}
    for path in Path(selection.__file__).parent.glob("*.py"):
        for line in path.read_text().splitlines():
            if re.search(r'^\s*(raise \w+\()?f?"(?!"")', line):
                for name in re.findall(r"`([a-z_]+)[.`]", line):
                    assert name in known | arrays_alone, (path.name, line)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"select__strategy": "typiclust", "select__memory": 1000}, r"but select\.memory is 1000; give fewer select\.candidates or raise"),
        ({"select__strategy": "combine", "select__similar_to": ["r000001"], "select__terms": {"score": 1}}, r"select\.similar_to does"),
        ({"select__strategy": "batch_bald", "select__budget": 51, "acquire": {"mc_samples": 3}}, r"select\.budget is 51, but"),
        ({"select__strategy": "core_set", "select__weight": 2.0, "acquire": {"score": "energy"}}, r"take another acquire\.score"),
        ({"select__quotas": [{"by": "country", "value": "XX", "min": 3}]}, r"^select\.quotas: at least 3 rows .* 3 short; lower min"),
        ({"select__cost": {"column": "minutes", "budget": 0.5}}, r"select\.cost\.budget is 0\.5"),
    ],
)
def test_errors_of_queries_name_keys(make_query: MakeQuery, changes: dict[str, object], words: str) -> None:
    """Whatever in selection refuses them."""
    with pytest.raises(QueryError, match=words) as caught:
        rs.run(make_query(**changes))
    assert "`" not in str(caught.value)


def test_warnings_of_queries_name_keys(make_query: MakeQuery) -> None:
    """Why a batch is short."""
    result = rs.run(make_query(select__budget=40, select__cost={"column": "minutes", "budget": 25}))
    assert "select.cost.budget 25" in result.manifest.warnings[-1]
    assert "`" not in "".join(result.manifest.warnings)


def test_a_quota_of_no_group_is_never_exceeded() -> None:
    """As of a column that holds nothing; of several groups, that is named which is furthest above its cap."""
    rows, none = np.arange(3), np.empty(0, np.int64)
    chosen = SimpleNamespace(rows=rows, why=["random_share"] * 3)
    assert exceeded(BatchLimits([Quota("c", np.full(5, -1, np.int32), [], none, none)], None), chosen) == []  # type: ignore[arg-type]
    full = Quota("c", np.array([0, 1, 1, 0, 1], np.int32), ["a", "b"], np.array([1, 0]), np.array([0, 0]))
    [said] = exceeded(BatchLimits([full], None), chosen)  # type: ignore[arg-type]
    assert said.startswith("2 rows have c b, above the 0 that select.quotas allow, since rows of select.random_share")
