"""The commands around queries: loops, simulations, streams, labels, the service. Imports are late: `--help` is fast.

`raystream loop`: rounds of asking for labels, training and judging.

`raystream simulate`: which strategy pays on a labelled pool.

`raystream stream`: decide row by row on what arrives.

The commands on labelling tools: a batch out, labels in. Imports are late: `--help` is fast.

`raystream serve` and `raystream token`. Imports are late: `--help` is fast, and the service is an extra.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raystream.cli.terminal import check_place, check_places, print_result, reporting
from raystream.cli.upkeep import AsJson, Debug, Name, StoreUri, seconds_of
from raystream.errors import QueryError
from raystream.figures import number_of

if TYPE_CHECKING:
    from raystream.labels import Collected
    from raystream.labels.consolidate import Method
    from raystream.labels.cvat import Cvat
    from raystream.labels.label_studio import LabelStudio
    from raystream.loop.streams.run import StreamResult
    from raystream.store.protocol import Store
    from raystream.store.result import Result


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
    from raystream.report.loop_page import describe_loop

    with reporting() as reporter:
        token = None if asked.loop.tool is None else os.environ.get(TOKENS[asked.loop.tool.tool], "").strip()
        state: Any = ActiveLearningLoop(asked, reporter, report=report, token=token).step()
    print_result(state.summary(), lambda: describe_loop(state.summary()), as_json)


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
    from raystream.query.simulate import Stream

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


def export(
    name: Name,
    tool: Annotated[
        str,
        typer.Option(
            "--to", help="csv, jsonl, parquet, label_studio, cvat, argilla, prodigy, ground_truth, labelbox or fiftyone.", metavar="TOOL"
        ),
    ],
    out: Annotated[str | None, typer.Option("--out", metavar="PATH", help="A file for csv, jsonl and parquet, else a folder.")] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="URL", help="The URL of a server, a project or a task; label_studio, cvat.")
    ] = None,
    show: Annotated[
        str | None, typer.Option("--show", metavar="COLUMN", help="The column that people see, of the pool or kept in the selection.")
    ] = None,
    presign: Annotated[
        str | None, typer.Option("--presign", metavar="TIME", help="Sign links into buckets; they open for so long, such as 24h.")
    ] = None,
    store: StoreUri = "runs",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """A committed batch as files that a labelling tool imports.

    Each row carries its id, rank and score, the prediction with its confidence, why it was chosen and how many rows it represents.
    """
    from raystream.labels import export_batch
    from raystream.store.rounds import load_batch

    if (out is None) == (push is None):
        raise QueryError("give either --out, for files, or --push, for a server")
    result = load_batch(check_place("--store", store), name)
    seconds = None if presign is None else seconds_of(presign, "--presign")
    if push is not None:
        _push(result, tool, push, show, seconds, as_json)
        return
    exported = export_batch(result, tool, check_place("--out", out or ""), classes=_classes(result), show=show, presign=seconds)
    _say(exported.notes)
    lines = [
        f"batch of query {exported.query} for {exported.tool}",
        f"  rows        {exported.rows:,}",
        f"  files       {', '.join(exported.files)}" + (f", {exported.pictures:,} pictures" if exported.pictures else ""),
        f"out        {exported.out}",
    ]
    print_result(exported.summary(), lambda: "\n".join(lines), as_json)


def labels(
    tool: Annotated[str, typer.Option("--from", help="The tool that wrote them, as --to of raystream export.", metavar="TOOL")],
    out: Annotated[str, typer.Option("--out", metavar="PATH", help="A .parquet file, or a folder, which gets labels.parquet.")],
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="What the tool exported: a file or folder, also in a bucket.", show_default=False)
    ] = None,
    pull: Annotated[
        str | None, typer.Option("--pull", metavar="URL", help="The URL of a project or task, instead of a file; label_studio, cvat.")
    ] = None,
    query: Annotated[str | None, typer.Option("--query", metavar="QUERY", help="To which labels belong that don't name theirs.")] = None,
    consolidate: Annotated[
        str, typer.Option("--consolidate", help="Of several annotators: none (keep all), majority, dawid_skene.", metavar="METHOD")
    ] = "none",
    store: StoreUri = "runs",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Collect what people labelled in a tool, as one table.

    It is merged with what is at --out: reading twice changes nothing, and newer answers replace older ones. The table goes into
    pool.labelled as it is.
    """
    from raystream.labels import collect_labels
    from raystream.labels.consolidate import METHODS
    from raystream.store.opening import existing_store

    if (source is None) == (pull is None):
        raise QueryError("give either the tool's export, a file or folder, or --pull with the URL of a project")
    method = next((known for known in METHODS if known == consolidate), None)
    if method is None:
        raise QueryError(f"--consolidate {consolidate} is no method, expected {', '.join(METHODS)}")
    opened = existing_store(check_place("--store", store))
    place = check_place("--out", out)
    if pull is not None:
        collected = _pull(pull, tool, place, opened, query, method)
    else:
        collected = collect_labels(source or "", tool, place, opened, query=query, method=method, classes=_classes)
    _say(collected.notes)
    if collected.agreement is not None:
        print(f"raystream: {collected.agreement}", file=sys.stderr)
    summary = collected.summary()
    states = ", ".join(f"{summary[state]:,} {state}" for state in ("labelled", "skipped", "draft", "rejected", "deleted") if summary[state])
    lines = ["labels", f"  rows        {summary['rows']:,}" + (f": {states}" if states else ""), f"out        {summary['out']}"]
    print_result(summary, lambda: "\n".join(lines), as_json)


def _push(result: Result, tool: str, url: str, show: str | None, presign: float | None, as_json: bool) -> None:
    from raystream.labels import read_batch
    from raystream.labels.batch import presigned

    server = _server(tool, url, "--push")
    batch = read_batch(result, _classes(result), show)
    if presign is not None:
        batch = presigned(batch, presign, result.manifest.resolved["pool"].get("storage") or {})
    pushed = server.push(batch, result.store)
    _say(pushed.notes)
    removed = f", {pushed.removed:,} copies removed" if pushed.removed else ""
    lines = [
        f"batch of query {pushed.query} for {tool}",
        f"  rows        {pushed.rows:,} there, {pushed.created:,} of them new{removed}",
        f"project    {pushed.url}",
    ]
    print_result(pushed.summary(), lambda: "\n".join(lines), as_json)


def _pull(url: str, tool: str, out: str, store: Store, query: str | None, method: Method) -> Collected:
    from raystream.labels.collect import LabelQueries

    return _server(tool, url, "--pull").pull(out, store, LabelQueries(store, query, _classes), method)


def _server(tool: str, url: str, option: str) -> LabelStudio | Cvat:
    """Return the server, with the token that the environment holds."""
    from raystream.labels.cvat import Cvat
    from raystream.labels.label_studio import LabelStudio
    from raystream.labels.server import TOKENS, Token
    from raystream.lake.retry import LASTING

    if tool not in TOKENS:
        raise QueryError(f"{option} speaks to label_studio and cvat; exchange files with {tool}, by --out and the name of its export")
    secret = os.environ.get(TOKENS[tool], "").strip()
    if not secret:
        raise QueryError(f"{option} needs a token of your account on {url.partition('?')[0]}; set it as {TOKENS[tool]}")
    return Cvat(url, Token(secret), LASTING) if tool == "cvat" else LabelStudio(url, Token(secret), patience=LASTING)


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"raystream: {note}", file=sys.stderr)


def _classes(result: Result) -> Sequence[str] | None:
    """Read what `model.classes` of a committed query names."""
    from raystream.lake import local_copy, storage_from
    from raystream.model.prediction import class_names

    resolved = result.manifest.resolved
    classes: list[str] | str | None = resolved["model"].get("classes")
    if isinstance(classes, str):
        classes = local_copy(classes, storage_from(resolved["pool"].get("storage") or {}), "model.classes")
    return class_names(classes)


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The server's configuration, a YAML file.", show_default=False)
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="The address to listen on; 127.0.0.1 if nothing says otherwise.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="PORT", help="The port to listen on; 8700 if nothing says otherwise.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URI", help="Where queries, scores and requests are kept.")] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="FILE", help="The file of those who may ask; see raystream token.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="PREFIX", help="Where pools, labels and weights may lie; may be given often.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Serve a store's queries over HTTP, until interrupted.

    Queries run as processes of their own, which outlive the server. Without tokens it listens on the loopback address alone.
    """
    try:
        import uvicorn

        from raystream.service.app import create_app
        from raystream.service.config import Config
        from raystream.service.edge import HttpProtocol, log_to_stderr
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("uvicorn", "h11", "fastapi", "starlette"):
            raise
        raise QueryError(f"raystream serve needs {error.name}, which is not installed; pip install '.[service]'") from None
    given: dict[str, Any] = {"host": host, "port": port, "tokens": tokens, "allow": allow or None}
    given |= {"store": {"uri": store} if store is not None else None}
    asked = Config.load(config, {key: value for key, value in given.items() if value is not None})
    log_to_stderr()
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(asked),
            host=asked.host,
            port=asked.port,
            http=HttpProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=64 << 10,
            limit_concurrency=1000,
        )
    )
    server.run()
    if not server.started:
        raise QueryError(f"port {asked.port} of {asked.host} can't be listened on; another program may have it, so give --port")


def token(
    scope: Annotated[Literal["read", "submit", "admin"], typer.Option("--scope", metavar="read|submit|admin", help="What it may do.")],
    owner: Annotated[
        str, typer.Option("--owner", metavar="NAME", help="To whom its queries belong; several tokens may share one.")
    ] = "default",
    expires: Annotated[str, typer.Option("--expires", metavar="TIME", help="When it ends, such as 12h or 90d; 0: never.")] = "90d",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a token for the service.

    The token is shown once; the line, which holds its hash alone, is for the server's file of tokens.
    """
    from raystream.service.tokens import new_token

    seconds = seconds_of(expires, "--expires")
    made, line = new_token(owner, scope, datetime.now(UTC) + timedelta(seconds=seconds) if seconds else None)
    print(json.dumps({"token": made, "line": line}) if as_json else f"token  {made}\nline   {line}")
