"""`raystream simulate`: which strategy pays on a labelled pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raystream.cli.in_job import check_places
from raystream.cli.terminal import print_result, reporting


def simulate(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="The simulation, a YAML file with sections loop and simulate.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, such as simulate.seeds=20; may be given often.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="Where runs are kept, instead of the file's store.uri.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Compare strategies on a labelled pool, beside random rows.

    Each plays rounds under several seeds. Every run is kept: a simulation that was ended goes on, and more seeds or strategies join
    those that are there.
    """
    from raystream.loop.simulation.outcome import describe
    from raystream.loop.simulation.run import simulate as play
    from raystream.query.simulate import Simulation

    changes = list(overrides or [])
    if store is not None:
        changes.append(f"store.uri={json.dumps(store, ensure_ascii=False)}")
    asked = check_places(Simulation.load(spec, changes))
    with reporting() as reporter:
        found = play(asked, reporter=reporter)
    print_result(found.summary(), lambda: describe(found), as_json)
