"""The facts of a loop's report, out of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from raystream.loop.journal import Asked, Judged, Trained
from raystream.loop.ledger import Ledger
from raystream.loop.stopping import kappa
from raystream.report.loop_page import LoopFacts, RoundFacts, write_loop_report


def write_report(
    ledger: Ledger,
    rounds: Sequence[tuple[Asked | None, Trained, Judged]],
    summary: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    rules: Mapping[str, Any],
    asked_rules: Collection[str],
    beside: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Write the report of a loop; its path or URI.

    Args:
        ledger: what the loop knows.
        rounds: the records of the rounds that are judged.
        summary: what `raystream loop --json` prints.
        history: rows of `history.parquet`.
        rules: those that are looked at.
        asked_rules: the names of those that may stop it.
        beside: histories of other loops by their names.
    """
    found: list[RoundFacts] = []
    before: list[Any] | None = None
    for asked, trained, judged in rounds:
        found.append(_facts(ledger, asked, trained, judged, before))
        before = trained.predictions or before
    last = ledger.last_asked()
    waiting = ledger.journal.asked(last) if last else None
    if waiting is not None and all(facts.round != last for facts in found):
        found.append(RoundFacts(last, waiting.query, waiting.why, ledger.batch(waiting), waiting.controls))
    return write_loop_report(
        LoopFacts(
            store=ledger.journal.store,
            folder=ledger.journal.folder,
            summary=summary,
            history=history,
            rounds=found,
            metrics=metrics_of(history, ledger.loop.metrics),
            rules={name: name in asked_rules for name in rules},
            spec=ledger.loop.to_yaml(),
            judged_by="the control rows" if ledger.loop.loop.evaluate is None else "the rows of loop.evaluate",
            beside=beside,
        )
    )


def metrics_of(history: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[str]:
    """Return the columns of a history that hold these metrics, `recall_<class>` for each class."""
    columns = dict.fromkeys(name for row in history for name in row)
    return [name for name in columns if any(name == metric or (metric == "recall" and name.startswith("recall_")) for metric in metrics)]


def _facts(ledger: Ledger, asked: Asked | None, trained: Trained, judged: Judged, before: list[Any] | None) -> RoundFacts:
    now = trained.predictions
    return RoundFacts(
        round=judged.round,
        query="" if asked is None else asked.query,
        why="" if asked is None else asked.why,
        batch=None if asked is None else ledger.batch(asked),
        controls=0 if asked is None else asked.controls,
        classes=judged.classes,
        predicted=Counter(map(str, now or ())),
        kappa=None if now is None or before is None else kappa(np.array(before), np.array(now)),
    )
