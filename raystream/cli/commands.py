"""The command line: reads a query, runs it, prints what came out. Everything else is done below."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raystream import __version__
from raystream.cli import campaigns as labels
from raystream.cli import campaigns as simulation
from raystream.cli import init, jobs, upkeep
from raystream.cli import init as catalogue
from raystream.cli.campaigns import loop, serve, stream, token
from raystream.cli.terminal import RESUME, Interruption, Leaving, check_place, check_places, end_output, nobody_reads
from raystream.cli.terminal import print_result as _print
from raystream.cli.terminal import reporting as _reporter
from raystream.errors import QueryError, RaystreamError
from raystream.imports import uncollected
from raystream.lake.uri import absolute
from raystream.query import Query
from raystream.run import calibrate as fit_temperature
from raystream.run import plan as plan_query
from raystream.run import run
from raystream.run import score as score_pool

if TYPE_CHECKING:
    from raystream.store.recorded import Recorded

app = typer.Typer(
    help="Which rows of this lake should be labelled next?",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="The query, a YAML file; or a committed query's manifest or folder.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, such as select.budget=50; may be given often.")
]
StoreUri = Annotated[
    str | None, typer.Option("--store", metavar="URI", help="Where scored units and queries are kept, instead of the query's store.uri.")
]
Address = Annotated[
    str | None, typer.Option("--address", metavar="ADDRESS", help="The Ray cluster, or in_process, instead of the query's cluster.address.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
WithReport = Annotated[bool, typer.Option(help="Write report.html beside the selection.")]


# Which click typer is built on differs between its versions; its own exceptions lead to it.
_ClickException = typer.BadParameter.__mro__[2]


@app.command()
def query(
    spec: Spec,
    overrides: Overrides = None,
    store: StoreUri = None,
    address: Address = None,
    as_json: AsJson = False,
    report: WithReport = True,
    debug: Debug = False,
) -> None:
    """Plan, score, select, commit: the rows to label next."""
    asked, record = _read(spec, overrides, store, address)
    with _reporter() as reporter:
        result = run(record or asked, reporter=reporter)
    _finish(result, as_json, report)


@app.command()
def select(
    spec: Spec,
    overrides: Overrides = None,
    store: StoreUri = None,
    as_json: AsJson = False,
    report: WithReport = True,
    debug: Debug = False,
) -> None:
    """Choose again from scored units; nothing is scored."""
    asked, record = _read(spec, overrides, store, None)
    with _reporter() as reporter:
        result = run(record or asked, reporter=reporter, may_score=False)
    _finish(result, as_json, report)


@app.command()
def score(
    spec: Spec, overrides: Overrides = None, store: StoreUri = None, address: Address = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Score the pool and choose nothing."""
    from raystream.report.text import describe_scores

    asked = _load(spec, overrides, store, address)
    with _reporter() as reporter:
        scores = score_pool(asked, reporter=reporter)
    _warn(scores.quarantined)
    _print(scores.summary(), lambda: describe_scores(scores, absolute(asked.store.uri)), as_json)


@app.command()
def plan(
    spec: Spec, overrides: Overrides = None, store: StoreUri = None, address: Address = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Show what a query would read and write, and how long it takes.

    It also counts the files that were added, rewritten or removed since the newest committed query over the same pool.uri: only
    those added and rewritten are scored, and removed ones leave the pool.
    """
    from raystream.report.text import describe_estimate

    asked = _load(spec, overrides, store, address)
    with _reporter():
        figures = plan_query(asked)
    _print(figures.summary(), lambda: describe_estimate(figures), as_json)


@app.command()
def calibrate(
    spec: Spec, overrides: Overrides = None, store: StoreUri = None, address: Address = None, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Fit the temperature on labelled rows; say what it is worth."""
    from raystream.report.text import describe_calibration, summary, write_diagram

    asked = _load(spec, overrides, store, address)
    with _reporter() as reporter:
        found = fit_temperature(asked, reporter=reporter)
        try:
            diagram: str | None = write_diagram(asked, found.calibration)
        except Exception as error:
            diagram = None
            print(f"raystream: warning: the diagram could not be written: {type(error).__name__}: {error}", file=sys.stderr)
    _print(summary(found, diagram), lambda: describe_calibration(found.calibration, found.new, diagram), as_json)


@app.command()
def show(
    name: Annotated[
        str | None,
        typer.Argument(metavar="QUERY", help="The query's name or its beginning; left out, all are listed.", show_default=False),
    ] = None,
    store: Annotated[str, typer.Option("--store", metavar="URI", help="Where scored units and queries are kept.")] = "runs",
    as_json: AsJson = False,
    report: Annotated[bool, typer.Option("--report", help="Write report.html anew.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Write page.html: the page of raystream serve, for this query alone.")] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="PATH", help="Where --page is written, instead of beside the selection.")
    ] = None,
    debug: Debug = False,
) -> None:
    """A committed query with its selection; or all of a store.

    Without a name, the store's committed queries are listed, the newest first.
    """
    from raystream.store.result import load_result

    check_place("--store", store)
    if out is not None and not page:
        raise QueryError("--out says where --page is written; give --page, too")
    if page and name is None:
        raise QueryError("--page is of one query; name it, as raystream show lists them")
    if name is None:
        from raystream.report.text import describe_queries
        from raystream.store.opening import existing_store
        from raystream.store.queries import committed_queries

        queries = committed_queries(existing_store(store))
        _print({"queries": [listed.summary() for listed in queries]}, lambda: describe_queries(queries, absolute(store)), as_json)
        return
    if page:
        from raystream.service.page_routes import write_page

        found = load_result(store, name)
        written = write_page(found.store, found.query, out if out is None else check_place("--out", out))
        _print({"query": found.query, "page": written}, lambda: f"page       {written}", as_json)
        return
    _finish(load_result(store, name), as_json, report, shown=True)


for _command in (
    *(loop, simulation.simulate, stream, labels.export, labels.labels),
    *(jobs.submit, jobs.status, jobs.logs, jobs.stop, jobs.fetch, serve, token),
    *(upkeep.verify, upkeep.diff, upkeep.scores, upkeep.gc, upkeep.doctor, catalogue.strategies, init.init),
):
    app.command()(_command)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the demo keeps its pool, store and report.")] = Path("demo"),
    workers: Annotated[int, typer.Option(metavar="N", help="Ray workers.", min=1)] = 2,
    seeds: Annotated[int, typer.Option(metavar="N", help="How often the comparison with random rows is repeated.", min=1)] = 5,
    rounds: Annotated[bool, typer.Option("--loop", help="Play five rounds of a loop instead, beside random rows.")] = False,
    debug: Debug = False,
) -> None:
    """Choose 50 of 5,000 real images, and see what that is worth."""
    with _reporter() as reporter:
        if rounds:
            from raystream.loop.demos.query_demo import run_loop_demo

            lines = run_loop_demo(folder, reporter=reporter)
        else:
            from raystream.loop.demos.query_demo import run_demo

            lines = run_demo(folder, workers=workers, seeds=seeds, reporter=reporter)
    print(lines)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version of raystream.")] = False,
) -> None:
    if show_version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def version() -> None:
    """The version of raystream."""
    print(__version__)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: see `raystream.errors` for the codes."""
    given = sys.argv[1:] if arguments is None else arguments
    leaving = Leaving()
    code = _exit_code(given or ["--help"])
    end_output()
    leaving.exit(code)


def _exit_code(arguments: list[str]) -> int:
    interruption = Interruption()
    interruption.heed()
    sys.path.insert(0, str(Path.cwd()))
    returned: object = None
    try:
        returned = app(arguments, standalone_mode=False)
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        if interruption.number is None:
            return _failed(error, "--debug" in arguments)
    if interruption.number is not None:  # whatever came of it: typer returns a number of its own, Ray may wrap it
        return _say(RESUME, interruption.exit_code)
    return returned if isinstance(returned, int) else 0


def _failed(error: BaseException, debug: bool) -> int:
    """Say what went wrong."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        error = error.__context__  # typer makes of every broken pipe an end without a word
    if isinstance(error, BrokenPipeError) and nobody_reads():
        return 0
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    if isinstance(error, _ClickException):
        return _say(f"{error.format_message().rstrip('.?')}; see {_called(error)} --help", 2)  # type: ignore[attr-defined]
    if debug:
        traceback.print_exception(error)
    if isinstance(error, RaystreamError):
        return _say(str(error), error.exit_code)
    return _say(f"{type(error).__name__}: {error}; this is a defect of raystream's, --debug shows where", 1)


def _called(error: object) -> str:
    """Name the command that was called, as far as it was understood, for whoever wants its help."""
    context = getattr(error, "ctx", None)
    return f"raystream {context.info_name}" if context is not None and context.parent is not None else "raystream"


def _say(sentence: str, exit_code: int) -> int:
    print(f"raystream: {' '.join(sentence.split())}", file=sys.stderr)
    return exit_code


def _load(spec: str, overrides: list[str] | None, store: str | None, address: str | None) -> Query:
    return _read(spec, overrides, store, address)[0]


def _read(spec: str, overrides: list[str] | None, store: str | None, address: str | None) -> tuple[Query, Recorded | None]:
    """Read the query, and the record that it comes from, if it does."""
    with uncollected():
        from raystream.store.recorded import recorded

    changes = list(overrides or [])
    if store is not None:
        changes.append(f"store.uri={json.dumps(store, ensure_ascii=False)}")
    if address is not None:
        changes.append(f"cluster.address={json.dumps(address, ensure_ascii=False)}")
    record = recorded(spec, changes)
    return check_places(Query.load(spec, changes) if record is None else record.query), record


def _warn(lines: Sequence[str]) -> None:
    """Say on stderr what is worth a line for each case, below a first one for all."""
    if lines:
        print("raystream: warning: " + "\n  ".join(lines), file=sys.stderr)


def _finish(result: Any, as_json: bool, report: bool, *, shown: bool = False) -> None:
    """Print a result; first write its report, if that is new, missing or asked for, whose failure is a warning and no more."""
    from raystream.report.text import describe_result

    there = result.store.exists(f"queries/{result.query}/report.html")
    if report and (result.new or shown or not there):
        from raystream.report.page import write_report

        try:
            write_report(result)
            there = True
        except Exception as error:
            print(f"raystream: warning: the report could not be written: {type(error).__name__}: {error}", file=sys.stderr)
    if result.new:
        _warn(result.quarantined_named)
    found = result.place("report.html") if there else None
    _print(result.summary() | {"report": found}, lambda: describe_result(result, found, shown=shown), as_json)
