"""What terminals show: selections, stores, calibrations, differences.

Results as text for a terminal.

A fitted temperature as `raystream calibrate` shows it: a reliability diagram beside the fit, and a summary.

The difference of two queries as text for a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from raystream.figures import in_bytes as _bytes
from raystream.figures import in_seconds as _duration
from raystream.figures import number_of, shown
from raystream.figures import number_of as _count
from raystream.lake.uri import absolute, redacted
from raystream.pool.columns import readable
from raystream.query import Query
from raystream.query.select import HIDDEN_COLUMNS
from raystream.report.pool_map import reliability_svg
from raystream.scoring.calibrate import QueryCalibration
from raystream.store.calibration import Calibration, calibration_folder
from raystream.store.manifest import Certificate, Manifest, Seconds
from raystream.store.opening import store_at
from raystream.store.queries import CommittedQuery
from raystream.store.recorded import Difference, FileChanges
from raystream.store.result import Result, Scores

if TYPE_CHECKING:  # it imports torch, which takes longer than all else that a result is shown by
    from raystream.scoring.estimate import Estimate

_ROWS_SHOWN = 10
_LONGEST = 40


def describe_result(result: Result, report: str | None, *, shown: bool = False) -> str:
    """Describe a committed query: what was asked and read, the first rows, the certificate, the time, and where it all is.

    Args:
        result: the query.
        report: where its report is, if there is one.
        shown: whether that is all that was asked for; else the query was run.
    """
    manifest = result.manifest
    counts = manifest.counts
    when = f", committed {manifest.committed}" if manifest.committed else ", committed before"
    head = f"query {result.query}" + ("" if result.new else when if shown else f"{when}: nothing was changed")
    left = "" if counts.scored + counts.quarantined == counts.pool else f", {counts.scored:,} after filters"
    lines = [
        head,
        f"  asked       {describe_asked(manifest)}",
        f"  pool        {counts.pool:,} rows in {_count(len(manifest.files), 'file')}{left}, {counts.labelled:,} labelled",
        f"  scored      {_count(manifest.units_scored, 'unit')} {'now' if result.new else 'then'}, {manifest.units_reused:,} reused",
        f"  chosen      {counts.chosen:,} of {counts.candidates:,} candidates",
        *(met.line for met in constraints_met(manifest)),
        f"  certificate {describe_certificate(manifest.certificate)}",
        f"  seconds     {describe_seconds(manifest.seconds)}",
    ]
    if manifest.calibration is not None:
        lines.insert(3, f"  calibrated  {describe_temperature(manifest.calibration)}")
    if (left_out := result.quarantined) is not None:
        lines.append(f"  quarantined {_count(left_out.num_rows, 'row')}, all of them named in {result.place('quarantined.parquet')}")
    lines += _warned(manifest.warnings)
    lines += ["", rows_as_text(result.selection, _ROWS_SHOWN), "", f"selection  {result.path}"]
    if result.output is not None:
        lines.append(f"output     {absolute(result.output)}")
    if report is not None:
        lines.append(f"report     {report}")
    return "\n".join(lines)


def describe_queries(queries: Sequence[CommittedQuery], store: str) -> str:
    """Return the committed queries of a store, a line each."""
    if not queries:
        return f"store {store} holds no committed query"
    rows = [["query", "committed", "labelled", "chosen", "asked"]]
    for listed in queries:
        if listed.manifest is None:
            rows.append([listed.query, "", "", "", "its manifest is damaged"])
        else:
            counts = listed.manifest.counts
            rows.append([listed.query, listed.committed, f"{counts.labelled:,}", f"{counts.chosen:,}", describe_asked(listed.manifest)])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}" for a, b, c, d, e in rows)


def describe_asked(manifest: Manifest) -> str:
    """Write `12 rows by k_means, score margin, of lake/images with my_project.nets:resnet18, round-3.safetensors`."""
    select = manifest.resolved["select"]
    score = f", score {manifest.resolved['acquire']['score']}" if manifest.gives_scores else ""
    first, *more = [uris] if isinstance(uris := manifest.resolved["pool"]["uri"], str) else list(uris)
    pool = redacted(first) + (f" and {len(more)} more" if more else "")
    return f"{_count(select['budget'], 'row')} by {select['strategy']}{score}, of {pool} with {describe_model(manifest.resolved['model'])}"


def describe_model(section: Mapping[str, Any]) -> str:
    """Name a model by its source and weights, as the query names them; a committee by its members."""
    if section.get("members"):
        return " and ".join(map(describe_model, section["members"]))
    weights = section.get("weights") or []
    columns = ", ".join(section[key] for key in ("logits", "probabilities", "samples", "embedding") if section.get(key))
    source = section.get("source") or (f"columns {columns}" if columns else f"kind {section['kind']}")
    return ", ".join(redacted(part) for part in [source, *([weights] if isinstance(weights, str) else weights)])


def describe_scores(scores: Scores, store: str) -> str:
    """Describe what scoring alone did."""
    lines = [
        f"{scores.rows:,} rows are scored: {_count(scores.units_scored, 'unit')} now, {scores.units_reused:,} before, in store {store}",
        f"  seconds     {describe_seconds(scores.seconds)}",
    ]
    return "\n".join(lines + _warned(scores.warnings))


def describe_calibration(calibration: Calibration, new: bool, diagram: str | None) -> str:
    """Describe a fitted temperature, and what it did to the rows that it was fitted on."""
    head = describe_temperature(calibration) + ("" if new else " (fitted before; nothing was scored)")
    lines = [
        head,
        "                            before     after",
        f"  negative log-likelihood {calibration.nll_before:8.4f}  {calibration.nll_after:8.4f}",
        f"  calibration error       {calibration.ece_before:8.4f}  {calibration.ece_after:8.4f}",
    ]
    lines += _warned(calibration.warnings)
    return "\n".join(lines + ([f"diagram    {diagram}"] if diagram is not None else []))


def describe_temperature(calibration: Calibration) -> str:
    """Return the temperature with its standard error, and where it comes from."""
    error = calibration.relative_error
    spread = f" ± {calibration.temperature * error:.2g}" if error is not None else ""
    rows, label = f"{calibration.rows:,} labelled rows", f"column {calibration.label}"
    return f"temperature {calibration.temperature:g}{spread}, fitted on {rows} of {_count(len(calibration.files), 'file')}, {label}"


def describe_estimate(plan: Estimate) -> str:
    """Describe what a query would read and write."""
    state = "is committed: running it again would change nothing" if plan.committed else "is not committed yet"
    lines = [
        f"query {plan.query} {state}",
        f"  pool        {plan.rows:,} rows in {_count(plan.files, 'file')}",
        f"  read        {plan.unit_rows:,} rows, {_bytes(plan.bytes)}, in {_count(plan.units, 'unit')}",
        f"  scored      {plan.units_scored:,} of {_count(plan.units, 'unit')} already",
        f"  to score    {_bytes(plan.bytes_to_read)} read, {_bytes(plan.bytes_to_write)} written",
        f"  time        {_time(plan)}",
    ]
    if plan.changes is not None:
        changes = plan.changes
        lines.append(
            f"  changed     {_count(changes.added, 'file')} added, {changes.rewritten:,} rewritten ({_bytes(changes.bytes)}), "
            f"{changes.removed:,} removed since query {changes.since}"
        )
        if changes.settings and plan.units_scored < plan.units:
            lines.append(f"  changed     {', '.join(changes.settings)}, on which scores depend")
    return "\n".join(lines + _warned(plan.warnings))


def _warned(warnings: Sequence[str]) -> list[str]:
    """Write a line for each warning."""
    return [f"  warning     {' '.join(warning.split())}" for warning in warnings]


def describe_certificate(certificate: Certificate | None) -> str:
    """Return the covering radius in words."""
    if certificate is None:
        return "none: the choice did not look at embeddings"
    what = "eligible row of the pool" if certificate.over == "pool" else "candidate"
    text = f"every {what} lies within {certificate.radius:.4g} of a chosen or labelled one"
    if certificate.lower_bound is not None:
        text += f"; no batch of this size gets below {certificate.lower_bound:.4g}"
    return text


def describe_seconds(seconds: Seconds) -> str:
    """Write the wall time by stage, in words."""
    fitting = f"calibrate {seconds.calibrate:.1f}, " if seconds.calibrate >= 0.05 else ""
    return f"{fitting}plan {seconds.plan:.1f}, start {seconds.start:.1f}, score {seconds.score:.1f}, select {seconds.select:.1f}"


def rows_as_text(selection: pa.Table, count: int) -> str:
    """Return the first rows of a selection as an aligned table."""
    names = [name for name in selection.column_names if name not in HIDDEN_COLUMNS]
    names = [name for name in names if selection.column(name).null_count < max(1, selection.num_rows)]
    if "why" in names and not any(selection.column("why").to_pylist()):
        names.remove("why")
    head = selection.select(names).slice(0, count)
    columns = [[name, *(_cell(value) for value in readable(head.column(name)))] for name in names]
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in zip(*columns, strict=True)]
    if selection.num_rows > count:
        lines.append(f"... and {selection.num_rows - count:,} more")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return shown(f"[{', '.join(map(_cell, value[:8]))}{', …' if len(value) > 8 else ''}]", _LONGEST)
    return shown(f"{value:#.4g}".rstrip(".") if isinstance(value, float) else value, _LONGEST)


def _time(plan: Estimate) -> str:
    if not plan.bytes_to_read:
        return "nothing to score"
    start = f"about {_duration(plan.start_seconds)} to start Ray, then " if plan.start_seconds else ""
    if plan.seconds is None:
        return f"{start}unknown, going by {plan.measured_on}"
    seconds = f"about {_duration(plan.seconds)}" if plan.seconds >= 1 else "less than a second"
    return f"{start}{seconds} on {_count(plan.workers, 'worker')}, going by {plan.measured_on}"


@dataclass(frozen=True)
class Met:
    """One constraint: its name in a column of 11 characters, what came out, and what was asked for."""

    name: str
    value: str
    asked: str

    @property
    def words(self) -> str:
        """What was asked for, by itself."""
        return self.asked.removeprefix(",").strip()

    @property
    def line(self) -> str:
        """For a terminal."""
        return f"  {self.name:<11} {self.value}{self.asked}"


def constraints_met(manifest: Manifest) -> list[Met]:
    """List one for each constraint of the query; none for a query without, or one committed before the manifest told of them."""
    facts, select = manifest.facts, manifest.resolved["select"]
    found = []
    if "strategy_why" in facts:
        found.append(Met("auto", str(facts["strategy"]), f": {facts['strategy_why']}"))
    if "cost" in facts:
        cost = select["cost"]
        found.append(Met("cost", f"{facts['cost']:g}", f" of {cost['budget']:g} {cost['column']}"))
    found += [Met("quota", *words) for asked in select.get("quotas", ()) for words in _quota(asked, facts)]
    if "must_include" in facts:
        found.append(Met("included", _count(int(facts["must_include"]), "row"), " by must_include"))
    if "random_share" in facts:
        found.append(Met("at random", _count(int(facts["random_share"]), "row"), f" by random_share {select['random_share']:g}"))
    if "exact_repeats" in facts:
        words = " as exact repeats of chosen or labelled ones, by their embeddings"
        found.append(Met("left out", _count(int(facts["exact_repeats"]), "row"), words))
    if "exact_repeats_chosen" in facts:
        count = int(facts["exact_repeats_chosen"])
        found.append(Met("repeats", _count(count, "row"), " chosen that equal others, since nothing else was left"))
    if "near_duplicates" in facts:
        alike = f" as near-duplicates, cosine at least {select['near_duplicates']:g}"
        found.append(Met("left out", _count(int(facts["near_duplicates"]), "candidate"), alike))
    return found


def _quota(asked: Mapping[str, Any], facts: Mapping[str, float | int | str]) -> list[tuple[str, str]]:
    """Describe what came out of one quota, and what was asked for."""
    by, value = asked["by"], asked["value"]
    most, least = (None if asked[key] is None else f", at {words} {asked[key]:,}" for key, words in (("max", "most"), ("min", "least")))
    if value is not None:
        count = facts.get(f"quota {by}={value}")
        return [] if count is None else [(f"{by} {value} {count:,}", f"{least or ''}{most or ''}")]
    ends = [(words, limit, facts.get(f"quota {by} {words}")) for words, limit in (("fullest", most), ("emptiest", least))]
    return [(f"{by} {count:,} in the {words} group", limit or "") for words, limit, count in ends if count is not None]


def write_diagram(query: Query, calibration: Calibration) -> str:
    """Write `reliability.svg` beside the fit in the query's store, in place of any that is there; where it is.

    Raises:
        StoreError: the store can't be written.
    """
    store = store_at(query.store.uri, query.store_options)
    name = f"{calibration_folder(calibration.key)}/reliability.svg"
    store.put(name, reliability_svg(calibration))
    return store.place(name)


def summary(fitted: QueryCalibration, diagram: str | None) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {**asdict(fitted.calibration), "new": fitted.new, "diagram": diagram}


_LONGEST_SETTING = 60


def describe_difference(found: Difference) -> str:
    """Say what differs in what was asked and read, then how many rows both and either chose, and the first of these."""
    a, b = found.a, found.b
    lines = [_side("a", a), _side("b", b)]
    for key, both in found.settings.items():
        lines.append(f"  setting     {key}: {' | '.join('left out' if one is None else shown(one, _LONGEST_SETTING) for one in both)}")
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
    return shown(paths[0], _LONGEST_SETTING) + (", …" if len(paths) > 1 else "")


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
