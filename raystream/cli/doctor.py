"""Find what may be wrong here before a query is run: cheap checks, a line each, none of which ends the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from raystream.cli import machine
from raystream.cli.machine import Finding
from raystream.errors import ClusterError, ModelError, RaystreamError
from raystream.figures import in_bytes, number_of
from raystream.lake import LOCAL, is_remote, redacted
from raystream.lake.filesystem import missing_credentials
from raystream.query import Query

if TYPE_CHECKING:
    from raystream.scoring.batch_reader import FirstRows


import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from raystream.errors import StoreError, StoreUnreachable
from raystream.lake import Storage
from raystream.store.opening import store_to_read
from raystream.store.protocol import Store
from raystream.store.queries import query_folder, read_manifest, read_plan, read_query

CREDENTIALS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION",
    "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID",
    "HF_TOKEN", "RAY_AUTH_TOKEN",
)  # fmt: skip
"""Environment variables that the libraries below us read credentials from; only their names are ever shown."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in order."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 if nothing fails, else the code of the first that does."""
        return next((finding.exit_code for finding in self.findings if finding.verdict == "fail"), 0)

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {"ok": not self.exit_code, "exit_code": self.exit_code, "findings": [asdict(finding) for finding in self.findings]}


_TABLES = {"pool.uri": "pool", "pool.labelled": "labels", "model.temperature": "temperature", "acquire.targets": "targets"}
CheckOutput = Callable[[Query], None]
"""Raises what keeps the query's `output` from being written, as far as can be seen beforehand."""


def diagnose(
    load: Callable[[], Query] | None, store_uri: str | None, check_output: CheckOutput, *, start_ray: bool = False, load_model: bool = False
) -> Diagnosis:
    """Check this machine, the store, Ray, and a query's pool and model.

    Args:
        load: reads the query; None if there is none.
        store_uri: of the store to try; left out, the query's, else `runs` if it is there.
        check_output: looks at the query's `output`, if it has one.
        start_ray: whether to connect to the query's Ray, or to start one.
        load_model: whether to load the query's model.
    """
    return Diagnosis(tuple(_findings(load, store_uri, check_output, start_ray, load_model)))


def _findings(
    load: Callable[[], Query] | None, store_uri: str | None, check_output: CheckOutput, start_ray: bool, load_model: bool
) -> Iterator[Finding]:
    yield from machine.python_and_packages()
    query: Query | None = None
    if load is not None:
        try:
            query = load()
            yield Finding("query", "ok", "its keys and values fit together")
        except RaystreamError as error:
            yield _failed("query", error)
    uri = store_uri or (query.store.uri if query is not None else None) or ("runs" if os.path.isdir("runs") else None)
    if uri is None:
        yield Finding("store", "skip", "not tried; name one by --store, or give a query")
    else:
        yield from check_store(uri, query.store_options if query is not None and is_remote(uri) else LOCAL)
    yield from machine.disks(uri)
    yield machine.memory()
    yield machine.processors()
    yield machine.ray()
    yield _credentials(uri, query)  # before a Ray of our own sets its token
    if start_ray:
        yield _attempt("ray start", lambda: _start_ray(query))
    if query is not None:
        yield from _query_findings(query, check_output, load_model)


def _credentials(store: str | None, query: Query | None) -> Finding:
    """Name the variables that are set, and those that aren't although object storage is asked."""
    named = [name for name in CREDENTIALS if os.environ.get(name)]
    found = f"in the environment: {', '.join(named)}" if named else "none in the environment"
    places = [("store.uri", store, query.store_options if query else LOCAL)] if store else []
    if query is not None:
        named_uris = [(key, uri) for key, uris, _ in _tables(query) for uri in uris]
        named_uris += [("output", uri) for uri in [query.output] if uri]
        weights = query.model.weights if isinstance(query.model.weights, list) else [query.model.weights]
        named_uris += [("model.weights", uri) for uri in [*weights, query.model.source] if uri]
        places += [(key, uri.removeprefix("delta+"), query.pool.options) for key, uri in named_uris if not uri.startswith("iceberg:")]
    missing: dict[str, None] = {}
    for key, uri, storage in places:
        with suppress(RaystreamError):  # what can't be used is found by the checks of the store and the pool
            missing |= dict.fromkeys(missing_credentials(uri, storage, key) if is_remote(uri) else ())
    if not missing:
        return Finding("credentials", "ok", found)
    return Finding("credentials", "warn", f"{found}; not set: {', '.join(missing)}; set it, unless this machine has a role of its own")


def _query_findings(query: Query, check_output: CheckOutput, load_model: bool) -> Iterator[Finding]:
    for key, uris, columns in _tables(query):
        if uris:
            yield _attempt(_TABLES[key], partial(_table, query, key, uris, columns))
    if query.model.prepares is not None:
        yield _attempt("preprocess", lambda: _preprocess(query))
    if query.output is not None:
        yield _attempt("output", lambda: _output(query, check_output))
    if load_model:
        yield _model(query)
    else:
        yield Finding("model", "skip", "not loaded; --model does it")


def _attempt(name: str, check: Callable[[], str]) -> Finding:
    """Run a check and return what it found; its error is the finding if it fails."""
    try:
        return Finding(name, "ok", check())
    except RaystreamError as error:
        return _failed(name, error)


def _failed(name: str, error: RaystreamError) -> Finding:
    return Finding(name, "fail", " ".join(str(error).split()).removeprefix(f"{name}: "), error.exit_code)


def _tables(query: Query) -> list[tuple[str, list[str], list[str]]]:
    """List the query's keys that name rows: each with its URIs and the columns that are read there."""
    from raystream.model import input_columns

    pool, inputs = query.pool, query.pool.input_columns
    if query.model.carried:
        inputs = input_columns(query.model)
    return [
        ("pool.uri", pool.uris, [*([pool.id] if pool.id else []), *inputs]),
        ("pool.labelled", pool.labelled, [pool.id or "id"]),
        ("model.temperature", query.model.calibration_files, [*inputs, *([pool.label] if pool.label else [])]),
        ("acquire.targets", query.acquire.targets, list(inputs)),
    ]


def _table(query: Query, key: str, uris: list[str], columns: list[str]) -> str:
    from raystream.pool import list_pool, read_footers

    files, _ = list_pool(uris, key, storage=query.pool.options, texts=key in ("pool.labelled", "model.temperature"))
    footer = read_footers(files[:1], columns)[0]
    size = sum(file.size for file in files)
    held = f"{number_of(len(files), 'file')} of {in_bytes(size)}"
    return f"{held}; the first, {footer.file.path}, has {footer.rows:,} rows and all columns read"


def _preprocess(query: Query) -> str:
    from raystream.model import load_preparation

    source = query.model.prepares or ""
    load_preparation(source, query.pool.input_columns, tuple(query.pool.input_names))
    return f"{source} can be imported"


def _output(query: Query, check_output: CheckOutput) -> str:
    check_output(query)
    return f"{redacted(query.output or '')} can be read; whether it can be written shows when it is"


def _model(query: Query) -> Finding:
    """Load the query's model and probe it with the pool's first rows, as workers do before they score."""
    from raystream.model import load, with_local_files
    from raystream.scoring.batch_reader import probe

    try:
        local = with_local_files(query.model, query.pool.options)
        model = load(local, embedding=query.needs_embedding, names=tuple(query.pool.input_names))
        loaded = f"kind {query.model.kind} loads, on {model.device}"
        try:
            first = _first_rows(query)
        except RaystreamError as error:
            return Finding("model", "warn", f"{loaded}; not run, since the pool can't be read: {error}")
        if first is None:
            return Finding("model", "warn", f"{loaded}; not run, since the pool's first units hold no row that can be used")
        probe(model, first)
    except RaystreamError as error:
        return _failed("model", error)
    except Exception as error:
        return _failed("model", ModelError(f"model can't be loaded: {type(error).__name__}: {error}"))
    told = f"{loaded}, and gives the same outputs for the same {len(first.inputs[0])} rows twice"
    return Finding("model", "warn" if model.notes else "ok", "; ".join((told, *model.notes)))


def _first_rows(query: Query) -> FirstRows | None:
    from raystream.model import PROBE_ROWS
    from raystream.scoring.batch_reader import PROBE_UNITS, first_rows, preparation
    from raystream.scoring.plan import pool_plan

    plan = pool_plan(query, query.pool)
    count = min(query.model.batch_size, PROBE_ROWS)
    return first_rows(plan.units[:PROBE_UNITS], plan.read, count, preparation(plan.read), query.cluster.cpus_per_worker)


def _start_ray(query: Query | None) -> str:
    from raystream.cluster.address import own_ray_wanted, protect_own_ray
    from raystream.query import Cluster

    cluster = Cluster() if query is None else query.cluster
    if cluster.address == "in_process":
        return "cluster.address is in_process: no Ray is used"
    if own_ray_wanted(cluster.address):
        protect_own_ray()
    from raystream.cluster.connection import connect, disconnect, worker_count

    try:
        ours = connect(cluster)
        try:
            count = worker_count(cluster)
            return f"connected, with room for {count} worker{'' if count == 1 else 's'}"
        finally:
            if ours:
                disconnect()
    except RaystreamError:
        raise
    except Exception as error:
        raise ClusterError(f"Ray can't be started: {type(error).__name__}: {error}") from error


_QUERIES_AT_A_TIME = 16
SKEW = 2.0
"""Seconds by which the store's clock and ours may differ: object storage says times in whole seconds."""


def check_store(uri: str, storage: Storage = LOCAL) -> Iterator[Finding]:
    """Put a small file, twice, read it, compare clocks, and remove it again."""
    try:
        store = store_to_read(uri, storage)
        there = store.exists("")
    except RaystreamError as error:
        yield Finding("store", "fail", str(error), error.exit_code)
        return
    uri = redacted(uri)
    folder = f"probe-{uuid.uuid4().hex}"
    name = f"{folder}/probe"
    try:
        before = time.time()
        first = store.put_if_absent(name, b"first")
        after = time.time()
        second = store.put_if_absent(name, b"second")
        content = store.read(name)
        written = next((entry.modified for entry in store.walk(folder)), None)
    except RaystreamError as error:
        yield Finding("store", "fail", str(error), error.exit_code)
        return
    finally:
        _clean(store, name, folder, there)
    if not first or second or content != b"first":
        yield Finding(
            "store", "fail", f"{uri} lets a second writer win, so that two runs could both commit; use another kind of storage", 3
        )
        return
    yield Finding("store", "ok", f"{uri} can be written, and of two writers the first wins")
    if written is None:
        yield Finding("clock", "warn", f"{uri} doesn't list what was just written; raystream gc there may see too little")
    else:
        yield _clock(written, before, after)
    yield _queries(store)


def _queries(store: Store) -> Finding:
    """Check that the manifest, plan and query.yaml of each query can be read; its units are left to `raystream verify`."""
    try:
        names = store.names("queries")
        with ThreadPoolExecutor(_QUERIES_AT_A_TIME) as threads:
            looked_at = list(threads.map(lambda name: _look(store, name), names))
    except RaystreamError as error:
        return Finding("queries", "fail", str(error), error.exit_code)
    damage = [found for found in looked_at if isinstance(found, StoreError)]
    count = len(damage) + sum(found is True for found in looked_at)
    if damage:
        return Finding("queries", "fail", f"of {count} in the store, {len(damage)} can't be used, first: {damage[0]}", damage[0].exit_code)
    return Finding(
        "queries", "ok", f"{count} in the store, each with its manifest, plan and query.yaml whole" if count else "none committed"
    )


def _look(store: Store, name: str) -> bool | StoreError:
    """Tell whether a query is committed, or what is wrong with it; of one that isn't, `raystream gc` needs the plan, if there is one."""
    try:
        committed = store.exists(f"{query_folder(name)}/manifest.json")
        if committed:
            read_manifest(store, name)
            read_query(store, name)
        if committed or store.exists(f"{query_folder(name)}/plan.parquet"):
            read_plan(store, name)
    except StoreUnreachable:
        raise
    except StoreError as error:
        return error
    return committed


def _clock(written: float, before: float, after: float) -> Finding:
    ahead = written - after if written > after else min(0.0, written - before)
    if abs(ahead) <= SKEW:
        return Finding("clock", "ok", f"the store's agrees with ours within {SKEW:g} s")
    which = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "clock", "warn", f"the store's is {abs(ahead):,.0f} s {which} ours; set both by NTP; ages in raystream gc go by the store's"
    )


def _clean(store: Store, name: str, folder: str, there: bool) -> None:
    """Leave the store as it was."""
    try:
        store.discard(name)
        store.discard_folder(folder)
        if not there:
            store.discard_folder("")
    except RaystreamError:
        pass  # a store that can't be written is found out above
