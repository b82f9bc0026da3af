"""`raystream loop`: rounds of asking for labels, training and judging."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from raystream.cli.in_job import check_places
from raystream.cli.terminal import print_result, reporting


def loop(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The loop: a query file with a section loop.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, such as loop.rounds=5; may be given often.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="Where the loop is kept, instead of the spec's store.uri.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="ADDRESS", help="The Ray cluster, or in_process, instead of cluster.address.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")] = False,
    report: Annotated[bool, typer.Option(help="Write report.html beside the history.")] = True,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Ask for labels, train, judge, as far as there are labels.

    Each call ends waiting for labels, finished, or stopped by a rule; the same command goes on.
    """
    from raystream.query.loop import Loop

    changes = list(overrides or [])
    changes += [] if store is None else [f"store.uri={json.dumps(store, ensure_ascii=False)}"]
    changes += [] if address is None else [f"cluster.address={json.dumps(address, ensure_ascii=False)}"]
    asked = check_places(Loop.load(spec, changes))
    from raystream.labels.server import TOKENS
    from raystream.loop.campaign import ActiveLearningLoop
    from raystream.report.loop_text import describe_loop

    with reporting() as reporter:
        token = None if asked.loop.tool is None else os.environ.get(TOKENS[asked.loop.tool.tool], "").strip()
        state: Any = ActiveLearningLoop(asked, reporter, report=report, token=token).step()
    print_result(state.summary(), lambda: describe_loop(state.summary()), as_json)
