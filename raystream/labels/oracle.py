"""People behind a labelling tool's server as a loop asks them: a round's batch out, all answers so far in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from raystream.labels.batch import Batch, check_shown, ids_of, names_classes, read_batch
from raystream.labels.collect import Answered, LabelQueries
from raystream.labels.cvat import Cvat
from raystream.labels.label_studio import LabelStudio, Pushed
from raystream.labels.label_table import empty
from raystream.labels.server import Token
from raystream.lake.retry import LASTING
from raystream.pool import File
from raystream.store.protocol import Store
from raystream.store.result import Result
from raystream.store.rounds import as_asked


class LabellingServer(Protocol):
    """What a tool's server is to a loop."""

    def check(self) -> None:
        """See that the server takes the token, and has what it is to have."""

    def push(self, batch: Batch, store: Store) -> Pushed:
        """See that every row of a batch is there, once."""

    def page_of(self, query: str, ids: Collection[str], store: Store) -> str | None:
        """Say where these rows are labelled, if it is known without asking that all of them were pushed."""

    def answers(self, store: Store, queries: LabelQueries, asked: Sequence[str], accepts: Callable[[Result], bool]) -> Answered:
        """Read what people did so far."""


def server_of(tool: str, url: str, project: int | None, token: str) -> LabellingServer:
    """Make the client of a tool's server.

    Args:
        tool: `label_studio` or `cvat`.
        url: the server's.
        project: of Label Studio, the number of the project in which all rounds are labelled.
        token: of its user.
    """
    return Cvat(url, Token(token), LASTING) if tool == "cvat" else LabelStudio(url, Token(token), project, LASTING)


class ToolOracle:
    """Who labels the rounds of a loop: people, behind a labelling tool.

    Args:
        server: of the tool.
        store: holds the loop's queries.
        accepts: whether rows of another query of the store are rows of the loop's pool: what people said of these counts, too.
        classes: the names that `model.classes` gives, if it gives any.
        show: the column that people see; see `read_batch`.
    """

    def __init__(
        self,
        server: LabellingServer,
        store: Store,
        accepts: Callable[[Result], bool],
        classes: Sequence[str] | None = None,
        show: str | None = None,
    ) -> None:
        self._server, self._store, self._accepts = server, store, accepts
        self._classes, self._show = classes, show

    def check(self, file: File, inputs: Sequence[str], kept: Sequence[str]) -> None:
        """See before anything is chosen that people can be asked.

        Args:
            file: of the pool.
            inputs: the columns that the model sees.
            kept: those that selections carry.

        Raises:
            QueryError: there is nothing that people could look at.
            ServerError: the server refuses or stays away.
        """
        check_shown(file, inputs, kept, self._show)
        self._server.check()

    def ask(self, result: Result) -> tuple[str, Sequence[str]]:
        """Have the rows of a batch labelled, its control rows among them; asking again asks nothing twice.

        Returns:
            The page where that is done, and sentences for people on what they will see there, once the rows were brought there.

        Raises:
            ServerError: the server refuses or stays away; ask again, and what is there stays.
        """
        batch = as_asked(result)
        ids = ids_of(batch)
        page = self._server.page_of(batch.query, ids.texts(batch.selection.column(ids.name)), self._store)
        if page is not None:
            return page, ()
        pushed = self._server.push(read_batch(batch, self._classes, self._show), self._store)
        return pushed.url, pushed.notes

    def answers(self, asked: Sequence[str]) -> tuple[pa.Table | None, list[str]]:
        """Read what people said so far, as the table of labels, and what is to be said of it; None where nobody said anything.

        Args:
            asked: the names of the loop's rounds, in order.

        Raises:
            ServerError: the server refuses or stays away.
        """
        queries = LabelQueries(self._store, None, lambda _: self._classes)
        found = self._server.answers(self._store, queries, asked, self._accepts)
        notes = list(found.notes)
        if found.others:
            are = "annotation is" if found.others == 1 else "annotations are"
            notes.append(f"{found.others:,} {are} of rows that this loop's pool doesn't hold, or that no export named: left alone")
        names = dict.fromkeys(row.query for row in found.rows if row.query)
        first = next((known for name in names if (known := queries.named(name)) is not None), None)
        if first is None:
            return None, notes
        table = replace(empty(ids_of(first), first.manifest.resolved["model"]["task"]), named=names_classes(first))
        return table.merged(found.rows).to_arrow(), notes
