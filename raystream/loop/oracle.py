"""Who answers a loop in place of files of labels: people behind a labelling tool, who are asked and read by its server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from raystream.errors import QueryError
from raystream.labels.oracle import ToolOracle, server_of
from raystream.labels.server import TOKENS
from raystream.pool import File
from raystream.query.loop import Loop
from raystream.store.protocol import Store
from raystream.store.result import Result


class Oracle(Protocol):
    """Asks people for labels."""

    def check(self, file: File, inputs: Sequence[str], kept: Sequence[str]) -> None:
        """See before anything is chosen that people can be asked about rows of such a file."""

    def ask(self, result: Result) -> tuple[str, Sequence[str]]:
        """Have a batch labelled, whatever became of an earlier attempt; the page where that is done, and what is to be said of it."""

    def answers(self, asked: Sequence[str]) -> tuple[pa.Table | None, list[str]]:
        """Read what people said so far as a table of labels, and what is to be said of it."""


def oracle_of(loop: Loop, store: Store, classes: Sequence[str] | None, token: str | None) -> Oracle | None:
    """Make what asks people by the tool that a loop names; None of a loop that names none.

    Args:
        loop: names it.
        store: holds its queries.
        classes: the names that `model.classes` gives, if it gives any.
        token: of the tool's user.

    Raises:
        QueryError: there is no token.
    """
    tool = loop.loop.tool
    if tool is None:
        return None
    if not token:
        raise QueryError(
            f"loop.oracle asks by {tool.tool} at {tool.url}, which needs a token of your account there; set {TOKENS[tool.tool]}, or from "
            "Python give ActiveLearningLoop(loop, token=…)"
        )
    pool = loop.pool

    def accepts(result: Result) -> bool:
        """Tell whether a query chose among the loop's rows."""
        given = result.manifest.resolved["pool"]
        uris = [given["uri"]] if isinstance(given["uri"], str) else given["uri"]
        return list(uris) == list(pool.uris) and given.get("id") == pool.id

    return ToolOracle(server_of(tool.tool, tool.url, tool.project, token), store, accepts, classes, tool.show)
