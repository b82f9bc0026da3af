"""How a batch met its constraints, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raystream.figures import number_of
from raystream.store.manifest import Manifest


@dataclass(frozen=True)
class Met:
    """One constraint: its name in a column of 11 characters, what came out, and what was asked for."""

    name: str
    value: str
    asked: str

    @property
    def line(self) -> str:
        """For a terminal."""
        return f"  {self.name:<11} {self.value}{self.asked}"


def constraints_met(manifest: Manifest) -> list[Met]:
    """One for each constraint of the query; none for a query without, or one committed before the manifest told of them."""
    facts, select = manifest.facts, manifest.resolved["select"]
    found = []
    if "cost" in facts:
        cost = select["cost"]
        found.append(Met("cost", f"{facts['cost']:g}", f" of {cost['budget']:g} {cost['column']}"))
    found += [Met("quota", *words) for asked in select.get("quotas", ()) for words in _quota(asked, facts)]
    if "must_include" in facts:
        found.append(Met("included", number_of(int(facts["must_include"]), "row"), " by must_include"))
    if "random_share" in facts:
        found.append(Met("at random", number_of(int(facts["random_share"]), "row"), f" by random_share {select['random_share']:g}"))
    if "exact_repeats" in facts:
        found.append(Met("left out", number_of(int(facts["exact_repeats"]), "row"), " as exact repeats of chosen or labelled ones"))
    if "exact_repeats_chosen" in facts:
        count = int(facts["exact_repeats_chosen"])
        found.append(Met("repeats", number_of(count, "row"), " chosen that equal others, since nothing else was left"))
    if "near_duplicates" in facts:
        alike = f" as near-duplicates, cosine at least {select['near_duplicates']:g}"
        found.append(Met("left out", number_of(int(facts["near_duplicates"]), "candidate"), alike))
    return found


def _quota(asked: Mapping[str, Any], facts: Mapping[str, float | int | str]) -> list[tuple[str, str]]:
    """What came out of one quota, and what was asked for."""
    by, value = asked["by"], asked["value"]
    most, least = (None if asked[key] is None else f", at {words} {asked[key]:,}" for key, words in (("max", "most"), ("min", "least")))
    if value is not None:
        count = facts.get(f"quota {by}={value}")
        return [] if count is None else [(f"{by} {value} {count:,}", f"{least or ''}{most or ''}")]
    ends = [(words, limit, facts.get(f"quota {by} {words}")) for words, limit in (("fullest", most), ("emptiest", least))]
    return [(f"{by} {count:,} in the {words} group", limit or "") for words, limit, count in ends if count is not None]
