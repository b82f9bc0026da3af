"""The commands on labelling tools: a batch out, labels in. Imports are late: `--help` is fast."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from raystream.cli.in_job import check_place
from raystream.cli.terminal import print_result
from raystream.cli.upkeep import AsJson, Debug, Name, StoreUri, seconds_of
from raystream.errors import QueryError

if TYPE_CHECKING:
    from raystream.labels import Collected
    from raystream.labels.consolidate import Method
    from raystream.labels.cvat import Cvat
    from raystream.labels.label_studio import LabelStudio
    from raystream.store.protocol import Store
    from raystream.store.result import Result


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
    from raystream.labels.presigned import presigned

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
