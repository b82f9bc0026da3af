"""The commands that look after what is there: a store, a committed query, this machine. Imports are late: `--help` is fast."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raystream.cli.terminal import check_place, check_places, print_result, reporting
from raystream.errors import QueryError
from raystream.figures import in_bytes, in_seconds, number_of

if TYPE_CHECKING:
    from raystream.choosing.scores_table import WrittenScores
    from raystream.choosing.verify import Verified
    from raystream.cli.doctor import Diagnosis
    from raystream.scoring.rescore import Rescored
    from raystream.store.gc import Reclaimed

Name = Annotated[str, typer.Argument(metavar="QUERY", help="The query's name in the store, or its beginning.", show_default=False)]
StoreUri = Annotated[str, typer.Option("--store", metavar="URI", help="Where scored units and queries are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])|0")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def gc(
    store: StoreUri = "runs",
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; otherwise nothing is changed.")] = False,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", metavar="QUERY", help="Forget this query, committed or not; may be given often.")
    ] = None,
    older_than: Annotated[str, typer.Option(metavar="TIME", help="Leave alone what is younger, such as 90m, 24h or 7d.")] = "24h",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove what no committed query needs, or say what that is.

    Without --delete nothing is removed. What isn't needed is scored units, queries that were never committed, what unfinished runs left,
    and what servers noted of requests that are over; none of it younger than --older-than, since a query that runs may be about to
    need it.
    """
    from raystream.store.gc import collect
    from raystream.store.opening import existing_store
    from raystream.store.queries import find_dropped

    opened = existing_store(check_place("--store", store))
    names = [find_dropped(opened, name) for name in drop or []]
    swept = collect(opened, drop=names, older_than=seconds_of(older_than, "--older-than"), delete=delete)
    print_result(swept.summary(), lambda: describe_collected(swept), as_json)


def seconds_of(text: str, option: str) -> float:
    """Read a length of time as options have it, in seconds.

    Raises:
        QueryError: it is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise QueryError(f"{option} {text!r} is not a time, expected a number and s, m, h or d, such as 24h")
    return float(match[1]) * _SECONDS[match[2]] if match[1] else 0.0


def scores(
    name: Name,
    out: Annotated[str, typer.Option("--out", metavar="PATH", help="A .parquet file, a folder, or a table: iceberg://… or delta+….")],
    store: StoreUri = "runs",
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Write the embeddings, too.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """A query's scores as one Parquet file or table.

    Ids, scores, predictions, and embeddings if asked, of every scored row.
    """
    from raystream.choosing.scores_table import write_scores
    from raystream.store.opening import existing_store

    written = write_scores(existing_store(check_place("--store", store)), name, check_place("--out", out), embeddings=embeddings)
    print_result(written.summary(), lambda: describe_written(written), as_json)


def verify(
    name: Name,
    store: StoreUri = "runs",
    rescored: Annotated[
        int | None, typer.Option("--rescore", metavar="N", min=1, help="Score N random units again, too, in this process, and compare.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Of the units that --rescore draws; left out, others each time.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Derive a selection again from the store, and compare.

    Exit 0 if it is the same, 3 with the first difference, or with the units whose outputs aren't what the model gives now.
    """
    from raystream.run import verify as derive_again
    from raystream.store.opening import existing_store

    if seed is not None and rescored is None:
        raise QueryError("--seed draws the units of --rescore, which isn't given; give both or neither")
    by = secrets.randbits(31) if seed is None else seed
    with reporting() as reporter:
        verified = derive_again(existing_store(check_place("--store", store)), name, reporter=reporter, rescored=rescored or 0, seed=by)
    print_result(verified.summary(), lambda: describe_verified(verified), as_json)


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A query of the store, or STORE/queries/NAME of any.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    store: StoreUri = "runs",
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="PATH", help="Where all rows go: a .parquet file, a folder, or a table.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What differs between two queries, and in what they chose.

    Settings, pool, model; and row by row the ranks and scores.
    """
    from raystream.choosing.difference import compare
    from raystream.report.text import describe_difference
    from raystream.store.recorded import named_query

    check_place("--store", store)
    sides = [named_query(name, store) for name in (first, second)]
    found = compare(sides[0], sides[1], None if out is None else check_place("--out", out))
    print_result(found.summary(), lambda: describe_difference(found), as_json)


def doctor(
    spec: Annotated[Path | None, typer.Argument(metavar="SPEC", help="A query, whose pool, store and model are looked at, too.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the query; may be given often.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", metavar="URI", help="The store to try, instead of the query's.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Connect to the query's Ray, or start one.")] = False,
    model: Annotated[bool, typer.Option("--model", help="Load the query's model.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Check for what may be wrong here, a line for each check.

    Packages, the store, disk, memory, clock, Ray, and the rows and functions that a query names.

    Exit 0 if nothing fails, else the code of the first that does.
    """
    from raystream.cli.doctor import diagnose
    from raystream.lake.table_writer import check_output
    from raystream.query import Query

    with reporting():
        load = (lambda: check_places(Query.load(spec, overrides or []))) if spec else None
        diagnosis = diagnose(
            load, store, lambda asked: check_output(asked.output or "", storage=asked.pool.options), start_ray=ray, load_model=model
        )
    print_result(diagnosis.summary(), lambda: describe_diagnosis(diagnosis), as_json)
    return diagnosis.exit_code


def describe_collected(swept: Reclaimed) -> str:
    """Describe what `raystream gc` removed, or would."""
    verb = "removed" if swept.deleted else "to remove"
    lines = [
        f"store {swept.store}",
        f"  kept        {_queries(swept.queries_kept)}, {number_of(swept.units_kept.count, 'unit')}, {in_bytes(swept.units_kept.bytes)}",
    ]
    if swept.running:
        age = in_seconds(swept.older_than)
        lines.append(f"  kept        {_queries(len(swept.running))} without a result, which may be running, younger than {age}")
    if swept.units_young.count:
        lines.append(
            f"  too young   {number_of(swept.units_young.count, 'unit')} that no query needs, younger than {in_seconds(swept.older_than)}"
        )
    for what, names in (("forgotten" if swept.deleted else "to forget", swept.dropped), ("unfinished", swept.unfinished)):
        if names:
            lines.append(f"  {what:<11} {_queries(len(names))}: {', '.join(names)}")
    if swept.tables.count:
        lines.append(f"  tables      {number_of(swept.tables.count, 'pool')} from memory {verb}, {in_bytes(swept.tables.bytes)}")
    if swept.derived.count:
        what = number_of(swept.derived.count, "result")
        lines.append(f"  derived     {what} of selection {verb}, {in_bytes(swept.derived.bytes)}")
    if swept.service.count:
        what = number_of(swept.service.count, "file")
        lines.append(f"  service     {what} of requests that are over {verb}, {in_bytes(swept.service.bytes)}")
    lines += [
        f"  units       {swept.units.count:,} {verb}, {in_bytes(swept.units.bytes)}",
        f"  leftovers   {number_of(swept.leftovers.count, 'file')} {verb}, {in_bytes(swept.leftovers.bytes)}",
        f"{in_bytes(swept.bytes)} {verb}" + ("" if swept.deleted or not swept.bytes else "; --delete does it"),
    ]
    if swept.outputs.count:
        lines.insert(-2, f"  outputs     {swept.outputs.count:,} {verb} of units that stay, {in_bytes(swept.outputs.bytes)}")
    return "\n".join(lines)


def describe_written(written: WrittenScores) -> str:
    """Describe what `raystream scores` wrote."""
    size = "" if written.bytes is None else f", {in_bytes(written.bytes)}"
    return "\n".join(
        [
            f"scores of query {written.query}",
            f"  rows        {written.rows:,}{size}",
            f"  columns     {', '.join(written.columns)}",
            f"scores     {written.uri}",
        ]
    )


def describe_verified(verified: Verified) -> str:
    """Describe what `raystream verify` found to be as committed."""
    lines = [
        f"query {verified.query} is what its scores give: {number_of(verified.rows, 'row')} chosen again from {verified.scored:,}",
        f"  derived     from {number_of(verified.units, 'unit')} of the store, {in_bytes(verified.bytes)}, each as its receipt says",
        f"  the same    {', '.join(verified.same)}",
        f"  agreeing    {', '.join(verified.close)} to {verified.tolerance:g} of their size",
    ]
    if verified.not_compared:
        lines.append(f"  not looked at {', '.join(verified.not_compared)}: the pool's own columns, which the store doesn't hold")
    return "\n".join([*lines, *_rescored(verified.rescored)])


def _rescored(found: Rescored | None) -> list[str]:
    """Write lines on the units that were scored again."""
    if found is None:
        return []
    drawn = f"{found.units:,} of {number_of(found.among, 'unit')}, {number_of(found.rows, 'row')}, drawn by --seed {found.seed}"
    lines = [f"  scored again {drawn}: {found.identical:,} the same byte for byte"]
    if found.close:
        first = found.close[0]
        lines.append(f"  agreeing    {len(found.close):,} within the tolerance; {first.unit}: {first.column} by {first.difference:.2g}")
    return lines


def describe_diagnosis(diagnosis: Diagnosis) -> str:
    """Describe what `raystream doctor` found, a line each."""
    width = max(len(finding.name) for finding in diagnosis.findings)
    return "\n".join(f"{finding.verdict:<5} {finding.name:<{width}}  {finding.found}" for finding in diagnosis.findings)


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count:,} queries"
