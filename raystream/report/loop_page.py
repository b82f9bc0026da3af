"""The report of a loop: a page, and the same in a terminal.

A loop's report: one HTML page with its curves, what was chosen each round, and what the rules would have done.

Where a loop stands, as text for a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from raystream.errors import RaystreamError
from raystream.figures import in_seconds
from raystream.query.catalogue.scores import metric_of
from raystream.report.cards import Fact, Sheet, sheet
from raystream.report.curves import Line, Mark, chart
from raystream.report.pictures import Picture, pictures
from raystream.report.svg import templates
from raystream.store.protocol import Store
from raystream.store.rounds import find_batch

PICTURES_SHOWN, ROWS_SHOWN, BATCHES_SHOWN = 24, 8, 30
_CONTROL = "control rows"
_LIMITS = ("rounds", "budget", "exhausted")
"""Rules that only say what the spec says."""
_WORTH = "By the labels given so far."
_PAID = "By the sum of the pool's column of costs over labelled rows."
_ON_CONTROL = " Grey: the accuracy on control rows with its 95% interval; they are labelled, but never trained on."


@dataclass(frozen=True)
class RoundFacts:
    """What the page shows of one round beside its line of the history.

    Attributes:
        round: its number.
        query: the name of its query; empty where there is none.
        why: why its strategy was chosen; empty where the spec names it.
        batch: the rows that were asked for; None of labels that were there before the first batch.
        controls: how many of them, the last ones, are control rows.
        classes: labelled rows by class, by now.
        predicted: the sample of the pool by the class that the model gives it.
        kappa: of this model and the one before; None without.
    """

    round: int
    query: str = ""
    why: str = ""
    batch: pa.Table | None = None
    controls: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    predicted: Mapping[str, int] = field(default_factory=dict)
    kappa: float | None = None


@dataclass(frozen=True)
class LoopFacts:
    """What the page shows.

    Attributes:
        store: holds the loop and its queries.
        folder: of the loop in the store.
        summary: what `raystream loop --json` prints.
        history: rows of `history.parquet`.
        rounds: the same rounds, and the batch that is waiting.
        metrics: columns of the history that hold metrics, the first being what counts most.
        rules: each rule, and whether it was asked for.
        spec: the loop as YAML.
        judged_by: the rows that metrics are of, in words.
        beside: histories of other loops by their names, to draw the first metric of.
    """

    store: Store
    folder: str
    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    rounds: Sequence[RoundFacts]
    metrics: Sequence[str]
    rules: Mapping[str, bool]
    spec: str
    judged_by: str
    beside: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """A chart with a heading and what it says."""

    heading: str
    chart: Markup
    caption: str


@dataclass(frozen=True)
class RoundBatch:
    """One round's rows, as pictures or as a table."""

    heading: str
    note: str
    pictures: tuple[tuple[str, Picture], ...]
    sheet: Sheet


@dataclass(frozen=True)
class Balance:
    """A class: its name, its shares of the labels and of the sample in percent; None where nothing is predicted.

    `wide` is what a whole bar stands for, the largest share of all classes.
    """

    name: str
    rows: int
    labelled: float
    predicted: float | None
    wide: float


@dataclass(frozen=True)
class LoopPage:
    """Everything on the page; strings are plain text, escaped by the template."""

    loop: str
    title: str
    lede: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    curves: tuple[Curve, ...]
    balance: tuple[Balance, ...]
    rules: tuple[tuple[str, str, str], ...]
    batches: tuple[RoundBatch, ...]
    table: Sheet
    spec: str
    provenance: tuple[tuple[str, str], ...]


def write_loop_report(facts: LoopFacts) -> str:
    """Write `report.html` into the loop's folder, in place of any that is there; its path or URI.

    Raises:
        StoreError: the folder can't be written.
    """
    html = templates().get_template("loop.html").render(page=gather_loop(facts))
    facts.store.put(f"{facts.folder}/report.html", html.encode("utf-8", "replace"))
    return facts.store.place(f"{facts.folder}/report.html")


def gather_loop(facts: LoopFacts) -> LoopPage:
    """Make the page's parts; what is missing from the store or the pool is left out."""
    summary, history = facts.summary, facts.history
    rounds = [row for row in history if row["round"]]
    labels = f"{summary['labels']:,} label{'' if summary['labels'] == 1 else 's'}"
    title = f"{len(rounds)} round{'' if len(rounds) == 1 else 's'}, {labels}"
    return LoopPage(
        loop=summary["loop"],
        title=title,
        lede=f"{str(summary['state']).capitalize()}: {summary['reason']}.",
        facts=tuple(_facts(facts)),
        warnings=tuple(summary["warnings"]),
        curves=tuple(_curves(facts)),
        balance=tuple(_balance(facts.rounds)),
        rules=tuple(_rules(facts)),
        batches=tuple(_batches(facts)),
        table=_table(history),
        spec=facts.spec,
        provenance=(
            ("loop", summary["loop"]),
            ("history", summary["history"] or "none yet"),
            ("the last batch", summary["batch"] or "none yet"),
        ),
    )


def _facts(facts: LoopFacts) -> list[Fact]:
    found = [Fact("labels", f"{facts.summary['labels']:,}", f"after batch {facts.summary['round']}")]
    if not facts.history:
        return found
    last = facts.history[-1]
    first = next(iter(facts.metrics), None)
    if first is not None and last.get(first) is not None:
        found.append(Fact(first, _figure(first, last[first]), f"of the last model, on {facts.judged_by}"))
    if last.get("control_accuracy") is not None:
        low, high = last["control_low"], last["control_high"]
        found.append(
            Fact(
                "accuracy on control rows",
                f"{100 * last['control_accuracy']:.1f}%",
                f"95% interval {100 * low:.1f} to {100 * high:.1f}%: of the model trained without these rows; a model that is trained on "
                "all labels is estimated by this one",
            )
        )
    if last.get("cost") is not None:
        found.append(Fact("cost of the labels", f"{last['cost']:,.5g}", "by the column of select.cost"))
    seconds = sum(row["seconds_query"] + row["seconds_train"] for row in facts.history)
    choosing = sum(row["seconds_query"] for row in facts.history)
    found.append(Fact("computing time", in_seconds(seconds), f"{in_seconds(choosing)} of it to choose batches, the rest to train"))
    return found


def _curves(facts: LoopFacts) -> list[Curve]:
    history = [row for row in facts.history if row["labels"]]
    if not history:
        return []
    found = _worth(facts, history, "labels", "labels")
    paid = [row for row in history if row.get("cost") is not None]
    found += _worth(facts, paid, "cost", "what the labels cost") if paid else []
    kappas = {facts_.round: facts_.kappa for facts_ in facts.rounds}
    values = [kappas.get(row["round"]) for row in history]
    if any(value is not None for value in values):
        curve = chart([Line("kappa", [row["labels"] for row in history], values)], x_label="labels", y_label="Cohen's kappa")
        caption = "How far a model agrees with the one before it, on one sample of the pool: 1 is full agreement, 0 that of chance."
        found.append(Curve("Do the models still change?", curve, caption))
    return [curve for curve in found if curve.chart]


def _worth(facts: LoopFacts, history: Sequence[Mapping[str, Any]], over: str, words: str) -> list[Curve]:
    """Draw the metrics over a column of the history: those in percent in one chart, with the control rows, each other one in its own."""
    x, marks, paid = [row[over] for row in history], _marks(facts, history, over), over == "cost"
    first, shares = next(iter(facts.metrics), ""), [name for name in facts.metrics if metric_of(name).percent]
    beside = [line for name, rows in facts.beside.items() if (line := _beside(first, name, rows, over)) is not None]
    lines = [Line(name, x, [row.get(name) for row in history]) for name in shares]
    control = [row["control_accuracy"] for row in history]
    if any(value is not None for value in control):
        low, high = ([row[name] for row in history] for name in ("control_low", "control_high"))
        lines.append(Line(_CONTROL, x, control, low, high, control=True))
    worth = (_PAID if paid else _WORTH) + (_ON_CONTROL if any(line.name == _CONTROL for line in lines) else "")
    lines += beside if first in shares else []
    heading = "By what the labels cost" if paid else "What the labels are worth"
    found = [Curve(heading, chart(lines, x_label=words, y_label="", marks=marks, percent=True), worth)]
    for name in facts.metrics:
        if name not in shares:
            better = "Lower is better." if metric_of(name).lower_is_better else "Higher is better."
            own = [Line(name, x, [row.get(name) for row in history]), *(beside if name == first else [])]
            curve = chart(own, x_label=words, y_label=name, marks=marks)
            found.append(Curve(f"{name} by what the labels cost" if paid else name, curve, f"{better} {_PAID}" if paid else better))
    return found


def _beside(metric: str, name: str, rows: Sequence[Mapping[str, Any]], over: str) -> Line | None:
    """Another loop's curve; None where it has none over that column."""
    there = [row for row in rows if row["labels"] and row.get(over) is not None and row.get(metric) is not None]
    return Line(f"{metric}, {name}", [row[over] for row in there], [row[metric] for row in there], control=True) if there else None


def _marks(facts: LoopFacts, history: Sequence[Mapping[str, Any]], over: str) -> list[Mark]:
    """Mark where each rule would have stopped first, those of one place together; rounds and budget are no news."""
    places: dict[float, list[str]] = {}
    for name in facts.rules:
        if name in _LIMITS:
            continue
        first = next((row[over] for row in history if row.get(f"would_stop_{name}")), None)
        if first is not None:
            places.setdefault(first, []).append(name)
    return [Mark(place, ", ".join(names)) for place, names in places.items()]


def _rules(facts: LoopFacts) -> list[tuple[str, str, str]]:
    """List each rule, whether it was asked for, and when it would have stopped first."""
    found = []
    for name, asked in facts.rules.items():
        if name in _LIMITS:
            continue
        row = next((row for row in facts.history if row.get(f"would_stop_{name}")), None)
        when = "not yet" if row is None else f"round {row['round']}, {row['labels']:,} labels"
        found.append((name, "asked for" if asked else "only looked at", when))
    return found


def _balance(rounds: Sequence[RoundFacts]) -> list[Balance]:
    last = next((facts for facts in reversed(rounds) if facts.classes), None)
    if last is None:
        return []
    total, sampled = sum(last.classes.values()), sum(last.predicted.values())
    names = sorted({*last.classes, *last.predicted}, key=lambda name: (-last.classes.get(name, 0), name))
    wide = 100 * max(max(last.classes.values()) / total, max(last.predicted.values(), default=0) / max(sampled, 1))
    return [
        Balance(
            name,
            last.classes.get(name, 0),
            100 * last.classes.get(name, 0) / total,
            100 * last.predicted.get(name, 0) / sampled if sampled else None,
            wide,
        )
        for name in names
    ]


def _batches(facts: LoopFacts) -> list[RoundBatch]:
    """Return the newest rounds' rows, the newest first."""
    labels = {row["round"]: row["labels"] for row in facts.history}
    strategies = {row["round"]: row["strategy"] for row in facts.history}
    found = []
    for round_ in [facts_ for facts_ in reversed(facts.rounds) if facts_.batch is not None][:BATCHES_SHOWN]:
        assert round_.batch is not None
        rows = round_.batch.num_rows
        control = f", the last {round_.controls} of them control rows" if round_.controls else ""
        by = f" by {strategies[round_.round]}" if round_.round in strategies else ""
        after = f"{labels[round_.round]:,} labels after it" if round_.round in labels else "waiting for labels"
        why = f" Chosen so because {round_.why}." if round_.why else ""
        found.append(
            RoundBatch(
                f"Round {round_.round}",
                f"{rows} rows{by}{control}; {after}.{why}",
                tuple(_pictures(facts.store, round_)),
                sheet(round_.batch, ROWS_SHOWN),
            )
        )
    return found


def _pictures(store: Store, facts: RoundFacts) -> list[tuple[str, Picture]]:
    """Read pictures of the rows that the round asked for, where they are images."""
    try:
        batch = find_batch(store, facts.query) if facts.query else None
        shown = None if batch is None else pictures(batch, PICTURES_SHOWN)
    except (RaystreamError, OSError):
        return []
    if shown is None or facts.batch is None:
        return []
    ids = facts.batch.column(facts.batch.column_names[1]).to_pylist()
    return [(str(ids[rank]), picture) for rank, picture in sorted(shown.by_rank.items())]


def _table(history: Sequence[Mapping[str, Any]]) -> Sheet:
    """Return the history as a table, without what rules would do."""
    names = [name for name in (history[0] if history else {}) if not name.startswith("would_stop_")]
    names = [name for name in names if any(row[name] is not None for row in history)]
    text = ("strategy", "query")
    rows = tuple(tuple(_cell(name, row[name]) for name in names) for row in history)
    return Sheet(tuple((name.replace("_", " "), name not in text) for name in names), rows, len(history))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.startswith("seconds"):
        return f"{value:.1f}"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _figure(name: str, value: float) -> str:
    return f"{100 * value:.1f}%" if metric_of(name).percent else f"{value:.4g}"


def describe_loop(summary: Mapping[str, Any]) -> str:
    """Return the state, the rounds as a table, and where everything is.

    Args:
        summary: what `--json` prints.
    """
    lines = [f"loop {summary['loop']}: {summary['state']}", f"  {summary['reason']}"]
    lines += [f"  batch {summary['round']} was chosen as it is because {summary['why']}"] if summary["why"] else []
    lines += [f"  warning  {warning}" for warning in summary["warnings"]]
    if summary["rounds"]:
        lines += ["", rounds_as_text(summary["rounds"])]
    places = [(name, summary[name]) for name in ("batch", "history", "report") if summary[name] is not None]
    return "\n".join([*lines, "", *(f"{name:<8} {place}" for name, place in places)])


def rounds_as_text(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Write a line a round."""
    metrics = list(dict.fromkeys(name for row in rounds for name, value in row["metrics"].items() if value is not None))
    paid = ["cost"] if any(row.get("cost") is not None for row in rounds) else []
    table = [["round", "labels", "strategy", *paid, *metrics, "choosing s", "training s"]]
    for row in rounds:
        values = [f"{row['cost']:,.5g}" if row["cost"] is not None else "" for _ in paid]
        values += [_in_words(row["metrics"].get(name)) for name in metrics]
        seconds = [f"{row['seconds'][name]:.1f}" for name in ("query", "train")]
        table.append([str(row["round"]), f"{row['labels']:,}", row["strategy"], *values, *seconds])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            f"{cell:<{width}}" if column == 2 else f"{cell:>{width}}" for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )


def _in_words(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
