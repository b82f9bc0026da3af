"""`raystream init`: a query and a module to start from, which run as they are on a small pool that comes with them."""

from __future__ import annotations

import importlib.util
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from raystream.cli.terminal import print_result
from raystream.errors import QueryError

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
