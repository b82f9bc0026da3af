"""The commands for a beginning: `raystream init` and `raystream strategies`.

`raystream init`: a query and a module to start from, which run as they are on a small pool that comes with them.

`raystream strategies`: what the catalogue holds, for people and for programs.
"""

from __future__ import annotations

import importlib.util
import shutil
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from raystream.cli.terminal import print_result
from raystream.errors import QueryError, did_you_mean
from raystream.query.catalogue.kinds import Arg
from raystream.query.catalogue.rules import CatalogueEntry, listings

_POOL_FILES = 2


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where; made if it isn't there.")] = Path(),
    images: Annotated[bool, typer.Option("--images", help="Encoded images in a column; the default.")] = False,
    texts: Annotated[bool, typer.Option("--texts", help="Texts in a column.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Columns of numbers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """A commented query and a module to start from.

    They run as they are, on a small pool that is written beside them. Nothing is overwritten.
    """
    asked = [name for name, given in (("images", images), ("texts", texts), ("table", table)) if given]
    if len(asked) > 1:
        raise QueryError(f"--{' and --'.join(asked)} are both given; give one of them")
    written = write_starter(folder.absolute(), asked[0] if asked else "images")
    print_result({"folder": str(folder.absolute()), "files": written}, lambda: _described(folder.absolute(), written), as_json)


def write_starter(folder: Path, kind: str) -> list[str]:
    """Write the starter of a kind, `images`, `texts` or `table`: its files, in the order to look at them.

    Raises:
        QueryError: a file of such a name is there already.
    """
    from raystream.cli.generated_pools import GENERATED

    pool = [f"pool/part-{number}.parquet" for number in range(_POOL_FILES)]
    written = ["query.yaml", "my_model.py", "weights.safetensors", "labelled.parquet", *pool]
    there = next((name for name in written if (folder / name).exists()), None)
    if there is not None:
        raise QueryError(f"{folder / there} is there already, and init overwrites nothing; name another folder: raystream init FOLDER")
    starter, made = files("raystream.cli").joinpath(f"starters/{kind}"), GENERATED[kind]()
    try:
        (folder / "pool").mkdir(parents=True, exist_ok=True)
        _write_parquet(made.labelled, folder / "labelled.parquet")
        rows = -(-made.pool.num_rows // _POOL_FILES)
        for number, name in enumerate(pool):
            _write_parquet(made.pool.slice(number * rows, rows), folder / name)
        for name in ("my_model.py", "query.yaml"):
            text = starter.joinpath(f"{name}.txt" if name.endswith(".py") else name).read_text(encoding="utf-8")
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise QueryError(f"{error.filename or folder} can't be written: {error.strerror}; name another folder") from None
    _module(folder / "my_model.py").train(str(folder))
    return written


def _write_parquet(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, row_group_size=100)


def _module(path: Path) -> Any:
    """Run the module in a file, without its name in `sys.modules`, and return it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _described(folder: Path, written: list[str]) -> str:
    said = {
        "query.yaml": "the query; what is marked with > matters first",
        "my_model.py": "its network; python my_model.py trains it anew",
        "weights.safetensors": "as trained on labelled.parquet",
        "labelled.parquet": "ids and labels of the rows that have some",
    }
    lines = [f"in {folder}:", *(f"  {name:<20} {words}" for name, words in said.items())]
    lines.append(f"  {'pool/':<20} the rows to choose from, {len(written) - len(said)} files")
    there = "" if folder == Path.cwd() else f"cd {folder}\n"
    return "\n".join([*lines, "", f"{there}raystream plan query.yaml     # what would be read, and how long it would take",
                      "raystream query query.yaml    # the rows to label next, and a report"])  # fmt: skip


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
