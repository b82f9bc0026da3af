"""Label Studio by its API: push a batch, pull what people did. Nothing is there twice in spite of lost replies, restarts, two at once.

A row's task is known by `raystream_id` and `raystream_query` in its data. Push lists what is there, creates what is missing, and lists
again until every row is there; a task that is there twice, because a reply was lost or another push ran at the same time, loses the later
copy, unless somebody has begun to work on it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from raystream.errors import QueryError, StoreError
from raystream.labels.annotation import DELETED, DRAFT, FIELD, QUERY_FIELD, RANK_FIELD, SCORE_FIELD, Annotation, as_text
from raystream.labels.batch import Batch, ids_of
from raystream.labels.collect import Answered, Collected, LabelQueries, collect, may_be_a_name, rows_of, utc_now
from raystream.labels.consolidate import Method
from raystream.labels.label_table import LabelRow, LabelTable, gone
from raystream.labels.server import LostReplyError, Server, ServerError, Token
from raystream.labels.tools.label_studio import CONTROL, PREDICTED_BY, label_config, of_task, tasks
from raystream.labels.tools.tool import closed_links, needs_shown, no_classes, no_prediction
from raystream.lake.retry import BRIEF, Patience
from raystream.store.protocol import Store
from raystream.store.result import Result
from raystream.store.rounds import batch_folder

_PROJECT = re.compile(r"^(?P<root>.*?)/projects/(?P<number>\d+)(?:/.*)?$")
_PAGE = 100
_CHUNK_ROWS, _CHUNK_BYTES = 250, 8 << 20
"""Of one import: the server takes 250 MB, but answers late for many rows."""
_LOST = 8
"""Lost replies in a row without anything new in the project after which a push gives up."""
_ROUNDS, _LISTINGS = 1000, 3
_SETTLING = 2.0
"""Seconds in which a write whose reply was lost may still be carried out once all seems to be there."""
_TOOL, _TITLE = "label_studio", "Label Studio"
_TASK = "task"
"""Stands for the tool's name of an annotation in rows whose task was removed before anybody had said anything."""
Key = tuple[str, str]
"""A row's query and id."""


@dataclass(frozen=True)
class Pushed:
    """What a push left.

    Attributes:
        query: the batch's.
        project: its number; of CVAT, the task's.
        url: its page.
        rows: of the batch that are there.
        created: by this push.
        removed: copies that lost replies or other pushes had made.
        notes: sentences for people.
    """

    query: str
    project: int
    url: str
    rows: int
    created: int
    removed: int
    notes: tuple[str, ...]
    tool: str = _TOOL

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"query": self.query, "tool": self.tool, "rows": self.rows, "project": self.project, "url": self.url,
                "created": self.created, "removed": self.removed, "notes": list(self.notes)}  # fmt: skip


class LabelStudio:
    """One server, and a project of it or none yet.

    Args:
        url: the server's, or a project's page.
        token: of its user: a personal access token, or a legacy one.
        project: its number, where the URL doesn't have it.
        patience: with outages.
    """

    def __init__(self, url: str, token: Token, project: int | None = None, patience: Patience = BRIEF) -> None:
        match = _PROJECT.match(url)
        if match is not None and not urlsplit(url).query:
            url, project = match["root"], int(match["number"]) if project is None else project
        self.server = Server(url, token, patience)
        self._patience = patience
        self.project = project

    def push(self, batch: Batch, store: Store) -> Pushed:
        """See that every row of a batch has its task, once. Tasks that people removed after a push are not made again.

        Args:
            batch: to be labelled.
            store: holds its query, and remembers what was pushed.

        Raises:
            QueryError: there is nothing to show.
            ServerError: the server refuses, stays away, or its project is labelled otherwise.
        """
        needs_shown(batch, _TITLE)
        found = self._project_for(batch)
        project, shown = int(found["id"]), self._shown_by(found, batch)
        wanted = {(batch.query, item.id): task for item, task in zip(batch.items, tasks(batch, inline=True, to=shown), strict=True)}
        there = self._tasks_of(project, wanted)
        self._same_rows(found, wanted, there, str(batch.kind))
        known, before = len(there), self._pushed(batch.query, project, store)
        new = {key: task for key, task in wanted.items() if key[1] not in before}
        if any(key not in there for key in new):
            there |= self._create(project, new, there)
        removed, kept = self._remove_copies(there)
        notes = [*no_classes(batch), *no_prediction(batch, _TITLE), *closed_links(batch, _TITLE), *_hidden(found, wanted.values())]
        if kept:
            notes.append(f"{kept:,} rows have two tasks on which somebody has begun to work; both stay, and both are read")
        if len(there) < len(wanted):
            notes.append(f"{len(wanted) - len(there):,} tasks were removed from the project since they were pushed, and stay so")
        ids = sorted(before.union(key[1] for key in wanted))
        facts = {"tool": _TOOL, "url": self.server.url, "project": project, "ids": ids}
        store.put(self._record(batch.query, project, store), json.dumps(facts).encode())
        url = self._page(project)
        return Pushed(batch.query, project, url, len(there), len(there) - known, removed, tuple(notes))

    def _create(
        self, project: int, wanted: Mapping[Key, Mapping[str, Any]], there: Mapping[Key, list[Mapping[str, Any]]]
    ) -> Mapping[Key, list[Mapping[str, Any]]]:
        """Create what is missing, and look, until all is there."""
        lost, unsure, before = 0, False, len(wanted) + 1
        for _ in range(_ROUNDS):
            missing = [task for key, task in wanted.items() if key not in there]
            if not missing and not unsure:
                return there
            lost, before = (0 if len(missing) < before else lost + 1), len(missing)
            if lost > _LOST:
                raise ServerError(
                    f"{self.server.url}: {len(missing):,} of {len(wanted):,} tasks could not be created in project {project}, though the "
                    "server took them; look at its log, and push again: what is there stays"
                )
            if unsure and not missing:
                self._patience.gives_up_after(_SETTLING)
            unsure = False
            for chunk in _chunks(missing):
                try:
                    self.server.write("POST", f"/api/projects/{project}/import?return_task_ids=true", chunk)
                except LostReplyError:
                    # It may be there, or still be coming: look after a while, and once more when all seems to be there.
                    unsure = True
                    self._patience.gives_up_after(min(0.1 * 2.0**lost, 30.0))
                    break
            there = self._tasks_of(project, wanted)
        raise ServerError(f"{self.server.url}: the tasks of project {project} don't settle; push again when it is quiet")

    def pull(self, out: str, store: Store, queries: LabelQueries, method: Method = "none") -> Collected:
        """Read what people did in the project into the table of labels at `out`.

        Annotations that are in the table and no longer in the project are deleted, rows of a pushed batch whose task is gone, too.

        Raises:
            ServerError: the server refuses or stays away.
            LabelsError: no task of the project is of a query of the store.
        """
        listing = self._list(store, store.names("queries"))
        named = {query for query in listing.queries if queries.named(query) is not None}
        if not listing.annotations and queries.fallback is None and named:
            queries.fallback = min(named)
        when = utc_now()

        def removed(table: LabelTable) -> list[LabelRow]:
            lost = self._gone(table, listing.annotations, named, when)
            return lost + _without_task(listing, [*lost, *table.rows], queries, when)

        return collect(listing.annotations, _TOOL, out, store, queries, method, removed)

    def answers(self, store: Store, queries: LabelQueries, asked: Sequence[str], accepts: Callable[[Result], bool]) -> Answered:
        """Read what people did in the project so far, for the loop that asks there.

        Args:
            store: holds the loop's queries.
            queries: gives them.
            asked: the names of the loop's rounds.
            accepts: whether rows of another query of the store are rows of the loop's pool.

        Raises:
            ServerError: the server refuses or stays away.
        """
        listing = self._list(store, asked)
        own = {query for query in listing.queries if query in asked or ((known := queries.named(query)) is not None and accepts(known))}
        taken = [each for each in listing.annotations if each.query in own]
        read = rows_of(taken, _TOOL, queries) if taken else None
        gone_ = _without_task(listing.only(own), (), queries, utc_now())
        return Answered([*(read.rows if read else ()), *gone_], read.of_unlabelled if read else [], len(listing.annotations) - len(taken))

    def page_of(self, query: str, ids: Collection[str], store: Store) -> str | None:
        """Return the project's page if these rows are known to have been pushed there, whatever became of their tasks."""
        project = self._given_project()
        return self._page(project) if self._pushed(query, project, store).issuperset(ids) else None

    def check(self) -> None:
        """See that the server takes the token and has the project.

        Raises:
            ServerError: it doesn't.
        """
        self.server.read(f"/api/projects/{self._given_project()}/", "id")

    def _page(self, project: int) -> str:
        return f"{self.server.url}/projects/{project}"

    def _list(self, store: Store, queries: Iterable[str]) -> _ProjectListing:
        """List the project's tasks, and what was pushed there of these queries and those that tasks are of."""
        project = self._given_project()
        listed = self.tasks(project)
        keys = {key for task in listed if (key := _key(task)) is not None}
        names = {*queries, *(query for query, _ in keys if query)}
        pushed = {query: ids for query in names if (ids := self._pushed(query, project, store))}
        with self.server.understood():
            return _ProjectListing([each for task in listed for each in of_task(task)], keys, pushed)

    def tasks(self, project: int) -> list[Mapping[str, Any]]:
        """Return the tasks of a project with all that is in them.

        They come by pages; where tasks were removed meanwhile, others move to pages that were seen, so that all are listed again.
        """
        for _ in range(_LISTINGS):
            found: dict[int, Mapping[str, Any]] = {}
            page, totals = 1, set()
            while True:
                reply = self.server.read("/api/tasks", "tasks", project=project, page=page, page_size=_PAGE, fields="all")
                listed = reply["tasks"]
                totals.add(int(reply["total"]))
                found |= {int(task["id"]): task for task in listed}
                if len(listed) < _PAGE or page * _PAGE >= max(totals):
                    break
                page += 1
            if totals == {len(found)}:
                break
        return list(found.values())

    def _given_project(self) -> int:
        if self.project is None:
            raise QueryError(f"--pull {self.server.url} names no project; give the URL of its page, such as {self.server.url}/projects/7")
        return self.project

    def _project_for(self, batch: Batch) -> Mapping[str, Any]:
        """Find the project to push to: the given one, else that of the query's name, made if need be."""
        config = label_config(batch)
        if self.project is not None:
            return dict(self.server.read(f"/api/projects/{self.project}/", "id"))
        title = f"raystream {batch.query}"[:50]
        for _ in range(_LOST):
            found = min(self._projects(title), key=lambda project: int(project["id"]), default=None)
            if found is not None:
                return found
            try:
                self.server.write("POST", "/api/projects/", {"title": title, "label_config": config})
            except LostReplyError:
                self._patience.gives_up_after(0.1)
        raise ServerError(f"{self.server.url}: project {title!r} could not be created, though the server took it; look at its log")

    def _projects(self, title: str) -> Iterator[Mapping[str, Any]]:
        page = 1
        while True:
            found = self.server.read("/api/projects/", page=page, page_size=_PAGE)
            listed = found.get("results", []) if isinstance(found, Mapping) else found
            yield from (project for project in listed if project.get("title") == title)
            if not isinstance(found, Mapping) or not found.get("next"):
                return
            page += 1

    def _shown_by(self, project: Mapping[str, Any], batch: Batch) -> str:
        """Say what a project's interface calls what it shows; refuse one that is labelled otherwise than the batch needs.

        Raises:
            ServerError: it has no control `label` for what is shown, or lacks classes.
        """
        where = self._named(project)
        try:
            root = ElementTree.fromstring(str(project.get("label_config") or "<View/>"))
        except ElementTree.ParseError:
            raise ServerError(f"the labelling interface of {where} is no XML; correct it, or {self._elsewhere}") from None
        control = next((element for element in root.iter() if element.get("name") == CONTROL), None)
        shown = next((element for element in root.iter() if element.get("value") == f"${batch.kind}"), None)
        if control is None or shown is None:
            raise ServerError(
                f"the labelling interface of {where} is another one: expected a control named {CONTROL} and something that shows "
                f"${batch.kind}; {self._elsewhere}, or copy what raystream export --out writes as label_config.xml"
            )
        offered = {element.get("value") for element in control.iter()}
        lacking = [name for name in batch.classes if name not in offered] if batch.task in ("classes", "multi_label") else []
        if lacking:
            raise ServerError(
                f"the labelling interface of {where} lacks {len(lacking)} of the query's {len(batch.classes)} classes, first: "
                f"{lacking[0]!r}; add them there, or {self._elsewhere}"
            )
        return shown.get("name") or str(batch.kind)

    def _same_rows(
        self, project: Mapping[str, Any], wanted: Mapping[Key, Mapping[str, Any]], there: Mapping[Key, list[Mapping[str, Any]]], kind: str
    ) -> None:
        """See that tasks show the rows that they are said to be of: another store may have a query of this name, over other rows.

        Raises:
            ServerError: one shows something else.
        """

        def shown(task: Mapping[str, Any]) -> str:
            whole = str(task["data"].get(kind, ""))
            return whole if kind == "text" else whole.partition("?")[0]  # a link's signature differs from push to push

        def differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
            # Of one query, a row keeps its rank and score, though another column of it may be shown now.
            here, there = one["data"], other["data"]
            return shown(one) != shown(other) and any(here.get(name) != there.get(name) for name in (RANK_FIELD, SCORE_FIELD))

        other = [key for key, found in there.items() if differ(found[0], wanted[key])]
        if other:
            query, id_ = other[0]
            are = "1 row of which shows" if len(other) == 1 else f"{len(other):,} rows of which show"
            raise ServerError(
                f"{self._named(project)} holds tasks of another query named {query}, {are} something else than this one's, first: {id_}; "
                f"{self._elsewhere}"
            )

    def _named(self, project: Mapping[str, Any]) -> str:
        return f"{self._page(int(project['id']))} ({project.get('title', 'untitled')})"

    @property
    def _elsewhere(self) -> str:
        return "push without a project" if self.project is not None else "push to a project of your own, by the URL of its page"

    def _tasks_of(self, project: int, wanted: Mapping[Key, Any]) -> dict[Key, list[Mapping[str, Any]]]:
        """Return the tasks of wanted rows that are there, oldest first."""
        there: dict[Key, list[Mapping[str, Any]]] = {}
        for task in self.tasks(project):
            key = _key(task)
            if key is not None and key in wanted:
                there.setdefault(key, []).append(task)
        return {key: sorted(found, key=lambda task: int(task["id"])) for key, found in there.items()}

    def _remove_copies(self, there: Mapping[Key, Sequence[Mapping[str, Any]]]) -> tuple[int, int]:
        """Remove all but one task of each row; how many were removed, and how many rows keep several, since people work on them."""
        removed = kept = 0
        for found in there.values():
            touched = [task for task in found if _is_touched(task)]
            keep = touched or found[:1]
            kept += len(keep) > 1
            for task in found:
                if all(task["id"] != each["id"] for each in keep):
                    removed += self._remove(task)
        return removed, kept

    def _remove(self, task: Mapping[str, Any]) -> int:
        """Remove a task unless it is gone by now; whether it was."""
        try:
            # Somebody may have begun to work on it since it was listed.
            if _is_touched(self.server.read(f"/api/tasks/{task['id']}/")):
                return 0
            self.server.write("DELETE", f"/api/tasks/{task['id']}/")
        except LostReplyError:
            return self._remove(task)
        except ServerError as error:
            if " 404" in str(error):
                return 0
            raise
        return 1

    def _gone(self, table: LabelTable, annotations: Sequence[Annotation], queries: set[str], when: Any) -> list[LabelRow]:
        """Return rows of the table whose annotation is in the project no more."""
        here = {each.tool_id for each in annotations}
        submitted = {(each.id, each.annotator) for each in annotations if each.state != DRAFT}
        lost = [
            row
            for row in table.rows
            if row.tool == _TOOL
            and row.query in queries
            and row.tool_id not in ("", _TASK)
            and row.tool_id not in here
            and not (row.state == DRAFT and (as_text(row.id), row.annotator) in submitted)
        ]
        return gone([row for row in lost if self._is_gone(row)], when)

    def _record(self, query: str, project: int, store: Store) -> str:
        """Name the file of the store that holds what of a batch was pushed to a project."""
        place = hashlib.sha256(f"{self.server.url} {project}".encode()).hexdigest()[:16]
        return f"{batch_folder(store, query)}/pushed-{place}.json"

    def _pushed(self, query: str, project: int, store: Store) -> frozenset[str]:
        """Read which rows of a batch were pushed to a project, all of them each time."""
        if not may_be_a_name(query):
            return frozenset()
        name = self._record(query, project, store)
        data = store.read_if_there(name)
        try:
            return frozenset() if data is None else frozenset(json.loads(data)["ids"])
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"store: {store.place(name)} is damaged; remove it, and push again") from None

    def _is_gone(self, row: LabelRow) -> bool:
        """Tell whether an annotation is nowhere on the server: it may be of another project."""
        kind, number = ("drafts", row.tool_id.partition(" ")[2]) if row.tool_id.startswith("draft ") else ("annotations", row.tool_id)
        try:
            found = self.server.read(f"/api/{kind}/{number}/")
        except ServerError as error:
            if " 404" in str(error):
                return True
            raise
        return not isinstance(found, Mapping)


@dataclass(frozen=True)
class _ProjectListing:
    """What a project holds.

    Attributes:
        annotations: what people did.
        keys: the rows that have tasks.
        pushed: the ids that were pushed, by query.
    """

    annotations: list[Annotation]
    keys: set[Key]
    pushed: Mapping[str, frozenset[str]]

    @property
    def queries(self) -> set[str]:
        """The queries that tasks are of, or that were pushed."""
        return {query for query, _ in self.keys if may_be_a_name(query)} | set(self.pushed)

    def only(self, queries: Collection[str]) -> _ProjectListing:
        """Leave out what was pushed of other queries."""
        return _ProjectListing(self.annotations, self.keys, {query: ids for query, ids in self.pushed.items() if query in queries})


def _without_task(listing: _ProjectListing, said: Iterable[LabelRow], queries: LabelQueries, when: datetime) -> list[LabelRow]:
    """Make rows of those whose task was pushed and is in the project no more, unless their annotations say so already."""
    known = {as_text(row.id) for row in said if row.tool == _TOOL and row.state == DELETED}
    found = []
    for query, pushed in sorted(listing.pushed.items()):
        if (result := queries.named(query)) is None:
            continue
        for text in sorted(pushed):
            id_ = ids_of(result).parse(text)
            if id_ is not None and (query, text) not in listing.keys and text not in known:
                found.append(LabelRow(id_, None, DELETED, None, when, _TOOL, _TASK, query, queries.rank(result, text)))
    return found


def _hidden(project: Mapping[str, Any], pushed: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what is to be said where a project doesn't show the predictions that were pushed."""
    chosen = project.get("model_version") or PREDICTED_BY
    if not any("predictions" in task for task in pushed) or (project.get("show_collab_predictions", True) and chosen == PREDICTED_BY):
        return []
    return [
        f"project {project.get('id')} doesn't show the predictions that were pushed: choose {PREDICTED_BY} on its page, under Settings, "
        "Annotation, Prelabeling"
    ]


def _key(task: Mapping[str, Any]) -> Key | None:
    data = task.get("data") or {}
    if FIELD not in data:
        return None
    return str(data.get(QUERY_FIELD, "")), str(data[FIELD])


def _is_touched(task: Mapping[str, Any]) -> bool:
    """Tell whether somebody has begun to work on a task."""
    counts = ("total_annotations", "cancelled_annotations")
    return any(task.get(name) for name in ("annotations", "drafts")) or any(int(task.get(name) or 0) for name in counts)


def _chunks(found: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Cut tasks into pieces that a server imports in a few seconds."""
    chunk: list[Mapping[str, Any]] = []
    size = 0
    for task in found:
        weight = sum(len(value) for value in task["data"].values() if isinstance(value, str))
        if chunk and (len(chunk) == _CHUNK_ROWS or size + weight > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(task)
        size += weight
    if chunk:
        yield chunk
