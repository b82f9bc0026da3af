"""What a simulation's runs come to: figures, tables, a verdict in words, and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raystream.errors import DataError
from raystream.figures import in_seconds
from raystream.loop.simulation.comparison import Curves, Figures, aligned, compare, student_quantile
from raystream.loop.simulation.rounds import Played
from raystream.query.catalogue.scores import metric_of
from raystream.query.catalogue.strategies import CONTROL
from raystream.query.simulate import Simulation
from raystream.report.cards import Fact
from raystream.report.curves import Chart, Level, Line, SimulationPage, StrategyRow, chart

Histories = Mapping[str, Sequence[Sequence[Played]]]
ENOUGH_SEEDS = 10


@dataclass(frozen=True)
class Compared:
    """One strategy in a simulation.

    Attributes:
        figures: beside chance, over numbers of labels.
        by_cost: the same over what the labels cost, which decides then; None where rows have no cost.
        seconds_query: the mean over seeds of all that choosing took.
        seconds_train: of all that training took.
        chose: of `auto`: by strategy, how many batches after the first it chose by it, over all seeds; else empty.
        why: of `auto`: one of its reasons for each of these.
    """

    figures: Figures
    seconds_query: float
    seconds_train: float
    chose: Mapping[str, int] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)
    by_cost: Figures | None = None

    @property
    def decisive(self) -> Figures:
        """What the verdict goes by: what labels cost, where that is known."""
        return self.figures if self.by_cost is None else self.by_cost


@dataclass(frozen=True, eq=False)
class Simulated:
    """A simulation's outcome.

    Attributes:
        name: its name.
        metric: the first of its metrics, which the figures are of.
        best: the strategy to take: of those that pay the one of the best area, else chance.
        verdict: in words.
        strategies: by name, chance first.
        ceiling: the metric of the same trainer on all labels, mean over seeds.
        lines: by strategy, the curves of the metric that the figures come from.
        cost_lines: the same over what labels cost; empty where rows have no cost.
        curves: what `curves.parquet` holds.
        summary_table: what `summary.parquet` holds.
        played, reused: runs of this call, and those that were there.
        places: where `curves.parquet`, `summary.parquet` and `report.html` lie.
        warnings: sentences for the user.
    """

    name: str
    metric: str
    best: str
    verdict: str
    strategies: Mapping[str, Compared]
    ceiling: float
    lines: Mapping[str, Curves]
    cost_lines: Mapping[str, Curves]
    curves: pa.Table
    summary_table: pa.Table
    played: int
    reused: int
    places: Mapping[str, str]
    warnings: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        keys = ("auc", "auc_se", "final", "labels_saved", "low", "high", "p_value")
        figures = {
            name: {key: getattr(of.figures, key) for key in keys} | _cost_saved(of) | {"verdict": of.decisive.verdict}
            for name, of in self.strategies.items()
        }
        return {
            "simulation": self.name,
            **{name.partition(".")[0]: place for name, place in self.places.items()},
            "verdict": self.verdict,
            "best": self.best,
            "strategies": figures,
            "ceiling": self.ceiling,
            "metric": self.metric,
            "runs_played": self.played,
            "runs_reused": self.reused,
            "warnings": list(self.warnings),
        }


def outcome(
    name: str,
    metric: str,
    histories: Histories,
    tops: Sequence[Mapping[str, float]],
    counts: tuple[int, int],
    places: Mapping[str, str],
    warnings: Sequence[str],
) -> Simulated:
    """Compare all strategies with chance.

    Args:
        name: the simulation's.
        metric: what is compared.
        histories: by strategy, a history for each seed, in one order.
        tops: the metrics of the trainer on all labels, for each seed.
        counts: runs of this call, and those that were there.
        places: where the files lie.
        warnings: of reading the pool.
    """
    lines = aligned({key: [_line(history, metric) for history in each] for key, each in histories.items()})
    cost_lines, told = _by_cost(histories, metric)
    lower = metric_of(metric).lower_is_better
    compared = {key: _compared(key, lines, cost_lines, lower, histories[key]) for key in histories}
    best = best_of(compared)
    return Simulated(
        name=name,
        metric=metric,
        best=best,
        verdict=verdict_in_words(best, compared, metric, len(tops)),
        strategies=compared,
        ceiling=float(np.mean([top[metric] for top in tops])),
        lines=lines,
        cost_lines=cost_lines,
        curves=_curve_table(histories),
        summary_table=_summary_table(compared),
        played=counts[0],
        reused=counts[1],
        places=places,
        warnings=(*warnings, *told, *_doubts(histories, lines)),
    )


def best_of(compared: Mapping[str, Compared]) -> str:
    """Return the strategy to take: of those that pay the one of the best area, else chance."""
    paying = [key for key, of in compared.items() if of.decisive.verdict == "pays"]
    return max(paying, key=lambda key: compared[key].decisive.gain, default=CONTROL)


def verdict_in_words(best: str, compared: Mapping[str, Compared], metric: str, seeds: int) -> str:
    """Write one or two sentences that somebody can act on."""
    costs = [name for name, of in compared.items() if of.decisive.verdict == "costs"]
    warned = f" {_listed(costs)} {'costs' if len(costs) == 1 else 'cost'} here: worse than {CONTROL}." if costs else ""
    figures, priced = compared[best].decisive, compared[best].by_cost is not None
    if best != CONTROL and figures.labels_saved is not None and figures.low is not None and figures.high is not None:
        share = f"{figures.labels_saved:.0%}"
        gained = f"its labels cost {share} less than those of {CONTROL}" if priced else f"it needs {share} fewer labels than {CONTROL}"
        return (
            f"{best} pays here: {gained} for the same {metric} (from {figures.low:.0%} to {figures.high:.0%}, with 95% confidence, "
            f"{seeds} seeds).{warned}"
        )
    others = [name for name in compared if name != CONTROL and name not in costs]
    if seeds < 2:
        return f"One seed tells no difference from chance; run {ENOUGH_SEEDS} seeds or more."
    if not others:
        return f"Nothing was found that is better than {CONTROL}; take {CONTROL}.{warned}"
    found = [of.decisive for of in compared.values()]
    widths = [each.high - each.low for each in found if each.high is not None and each.low is not None]
    saved = "costs" if priced else "labels"
    width = f" ({saved} saved are known to within {max(widths):.0%}, from end to end, {seeds} seeds)" if widths else ""
    return f"No difference from {CONTROL} was found for {_listed(others)}{width}; take {CONTROL}, or the cheapest.{warned}"


def page(result: Simulated, simulation: Simulation, rows: int) -> SimulationPage:
    """Put together what the report shows."""
    labels = result.lines[CONTROL].labels
    paid = ("cost saved", "95%") if result.cost_lines else ()
    return SimulationPage(
        name=result.name,
        title=_title(result),
        lede=result.verdict,
        facts=_facts(result, rows),
        warnings=result.warnings,
        charts=_charts(result),
        columns=("strategy", "area", "final", "labels saved", "95%", *paid, "p", "choosing", "training", "verdict"),
        rows=_table(result),
        table_note=(
            f"area: {result.metric}, the mean over all labels up to {labels[-1]:,.0f}, with its standard error. labels saved: of the "
            f"labels that {CONTROL} needs for the same quality, over the upper half of the way, those that the strategy doesn't. p: of the "
            f"paired t test on the area. pays: both the {'cost saved and the area over costs' if paid else 'labels saved and the area'} "
            "are better with 95% confidence; costs: both are worse. "
            "choosing, training: a run's seconds, one thread."
        ),
        choices=tuple(
            f"{name}: {strategy} for {count} of {sum(of.chose.values())} batches, such as: {of.why[strategy]}"
            for name, of in result.strategies.items()
            for strategy, count in of.chose.items()
        ),
        spec=simulation.to_yaml(),
        provenance=(
            ("simulation", result.name),
            ("curves", result.places["curves.parquet"]),
            ("figures", result.places["summary.parquet"]),
            ("trainer", simulation.loop.trainer),
            ("first batch", f"{simulation.start_budget:,} rows by {simulation.loop.start.strategy}"),
            ("further batches", f"{simulation.select.budget:,} rows"),
            ("seed", str(simulation.seed)),
        ),
    )


def _facts(result: Simulated, rows: int) -> tuple[Fact, ...]:
    """List what stands above the charts."""
    shown = _written(result.metric)
    best, paid, labels = result.strategies[result.best].figures, result.strategies[result.best].by_cost, result.lines[CONTROL].labels
    return (
        Fact("advised", result.best, "the strategy to take here"),
        Fact("labels saved by it", _share(best.labels_saved), _between(best.low, best.high, f"of those that {CONTROL} needs")),
        *([] if paid is None else [Fact("cost saved by it", _share(paid.labels_saved), _between(paid.low, paid.high, "of theirs"))]),
        Fact(f"{result.metric} with all labels", shown(result.ceiling), "the same trainer, the mean over seeds"),
        Fact("seeds", f"{len(result.lines[CONTROL].values)}", "starts and splits, the same for every strategy"),
        Fact("labels", f"{labels[0]:,.0f} to {labels[-1]:,.0f}", f"of {rows:,} rows, in {len(labels)} rounds"),
        Fact("runs", f"{result.played + result.reused:,}", f"{result.reused:,} of them were there already"),
    )


def _charts(result: Simulated) -> tuple[Chart, ...]:
    """Draw the metric by labels, and its difference from chance."""
    percent, better = metric_of(result.metric).percent, " Lower is better." if metric_of(result.metric).lower_is_better else ""
    lines = [_drawn(name, curves) for name, curves in result.lines.items()]
    paid = [_drawn(name, curves) for name, curves in result.cost_lines.items()]
    return (
        Chart(
            f"{result.metric} by labels",
            chart(lines, x_label="labels", y_label=result.metric, levels=[Level(result.ceiling, "all labels")], percent=percent),
            "Lines are means over seeds; bands are 95% intervals of these means, of each strategy by itself. Strategies share seeds, so "
            f"that their differences are known better than the bands suggest: see the table, and the chart beside {CONTROL}.{better}",
        ),
        Chart(
            f"{result.metric} beside {CONTROL}",
            chart(
                _beside_chance(result.lines),
                x_label="labels",
                y_label=f"difference in {result.metric}{', percentage points' if percent else ''}",
                percent=percent,
                levels=[Level(0.0, CONTROL)],
            ),
            f"Each strategy minus {CONTROL}, seed by seed: means with their 95% intervals.{better}",
        ),
        *(
            [
                Chart(
                    f"{result.metric} by what the labels cost",
                    chart(
                        paid,
                        x_label="what the labels cost",
                        y_label=result.metric,
                        levels=[Level(result.ceiling, "all labels")],
                        percent=percent,
                    ),
                    f"The same, by the sum of the pool's column of costs over labelled rows: the verdict goes by this.{better}",
                )
            ]
            if paid
            else []
        ),
    )


def _table(result: Simulated) -> tuple[StrategyRow, ...]:
    """Write a row a strategy, the best one first."""
    shown = _written(result.metric)
    return tuple(
        StrategyRow(
            name,
            (
                shown(of.figures.auc) + ("" if of.figures.auc_se is None else f" ± {shown(of.figures.auc_se)}"),
                shown(of.figures.final),
                _share(of.figures.labels_saved),
                _between(of.figures.low, of.figures.high, ""),
                *([] if of.by_cost is None else [_share(of.by_cost.labels_saved), _between(of.by_cost.low, of.by_cost.high, "")]),
                "" if of.figures.p_value is None else f"{of.figures.p_value:.2g}",
                _seconds(of.seconds_query),
                _seconds(of.seconds_train),
            ),
            "" if name == CONTROL else of.decisive.verdict,
            name == result.best,
        )
        for name, of in sorted(result.strategies.items(), key=lambda pair: -pair[1].decisive.gain)
    )


def _written(metric: str) -> Callable[[float], str]:
    """Return what writes values of a metric."""
    return "{:.1%}".format if metric_of(metric).percent else "{:.4g}".format


def describe(result: Simulated) -> str:
    """Write the figures as a table for a terminal, the verdict and where all of it is."""
    shown = _written(result.metric)
    width = max(len("strategy"), *(len(name) for name in result.strategies))
    paid = f"  {'cost saved':>24}" if result.cost_lines else ""
    lines = [
        f"simulation {result.name}: {result.metric}, {result.played} runs played now, {result.reused} reused",
        "",
        f"{'strategy':<{width}}  {'area':>8}  {'final':>8}  {'labels saved':>24}{paid}  {'p':>8}  "
        f"{'choosing':>8}  {'training':>8}  verdict",
    ]
    for name, of in sorted(result.strategies.items(), key=lambda pair: -pair[1].decisive.gain):
        figures = of.figures
        saved = "".join(f"  {_with_interval(each):>24}" for each in (figures, of.by_cost) if each is not None)
        p = "" if figures.p_value is None else f"{figures.p_value:.2g}"
        lines.append(
            f"{name:<{width}}  {shown(figures.auc):>8}  {shown(figures.final):>8}{saved}  {p:>8}  {of.seconds_query:>6.2f} s  "
            f"{of.seconds_train:>6.2f} s  {'' if name == CONTROL else of.decisive.verdict}".rstrip()
        )
    lines += [f"{'all labels':<{width}}  {'':>8}  {shown(result.ceiling):>8}", "", result.verdict]
    for name, of in result.strategies.items():
        lines += [f"{name}: {strategy} for {count} batches, such as: {of.why[strategy]}" for strategy, count in of.chose.items()]
    lines += [f"warning: {warning}" for warning in result.warnings]
    lines += ["", *(f"{name.partition('.')[0]:<8} {place}" for name, place in result.places.items())]
    return "\n".join(lines)


def _with_interval(figures: Figures) -> str:
    interval = "" if figures.low is None else f"({_between(figures.low, figures.high, '')})"
    return " ".join(part for part in (_share(figures.labels_saved), interval) if part)


def _title(result: Simulated) -> str:
    return f"{result.best} pays here" if result.best != CONTROL else f"Nothing was found that beats {CONTROL}"


def _line(history: Sequence[Played], metric: str) -> tuple[Any, Any]:
    return np.array([played.labels for played in history]), np.array([played.metrics[metric] for played in history])


def _by_cost(histories: Histories, metric: str) -> tuple[dict[str, Curves], list[str]]:
    """Return the curves over what labels cost, and what is said where runs have no cost in common; none where rows have no cost."""
    if any(played.cost is None for each in histories.values() for history in each for played in history):
        return {}, []
    runs = {
        key: [(np.array([played.cost for played in history]), _line(history, metric)[1]) for history in each]
        for key, each in histories.items()
    }
    try:
        return aligned(runs), []
    except DataError:
        return {}, ["what labels cost is not compared: one run begins above what another costs in all; raise loop.rounds"]


def _compared(
    name: str, lines: Mapping[str, Curves], cost_lines: Mapping[str, Curves], lower: bool, histories: Sequence[Sequence[Played]]
) -> Compared:
    explained = [played for history in histories for played in history[1:] if played.why]
    return Compared(
        compare(lines[name], lines[CONTROL], lower_is_better=lower),
        float(np.mean([sum(played.seconds_query for played in history) for history in histories])),
        float(np.mean([sum(played.seconds_train for played in history) for history in histories])),
        dict(Counter(played.strategy for played in explained)),
        {played.strategy: played.why for played in reversed(explained)},
        compare(cost_lines[name], cost_lines[CONTROL], lower_is_better=lower) if cost_lines else None,
    )


def _curve_table(histories: Histories) -> pa.Table:
    """Make a table with a row a strategy, seed and round; a metric's column is null where a class was not among those judged by."""
    every = [played for each in histories.values() for history in each for played in history]
    metrics = list(dict.fromkeys(name for played in every for name in played.metrics))
    priced = any(played.cost is not None for played in every)
    rows = [
        {
            "strategy": name,
            "seed": seed,
            "round": number,
            "labels": played.labels,
            **({"cost": played.cost} if priced else {}),
            **{metric: played.metrics.get(metric) for metric in metrics},
            "seconds_query": played.seconds_query,
            "seconds_train": played.seconds_train,
            "chosen_by": played.strategy,
        }
        for name, each in histories.items()
        for seed, history in enumerate(each)
        for number, played in enumerate(history, 1)
    ]
    kinds = {"strategy": pa.string(), "seed": pa.int64(), "round": pa.int32(), "labels": pa.int64(), "chosen_by": pa.string()}
    return pa.Table.from_pylist(rows, pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]]))


def _summary_table(compared: Mapping[str, Compared]) -> pa.Table:
    rows = [
        {"strategy": name, **asdict(of.figures), "seconds_query": of.seconds_query, "seconds_train": of.seconds_train}
        | ({} if of.by_cost is None else {_COST_COLUMNS[key]: value for key, value in asdict(of.by_cost).items()})
        for name, of in compared.items()
    ]
    kinds = {"strategy": pa.string(), "verdict": pa.string(), "cost_verdict": pa.string()}
    return pa.Table.from_pylist(rows, pa.schema([(name, kinds.get(name, pa.float64())) for name in rows[0]]))


_COST_COLUMNS = {name: "cost_saved" if name == "labels_saved" else f"cost_{name}" for name in Figures.__dataclass_fields__}
"""Of `summary.parquet`, the figures over what labels cost."""


def read_summary(row: Mapping[str, Any]) -> Compared:
    """Return a strategy's figures out of its row of `summary.parquet`."""
    names = Figures.__dataclass_fields__
    paid = Figures(**{name: row[column] for name, column in _COST_COLUMNS.items()}) if "cost_saved" in row else None
    return Compared(Figures(**{name: row[name] for name in names}), row["seconds_query"], row["seconds_train"], by_cost=paid)


def _cost_saved(of: Compared) -> dict[str, float | None]:
    """Return what `--json` says of costs; nothing where rows have none."""
    if of.by_cost is None:
        return {}
    return {"cost_saved": of.by_cost.labels_saved, "cost_low": of.by_cost.low, "cost_high": of.by_cost.high}


def _doubts(histories: Histories, lines: Mapping[str, Curves]) -> list[str]:
    found = []
    seeds = len(next(iter(histories.values())))
    if seeds < ENOUGH_SEEDS:
        found.append(f"{seeds} seed{'' if seeds == 1 else 's'} may mislead; run {ENOUGH_SEEDS} or more, the runs that are there are kept")
    if len(next(iter(lines.values())).labels) < 3:
        found.append("curves of fewer than three rounds say little; raise loop.rounds")
    return found


def _drawn(name: str, curves: Curves) -> Line:
    low, high = band(curves.values)
    return Line(name, curves.labels.tolist(), curves.mean.tolist(), low, high, control=name == CONTROL)


def _beside_chance(lines: Mapping[str, Curves]) -> list[Line]:
    """Compute differences by seed; chance itself, a line of zeros, is the level."""
    found = []
    for name, curves in lines.items():
        if name != CONTROL:
            difference = curves.values - lines[CONTROL].values
            low, high = band(difference)
            found.append(Line(name, curves.labels.tolist(), difference.mean(axis=0).tolist(), low, high))
    return found


def band(values: Any) -> tuple[list[float], list[float]] | tuple[None, None]:
    """Compute 95% intervals of means over seeds; none of one seed."""
    seeds = len(values)
    if seeds < 2:
        return None, None
    half = student_quantile(0.975, seeds - 1) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return (values.mean(axis=0) - half).tolist(), (values.mean(axis=0) + half).tolist()


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _seconds(seconds: float) -> str:
    return in_seconds(seconds) if seconds >= 10 else f"{seconds:.2f} s"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _between(low: float | None, high: float | None, more: str) -> str:
    if low is None or high is None:
        return more
    return f"{low:.0%} to {high:.0%}" + (f", {more}" if more else "")
