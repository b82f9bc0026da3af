"""Write the tables in docs/ that come from the query's models and from the catalogue.

    python docs/generate.py             # rewrites them in place
    python docs/generate.py --check     # ends with 1 if one of them is out of date

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else in the files is written by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from raystream.query import Acquire, Cluster, Cost, Model, Pool, Preprocess, Query, Quota, Select, Store
from raystream.query.catalogue import KINDS, MODEL_KEYS, OPTIONAL_KEYS, TRAITS
from raystream.query.catalogue.kinds import Arg
from raystream.query.catalogue.rules import RULES, CatalogueEntry, listings
from raystream.query.catalogue.scores import METRICS
from raystream.query.catalogue.strategies import AUTO
from raystream.query.loop import LabellingTool, LoopSettings, Start, Stop
from raystream.query.part import Part
from raystream.query.simulate import Contestant, Simulate, StreamSettings

DOCS = Path(__file__).parent


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def meanings(part: type[Part]) -> dict[str, str]:
    """The sentence below each key in the source of a section."""
    body = ast.parse(inspect.getsource(part)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for key, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            found[key.target.id] = " ".join(str(below.value.value).split())
    return found


def takes(schema: Mapping[str, Any]) -> str:
    """What a key takes, in words, from its JSON schema."""
    if "anyOf" in schema:
        options = [takes(option) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "$ref" in schema:
        return f"[mapping](#{schema['$ref'].rpartition('/')[2].lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{str(schema['const']).lower()}`"
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} of {takes(schema['prefixItems'][0])}" if schema["prefixItems"] else "list"
        return f"list of {' or '.join(f'{item}s' for item in takes(schema.get('items', {})).split(' or '))}"
    if kind == "object":
        return "mapping"
    limits = [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]
    return " ".join([_TYPES.get(str(kind), "value"), ", ".join(limits)]).strip()


_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
_LIMITS = {"exclusiveMinimum": "above {}", "minimum": "from {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}


def section(part: type[Part], users: Callable[[str], str] = lambda key: "") -> str:
    """The keys of one section of a query, with what they take, their defaults and their meaning."""
    schema, said = part.model_json_schema(), meanings(part)
    properties = schema.get("properties") or schema["$defs"][part.__name__]["properties"]
    rows = []
    for key, field in part.model_fields.items():
        words = _TAKES.get((part.__name__, key)) or takes(properties[key])
        rows.append([f"`{key}`", words, _default(field.get_default(), field.is_required()), f"{said[key]}{users(key)}"])
    return table(["key", "takes", "default", "meaning"], rows)


_TAKES = {
    ("Query", "seed"): "whole number from 0",
    ("Pool", "filters"): "list of terms, or list of such lists",
    ("Acquire", "score"): "a [score](scores.md#all-scores), or import path",
    ("Acquire", "also"): "list of scores or import paths",
    ("Select", "strategy"): "a [strategy](strategies.md#all-strategies), or import path",
    ("Model", "kind"): "a [kind](models.md#kinds)",
    ("Model", "members"): "list of mappings like this one, at least 2",
    ("Model", "weights"): "text, or list of texts, at least 2",
    ("Simulate", "strategies"): "list of strategies or mappings",
    ("Select", "quotas"): "list of [mappings](#quotas)",
    ("Select", "near_duplicates"): "number above 0 to 1, or `false`",
    ("LoopSettings", "oracle"): "text, list of texts, a [labelling tool](#by-a-labelling-tool), or `{column: name}`",
    ("LoopSettings", "evaluate"): "text, list of texts, or number above 0, below 1",
    ("LoopSettings", "metrics"): "list of [metrics](#metrics)",
    ("LoopSettings", "start"): "[mapping](#the-first-batch)",
    ("LoopSettings", "stop"): "[mapping](#when-to-stop)",
    ("Stop", "rules"): "list of [rules](#when-to-stop), or of mappings of a rule to its parameters",
}
"""What the schema says in more words than a reader needs."""


def _default(value: object, required: bool) -> str:
    if required:
        return "**needed**"
    if isinstance(value, Part):
        return "its defaults"
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return "1/255" if value == 1 / 255 else f"`{value:g}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def _select_users(key: str) -> str:
    """Which strategies use a key that not all do."""
    if key == "candidates":
        return f" 10 x budget: {', '.join(f'`{name}`' for name, of in TRAITS.items() if of.tenfold)}."
    if key not in OPTIONAL_KEYS:
        return ""
    users = [name for name, of in TRAITS.items() if key in of.keys]
    others = [name for name, of in TRAITS.items() if key not in of.keys]
    return _users("Strategies: ", users, others)


def _model_users(key: str) -> str:
    """Which kinds use a key that not all do."""
    if key not in MODEL_KEYS:
        return ""
    return _users(
        "Kinds: ", [name for name, of in KINDS.items() if key in of.keys], [name for name, of in KINDS.items() if key not in of.keys]
    )


def _users(head: str, users: list[str], others: list[str]) -> str:
    named, but = (", ".join(f"`{name}`" for name in names) for names in (users, others))
    return f" {head}{named}." if len(users) <= len(others) else f" {head}all but {but}."


def arguments(entries: Iterable[CatalogueEntry], what: str) -> str:
    """The parameters of all entries."""
    rows = [[f"`{entry.name}`", f"`{name}`", *_argument(arg)] for entry in entries for name, arg in entry.args.items()]
    return table([what, "argument", "takes", "default", "meaning"], rows)


def _argument(arg: Arg) -> list[str]:
    return [arg.expected, _default_of(arg), arg.meaning]


def _default_of(arg: Arg) -> str:
    if arg.default is None:
        return arg.otherwise
    return f"`{arg.default:g}`" if isinstance(arg.default, float) else f"`{str(arg.default).lower()}`"


def strategies() -> str:
    """All strategies in one table."""
    rows = [
        [f"[`{entry.name}`](#{entry.name})", entry.does, ", ".join(entry.needs) or "nothing", entry.facts["candidates"],
         ", ".join(f"`{name}`" for name in [*(key for key in entry.keys if key not in ("metric", "memory")), *entry.args])]
        for entry in listings()["strategies"]
    ]  # fmt: skip
    return table(["strategy", "chooses", "needs", "candidates", "keys and args of its own"], rows)


def when() -> str:
    """Each strategy with whom it serves and its parameters."""
    parts = []
    for entry in listings()["strategies"]:
        if entry.name == AUTO:  # it has a chapter of its own
            continue
        keys = ", ".join(f"`{key}`" for key in entry.keys)
        own = f" Keys of `select`: {keys}." if keys else ""
        parts.append(f"### {entry.name}\n\nUse it when {entry.facts['use_when']} Takes {entry.facts['costs']}.{own}")
        if entry.args:
            parts.append("\n".join(f"* `{name}`, default {_default_of(arg)}: {arg.meaning}" for name, arg in entry.args.items()))
    return "\n\n".join(parts)


def sharded() -> str:
    """The strategies whose candidates may lie on several machines."""
    names = ", ".join(f"`{name}`" for name, of in TRAITS.items() if of.sharded)
    return f"These are {names}; of the others that read embeddings, all candidates are held by one process."


def scores() -> str:
    """All scores in one table."""
    rows = [[f"`{entry.name}`", entry.does, *entry.needs, entry.facts["tasks"]] for entry in listings()["scores"]]
    return table(["score", "measures", "needs", "`model.task`"], rows)


def kinds() -> str:
    """The kinds of model in one table."""
    rows = [
        [f"`{name}`", of.does, of.source or "none", of.embedding, f"`[{of.extra}]`" if of.extra else "", "no" if of.no_dropout else "yes"]
        for name, of in KINDS.items()
    ]
    return table(["`model.kind`", "is", "`model.source`", "embedding", "extra", "MC dropout"], rows)


def rules() -> str:
    """The stopping rules with their parameters."""
    rows = [
        [f"`{name}`", of.does, of.needs, ", ".join(f"`{key}` {arg.meaning} ({_default_of(arg)})" for key, arg in of.args.items())]
        for name, of in RULES.items()
    ]
    return table(["rule", "stops when", "looks at", "parameters"], rows)


def metrics() -> str:
    """The metrics and their tasks."""
    rows = [
        [f"`{name}`", of.does, "lower" if of.lower_is_better else "higher", ", ".join(f"`{task}`" for task in sorted(of.tasks))]
        for name, of in METRICS.items()
    ]
    return table(["metric", "is", "better is", "`model.task`"], rows)


def trainer() -> str:
    """The arguments of trainer torch; loaded here, since it imports torch."""
    from raystream.loop.trainers.torch_trainer import ARGS

    rows = [[f"`{name}`", arg.expected, _default_of(arg), arg.meaning] for name, arg in ARGS.items()]
    return table(["argument", "takes", "default", "meaning"], rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "query": lambda: section(Query),
    "pool": lambda: section(Pool),
    "model": lambda: section(Model, _model_users),
    "preprocess": lambda: section(Preprocess),
    "acquire": lambda: section(Acquire),
    "select": lambda: section(Select, _select_users),
    "quotas": lambda: section(Quota),
    "simulate": lambda: section(Simulate),
    "contestant": lambda: section(Contestant),
    "cost": lambda: section(Cost),
    "cluster": lambda: section(Cluster),
    "store": lambda: section(Store),
    "select args": lambda: arguments(listings()["strategies"], "strategy"),
    "acquire args": lambda: arguments(listings()["scores"], "score"),
    "strategies": strategies,
    "strategies when": when,
    "sharded": sharded,
    "scores": scores,
    "kinds": kinds,
    "loop": lambda: section(LoopSettings),
    "loop oracle": lambda: section(LabellingTool),
    "loop start": lambda: section(Start),
    "loop stop": lambda: section(Stop),
    "rules": rules,
    "metrics": metrics,
    "trainer torch": trainer,
    "stream": lambda: section(StreamSettings),
}

_GENERATED = re.compile(r"<!-- generated: ([a-z ]+) -->.*?<!-- end -->", re.DOTALL)


def generated(text: str) -> str:
    """A document with its tables written anew."""
    return _GENERATED.sub(lambda found: f"<!-- generated: {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end -->", text)


def main() -> int:
    """Rewrite what is out of date, or with `--check` name it."""
    stale = [path for path in sorted(DOCS.glob("*.md")) if generated(path.read_text()) != path.read_text()]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.name} is out of date; run make docs", file=sys.stderr)
        else:
            path.write_text(generated(path.read_text()))
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
