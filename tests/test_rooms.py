"""The plan of the house: arrows between rooms point down, no module imports itself by detours, ray stays in one room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import raystream

ROOT = Path(raystream.__file__).parents[1]
BELOW_ALL = {"errors", "arrays", "figures", "imports", "spec", "strings", "threads"}
"""Modules beside the rooms that any of these may use; of each other, only errors."""
ARROWS = {
    "lake": set(),
    "query": {"lake"},
    "acquisition": {"query"},
    "selection": {"query"},
    "pool": {"lake", "query"},
    "model": {"lake", "query", "acquisition"},
    "store": {"lake", "query"},
    "report": {"lake", "query", "pool", "store", "scoring"},
    "labels": {"lake", "query", "pool", "store"},
    "scoring": {"lake", "query", "acquisition", "pool", "model", "store"},
    "choosing": {"lake", "query", "acquisition", "pool", "model", "store", "selection", "scoring"},
    "cluster": {"lake", "query", "pool", "model", "store", "selection", "scoring", "choosing"},
}
"""What each room may use, that of its own aside. Rooms and modules that stand in no line are above all of these."""
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
TWINS = {"Cost", "Pool", "Quota", "Store"}
"""Public names that a query's section shares with what is made of it, or, `Pool`, with the rows of a simulation."""
HEAVY = {"acquisition": {"pyarrow", "ray", "os", "pathlib"}, "selection": {"pyarrow", "ray", "os", "pathlib"}}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name, that of a package for its `__init__`."""
    found = {}
    for path in (ROOT / "raystream").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imported(tree: ast.AST) -> Iterator[str]:
    """What is imported anywhere in a module, functions included; what only types need is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        else:
            yield from imported(node)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_arrows_between_rooms_point_down() -> None:
    """A room uses those below it, also inside functions and for types."""
    for module, tree in MODULES.items():
        own = room(module)
        if own not in ARROWS and own not in BELOW_ALL:
            continue
        allowed = {own, "errors"} if own in BELOW_ALL else {own, *ARROWS[own], *BELOW_ALL}
        used = {room(name) for node in ast.walk(tree) for name in imported(node) if name.startswith("raystream.")}
        assert used <= allowed, (module, used - allowed)


def test_no_module_imports_itself_by_detours() -> None:
    """Not even where an import inside a function would hide it."""
    uses = {module: {name for name in imported(tree) if name in MODULES} for module, tree in MODULES.items()}
    assert not [module for module, names in uses.items() if module in names]
    while free := {module for module, names in uses.items() if not names}:
        uses = {module: names - free for module, names in uses.items() if module not in free}
    assert not uses, {module: sorted(names) for module, names in uses.items()}


def test_ray_and_files_stay_where_they_belong() -> None:
    """Only `cluster` imports ray; `acquisition` and `selection` read and write nothing."""
    for module, tree in MODULES.items():
        outside = {name.split(".")[0] for name in imported(tree)}
        assert "ray" not in outside or room(module) in ("cluster", "service"), module
        assert not outside & HEAVY.get(room(module), set()), module


def test_no_two_classes_share_a_name() -> None:
    """A name says what a class is, whichever file it is read in; an underscore before it does not tell two apart."""
    places: dict[str, list[str]] = {}
    for module, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append(f"{module}.{node.name}")
    shared = {name: where for name, where in places.items() if len(where) > 1}
    assert shared.keys() == TWINS, shared


def test_functions_fit_a_screen() -> None:
    """Up to 80 lines beside the docstring; a part that has a name of its own is a function of its own."""
    for module, node in [(module, node) for module, tree in MODULES.items() for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]:
        first = node.body[0]
        said = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
        assert (node.end_lineno or 0) - node.lineno + 1 - said <= 80, (module, node.name)


NO_VERBS = {
    *("The", "Of", "A", "An", "What", "Whether", "How", "That", "All", "Its", "Each", "Which", "Where", "Rows", "Every", "One", "No"),
    *("None", "True", "False", "For", "At", "Those", "By"),
}


def test_docstrings_of_functions_say_what_they_do() -> None:
    """They begin with a verb; those of properties say what they are, and those of commands and routes are read by users."""
    functions = [(module, node) for module, tree in MODULES.items() for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    for module, node in functions:
        said = ast.get_docstring(node)
        of_users = any("property" in one or one.startswith(("router.", "app.")) for one in map(ast.unparse, node.decorator_list))
        if said and not of_users and module.split(".")[1] != "cli":
            assert said.split()[0] not in NO_VERBS, (module, node.name, said)
            assert not said.startswith("("), (module, node.name, said)
