"""What the commands that look after a store have to say, as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raystream.figures import in_bytes, in_seconds, number_of

if TYPE_CHECKING:  # one command must not wait for what another imports
    from raystream.choosing.verify import Verified
    from raystream.cli.doctor import Diagnosis
    from raystream.exchange.scores import Written
    from raystream.store.gc import Collected


def describe_collected(swept: Collected) -> str:
    """What `raystream gc` removed, or would."""
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
    if swept.derived.count:
        what = number_of(swept.derived.count, "result")
        lines.append(f"  derived     {what} of selection {verb}, {in_bytes(swept.derived.bytes)}")
    lines += [
        f"  units       {swept.units.count:,} {verb}, {in_bytes(swept.units.bytes)}",
        f"  leftovers   {number_of(swept.leftovers.count, 'file')} {verb}, {in_bytes(swept.leftovers.bytes)}",
        f"{in_bytes(swept.bytes)} {verb}" + ("" if swept.deleted or not swept.bytes else "; --delete does it"),
    ]
    if swept.outputs.count:
        lines.insert(-2, f"  outputs     {swept.outputs.count:,} {verb} of units that stay, {in_bytes(swept.outputs.bytes)}")
    return "\n".join(lines)


def describe_written(written: Written) -> str:
    """What `raystream scores` wrote."""
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
    """What `raystream verify` found to be as committed."""
    lines = [
        f"query {verified.query} is what its scores give: {number_of(verified.rows, 'row')} chosen again from {verified.scored:,}",
        f"  derived     from {number_of(verified.units, 'unit')} of the store, {in_bytes(verified.bytes)}, each as its receipt says",
        f"  the same    {', '.join(verified.same)}",
        f"  agreeing    {', '.join(verified.close)} to {verified.tolerance:g} of their size",
    ]
    if verified.not_compared:
        lines.append(f"  not looked at {', '.join(verified.not_compared)}: the pool's own columns, which the store doesn't hold")
    return "\n".join(lines)


def describe_diagnosis(diagnosis: Diagnosis) -> str:
    """What `raystream doctor` found, a line each."""
    width = max(len(finding.name) for finding in diagnosis.findings)
    return "\n".join(f"{finding.verdict:<5} {finding.name:<{width}}  {finding.found}" for finding in diagnosis.findings)


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count:,} queries"
