"""`raystream stream`: decide row by row on what arrives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raystream.cli.in_job import check_places
from raystream.cli.terminal import print_result, reporting
from raystream.figures import number_of

if TYPE_CHECKING:
    from raystream.loop.streams.run import StreamResult


def stream(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The stream: a query file with a section stream.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, such as stream.follow=10; may be given often.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="Where decisions are kept, instead of the spec's store.uri.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="ADDRESS", help="The Ray cluster, or in_process, instead of cluster.address.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Decide row by row on what arrived, within a budget.

    Each row is decided on once, whenever the command is interrupted; run again, it goes on. With stream.follow it goes on looking.
    """
    from raystream.query.stream import Stream

    changes = list(overrides or [])
    changes += [] if store is None else [f"store.uri={json.dumps(store, ensure_ascii=False)}"]
    changes += [] if address is None else [f"cluster.address={json.dumps(address, ensure_ascii=False)}"]
    asked = check_places(Stream.load(spec, changes))
    from raystream.loop.streams.run import run_stream

    with reporting() as reporter:
        result = run_stream(asked, reporter=reporter)
    for warning in result.warnings:
        print(f"raystream: warning: {warning}", file=sys.stderr)
    print_result(result.summary(), lambda: _described(result), as_json)


def _described(result: StreamResult) -> str:
    """Say where a stream stands, for a terminal."""
    drift = result.drift
    moved = "too few rows yet"
    if drift["page_hinkley"] is not None:
        moved = f"Page-Hinkley {drift['page_hinkley']:.3g} of {drift['page_hinkley_limit']:g}"
    if drift["kolmogorov_smirnov"] is not None:
        moved += f", Kolmogorov-Smirnov {drift['kolmogorov_smirnov']:.3f} (p {drift['p_value']:.2g})"
    lines = [
        f"stream {result.stream}",
        f"  new        {number_of(result.new_rows, 'row')}",
        f"  seen       {number_of(result.seen, 'row')} since the beginning, {result.chosen:,} chosen: {result.share:.4f} of them, budget "
        f"{result.budget:g}",
        f"  waiting    {'none' if result.wait is None else f'the oldest row for {result.wait:.1f} s'}",
        f"  drift      {moved}",
        f"  model      epoch {result.epoch}",
        "",
        f"decisions  {result.decisions}",
    ]
    return "\n".join(lines)
