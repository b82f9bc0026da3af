"""CVAT by its API: a task with the batch's pictures in the order of their rank, and what people did in it.

A query has one task, known by its name. A frame without labels means nothing in an open job; in a completed one, a person saw nothing worth
a label, so that it is skipped, or, where labels are shapes, labelled with none.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from raystream.errors import QueryError
from raystream.labels.annotation import DELETED, DRAFT, LABELLED, REJECTED, SKIPPED, Annotation, text_or_none, time_of
from raystream.labels.batch import Batch
from raystream.labels.collect import Answered, Collected, LabelQueries, collect, rows_of, utc_now
from raystream.labels.consolidate import Method
from raystream.labels.label_studio import Pushed
from raystream.labels.label_table import LabelRow, LabelTable, gone
from raystream.labels.server import LostReplyError, Server, ServerError, Token
from raystream.labels.tools.cvat import frame_name, task_labels
from raystream.labels.tools.tool import needs_shown, no_classes
from raystream.lake.retry import BRIEF, Patience
from raystream.store.protocol import Store
from raystream.store.result import Result

_TOOL, _TITLE = "cvat", "CVAT"
_PAGE = 100
_BULK_BYTES = 32 << 20
_QUALITY = 95
"""Of what annotators see of a picture, in percent of JPEG's scale."""
_LOOKS, _BETWEEN = 900, 2.0
"""How often, and every how many seconds, a task is looked at while the server prepares its pictures."""
_LOST = 8


@dataclass(frozen=True)
class _CvatJob:
    """A stretch of a task's frames, with who works on it."""

    first: int
    last: int
    state: str
    assignee: str | None
    updated: Any


class Cvat:
    """One server, and a task of it or none yet.

    Args:
        url: the server's, or a task's page.
        token: a personal access token of its user.
        patience: with outages.
    """

    def __init__(self, url: str, token: Token, patience: Patience = BRIEF) -> None:
        root, mark, rest = url.partition("/tasks/")
        number = rest.partition("/")[0]
        self.task = int(number) if mark and number.isdecimal() and not urlsplit(url).query else None
        self.server = Server(root if self.task is not None else url, token, patience, _TITLE, bearer=True)
        self._patience = patience

    def push(self, batch: Batch, store: Store) -> Pushed:
        """See that the batch has its task, with all pictures in it, once.

        Args:
            batch: to be labelled.
            store: holds its query.

        Raises:
            QueryError: it shows no pictures, or lies where CVAT can't fetch it.
            ServerError: the server refuses, stays away, or can't read the pictures.
        """
        needs_shown(batch, _TITLE)
        if batch.kind != "image":
            raise QueryError(f"CVAT shows pictures alone, but column {batch.column} of query {batch.query} holds text; use another tool")
        links = [item.url for item in batch.items if item.data is None]
        if links and (len(links) < len(batch.items) or not all((link or "").startswith(("http:", "https:")) for link in links)):
            raise QueryError(f"CVAT fetches links of http and https alone, but column {batch.column} holds others; sign them by --presign")
        task = self._task_for(batch)
        before = self._size(task)
        if not before:
            self._fill(task, batch)
        elif not links:
            self._same_pictures(task, batch)
        notes = no_classes(batch)
        if any(item.prediction is not None for item in batch.items):
            notes += ("predictions are not sent to CVAT; export files by --out, and upload annotations.xml to the task",)
        page = f"{self.server.url}/tasks/{task}"
        return Pushed(batch.query, task, page, self._size(task), self._size(task) - before, 0, notes, _TOOL)

    def pull(self, out: str, store: Store, queries: LabelQueries, method: Method = "none") -> Collected:
        """Read what people did in the task into the table of labels at `out`; labels that were there and are no more are deleted.

        Raises:
            ServerError: the server refuses or stays away.
        """
        if self.task is None:
            raise QueryError(f"--pull {self.server.url} names no task; give the URL of its page, such as {self.server.url}/tasks/7")
        task = self.task
        found = self.annotations(task)
        name = str(self.server.read(f"/api/tasks/{task}", "name")["name"])
        if queries.fallback is None and queries.named(name.removeprefix(_name(""))) is not None:
            queries.fallback = name.removeprefix(_name(""))
        here, when = {each.tool_id for each in found}, utc_now()

        def removed(table: LabelTable) -> list[LabelRow]:
            of_task = [row for row in table.rows if row.tool == _TOOL and row.tool_id.startswith(f"task{task}/")]
            return gone([row for row in of_task if row.tool_id not in here], when)

        return collect(found, _TOOL, out, store, queries, method, removed)

    def answers(self, store: Store, queries: LabelQueries, asked: Sequence[str], accepts: Callable[[Result], bool]) -> Answered:
        """Read what people did so far in the tasks of a loop's rounds; see `LabelStudio.answers`.

        Tasks of other queries are not read: a task is one query's.

        Raises:
            ServerError: the server refuses or stays away.
        """
        rows: list[LabelRow] = []
        notes: list[str] = []
        for query in asked:
            found = [] if (task := self._named(query)) is None else self.annotations(task)
            if found:
                queries.fallback = query
                read = rows_of(found, _TOOL, queries)
                rows += read.rows
                notes += read.of_unlabelled
        return Answered(rows, notes, 0)

    def page_of(self, query: str, ids: Collection[str], store: Store) -> str | None:
        """Say where a batch is, if that is known without asking the server; it never is."""
        return None

    def check(self) -> None:
        """See that the server takes the token.

        Raises:
            ServerError: it doesn't.
        """
        self._named("")

    def annotations(self, task: int) -> list[Annotation]:
        """Return what people did, frame by frame."""
        with self.server.understood():
            return list(self._annotations(task))

    def _annotations(self, task: int) -> Iterator[Annotation]:
        meta = self.server.read(f"/api/tasks/{task}/data/meta", "frames")
        names = {label["id"]: str(label["name"]) for label in self._pages("/api/labels", task_id=task)}
        jobs = [_job(job) for job in self._pages("/api/jobs", task_id=task)]
        done = self.server.read(f"/api/tasks/{task}/annotations/")
        by_frame: dict[int, list[dict[str, Any]]] = {}
        for kind in ("tags", "shapes"):
            for label in done.get(kind) or []:
                by_frame.setdefault(int(label["frame"]), []).append(label | {"kind": kind, "name": names.get(label.get("label_id"), "")})
        tags_alone = all(label.get("type") == "tag" for label in self._pages("/api/labels", task_id=task))
        dropped = set(meta.get("deleted_frames") or [])
        for frame, picture in enumerate(meta.get("frames") or []):
            job = next((job for job in jobs if job.first <= frame <= job.last), None)
            labels = by_frame.get(frame, [])
            state = DELETED if frame in dropped else _state(labels, job, tags_alone)
            if state is None:
                continue
            yield Annotation(
                id=str(picture["name"]),
                raw=_raw(labels) if state in (LABELLED, DRAFT) else None,
                state=state,
                annotator=None if job is None else job.assignee,
                labelled_at=None if job is None else time_of(job.updated),
                tool_id=f"task{task}/{picture['name']}",
            )

    def _pages(self, path: str, **query: Any) -> Iterator[Mapping[str, Any]]:
        page = 1
        while True:
            found = self.server.read(path, "results", page=page, page_size=_PAGE, **query)
            yield from found["results"]
            if not found.get("next"):
                return
            page += 1

    def _task_for(self, batch: Batch) -> int:
        """Find or make the query's task, and return its number."""
        if self.task is not None:
            self.server.read(f"/api/tasks/{self.task}", "id")
            return self.task
        name = _name(batch.query)
        for _ in range(_LOST):
            if (found := self._named(batch.query)) is not None:
                return found
            try:
                self.server.write("POST", "/api/tasks", {"name": name, "labels": task_labels(batch)})
            except LostReplyError:
                self._patience.gives_up_after(0.1)
        raise ServerError(f"{self.server.url}: task {name!r} could not be created, though the server took it; look at its log")

    def _named(self, query: str) -> int | None:
        """Find a query's task, the first one of several; None where there is none."""
        name = _name(query)
        return min((int(task["id"]) for task in self._pages("/api/tasks", name=name) if task.get("name") == name), default=None)

    def _size(self, task: int) -> int:
        return int(self.server.read(f"/api/tasks/{task}").get("size") or 0)

    def _same_pictures(self, task: int, batch: Batch) -> None:
        """See that a task which is there holds the batch's pictures: another store may have a query of this name.

        Raises:
            ServerError: it holds others.
        """
        held = {str(frame["name"]).rpartition("/")[2] for frame in self.server.read(f"/api/tasks/{task}/data/meta").get("frames") or []}
        lacking = [item.id for item in batch.items if frame_name(batch, item) not in held]
        if lacking:
            raise ServerError(
                f"{self.server.url}/tasks/{task} holds other pictures than those of query {batch.query}: {len(lacking):,} of "
                f"{len(batch.items):,} are not there, first that of row {lacking[0]}; push to an empty task of your own, by its URL"
            )

    def _fill(self, task: int, batch: Batch) -> None:
        """Bring the pictures into an empty task, and wait until they are there; the names are in the order of the rank."""
        how: dict[str, Any] = {"image_quality": _QUALITY, "sorting_method": "predefined"}
        path, lost = f"/api/tasks/{task}/data/", 0
        if not self._in_work(task):
            while True:
                try:
                    if all(item.data is not None for item in batch.items):
                        self._upload(path, batch)
                        names = [frame_name(batch, item) for item in batch.items]
                        self.server.write("POST", path, how | {"upload_file_order": names}, {"Upload-Finish": ""})
                    else:
                        self.server.write("POST", path, how | {"remote_files": [item.url for item in batch.items]})
                    break
                except LostReplyError as error:
                    lost += 1
                    self._patience.gives_up_after(min(2.0**lost * 0.1, 30.0))
                    if self._in_work(task) or self._size(task):
                        break
                    if lost > _LOST:
                        raise ServerError(f"{error}; push again when the server is well: what is there stays") from None
        for _ in range(_LOOKS):
            size = self._size(task)
            if size >= len(batch.items):
                return
            self._in_work(task)  # says what went wrong, if anything did
            self._patience.gives_up_after(_BETWEEN)
        raise ServerError(f"{self.server.url}: task {task} has {size:,} of {len(batch.items):,} pictures; look at the server's log")

    def _in_work(self, task: int) -> bool:
        """Tell whether the server prepares the task's pictures.

        Raises:
            ServerError: it tried, and failed.
        """
        found = list(self._pages("/api/requests", task_id=task, action="create"))
        failed = next((request for request in found if request.get("status") == "failed"), None)
        if failed is not None:
            told = " ".join(str(failed.get("message") or "").split())[:300]
            raise ServerError(f"{self.server.url}: task {task} can't take its pictures: {told}; remove the task there, and push again")
        return any(request.get("status") in ("queued", "started") for request in found)

    def _upload(self, path: str, batch: Batch) -> None:
        """Bring the files, some at a time; a file that comes twice replaces itself."""
        self.server.write("POST", path, b"", {"Upload-Start": "", "Content-Type": "application/json"})
        held: list[tuple[str, bytes]] = []
        size = 0
        for item in batch.items:
            held.append((frame_name(batch, item), item.data or b""))
            size += len(held[-1][1])
            if size >= _BULK_BYTES or item is batch.items[-1]:
                body, kind = _form(held)
                self.server.write("POST", path, body, {"Upload-Multiple": "", "Content-Type": kind})
                held, size = [], 0


def _name(query: str) -> str:
    """Name the task of a query."""
    return f"raystream {query}"


def _form(files: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Return files as a form of several parts, and its type; their names are safe as they are."""
    edge = uuid.uuid4().hex
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="client_files[{number}]"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for number, (name, data) in enumerate(files)
    ]
    quality = f'--{edge}\r\nContent-Disposition: form-data; name="image_quality"\r\n\r\n{_QUALITY}\r\n'.encode()
    return b"".join([quality, *parts, f"--{edge}--\r\n".encode()]), f"multipart/form-data; boundary={edge}"


def _job(job: Mapping[str, Any]) -> _CvatJob:
    return _CvatJob(
        int(job["start_frame"]), int(job["stop_frame"]), str(job.get("state", "new")), text_or_none(job.get("assignee")),
        job.get("updated_date"),
    )  # fmt: skip


def _state(labels: Sequence[Mapping[str, Any]], job: _CvatJob | None, tags_alone: bool) -> str | None:
    """Return what became of a frame; None where nothing did."""
    state = "new" if job is None else job.state
    if state == "rejected":
        return REJECTED
    if labels:
        touched = state == "completed" or any(label.get("source") != "auto" for label in labels)
        return LABELLED if touched else DRAFT
    if state != "completed":
        return None
    return SKIPPED if tags_alone else LABELLED


def _raw(labels: Sequence[Mapping[str, Any]]) -> Any:
    """Return classes where all labels are tags, else the shapes as JSON, without numbers that only the server knows."""
    if labels and all(label["kind"] == "tags" for label in labels):
        return [label["name"] for label in labels]
    own = ("type", "points", "rotation", "occluded", "z_order", "source")
    return [{"label": label["name"], **{key: label[key] for key in own if key in label}} for label in labels]
