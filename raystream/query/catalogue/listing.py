"""The catalogue as tables: what `raystream strategies` prints, and from what the reference in docs/ is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from raystream.query.catalogue.arguments import Arg
from raystream.query.catalogue.auto import AUTO, ENOUGH
from raystream.query.catalogue.kinds import ALL_TASKS, ENTRY_POINTS, KINDS, REGISTERED, KindEntry
from raystream.query.catalogue.scores import SCORES, ScoreEntry
from raystream.query.catalogue.strategies import TRAITS, Traits


@dataclass(frozen=True)
class CatalogueEntry:
    """One entry, in words.

    Attributes:
        name: as a query names it.
        does: a line.
        needs: what it can't do without.
        facts: what else there is to say, by name.
        keys: of its section of a query, that it uses beyond those of all others.
        args: its own parameters.
        code: the import path of its code.
    """

    name: str
    does: str
    needs: tuple[str, ...]
    facts: Mapping[str, str]
    keys: tuple[str, ...]
    args: Mapping[str, Arg] = field(default_factory=dict)
    code: str = ""

    def summary(self) -> dict[str, Any]:
        """Make what `--json` prints."""
        args = [
            {"name": name, "expected": arg.expected, "default": arg.default, "otherwise": arg.otherwise, "meaning": arg.meaning}
            for name, arg in self.args.items()
        ]
        return {"name": self.name, "does": self.does, "needs": list(self.needs), **self.facts, "keys": list(self.keys), "args": args,
                "code": self.code}  # fmt: skip


def listings() -> dict[str, list[CatalogueEntry]]:
    """List all entries: `strategies`, `scores`, and `kinds` with those that other packages register; each sorted by name or by source."""
    registered = sorted(entry_points(group=ENTRY_POINTS).names - KINDS.keys())
    return {
        "strategies": [*(_strategy(name, traits) for name, traits in TRAITS.items()), _AUTO],
        "scores": [_score(name, entry) for name, entry in SCORES.items()],
        "kinds": [*(_kind(name, entry) for name, entry in KINDS.items()), *(_kind(name, REGISTERED) for name in registered)],
    }


def _strategy(name: str, traits: Traits) -> CatalogueEntry:
    needs = {"score": traits.needs_score({}), "embedding": traits.embedding, "probabilities": traits.probabilities,
             "samples": traits.samples}  # fmt: skip
    return CatalogueEntry(
        name,
        traits.does,
        tuple(word for word, needed in needs.items() if needed),
        {"use_when": traits.use_when, "costs": traits.costs, "candidates": "10 x budget" if traits.tenfold else "all"},
        tuple(sorted(traits.keys)),
        traits.args,
        traits.code,
    )


def _score(name: str, entry: ScoreEntry) -> CatalogueEntry:
    return CatalogueEntry(
        name, entry.does, (entry.needs,), {"tasks": _tasks(entry.tasks)}, tuple(sorted(entry.keys)), entry.args, entry.code
    )


_AUTO = CatalogueEntry(
    AUTO,
    "leaves it to a written rule: typiclust while little is labelled, then k_means weighted by the score, of numbers lcmd",
    (),
    {
        "use_when": f"you would rather not decide; scores are trusted from {ENOUGH:g} labelled rows for each class seen, and the result "
        "says what was picked, and why.",
        "costs": "as long as what it picks",
        "candidates": "those of what it picks",
    },
    (),
    code="raystream.query.catalogue.auto:pick",
)


def _tasks(tasks: frozenset[str]) -> str:
    return "all" if tasks == frozenset(ALL_TASKS) else ", ".join(task for task in ALL_TASKS if task in tasks)


def _kind(name: str, entry: KindEntry) -> CatalogueEntry:
    facts = {
        "source": entry.source or "none",
        "embedding": entry.embedding,
        "tasks": _tasks(entry.tasks),
        "texts": entry.texts,
        "mc_dropout": f"no: {entry.no_dropout}" if entry.no_dropout else "yes",
    }
    needs = (f"pip install '.[{entry.extra}]'",) if entry.extra else ()
    return CatalogueEntry(name, entry.does, needs, facts, tuple(sorted(entry.keys)), code=entry.code)
