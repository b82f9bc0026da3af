"""What a loop knows at one moment, its labels above all.

What a loop knows at one moment: its pool, what was asked, what people said, which rows are set apart.

The labels of a loop at one moment: of which rows, what they serve for, and what a query is told of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from raystream.errors import PoolError
from raystream.figures import number_of
from raystream.loop import evaluation
from raystream.loop.evaluation import EvaluationRows
from raystream.loop.journal import Asked, Closed, Journal, Reserved, Trained
from raystream.loop.labels import DELETED, Answer, Answers, Id, LabelValues, read_answers
from raystream.loop.oracle import Oracle, oracle_of
from raystream.loop.pool_rows import PoolRows, controls_in
from raystream.model import class_names
from raystream.pool.labelled_ids import LABELLED, STATE
from raystream.query import Query
from raystream.query.catalogue.scores import trainer_entry
from raystream.query.loop import Loop
from raystream.scoring.progress import Reporter
from raystream.store.rounds import find_batch, query_of_round

TRAIN, CONTROL, EVALUATE, OUTSIDE = "train", "control", "evaluate", "outside"
"""What a labelled row serves for; nothing, where the pool doesn't hold it."""


@dataclass(frozen=True, eq=False)
class RoundLabels:
    """All answers so far.

    Attributes:
        ids: in order.
        states: of each.
        labels: as `LabelValues` keeps them; None where the state isn't labelled.
        uses: what each row serves for.
    """

    ids: list[Id]
    states: list[str]
    labels: list[Any]
    uses: list[str]

    @classmethod
    def of(cls, answers: Answers, inside: Collection[Id], control: Collection[Id], evaluate: Collection[Id]) -> RoundLabels:
        """Return what people said, given which rows the pool holds, and which of them are set apart."""
        ids = sorted(answers.by_id)
        held, apart, judged = set(inside), set(control), set(evaluate)
        uses = [EVALUATE if id_ in judged else OUTSIDE if id_ not in held else CONTROL if id_ in apart else TRAIN for id_ in ids]
        found = [answers.by_id[id_] for id_ in ids]
        return cls(ids, [answer.state for answer in found], [answer.label for answer in found], uses)

    def labelled(self, *uses: str) -> tuple[list[Id], list[Any]]:
        """Return the labelled rows of some uses, with their labels."""
        rows = [i for i, state in enumerate(self.states) if state == LABELLED and self.uses[i] in uses]
        return [self.ids[i] for i in rows], [self.labels[i] for i in rows]

    @property
    def count(self) -> int:
        """Labels that count: of the pool's rows, control rows included."""
        return len(self.labelled(TRAIN, CONTROL)[0])

    @property
    def digest(self) -> str:
        """SHA-256 of all answers, hexadecimal."""
        digest = hashlib.sha256()
        for id_, state, label, use in zip(self.ids, self.states, self.labels, self.uses, strict=True):
            digest.update(json.dumps([_text(id_), state, label, use], default=str).encode())
        return digest.hexdigest()

    def as_table(self, id_type: pa.DataType) -> pa.Table:
        """Return the answers as a table: labels as JSON text, since they may be classes, several classes, or numbers."""
        labels = [None if label is None else json.dumps(label) for label in self.labels]
        columns = {"id": pa.array(self.ids, id_type), "label": pa.array(labels, pa.string())}
        return pa.table({**columns, STATE: pa.array(self.states, pa.string()), "use": pa.array(self.uses, pa.string())})

    @classmethod
    def from_table(cls, table: pa.Table) -> RoundLabels:
        """Read back what `as_table` made."""
        labels = [None if text is None else _label(json.loads(text)) for text in table.column("label").to_pylist()]
        ids, states, uses = (table.column(name).to_pylist() for name in ("id", STATE, "use"))
        return cls(ids, states, labels, uses)

    def told(self, id_name: str, id_type: pa.DataType, barred: Sequence[Id]) -> pa.Table | None:
        """Return what the next query is told: rows that are labelled, and so covered, and rows that are never chosen; None of none.

        Args:
            id_name: the pool's column of ids.
            id_type: their type.
            barred: rows of the pool that are never chosen, beside those that are labelled.
        """
        known: dict[Id, str] = dict.fromkeys(barred, "rejected")
        known |= {
            id_: LABELLED if state == LABELLED and use == TRAIN else "rejected"
            for id_, state, use in zip(self.ids, self.states, self.uses, strict=True)
            if use != OUTSIDE and (state != DELETED or id_ in known)
        }
        if not known:
            return None
        ids = sorted(known)
        return pa.table({id_name: pa.array(ids, id_type), STATE: pa.array([known[id_] for id_ in ids], pa.string())})

    def answered(self, batch: Sequence[Id]) -> int:
        """Count how many rows of a batch have an answer, whatever it is."""
        known = set(self.ids)
        return sum(id_ in known for id_ in batch)

    def counts(self, batch: Sequence[Id], asked: Collection[Id]) -> dict[str, int]:
        """Return rows by what became of them, and how many were labelled though nobody asked, or aren't the pool's."""
        given = set(asked) | set(batch)
        found: dict[str, int] = {}
        for state in self.states:
            found[state] = found.get(state, 0) + 1
        labelled = [(id_, use) for id_, use, state in zip(self.ids, self.uses, self.states, strict=True) if state == LABELLED]
        return found | {
            "never_asked": sum(id_ not in given and use in (TRAIN, CONTROL) for id_, use in labelled),
            "unknown_ids": sum(use == OUTSIDE for _, use in labelled),
            "evaluated": sum(use == EVALUATE for _, use in labelled),
        }


def counted(counts: Mapping[str, int]) -> list[str]:
    """Return sentences on labels that are of no use, or that nobody asked for."""
    found = []
    if counts.get("never_asked"):
        found.append(f"{_rows(counts['never_asked'])} labelled that nobody asked for; they are used all the same")
    if counts.get("unknown_ids"):
        found.append(f"{_rows(counts['unknown_ids'])} labelled whose ids the pool doesn't hold; their labels are left alone")
    if counts.get("evaluated"):
        found.append(f"{_rows(counts['evaluated'])} labelled that loop.evaluate holds, too; they are never trained on")
    return found


def _rows(count: int) -> str:
    return f"{number_of(count, 'row')} {'is' if count == 1 else 'are'}"


def _label(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(id_: Id) -> str | int:
    return id_.hex() if isinstance(id_, bytes) else id_


class Ledger:
    """See the module.

    Args:
        loop: what is asked.
        journal: its records.
        reporter: told how far it is.
        token: of the labelling tool's user, where the loop names a tool.

    Attributes:
        told: what is to be said of the batches that this process brought to the tool.
    """

    def __init__(self, loop: Loop, journal: Journal, reporter: Reporter, token: str | None = None) -> None:
        self.loop, self.journal, self.reporter, self._token = loop, journal, reporter, token
        self._batches: dict[int, pa.Table] = {}
        self._pages: dict[int, str] = {}
        self.told: list[str] = []

    # what doesn't change while this process lives

    @cached_property
    def pool(self) -> PoolRows:
        """The pool's rows."""
        self.reporter.stage("Reading the pool's footers")
        return PoolRows.of(self.loop, self.query)

    @cached_property
    def query(self) -> Query:
        """One of the loop's queries, for what does not depend on the round."""
        return self.loop.query_with(self.loop.trained_model())

    @cached_property
    def values(self) -> LabelValues:
        """What labels may be."""
        given = self.loop.model.get("classes")
        names = None if given is None else class_names(given)
        return LabelValues(self.loop.task, None if names is None else tuple(names), trainer_entry(self.loop.loop.trainer).numbered)

    @cached_property
    def oracle(self) -> Oracle | None:
        """The labelling tool by which people are asked; None where the loop names none."""
        return oracle_of(self.loop, self.journal.store, self.values.classes, self._token)

    @cached_property
    def evaluation(self) -> EvaluationRows | None:
        """The rows to judge by; None where the loop names none."""
        loop = self.loop
        if loop.loop.evaluate is None:
            return None
        if loop.loop.evaluate_uris:
            return evaluation.rows_in_files(loop, self.query, self.pool, self.values)
        ids = self.reserved("evaluate")
        assert loop.loop.column is not None
        places = self.pool.find(ids)
        raw = self.pool.columns([places[id_] for id_ in ids], [loop.loop.column]).column(0).to_pylist()
        return evaluation.rows_in_pool(self.pool, places, ids, [self.values.label_of(value) for value in raw], loop)

    # rows that are set apart

    def reserved(self, use: str) -> list[Id]:
        """Return rows that were set apart, in order: `control`, `sample` or `evaluate`."""
        return [id_ for rows in self._set_apart for id_ in getattr(rows, use)]

    def reserve(self) -> None:
        """Set rows apart before round 1, if they aren't yet."""
        if self._set_apart:
            return
        loop = self.loop
        self.reporter.stage("Setting rows apart")
        judged: list[Id] = []
        if isinstance(loop.loop.evaluate, float):
            assert loop.loop.column is not None
            judged = evaluation.drawn_share(self.pool, loop.loop.column, loop.loop.evaluate, loop.seed, self.values)
        elif loop.loop.evaluate_uris:
            judged = evaluation.ids_in_files(loop, self.pool)
        control, sample = self.pool.reserve(loop.seed, self._planned_controls(), judged)
        self._commit_reserved(Reserved(control, sample, judged))

    def next_controls(self, round_: int, count: int, labels: RoundLabels) -> tuple[list[Id], list[str]]:
        """Return the control rows of a round's batch, and what is said where those reserved are used up and further ones set apart."""
        if not count:
            return [], []
        told = []
        gone = {*self.asked_ids(round_), *labels.ids}
        left = [id_ for id_ in self.reserved("control") if id_ not in gone]
        if len(left) < count:
            barred = [*gone, *self.reserved("control"), *self.reserved("evaluate")]
            planned = self._planned_controls() - len(self.reserved("control"))
            further, _ = self.pool.reserve(self.loop.seed, max(count - len(left), planned), barred)
            if further:
                self._commit_reserved(Reserved(further, [], []))
                told.append(
                    f"{number_of(len(further), 'further control row')} reserved in round {round_}, by hash among rows never chosen: more "
                    "labels are asked for than were planned at the beginning"
                )
                left = [id_ for id_ in self.reserved("control") if id_ not in gone]
        return left[:count], told

    def controls_of(self, batch: int) -> int:
        """Count how many rows of a batch are control rows; one row at least is the strategy's own."""
        return min(controls_in(batch, self.loop.loop.control), batch - 1)

    def _planned_controls(self) -> int:
        return sum(map(self.controls_of, self.loop.planned_batches))

    def _commit_reserved(self, rows: Reserved) -> None:
        self.journal.commit_reserved(len(self._set_apart) + 1, rows, self.pool.id_type)
        del self._set_apart

    @cached_property
    def _set_apart(self) -> list[Reserved]:
        found: list[Reserved] = []
        while (rows := self.journal.reserved(len(found) + 1)) is not None:
            found.append(rows)
        return found

    # what was asked

    def last_asked(self) -> int:
        """Return the number of the last batch; 0 before the first."""
        number = 0
        while self.journal.asked(number + 1) is not None:
            number += 1
        return number

    def batch(self, asked: Asked) -> pa.Table:
        """Return the rows of a batch."""
        if asked.round not in self._batches:
            self._batches[asked.round] = self.journal.read_table(asked.round, asked.batch)
        return self._batches[asked.round]

    def ids_of(self, asked: Asked) -> list[Id]:
        """Return their ids, in order."""
        return list(self.batch(asked).column(self.pool.id_name).to_pylist())

    def asked_ids(self, before: int) -> list[Id]:
        """Return all rows that were asked for before a round."""
        found: list[Id] = []
        for number in range(1, before):
            asked = self.journal.asked(number)
            if asked is not None:
                found += self.ids_of(asked)
        return found

    # what people said

    def put_to_people(self, asked: Asked) -> str | None:
        """Have a batch labelled by the loop's tool, and return the page where that is done; None without a tool.

        Raises:
            PoolError: nothing is known of the rows, since no query of the loop chose any.
            ServerError: the tool's server refuses or stays away; the next call goes on.
        """
        if self.oracle is None or asked.round in self._pages:
            return self._pages.get(asked.round)
        result = find_batch(self.journal.store, query_of_round(self.loop.name, asked.round))
        if result is None:
            raise PoolError(
                f"batch {asked.round} of loop {self.loop.name} is of control rows alone, and no query before it chose a row; give the loop "
                "a larger pool, or a smaller loop.control"
            )
        self._pages[asked.round], notes = self.oracle.ask(result)
        self.told += notes
        return self._pages[asked.round]

    def labels_now(self) -> tuple[RoundLabels, Answers]:
        """Read all answers as they are now, and what came with them."""
        loop = self.loop
        if loop.loop.column is not None:
            answers = self._simulated(loop.loop.column)
        else:
            uris, table = [*loop.pool.labelled, *loop.loop.oracle_uris], None
            told: list[str] = []
            if self.oracle is not None:
                table, told = self.oracle.answers([query_of_round(loop.name, number) for number in range(1, self.last_asked() + 1)])
            answers = read_answers(uris, self.pool.id_name, self.pool.id_type, loop.label, self.values, loop.pool.options, table=table)
            answers = replace(answers, told=tuple(told))
        inside = self.pool.find(list(answers.by_id))
        return RoundLabels.of(answers, inside, self.reserved("control"), self.reserved("evaluate")), answers

    def close(self, round_: int, labels: RoundLabels, batch: Sequence[Id], answers: Answers) -> Closed:
        """Commit the labels of a round as they are."""
        counts = labels.counts(batch, self.asked_ids(round_)) | answers.counts
        name = self.journal.put_table(round_, "labels", labels.as_table(self.pool.id_type))
        return self.journal.commit_closed(Closed(round_, labels.digest, name, counts, [*counted(counts), *answers.warnings]))

    def labels_of(self, round_: int) -> RoundLabels | None:
        """Return all answers as they were when a round closed; None while it is open."""
        closed = self.journal.closed(round_)
        return None if closed is None else RoundLabels.from_table(self.journal.read_table(round_, closed.labels))

    def trained_before(self, round_: int) -> Trained | None:
        """Return the newest model before a round."""
        for number in range(round_ - 1, -1, -1):
            trained = self.journal.trained(number)
            if trained is not None and trained.model is not None:
                return trained
        return None

    def cost(self, labels: Sequence[Id]) -> float | None:
        """Sum what labels cost together, by the pool's column; None where the query has no cost."""
        if self.loop.select.cost is None:
            return None
        places = self.pool.find(labels)
        column = self.pool.columns([places[id_] for id_ in labels], [self.loop.select.cost.column]).column(0)
        return float(sum(value for value in column.to_pylist() if value is not None))

    def _simulated(self, column: str) -> Answers:
        """Return what the pool's own column says of the rows that were asked for; rows without a label are skipped."""
        asked = self.asked_ids(self.last_asked() + 1)
        places = self.pool.find(asked)
        raw = self.pool.columns([places[id_] for id_ in asked], [column]).column(0).to_pylist() if asked else []
        labels = [self.values.label_of(value) for value in raw]
        return Answers(
            {id_: Answer("skipped") if label is None else Answer(LABELLED, label) for id_, label in zip(asked, labels, strict=True)}
        )
