"""Kinds of outputs, by the parameters that name them."""

from __future__ import annotations

import raystream as rs
from raystream.query import LOGIT_SCORES, MEMBER_SCORES
from raystream.scoring.output_kinds import QueryOutputs
from raystream.store.receipts import SCORES


def test_another_score_is_another_output() -> None:
    """What is stored of a unit's scores is named by which scores there are: a further one is no column of what lies there."""
    query = rs.Query(pool=rs.Pool(uri="p", inputs=["x"]), model=rs.Model(source="m:net"), select=rs.Select(budget=1))
    outputs = QueryOutputs(query, None)
    assert outputs.of(SCORES)["columns"] == (*LOGIT_SCORES, *MEMBER_SCORES)
    assert outputs.of(SCORES).name != outputs.of(SCORES, columns=(*LOGIT_SCORES, "further", *MEMBER_SCORES)).name
