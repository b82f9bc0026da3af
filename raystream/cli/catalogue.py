"""`raystream strategies`: what the catalogue holds, for people and for programs."""

from __future__ import annotations

import shutil
import textwrap
from typing import Annotated

import typer

from raystream.cli.terminal import print_result
from raystream.errors import QueryError, did_you_mean
from raystream.query.catalogue.arguments import Arg
from raystream.query.catalogue.listing import CatalogueEntry, listings


def strategies(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Of a strategy, a score or a kind of model: all about it.", show_default=False)
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="The acquisition scores instead.")] = False,
    kinds: Annotated[bool, typer.Option("--kinds", help="The kinds of model instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List what a query may choose by: strategies, scores, models.

    Each with what it does, what it needs and its arguments with their defaults; with a name, in full.
    """
    if scores and kinds:
        raise QueryError("--scores and --kinds are both given; give one of them")
    found = listings()
    if scores or kinds or name is None:
        found = {table: found[table] for table in ["scores" if scores else "kinds" if kinds else "strategies"]}
    if name is not None:
        known = [entry.name for entries in found.values() for entry in entries]
        if name not in known:
            words = " or ".join(_ONE[table] for table in found)
            raise QueryError(f"{name!r} is no {words}{did_you_mean(name, known)}")
        found = {table: chosen for table, entries in found.items() if (chosen := [entry for entry in entries if entry.name == name])}
    summary = {table: [entry.summary() for entry in entries] for table, entries in found.items()}
    print_result(summary, lambda: _full(found) if name is not None else _table(found), as_json)


_ONE = {"strategies": "strategy", "scores": "score", "kinds": "kind of model"}
_MARGIN = 22
_MEASURED = (
    "Times are for 1,000 rows of a million candidates with embeddings of 256 numbers, on two cores with bfloat16 units; where candidates "
    "are 10 x budget, as for the default, they are those of ten thousand rows, a hundredth or less."
)


def _table(found: dict[str, list[CatalogueEntry]]) -> str:
    """Write two lines or more an entry: what it does, when to use it, then what it needs, costs and takes."""
    lines: list[str] = []
    for entries in found.values():
        for entry in entries:
            lines += _wrapped(entry.name, entry.does)
            if "use_when" in entry.facts:
                lines += _wrapped("", f"use it when {entry.facts['use_when']}")
            args = [f"{name}: {arg.default_words}" for name, arg in entry.args.items()]
            lines += _wrapped("", " · ".join([*_needs(entry), *_costs(entry), *args]))
    if "strategies" in found:
        lines += ["", *textwrap.wrap(_MEASURED, _width())]
    return "\n".join(lines)


def _needs(entry: CatalogueEntry) -> list[str]:
    return [f"needs {', '.join(entry.needs)}"] if entry.needs else []


def _costs(entry: CatalogueEntry) -> list[str]:
    return [f"takes {entry.facts['costs']}"] if "costs" in entry.facts else []


def _full(found: dict[str, list[CatalogueEntry]]) -> str:
    lines: list[str] = []
    for table, entries in found.items():
        for entry in entries:
            lines += _wrapped(_ONE[table], f"{entry.name}: {entry.does}")
            lines += _wrapped("needs", ", ".join(entry.needs) or "nothing")
            for fact, words in entry.facts.items():
                lines += _wrapped("takes" if fact == "costs" else fact.replace("_", " "), words)
            lines += _wrapped("keys", ", ".join(entry.keys))
            for name, arg in entry.args.items():
                lines += _wrapped(f"args.{name}", _explained(arg))
            lines += _wrapped("code", entry.code)
    return "\n".join(lines)


def _explained(arg: Arg) -> str:
    return f"{arg.meaning}; {arg.expected}; default: {arg.default_words}"


def _width() -> int:
    return max(60, shutil.get_terminal_size((100, 24)).columns)


def _wrapped(head: str, text: str) -> list[str]:
    """Wrap the text beside its head, in the terminal's width; return nothing without text."""
    lines = textwrap.wrap(text, _width() - _MARGIN)
    return [(head if not number else "").ljust(_MARGIN) + line for number, line in enumerate(lines)]
