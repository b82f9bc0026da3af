"""The difference of two queries as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raystream.figures import number_of, shown
from raystream.report.text import describe_asked, rows_as_text
from raystream.store.difference import Difference, FileChanges
from raystream.store.manifest import Manifest

_ROWS_SHOWN = 10
_LONGEST = 60


def describe_difference(found: Difference) -> str:
    """Say what differs in what was asked and read, then how many rows both and either chose, and the first of these."""
    a, b = found.a, found.b
    lines = [_side("a", a), _side("b", b)]
    for key, both in found.settings.items():
        lines.append(f"  setting     {key}: {' | '.join('left out' if one is None else shown(one, _LONGEST) for one in both)}")
    lines += [f"  source      {part} differs" for part in found.sources]
    lines.append(f"  pool        {_pool(found.files)}")
    lines.append(f"  model       {'the same' if found.same_model else f'another: fingerprint {a.fingerprint[:12]} | {b.fingerprint[:12]}'}")
    if not found.same_labels:
        lines.append(f"  labelled    {number_of(a.counts.labelled, 'row')} | {number_of(b.counts.labelled, 'row')}")
    lines += [f"  version     {name}: {one} | {other}" for name, (one, other) in found.versions.items()]
    lines.append(f"  chosen      {_chosen(found)}")
    table = found.rows
    for who, whose, name in (("a", f"{a.query} alone", "a"), ("b", f"{b.query} alone", "b")):
        only = table.filter(pc.equal(table.column("chosen_by"), who))
        if only.num_rows:
            columns = [table.column_names[0], f"rank_{name}", "score_a", "score_b", f"why_{name}"]
            lines += ["", f"chosen by {whose}", _text(only.select(columns))]
    moved = table.filter(pc.and_(pc.equal(table.column("chosen_by"), "both"), pc.not_equal(table.column("rank_a"), table.column("rank_b"))))
    if moved.num_rows:
        columns = [table.column_names[0], "rank_a", "rank_b", "score_a", "score_b"]
        lines += ["", "chosen by both, at other ranks", _text(moved.select(columns))]
    return "\n".join([*lines, *(["", f"rows       {found.out}"] if found.out is not None else [])])


def _side(name: str, manifest: Manifest) -> str:
    when = f", committed {manifest.committed}" if manifest.committed else ""
    return f"{name}  {manifest.query}: {describe_asked(manifest)}{when}"


def _pool(files: FileChanges) -> str:
    parts = [f"{number_of(files.same, 'file')} the same"]
    for paths, what in ((files.added, "added"), (files.removed, "removed"), (files.rewritten, "rewritten")):
        if paths:
            parts.append(f"{len(paths):,} {what} ({_some(paths)})")
    return ", ".join(parts)


def _some(paths: Sequence[str]) -> str:
    return shown(paths[0], _LONGEST) + (", …" if len(paths) > 1 else "")


def _chosen(found: Difference) -> str:
    counts = found.counts
    if found.same_rows:
        return f"{number_of(counts.both, 'row')}, the same in the same order"
    parts = [f"{number_of(counts.both, 'row')} by both, {counts.same_rank:,} of them at the same rank"]
    sides = (
        (counts.only_a, "a", counts.absent_in_b, counts.labelled_in_b, "b"),
        (counts.only_b, "b", counts.absent_in_a, counts.labelled_in_a, "a"),
    )
    for only, side, absent, labelled, other in sides:
        why = [f"{absent:,} not scored for {other}"] if absent else []
        if labelled is None:
            why.append(f"whether labelled in {other} isn't known")
        elif labelled:
            why.append(f"{labelled:,} labelled in {other}")
        parts.append(f"{only:,} by {side} alone" + (f" ({', '.join(why)})" if only and why else ""))
    return "; ".join(parts)


def _text(rows: pa.Table) -> str:
    return rows_as_text(rows, _ROWS_SHOWN)
