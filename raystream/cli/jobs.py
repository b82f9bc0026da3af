"""The commands for a cluster's jobs: submit, status, logs, stop, fetch. Imports are late: `--help` is fast."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raystream.cli.terminal import print_result
from raystream.errors import ClusterError, QueryError, RaystreamError
from raystream.figures import in_seconds, number_of

if TYPE_CHECKING:
    from raystream.cluster.jobs import Job, JobServer
    from raystream.store.events import RunState
    from raystream.store.protocol import Store

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as submit prints it.", show_default=False)]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="The cluster's job server, such as http://head:8265.",
        show_default=False,
    ),
]
StoreUri = Annotated[
    str | None, typer.Option("--store", metavar="URI", help="The job's store, as this machine reaches it; left out, its spec's store.uri.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_STOPPED = 143


def submit(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="A query, or a spec with a section loop, simulate or stream.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, such as cluster.workers=8; may be given often.")
    ] = None,
    address: Address = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URI", help="Where scored units and queries are kept, instead of store.uri.")
    ] = None,
    command: Annotated[
        str | None,
        typer.Option("--as", metavar="KIND", help="query, score, select, loop, simulate or stream; left out, by the spec's sections."),
    ] = None,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", metavar="FOLDER", help="The folder that travels: the model's source and weights.")
    ] = Path("."),
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="A pattern of files in it that stay, such as data/*; may be given often."),
    ] = None,
    cpus: Annotated[
        float, typer.Option("--cpus", metavar="N", help="Processors reserved for the driver; 0: it runs on the head.", min=0)
    ] = 1.0,
    memory: Annotated[float, typer.Option("--memory", metavar="GIB", help="GiB of memory reserved for the driver.", min=0)] = 1.0,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end, and exit as it does.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Run a query, loop or simulation as a job of a Ray cluster.

    The same spec over the same files is one job while it runs, however often it is submitted; a job that ended early goes on where
    it stopped when it is submitted again.
    """
    from raystream.cluster.submission import read_submission
    from raystream.cluster.submission import submit as send

    changes = list(overrides or [])
    changes += [] if store is None else [f"store.uri={json.dumps(store, ensure_ascii=False)}"]
    asked = read_submission(spec, changes, command)
    server = _server(address)
    if not working_dir.is_dir():
        raise QueryError(f"--working-dir {working_dir} is no folder")
    reserved = int(memory * 2**30) if cpus else 0
    job, new = send(server, asked, working_dir, exclude=exclude or (), cpus=cpus, memory=reserved)
    if not wait:
        print_result(_summary(job) | {"new": new, "address": server.address}, lambda: _submitted(job, new, server.address), as_json)
        return 0
    print(f"raystream: job {job.id} {'submitted' if new else 'is running already'}", file=sys.stderr)
    printed: list[str] = []
    job = server.follow(job.id, lambda text: _pass_on(text, printed))
    result = _result("".join(printed))
    print_result(_summary(job) | {"new": new, "address": server.address, "result": result}, lambda: _ended(job), as_json)
    return _code(job)


def status(
    name: Annotated[str, typer.Argument(metavar="JOB", help="The job's id; or with --store a query's name.", show_default=False)],
    address: Address = None,
    store: StoreUri = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """How far a job is, or any run of a query.

    Rows, units, rate, time left: that comes from the store, so with --store it is told of runs anywhere, also after their cluster is gone.
    """
    if address is None and store is None:
        raise QueryError("neither --address nor --store is given; name the cluster's job server, or the store that the run writes to")
    job = None
    if address is not None and (_is_job(name) or store is None):
        try:
            job = _server(address).job(name)
        except (ClusterError, QueryError) as error:
            if store is None:
                raise
            print(f"raystream: warning: {error}", file=sys.stderr)
    run, unseen = _run(name, job, store)
    if job is None and run is None:
        raise QueryError(unseen)
    summary: dict[str, Any] = _summary(job) if job else {"job": name if _is_job(name) else None, "state": run.state if run else None}
    summary |= {"query": run.name if run else None, "run": run.summary() if run else None, "unseen": unseen or None}
    print_result(summary, lambda: _described(name, job, run, unseen), as_json)


def logs(
    name: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends, and exit as it does.")] = False,
    debug: Debug = False,
) -> int:
    """What a job prints."""
    server = _server(address)
    if not follow:
        print(server.logs(name), end="")
        return 0
    return _code(server.follow(name, lambda text: print(text, end="", flush=True)))


def stop(name: JobId, address: Address = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """End a job in order; submitted again, it goes on."""
    job = _server(address).stop(name)
    print_result(_summary(job), lambda: _ended(job), as_json)


def fetch(
    name: JobId,
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="The folder to write into.", show_default=False)],
    address: Address = None,
    store: StoreUri = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Bring what a job that is done left in its store.

    The batch, its manifest, the report; of loops and simulations theirs.
    """
    from raystream.store.life import query_of_job
    from raystream.store.queries import find_run

    if address is None and store is None:
        raise QueryError("neither --address nor --store is given; name the cluster's job server, or the store that the job wrote to")
    job, server = None, None
    if address is not None:
        try:
            server = _server(address)
            job = server.job(name)
        except ClusterError as error:
            if store is None:
                raise
            print(f"raystream: warning: {error}", file=sys.stderr)
    if job is not None and job.state != "done":
        run, _ = _run(name, job, store)
        raise ClusterError(_not_done(job, run))
    opened = _opened(job, store)
    if job is not None and server is not None and job.about.get("command") not in ("query", "select", None):
        names = _results(opened, server.logs(name))
        if not names:
            raise QueryError(f"job {name} ran raystream {job.about.get('command')}, which leaves nothing to fetch beside the store")
    else:
        query = query_of_job(opened, name) if _is_job(name) else find_run(opened, name)
        if query is None:
            raise QueryError(f"store {opened.uri} knows no query of job {name}; see --store, and raystream show for its queries")
        folder = f"queries/{query}"
        if not opened.exists(f"{folder}/manifest.json"):
            raise ClusterError(f"query {query} of job {name} has no result; see raystream status {name} --store {opened.uri}")
        wanted = ("selection.parquet", "quarantined.parquet", "manifest.json", "query.yaml", "report.html")
        names = [f"{folder}/{file}" for file in wanted if opened.exists(f"{folder}/{file}")]
    files = _written(opened, names, out)
    print_result({"job": name, "files": files}, lambda: "\n".join(files), as_json)


def _server(address: str | None) -> JobServer:
    if address is None:
        raise QueryError("--address is missing; give that of the cluster's job server, such as http://head:8265")
    from raystream.cluster.jobs import JobServer

    return JobServer(address)


def _is_job(name: str) -> bool:
    return name.startswith("rs-")


def _opened(job: Job | None, store: str | None) -> Store:
    """Open the store of a job, where this machine reaches it.

    Raises:
        QueryError: raystream has written none there.
    """
    from raystream.lake import LOCAL
    from raystream.lake.uri import storage_from
    from raystream.store.opening import existing_store

    if store is not None:
        return existing_store(store)
    uri = job.about.get("store") if job else None
    if job is None or uri is None:
        raise QueryError(f"job {job.id if job else ''} was not submitted by raystream, so its store isn't known; give --store")
    options = json.loads(job.about.get("storage", "{}"))
    return existing_store(uri, storage_from(options, "store.storage") if options else LOCAL)


def _run(name: str, job: Job | None, store: str | None) -> tuple[RunState | None, str]:
    """Read how far the run is, by its store; or say why that can't be told."""
    from raystream.store.events import run_state
    from raystream.store.life import query_of_job
    from raystream.store.queries import find_run

    try:
        opened = _opened(job, store)
        if not _is_job(name):
            return run_state(opened, find_run(opened, name)), ""
        query = query_of_job(opened, name)
        if query is None:
            return None, f"store {opened.uri} knows no query of job {name} yet"
        return run_state(opened, query), ""
    except RaystreamError as error:
        if store is not None:
            raise
        return None, f"how far it is can't be seen from here ({error}); give --store as this machine reaches it"


def _results(store: Store, printed: str) -> list[str]:
    """Name the files in the store that a job's result names."""
    root = store.place("x")[:-1]
    found = [value.removeprefix(root) for value in (_result(printed) or {}).values() if isinstance(value, str) and value.startswith(root)]
    return [name for name in dict.fromkeys(found) if store.exists(name)]


def _written(store: Store, names: Sequence[str], out: Path) -> list[str]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        places = []
        for name in names:
            place = out / name.rpartition("/")[2]
            place.write_bytes(store.read(name))
            places.append(str(place.absolute()))
        return places
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise QueryError(f"--out {out} can't be written: {error.strerror}") from error


def _result(printed: str) -> dict[str, Any] | None:
    """Find the JSON object that a job printed last; what else it prints are lines of progress."""
    for line in reversed(printed.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None


def _pass_on(text: str, kept: list[str]) -> None:
    kept.append(text)
    print(text, end="", file=sys.stderr, flush=True)


def _code(job: Job) -> int:
    """Return what the command of a job ended with, as far as its cluster knows."""
    if job.state == "done":
        return 0
    if job.state == "stopped":
        return _STOPPED
    return job.exit_code if job.exit_code is not None and job.exit_code > 0 else ClusterError.exit_code


def _summary(job: Job) -> dict[str, Any]:
    about = {key: job.about.get(key) or None for key in ("command", "name", "store", "who")}
    return {"job": job.id, "state": job.state, "message": job.message, "exit_code": job.exit_code, "submitted": job.submitted} | about


def _submitted(job: Job, new: bool, address: str) -> str:
    first = f"job {job.id} submitted" if new else f"job {job.id} is {job.state} already: the same spec over the same files is one job"
    return f"{first}\n  see  raystream status {job.id} --address {address}\n  or   raystream logs {job.id} --follow --address {address}"


def _ended(job: Job) -> str:
    why = f": {job.message}" if job.message and job.state == "failed" else ""
    return f"job {job.id} {job.state}{why}"


def _not_done(job: Job, run: RunState | None) -> str:
    if job.state == "failed":
        why = job.message.rstrip(".")
        return f"job {job.id} failed, so there is nothing to fetch: {why}; mend that and submit it again, it goes on where it stopped"
    if job.state == "stopped":
        return f"job {job.id} was stopped, so there is nothing to fetch; submit it again, it goes on where it stopped"
    far = f" ({run.rows_done:,} of {number_of(run.rows, 'row')})" if run and run.rows is not None and run.rows_done is not None else ""
    return f"job {job.id} is {job.state}{far}, so there is nothing to fetch yet; raystream logs {job.id} --follow waits for its end"


def _described(name: str, job: Job | None, run: RunState | None, unseen: str) -> str:
    lines = [f"job {job.id} {job.state}" if job else f"{'job' if _is_job(name) else 'query'} {name} {run.state if run else ''}"]
    if job is not None:
        lines.append(f"  runs        raystream {job.about.get('command', '?')} {job.about.get('spec', '')}".rstrip())
        if job.state == "failed" or (job.state == "queued" and job.message):
            lines.append(f"  Ray says    {job.message}")
    if run is not None:
        lines.append(f"  query       {run.name}, {run.state}")
        if run.rows is not None and run.units is not None:
            pace = [] if run.rate is None else [f"{run.rate:,.0f} rows/s"]
            pace += [] if run.seconds_left is None else [f"about {in_seconds(max(run.seconds_left, 1.0))} left"]
            lines.append(f"  rows        {', '.join([f'{run.rows_done or 0:,} of {run.rows:,}', *pace])}")
            lines.append(f"  units       {run.units_done or 0:,} of {run.units:,}")
        if run.started_at:
            lines.append(f"  since       {run.started_at}, last heard of {run.changed_at}, asked by {run.who}")
        if run.error:
            lines.append(f"  failed      {run.error}")
    elif unseen:
        lines.append(f"  progress    {unseen}")
    return "\n".join(lines)
