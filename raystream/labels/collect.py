"""What people did in a tool, as rows of the one table: ids found in their query, labels in its task's form, counted."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from raystream.errors import LabelsError, QueryError, did_you_mean
from raystream.labels.annotation import (
    DRAFT,
    FIELD,
    LABELLED,
    QUERY_FIELD,
    Annotation,
    Document,
    Id,
    IdColumn,
    as_text,
    is_nothing,
    label_of,
    read_documents,
)
from raystream.labels.batch import class_names_of, file_stem, ids_of, names_classes
from raystream.labels.consolidate import METHODS, Agreement, Method, agreement, consolidate
from raystream.labels.label_table import LabelRow, LabelTable, table_place, update_table
from raystream.labels.tools import TOOLS, Tool, looks_like
from raystream.lake import parse
from raystream.pool import refuse_among
from raystream.store.opening import refuse_in_store
from raystream.store.protocol import Store
from raystream.store.queries import find_query
from raystream.store.result import Result
from raystream.store.rounds import find_batch

Classes = Callable[[Result], Sequence[str] | None]
"""Gives what the file holds that a query's `model.classes` names; None where it names none."""
_SHOWN = 3
_NUMERAL = re.compile(r"[+-]?[0-9]{1,18}(?:\.[0-9]{1,18})?")


@dataclass(frozen=True)
class Collected:
    """What was read.

    Attributes:
        table: with all that was there before.
        out: where it was written.
        unknown_ids: ids that no query chose, in what was read now.
        conflicts: ids whose newest answers differ.
        notes: sentences for people.
        agreement: of several annotators.
    """

    table: LabelTable
    out: str
    unknown_ids: int
    conflicts: int
    notes: tuple[str, ...]
    agreement: Agreement | None

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {**self.table.counts(), "unknown_ids": self.unknown_ids, "conflicts": self.conflicts, "out": self.out}


class LabelQueries:
    """The committed queries and rounds of loops that labels belong to, each read once.

    Args:
        store: holds them.
        fallback: the query of labels that name none.
        classes: gives a query's class names.
    """

    def __init__(self, store: Store, fallback: str | None, classes: Classes) -> None:
        self._store, self._classes = store, classes
        self._known: dict[str, Result | None] = {}
        self.fallback: str | None = None
        if fallback is not None:
            self.fallback = fallback
            self.fallback = fallback if self.named(fallback) is not None else find_query(store, fallback)
        self._places: dict[str, dict[str, Id]] = {}
        self._ranks: dict[str, dict[str, int]] = {}
        self._looks: dict[str, dict[str, str]] = {}
        self._names: dict[str, tuple[str, ...] | None] = {}

    def named(self, name: str | None) -> Result | None:
        """Return the query of a name, else the fallback; None if the store has none of that name."""
        wanted = name or self.fallback
        if wanted is None:
            return None
        if wanted not in self._known:
            self._known[wanted] = find_batch(self._store, wanted) if may_be_a_name(wanted) else None
        found = self._known[wanted]
        return self.named(None) if found is None and name is not None and self.fallback not in (None, name) else found

    def classes(self, result: Result) -> tuple[str, ...] | None:
        """Return what a query's classes are called; None where they are numbers."""
        if result.query not in self._names:
            self._names[result.query] = class_names_of(result, self._classes(result))
        return self._names[result.query]

    def rank(self, result: Result, text: str) -> int | None:
        """Return the rank of a row in its query; None where the query didn't choose it."""
        if result.query not in self._ranks:
            ids = ids_of(result)
            column = result.selection.column(ids.name)
            self._ranks[result.query] = dict(zip(ids.texts(column), result.selection.column("rank").to_pylist(), strict=True))
        return self._ranks[result.query].get(text)

    def alike(self, result: Result, text: str) -> str | None:
        """Return the id of a row that the query chose which is written nearly as this text; None where it chose none."""
        self.rank(result, text)
        if result.query not in self._looks:
            self._looks[result.query] = {_look(known): known for known in self._ranks[result.query]}
        return self._looks[result.query].get(_look(text))

    def by_file(self, name: str) -> tuple[Result, str] | None:
        """Return the query and the id of the row whose picture has this name: a file beside an export, or the end of a kept link."""
        stem = name.rpartition("/")[2].rpartition(".")[0]
        query = stem.rpartition(".")[0].rpartition(".")[0]
        names = [query] if query and query in self._store.names("queries") else []
        for result in map(self.named, [*names, *([None] if self.fallback is not None else [])]):
            if result is not None and (id_ := self._by_name(result).get(stem, self._by_name(result).get(name))) is not None:
                return result, as_text(id_)
        return None

    def _by_name(self, result: Result) -> dict[str, Id]:
        if result.query not in self._places:
            ids, table = ids_of(result), result.selection
            keys = ids.values(table.column(ids.name))
            named: dict[str, set[Id]] = {}
            for kept in result.manifest.resolved["pool"].get("keep") or []:
                for value, id_ in zip(table.column(kept).to_pylist(), keys, strict=True):
                    if isinstance(value, str):
                        path = value.partition("?")[0].partition("://")[2] or value
                        for end in (path, path.partition("/")[2], path.rpartition("/")[2]):
                            named.setdefault(end, set()).add(id_)
            # A name that two rows share is neither's: better no label than a wrong one.
            names = {end: ids_.pop() for end, ids_ in named.items() if len(ids_) == 1}
            self._places[result.query] = names | {file_stem(result.query, rank, as_text(id_)): id_ for rank, id_ in enumerate(keys)}
        return self._places[result.query]


def may_be_a_name(text: str) -> bool:
    """Tell whether a store may be asked for it."""
    return "/" not in text and "\\" not in text and text not in ("", ".", "..") and "\x00" not in text and len(text) < 200


def collect_labels(
    source: str, tool: str, out: str, store: Store, *, query: str | None = None, method: Method = "none", classes: Classes = lambda _: None
) -> Collected:
    """Read what a tool exported into the table of labels at `out`, merged with what is there.

    Args:
        source: a file, or a folder of them.
        tool: that wrote it.
        out: a Parquet file, or a folder, which gets `labels.parquet`.
        store: holds the queries.
        query: to which labels belong that name none.
        method: of consolidation.
        classes: gives a query's class names.

    Raises:
        QueryError: an argument is wrong.
        LabelsError: the source can't be read, or is of another tool.
    """
    if tool not in TOOLS:
        raise QueryError(f"--from {tool} is no tool that raystream reads{did_you_mean(tool, TOOLS)}")
    everything = read_documents(source)
    documents = _of_tool(everything, TOOLS[tool])
    queries = LabelQueries(store, query, classes)

    def annotations(id_names: set[str]) -> Iterable[Annotation]:
        for document in documents:
            yield from TOOLS[tool].read(_with_field(document, id_names))

    asked = queries.named(None)
    found = list(annotations(set() if asked is None else {ids_of(asked).name}))
    if not found and asked is None:
        queries.fallback = next((name for name in _queries_in(documents) if queries.named(name) is not None), None)
    collected = collect(found, tool, out, store, queries, method)
    others = [document for document in everything if document not in documents]
    if not others:
        return collected
    are = "1 file is no export" if len(others) == 1 else f"{len(others):,} files are no exports"
    note = f"{are} of {TOOLS[tool].title}, and left alone, first: {others[0].name}"
    return replace(collected, notes=(*collected.notes, note))


def _queries_in(documents: Sequence[Document]) -> Iterator[str]:
    """Return the queries that rows name, labelled or not."""
    for document in documents:
        for record in document.records:
            for part in (record, record.get("data"), record.get("metadata")):
                if isinstance(part, Mapping) and isinstance(part.get(QUERY_FIELD), str):
                    yield part[QUERY_FIELD]


def _of_tool(documents: Sequence[Document], tool: Tool) -> list[Document]:
    """Return the documents that the tool wrote; in a folder, configuration and the like may stand beside."""
    own = [document for document in documents if document.content == [] or tool.recognises(document)]
    if own:
        return own
    first = documents[0] if documents else None
    if first is None:
        raise LabelsError(f"the archive holds no file of {tool.title}'s; name its export")
    other = looks_like(first, TOOLS.values())
    advice = tool.expected or "see docs/labels.md for what to export"
    if other is not None:
        advice = f"it looks like one of {other.title}, so try --from {other.name}"
    raise LabelsError(f"{first.name} is no export of {tool.title}: {advice}")


def _with_field(document: Document, id_names: set[str]) -> Document:
    """Give records that have the id under the pool's own name the same under ours."""
    name = next(iter(id_names), FIELD)
    if FIELD in document.first or name not in document.first:
        return document
    records = [
        record | {FIELD: as_text(value) if isinstance(value := record.get(name), bytes | int) else value} for record in document.records
    ]
    return replace(document, content=records)


def collect(
    annotations: Sequence[Annotation], tool: str, out: str, store: Store, queries: LabelQueries, method: Method = "none",
    more: Callable[[LabelTable], Iterable[LabelRow]] = lambda _: (),
) -> Collected:  # fmt: skip
    """Merge annotations into the table at `out`.

    Args:
        annotations: of one tool.
        tool: its name.
        out: as for `collect_labels`.
        store: holds the queries.
        queries: to which the annotations belong.
        method: of consolidation.
        more: given the table that is there, further rows of it, such as those that are gone from the tool.

    Raises:
        QueryError: the annotations' queries can't be found, or differ in what ids or labels are.
    """
    if method not in METHODS:
        raise QueryError(f"--consolidate {method} is no method{did_you_mean(method, METHODS)}")
    place = table_place(out)
    refuse_in_store(place, store.uri, "--out")
    read = rows_of(annotations, tool, queries)
    uris = read.first.manifest.resolved["pool"]["uri"]
    refuse_among(place, {"pool.uri": [uris] if isinstance(uris, str) else uris}, "--out")

    def change(before: LabelTable) -> LabelTable:
        named = replace(before, named=names_classes(read.first))
        return consolidate(named.merged([*read.rows, *more(before)]), method)

    table = update_table(place, ids_of(read.first), read.first.manifest.resolved["model"]["task"], change)
    conflicts = table.conflicts() if method == "none" else _undecided(table)
    notes = read.notes
    if not annotations:
        notes.append("nobody has labelled anything there yet")
    if conflicts:
        named = ", ".join(as_text(id_) for id_ in conflicts[:_SHOWN])
        were = "1 row has" if len(conflicts) == 1 else f"{len(conflicts):,} rows have"
        undated = method == "none" and any(row.id == conflicts[0] and row.labelled_at is None for row in table.rows)
        how = "a newer one settles them" + (", by a column labelled_at" if undated else "")
        notes.append(f"{were} different answers of one time, first: {named}; {how}")
    return Collected(table, parse(place, "--out").uri, len(read.unknown), len(conflicts), tuple(notes), agreement(table))


def _undecided(table: LabelTable) -> list[Id]:
    """List ids that were labelled, but as several classes alike."""
    said = {row.id for row in table.rows if row.state == LABELLED and row.label is not None}
    return [row.id for row in table.voted if row.state == DRAFT and row.id in said]


@dataclass(frozen=True)
class Answered:
    """What people said in a tool, for the loop that asks there.

    Attributes:
        rows: of the table of labels, those whose task is gone included.
        notes: sentences for people.
        others: annotations of other pools' rows, which are left alone.
    """

    rows: list[LabelRow]
    notes: list[str]
    others: int


@dataclass
class ReadAnnotations:
    """Annotations as rows of the table of labels, and what is to be said of those that fit none.

    Attributes:
        first: a query that they belong to, by which it is known what ids and labels are.
        rows: of the table.
        unknown: ids that no query chose, with the chosen one that is written nearly so, if any.
        impossible: how many of these annotations are left out, since no id of the pool's type is written so.
        foreign: how many stand in rows that no export wrote.
        strange: labels that are no class of the model's, with the class that is written nearly so, if any.
        unlabelled: how many were submitted without a label.
        no_numbers: labels that are no numbers, where numbers are asked for.
    """

    first: Result
    rows: list[LabelRow] = field(default_factory=list)
    unknown: dict[str, str | None] = field(default_factory=dict)
    impossible: int = 0
    foreign: int = 0
    strange: list[tuple[str, str | None]] = field(default_factory=list)
    unlabelled: int = 0
    no_numbers: list[str] = field(default_factory=list)

    def add(self, each: Annotation, owner: Result, tool: str, queries: LabelQueries) -> None:
        """Add an annotation of a query's row."""
        if each.id is None:
            self.foreign += 1
            return
        ids, task = ids_of(self.first), self.first.manifest.resolved["model"]["task"]
        _alike(owner, self.first, ids, task)
        id_ = ids.parse(each.id)
        rank = None if id_ is None else queries.rank(owner, as_text(id_))
        if rank is None:
            self.unknown[each.id] = queries.alike(owner, each.id)
        if id_ is None:
            self.impossible += 1
            return
        label, classes = label_of(each.raw, task) if each.state in (LABELLED, DRAFT) else None, queries.classes(owner)
        state = each.state
        if state == LABELLED and label is None:
            state = DRAFT
            if is_nothing(each.raw) or each.raw in ([], ()):
                self.unlabelled += 1
            else:
                self.no_numbers.append(str(each.raw))
        if task in ("classes", "multi_label") and label is not None:
            said = dict.fromkeys(_by_value(one, classes) for one in (label if isinstance(label, tuple) else (str(label),)))
            label = tuple(said) if isinstance(label, tuple) else next(iter(said))
            self.strange += _strange(said, classes) if state == LABELLED else []
        query = each.query or (owner.query if rank is not None else None)
        rank = each.rank if rank is None else rank
        self.rows.append(LabelRow(id_, label, state, each.annotator, each.labelled_at, tool, each.tool_id, query, rank))

    @property
    def notes(self) -> list[str]:
        """Sentences for people."""
        notes = []
        if self.foreign:
            what = "1 label stands in a row" if self.foreign == 1 else f"{self.foreign:,} labels stand in rows"
            notes.append(f"{what} without {FIELD}, which no export wrote: left out")
        if self.unknown:
            what = "1 id is" if len(self.unknown) == 1 else f"{len(self.unknown):,} ids are"
            plain = ids_of(self.first).plain
            lost = f"{self.impossible:,} of these labels can't be ids of {plain}, and are left out" if self.impossible else "they are kept"
            notes.append(f"{what} none that the query chose, first: {_with_alike(self.unknown.items())}; {lost}")
        if self.strange:
            what = "1 label is" if len(self.strange) == 1 else f"{len(self.strange):,} labels are"
            notes.append(f"{what} no class of the model's, first: {_with_alike(self.strange)}; they are kept")
        return [*notes, *self.of_unlabelled]

    @property
    def of_unlabelled(self) -> list[str]:
        """Sentences on annotations that were submitted, and have no label."""
        notes = []
        if self.unlabelled:
            what = "1 annotation was" if self.unlabelled == 1 else f"{self.unlabelled:,} annotations were"
            notes.append(f"{what} submitted without a label and count as drafts")
        if self.no_numbers:
            what = "1 label is no number" if len(self.no_numbers) == 1 else f"{len(self.no_numbers):,} labels are no numbers"
            notes.append(f"{what}, first: {self.no_numbers[0]!r}; they count as drafts: write them as 1.5")
        return notes


def rows_of(annotations: Sequence[Annotation], tool: str, queries: LabelQueries) -> ReadAnnotations:
    """Make rows of annotations.

    Raises:
        QueryError: their queries can't be found, or differ in what ids or labels are.
    """
    found = [_with_query(each, tool, queries) for each in annotations]
    first = next((result for each, result in found if result is not None and each.id is not None), queries.named(None))
    if first is None:
        if not annotations:
            raise QueryError("there are no labels yet, and none that would name their query; give --query for an empty table")
        names = sorted({each.query for each in annotations if each.query})
        what = f"name query {names[0]}, which the store doesn't have" if names else "name no query"
        raise QueryError(f"the labels {what}; give --query, and --store if it is another one")
    read = ReadAnnotations(first)
    for each, result in found:
        read.add(each, result or first, tool, queries)
    return read


def _with_query(each: Annotation, tool: str, queries: LabelQueries) -> tuple[Annotation, Result | None]:
    """Find the query of an annotation, and where a tool knows rows by their pictures alone the id of its row."""
    if each.query is None and each.id is not None and tool == "cvat":
        named = queries.by_file(each.id)
        if named is not None:
            return replace(each, id=named[1]), named[0]
    return each, queries.named(each.query)


def _strange(said: Iterable[str], classes: Sequence[str] | None) -> list[tuple[str, str | None]]:
    """Return what of a label is no class, with the class that it may stand for."""
    if classes is None:
        return [(each, None) for each in said if not (each.isascii() and each.isdecimal())]
    return [(each, next((name for name in classes if _look(name) == _look(each)), None)) for each in said if each not in classes]


def _look(text: str) -> str:
    """Return what is left of a text without that in which programs write it otherwise: spaces, case, forms of Unicode, leading zeros."""
    return unicodedata.normalize("NFKC", text).strip().casefold().lstrip("0")


def _with_alike(found: Iterable[tuple[str, str | None]]) -> str:
    """Name the first text, with what it is nearly written as; one that has that before others."""
    text, alike = min(found, key=lambda pair: pair[1] is None)
    return repr(text) + ("" if alike is None else f", which isn't {alike!r}")


def _by_value(label: str, classes: Sequence[str] | None) -> str:
    """Return the numeral that a class is called by for one of the same value: programs write 1.0 or 01 for 1."""
    if (classes is not None and label in classes) or not _NUMERAL.fullmatch(label):
        return label
    value = Decimal(label)
    if classes is None:
        return str(int(value)) if value == int(value) and value >= 0 else label
    same = [name for name in classes if _NUMERAL.fullmatch(name) and Decimal(name) == value]
    return same[0] if len(same) == 1 else label


def _alike(one: Result, other: Result, ids: IdColumn, task: str) -> None:
    """Refuse labels of queries that no one table can hold."""
    here = ids_of(one)
    if (here.name, here.plain, one.manifest.resolved["model"]["task"]) != (ids.name, ids.plain, task):
        raise QueryError(
            f"the labels belong to queries {other.query} and {one.query}, whose ids or model.task differ; read each into a table of its own"
        )


def utc_now() -> datetime:
    """Tell the time, to the second: when something was found to be gone."""
    return datetime.now(UTC).replace(microsecond=0)
