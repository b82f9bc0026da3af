"""What the commands that look after a store have to say, as text for a terminal."""

from __future__ import annotations

from raystream.engine.sweep import Swept
from raystream.exchange.figures import in_bytes, in_seconds, number_of


def describe_swept(swept: Swept) -> str:
    """What `raystream gc` removed, or would."""
    verb = "removed" if swept.deleted else "to remove"
    lines = [
        f"store {swept.store}",
        f"  kept        {_queries(swept.queries_kept)}, {number_of(swept.units_kept.count, 'unit')}, {in_bytes(swept.units_kept.bytes)}",
    ]
    if swept.running:
        lines.append(f"  running     {', '.join(swept.running)}")
    if swept.units_young.count:
        lines.append(
            f"  too young   {number_of(swept.units_young.count, 'unit')} that no query needs, younger than {in_seconds(swept.older_than)}"
        )
    for what, names in (("forgotten", swept.dropped), ("unfinished", swept.unfinished)):
        if names:
            lines.append(f"  {what:<11} {_queries(len(names))}: {', '.join(names)}")
    lines += [
        f"  units       {swept.units.count:,} {verb}, {in_bytes(swept.units.bytes)}",
        f"  leftovers   {number_of(swept.leftovers.count, 'file')} {verb}, {in_bytes(swept.leftovers.bytes)}",
        f"{in_bytes(swept.bytes)} {verb}" + ("" if swept.deleted or not swept.bytes else "; --delete does it"),
    ]
    return "\n".join(lines)


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count:,} queries"
