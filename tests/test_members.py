"""Several opinions of a row, through a whole query: MC dropout and committees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pools import logits_and_embeddings
from safetensors.torch import save_file
from test_run import whole_pool

import raystream as rs
from raystream.acquisition import bald, log_probabilities
from raystream.errors import ModelError, QueryError
from raystream.model.source import build_network
from raystream.query import MEMBER_SCORES

MakeQuery = Callable[..., rs.Query]


@pytest.fixture
def committee(workplace: Path) -> list[str]:
    """Three weight files for the tests' net."""
    paths = []
    for member in range(3):
        torch.manual_seed(member)
        net = build_network("user_nets:net", {})
        state = {name: torch.randn_like(values) * 0.5 for name, values in net.state_dict().items()}
        paths.append(str(workplace / f"member{member}.safetensors"))
        save_file(state, paths[-1])
    return paths


def test_bald_of_a_committee_is_the_formula(make_query: MakeQuery, workplace: Path, committee: list[str]) -> None:
    """The rows chosen by bald are those of the largest disagreement of the three nets, each run alone."""
    result = rs.run(make_query(model__weights=committee, acquire={"score": "bald"}, select__strategy="top_k"))
    table = whole_pool(workplace)
    x = torch.from_numpy(np.stack(table.column("x").to_pylist()).astype(np.float32))
    logits = []
    for path in committee:
        from safetensors.torch import load_file

        net = build_network("user_nets:net", {}).eval()
        net.load_state_dict(load_file(path))
        with torch.inference_mode():
            logits.append(net(x))
    expected = bald(log_probabilities(torch.stack(logits, 1))).numpy()
    order = {rid: i for i, rid in enumerate(table.column("rid").to_pylist())}
    chosen = [order[rid] for rid in result.selection.column("rid").to_pylist()]
    np.testing.assert_allclose(result.selection.column("score").to_numpy(), expected[chosen], atol=1e-6)
    assert set(chosen) == set(np.argsort(-expected, kind="stable")[:12].tolist())
    mean = torch.softmax(torch.stack(logits, 1), 2).mean(1)
    np.testing.assert_allclose(result.selection.column("confidence").to_numpy(), mean.max(1).values.numpy()[chosen], atol=1e-6)


def test_mc_dropout_leaves_the_other_scores_alone(make_query: MakeQuery, workplace: Path) -> None:
    """One pass gives bald and margin; margin is that of the net without dropout, and another worker or batch size draws the same masks."""
    acquire = {"score": "bald", "also": ["margin", "variation_ratio"], "mc_samples": 8}
    result = rs.run(make_query(acquire=acquire, select__strategy="top_k"))
    logits, _ = logits_and_embeddings(whole_pool(workplace))
    p = torch.softmax(logits.double(), 1).sort(dim=1, descending=True).values
    order = {rid: i for i, rid in enumerate(whole_pool(workplace).column("rid").to_pylist())}
    for row in result.selection.to_pylist():
        index = order[row["rid"]]
        assert row["margin"] == pytest.approx(float(1 - p[index, 0] + p[index, 1]), abs=1e-6)
        assert 0 < row["score"] <= np.log(4)
        assert 0 <= row["variation_ratio"] < 1
    other = rs.run(
        make_query(acquire=acquire, select__strategy="top_k", model__batch_size=100, cluster={"address": "in_process", "workers": 2})
    )
    assert other.selection.column("rid").to_pylist() == result.selection.column("rid").to_pylist()
    assert other.manifest.units_scored > 0


def test_another_member_score_scores_nothing(make_query: MakeQuery, committee: list[str]) -> None:
    """All scores that samples give are stored at once."""
    rs.run(make_query(model__weights=committee, acquire={"score": "bald"}))
    for score in MEMBER_SCORES[1:]:
        assert rs.run(make_query(model__weights=committee, acquire={"score": score})).manifest.units_scored == 0


def test_batch_bald_sees_repeated_rows(make_query: MakeQuery, committee: list[str]) -> None:
    """The joint score through a query: gains fall, and never exceed log of the number of members in all."""
    result = rs.run(make_query(model__weights=committee, select__strategy="batch_bald", acquire={"score": "bald"}))
    gain = result.selection.column("gain").to_numpy()
    assert len(gain) == 12
    assert gain[0] == pytest.approx(result.selection.column("score").to_numpy()[0], abs=1e-5)
    assert (np.diff(gain) <= 1e-9).all()
    assert gain.sum() <= np.log(3) + 1e-9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"acquire": {"score": "bald"}}, "compares several opinions of a row, but the model has one"),
        ({"acquire": {"also": ["mean_std"]}}, "acquire asks for mean_std"),
        ({"select__strategy": "batch_bald"}, "select.strategy batch_bald needs several opinions of a row"),
        ({"acquire": {"score": "bald", "mc_samples": 1}}, "acquire.mc_samples is 1"),
        ({"acquire": {"score": "bald", "mc_samples": 4}, "model__source": "user_nets:Nan", "select__strategy": "top_k"}, "dropout"),
    ],
)
def test_one_opinion_is_not_enough(make_query: MakeQuery, changes: dict[str, object], says: str) -> None:
    """What is missing and what would give it; never a column of zeros."""
    with pytest.raises((QueryError, ModelError), match=says):
        rs.run(make_query(**changes))


def test_a_committee_with_mc_dropout_is_refused(make_query: MakeQuery, committee: list[str]) -> None:
    """The members are the samples."""
    with pytest.raises(ModelError, match="whose members are the samples"):
        rs.run(make_query(model__weights=committee, acquire={"score": "bald", "mc_samples": 4}))
