"""A loop: rounds of asking for labels, training on them and judging the model, until there is enough.

Every step ends in a record of `raystream.loop.journal`. What a call does follows from the records that are there, so that a loop that
was killed anywhere, or is run twice at once, goes on with the same history.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from raystream.errors import LabelsError, QueryError
from raystream.loop.asking import ask
from raystream.loop.evaluation import EvaluationRows
from raystream.loop.journal import Asked, Journal, Judged, Trained, history_table
from raystream.loop.judging import as_round, history_row, judge, right, rules_of, write_report
from raystream.loop.ledger import CONTROL, TRAIN, Ledger, RoundLabels
from raystream.loop.models import Models, trainer_of
from raystream.loop.pool_rows import Share
from raystream.loop.stopping import Round, stops
from raystream.loop.trainers.training import Fitted
from raystream.query.loop import Loop
from raystream.scoring.progress import Reporter, Silent
from raystream.store.life import Lease
from raystream.store.opening import open_store
from raystream.store.protocol import Store

_POLL_SECONDS, _POLL_SHARE = 1.0, 0.1
"""Between two looks at the labels: so many seconds at least, and so long that looking takes no more than this share of the time."""
Played = tuple[Asked | None, Trained, Judged]
"""The records of a round that is judged; labels that were there before the first batch have none that asked for them."""


@dataclass(frozen=True)
class LoopState:
    """Where a loop stands.

    Attributes:
        loop: its name.
        state: `finished`, `waiting` or `stopped`.
        reason: in a sentence.
        round: the number of the last batch.
        labels: in all.
        missing: rows of the last batch that don't close its round yet.
        batch: where the last batch is; None before the first.
        why: why its strategy was chosen, where the loop itself chose one.
        history: where `history.parquet` is; None before the first round is closed.
        rows: the history.
        report: where the report is, once there is one.
        warnings: sentences for the user.
    """

    loop: str
    state: str
    reason: str
    round: int
    labels: int
    missing: int
    batch: str | None
    why: str
    history: str | None
    rows: list[dict[str, Any]]
    report: str | None = None
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "loop": self.loop,
            "state": self.state,
            "reason": self.reason,
            "round": self.round,
            "labels": self.labels,
            "missing": self.missing,
            "batch": self.batch,
            "why": self.why,
            "history": self.history,
            "report": self.report,
            "rounds": [_round_of(row) for row in self.rows],
            "warnings": self.warnings,
        }


class ActiveLearningLoop:
    """Drives a loop: `step` moves as far as labels allow. Or call the parts, from a program of your own.

    Args:
        loop: what is asked.
        reporter: told how far it is; silent if left out.
        wait: waits so many seconds; left out, it does.
        store: in place of the one that the loop names.
        report: whether `step` writes the report; what is wrong with that is a warning and no more.
        token: of your account in the labelling tool that `loop.oracle` names.
    """

    def __init__(
        self,
        loop: Loop,
        reporter: Reporter | None = None,
        *,
        token: str | None = None,
        wait: Callable[[float], object] | None = None,
        store: Store | None = None,
        report: bool = True,
    ) -> None:
        self.loop = loop
        self._reporter = reporter or Silent()
        self._wait = wait or threading.Event().wait
        self._given_store, self._report, self._token = store, report, token
        self._rules, self._asked_rules = rules_of(loop)
        self._trainer = trainer_of(loop)
        self._said: list[str] = []
        self._labels = 0
        """Labels that counted when they were last looked at."""

    def step(self) -> LoopState:
        """Move as far as the labels that are there allow; wait for more for `loop.wait` seconds.

        Raises:
            RaystreamError: see `raystream.errors`; what was committed before stays, and the next call goes on from there.
        """
        with self._lease():
            began, told = time.monotonic(), (0, 0)
            while True:
                looked = time.monotonic()
                state = self._advance()
                if state is None:
                    continue
                if state.state != "waiting" or time.monotonic() - began >= self.loop.loop.wait:
                    return self._with_report(state) if self._report else state
                if told != (state.round, state.missing):
                    self._reporter.stage(f"Waiting for {state.missing:,} labels of batch {state.round}")
                told = state.round, state.missing
                took = time.monotonic() - looked
                self._wait(min(max(_POLL_SECONDS, took * (1 / _POLL_SHARE - 1)), self.loop.loop.wait))

    @property
    def history(self) -> pa.Table:
        """The rounds that are judged, as `history.parquet` has them."""
        return history_table(self._history_rows())

    def select_initial_batch(self) -> pa.Table:
        """Choose the first batch, or return it if it was chosen before.

        Raises:
            QueryError: no row can be chosen.
            RaystreamError: see `raystream.errors`.
        """
        with self._lease():
            self._before_the_first()
            return self._asked_batch(1)

    def query_next_batch(self) -> pa.Table:
        """Choose the batch after the last round that is trained and judged.

        Raises:
            QueryError: the last batch isn't trained on and evaluated yet, or no row is left.
            RaystreamError: see `raystream.errors`.
        """
        with self._lease():
            last = self._ledger.last_asked()
            if last == 0:
                self._before_the_first()
            elif self.journal.judged(last) is None:
                raise QueryError(
                    f"batch {last} of loop {self.loop.name} is not trained on and evaluated yet; call train and evaluate first"
                )
            return self._asked_batch(last + 1)

    def train(self) -> Fitted | None:
        """Close the last batch's round and train on all labels so far; None where they are of one class, and nothing can be learnt.

        Raises:
            QueryError: nothing was asked for yet.
            LabelsError: labels of the batch are missing.
            RaystreamError: see `raystream.errors`.
        """
        with self._lease():
            last = self._ledger.last_asked()
            if last == 0:
                raise QueryError(f"loop {self.loop.name} has asked for nothing yet; call select_initial_batch first")
            missing = self._close(last)
            if missing:
                raise LabelsError(f"batch {last} of loop {self.loop.name} misses {missing:,} labels; give them, then train")
            return self._models.of(last) if self._models.train(last).model is not None else None

    def evaluate(self) -> dict[str, float]:
        """Judge the model of the last round: its metrics on `loop.evaluate`, and its accuracy on the control rows.

        Raises:
            QueryError: the last batch isn't trained on yet.
            RaystreamError: see `raystream.errors`.
        """
        with self._lease():
            last = self._ledger.last_asked()
            if self.journal.trained(last) is None:
                raise QueryError(f"batch {last} of loop {self.loop.name} is not trained on yet; call train first")
            judged = self._judge(last)
            self.journal.put_history(self._history_rows())
            return judged.metrics | ({} if judged.control is None else {"control_accuracy": Share(*judged.control).value})

    @cached_property
    def journal(self) -> Journal:
        """The loop's records."""
        journal = Journal(
            self._given_store or open_store(self.loop.store.uri, self.loop.query_with(self.loop.trained_model()).store_options),
            self.loop.name,
        )
        journal.begin(self.loop)
        return journal

    @cached_property
    def _ledger(self) -> Ledger:
        return Ledger(self.loop, self.journal, self._reporter, self._token)

    @cached_property
    def _models(self) -> Models:
        return Models(self._ledger, self._trainer)

    def _lease(self) -> Lease:
        return Lease(self.journal.store, f"{self.journal.folder}/lease", self._reporter.stage, self._wait)

    def _advance(self) -> LoopState | None:
        """Move one step; return where the loop stands once it can go no further."""
        self._before_the_first()
        last = self._ledger.last_asked()
        if last and self.journal.judged(last) is None:
            missing = self._close(last)
            if missing:
                return self._state("waiting", "", missing)
            self._play(last)
            return None
        ended = self._ended()
        if ended is not None:
            return self._state(*ended)
        if self._ask(last + 1) is None:
            return self._state("finished", "no row of the pool is left to ask for")
        return None

    def _before_the_first(self) -> None:
        """Set rows apart, and learn of labels that are there already as round 0."""
        ledger, oracle = self._ledger, self._ledger.oracle
        ledger.reserve()
        if self.journal.asked(1) is not None or self.journal.judged(0) is not None:
            return
        if oracle is not None:
            oracle.check(ledger.pool.plan.footers[0].file, self.loop.pool.input_columns, self.loop.pool.keep)
        if self.journal.closed(0) is None:
            labels, answers = self._ledger.labels_now()
            self._said = answers.warnings
            if not labels.labelled(TRAIN)[0]:
                return
            self._ledger.close(0, labels, [], answers)
        self._play(0)

    def _ask(self, round_: int) -> Asked | None:
        """Choose a round's batch and have it labelled; None where no row is left."""
        asked = ask(self._ledger, self._models, round_)
        if asked is not None:
            self._ledger.put_to_people(asked)
        return asked

    def _asked_batch(self, round_: int) -> pa.Table:
        asked = self._ask(round_)
        if asked is None:
            raise QueryError(f"no row of the pool is left to ask for in round {round_} of loop {self.loop.name}")
        return self._ledger.batch(asked)

    def _close(self, round_: int) -> int:
        """Close a round if its batch is answered; how many rows are missing, 0 once it is closed."""
        if self.journal.closed(round_) is not None:
            return 0
        asked = self.journal.asked(round_)
        assert asked is not None
        self._ledger.put_to_people(asked)
        labels, answers = self._ledger.labels_now()
        self._said, self._labels = answers.warnings, labels.count
        batch = self._ledger.ids_of(asked)
        # in millionths, so that .9 of 10 is 9
        missing = -(-len(batch) * round(self.loop.loop.complete * 10**6) // 10**6) - labels.answered(batch)
        if missing <= 0:
            self._ledger.close(round_, labels, batch, answers)
        return max(0, missing)

    def _play(self, round_: int) -> None:
        self._models.train(round_)
        self._judge(round_)
        self.journal.put_history(self._history_rows())

    def _judge(self, round_: int) -> Judged:
        """Judge a round's model, and count what is left."""
        known = self.journal.judged(round_)
        if known is not None:
            return known
        ledger = self._ledger
        trained, labels = self.journal.trained(round_), ledger.labels_of(round_)
        assert trained is not None
        assert labels is not None
        metrics: dict[str, float] = {}
        parts: dict[str, Share] = {}
        control: Share | None = None
        prequential: Share | None = None
        warnings: list[str] = []
        if trained.model is not None:
            self._reporter.stage("Judging the model")
            fitted, apart = self._models.of(round_), self._control_rows(labels)
            rows = ledger.evaluation or apart
            if rows is not None:
                metrics, parts = judge(fitted, rows, ledger.values, self.loop.metrics)
            if ledger.evaluation is not None and ledger.evaluation.unknown:
                warnings.append(f"{ledger.evaluation.unknown:,} rows of loop.evaluate have no label that can be used and are left out")
            if apart is not None and self.loop.task == "classes":
                control, prequential = self._on_control(round_, apart, fitted)
        asked = set(ledger.asked_ids(round_ + 1))
        reserved = ledger.reserved("control")
        barred = {*labels.ids, *asked, *reserved, *ledger.reserved("evaluate")}
        left = ledger.pool.eligible(sorted(barred)) + sum(id_ not in asked for id_ in reserved)
        return self.journal.commit_judged(
            Judged(
                round=round_,
                labels=labels.count,
                left=left,
                metrics=metrics,
                shares={name: [share.right, share.of] for name, share in parts.items()},
                control=None if control is None else [control.right, control.of],
                prequential=None if prequential is None else [prequential.right, prequential.of],
                cost=ledger.cost(labels.labelled(TRAIN, CONTROL)[0]),
                classes=_class_counts(labels) if self.loop.task == "classes" else {},
                warnings=warnings,
            )
        )

    def _control_rows(self, labels: RoundLabels) -> EvaluationRows | None:
        """Return all control rows that are labelled; None without any."""
        ids, said = labels.labelled(CONTROL)
        if not ids:
            return None
        places = self._ledger.pool.find(ids)
        inputs, sound = self._ledger.pool.inputs([places[id_] for id_ in ids])
        kept = np.flatnonzero(sound).tolist()
        return EvaluationRows([ids[i] for i in kept], inputs, [said[i] for i in kept]) if kept else None

    def _on_control(self, round_: int, rows: EvaluationRows, fitted: Fitted) -> tuple[Share, Share | None]:
        """Return what the model gets right of all control rows, and what the one before got right of those that are new."""
        now = right(fitted, rows.inputs, rows.labels)
        previous, earlier = self._ledger.trained_before(round_), self._ledger.labels_of(round_ - 1)
        before = set() if earlier is None else set(earlier.labelled(CONTROL)[0])
        new = [i for i, id_ in enumerate(rows.ids) if id_ not in before]
        if previous is None or not new:
            return now, None
        return now, right(self._models.of(previous.round), tuple(values[new] for values in rows.inputs), [rows.labels[i] for i in new])

    def _rounds(self) -> list[Played]:
        """Return the rounds that are judged, in order, that of labels which were there before the first batch included."""
        found: list[Played] = []
        number = 0
        while True:
            trained, judged = self.journal.trained(number), self.journal.judged(number)
            if trained is not None and judged is not None:
                found.append((self.journal.asked(number) if number else None, trained, judged))
            elif number:
                return found
            number += 1

    def _history_rows(self) -> list[dict[str, Any]]:
        rounds = self._rounds()
        rows = []
        for count, (asked, trained, judged) in enumerate(rounds, 1):
            past = _counted(rounds[:count])
            held = {name: bool(past) and rule.holds(past) for name, rule in self._rules.items()}
            rows.append(history_row(asked, trained, judged, self.loop.metrics, held))
        columns = dict.fromkeys(key for row in rows for key in row)
        return [{key: row.get(key) for key in columns} for row in rows]

    def _ended(self) -> tuple[str, str] | None:
        """Tell whether the loop ends after the rounds that are judged: state and reason; None if it goes on."""
        rounds, settings = self._rounds(), self.loop.loop
        if not rounds:
            return None
        history, labels = _counted(rounds), rounds[-1][2].labels
        if settings.stop is not None and not settings.stop.advise and history:
            asked = {name: rule for name, rule in self._rules.items() if name in self._asked_rules}
            if fired := stops(asked, history, settings.stop.when):
                return "stopped", f"{' and '.join(fired)} after round {len(history)}, with {labels:,} labels"
        if settings.rounds is not None and len(history) >= settings.rounds:
            return "finished", f"all {settings.rounds} rounds are done, with {labels:,} labels"
        if settings.budget is not None and labels >= settings.budget:
            return "finished", f"the budget of {settings.budget:,} labels is used up after round {len(history)}"
        return None

    def _state(self, state: str, reason: str, missing: int = 0) -> LoopState:
        last = self._ledger.last_asked()
        asked = self.journal.asked(last) if last else None
        rows = self._history_rows()
        labels = rows[-1]["labels"] if rows else 0
        if state == "waiting":
            assert asked is not None
            labels, total = self._labels, self._ledger.batch(asked).num_rows
            page, files = self._ledger.put_to_people(asked), ", ".join(self.loop.loop.oracle_uris)
            where = f"put them into {files}" if page is None else f"label them at {page}"
            reason = f"{missing:,} labels of batch {last} are missing, which has {total:,} rows; {where} and run this again"
        return LoopState(
            loop=self.loop.name,
            state=state,
            reason=reason,
            round=last,
            labels=labels,
            missing=missing,
            batch=None if asked is None else self.journal.batch_place(asked),
            why="" if asked is None else asked.why,
            history=self.journal.put_history(rows) if rows else None,
            rows=rows,
            warnings=self._warnings(rows),
        )

    def _with_report(self, state: LoopState) -> LoopState:
        state = replace(state, report=self.journal.place("report.html"))
        try:
            self._write_report(state, {})
        except Exception as error:
            told = f"the report could not be written: {type(error).__name__}: {error}"
            return replace(state, report=None, warnings=[*state.warnings, told])
        return state

    def report_beside(self, state: LoopState, beside: Mapping[str, pa.Table]) -> str:
        """Write the report anew, with the curves of other loops in it; its path or URI.

        Args:
            state: what `step` returned.
            beside: the histories of other loops, by what they are to be called.

        Raises:
            StoreError: it can't be written.
        """
        return self._write_report(replace(state, report=self.journal.place("report.html")), beside)

    def _write_report(self, state: LoopState, beside: Mapping[str, pa.Table]) -> str:
        others = {name: table.to_pylist() for name, table in beside.items()}
        return write_report(self._ledger, self._rounds(), state.summary(), state.rows, self._rules, self._asked_rules, others)

    def _warnings(self, rows: list[dict[str, Any]]) -> list[str]:
        """Return what there is to say of the newest batch, the newest model, and this call."""
        found = [*self._ledger.told, *self._said]
        last = self._ledger.last_asked()
        closed = last if self.journal.closed(last) is not None else last - 1
        kinds = (self.journal.closed, self.journal.trained, self.journal.judged) if closed >= 0 else ()
        records: list[Any] = [*([self.journal.asked(last)] if last else []), *(kind(closed) for kind in kinds)]
        for record in records:
            found += [] if record is None else record.warnings
        if self.loop.loop.evaluate is None and not self.loop.loop.control:
            found.append("nothing judges the models; give labelled rows in loop.evaluate, or control rows in loop.control")
        stop = self.loop.loop.stop
        held = [name for name in self._asked_rules if rows and rows[-1].get(f"would_stop_{name}")] if stop and stop.advise else []
        found += [f"{' and '.join(sorted(held))} would stop after round {rows[-1]['round']}"] if held else []
        return list(dict.fromkeys(found))


def _counted(rounds: list[Played]) -> list[Round]:
    """Return the rounds as rules look at them: labels that were there before the first batch are no round."""
    return [as_round(trained, judged) for asked, trained, judged in rounds if asked is not None]


def _class_counts(labels: RoundLabels) -> dict[str, int]:
    """Count how many rows are labelled as each class, by its name."""
    counts: dict[str, int] = {}
    for label in labels.labelled(TRAIN, CONTROL)[1]:
        counts[str(label)] = counts.get(str(label), 0) + 1
    return dict(sorted(counts.items()))


def _round_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the history as `--json` prints it."""
    known, control = ("round", "labels", "query", "strategy"), ("control_accuracy", "control_low", "control_high")
    apart = (*known, *control, "cost", "seconds_query", "seconds_train")
    metrics = {name: value for name, value in row.items() if name not in apart and not name.startswith("would_stop_")}
    metrics |= {name: row[name] for name in control if row[name] is not None}
    seconds = {"query": row["seconds_query"], "train": row["seconds_train"]}
    return {name: row[name] for name in known} | {"metrics": metrics, "cost": row["cost"], "seconds": seconds}
