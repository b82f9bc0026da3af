"""What the strategies are worth: learning curves on real data, beside reference curves made with other seeds, or beside chance.

    python benchmarks/quality.py                  all tables: about an hour, most of it WordNet's
    python benchmarks/quality.py --quick          fewer seeds
    python benchmarks/quality.py --only digits margin "margin, 10 x, core_set"

Accuracy is that on held-out rows; benchmarks/curves.py says what the data are and how the curves are made. Of digits 10 seeds, of the
redundant ones 6, of MNIST 20, of the glosses 10.

A row is marked where it differs from the reference by more than 3 standard errors of the difference, or by 2.5 points where the
reference has no standard error. Of the glosses, and of strategies without a reference curve, the reference is `random` on the same splits
and starts: a row is marked where it is below by more than 3 standard errors of the paired difference. Without the packages that they
need the glosses' tables are left out. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import curves
from benchmarks.environment import environment
from benchmarks.glosses import Missing
from raystream.acquisition import fit_temperature
from raystream.loop.simulation.rounds import Contender
from raystream.loop.simulation.run import cores
from raystream.loop.trainers.by_name import make_trainer
from raystream.loop.trainers.training import Fitted, Predicted, Trainer, TrainingRows

Array = np.ndarray
NO_ERROR_POINTS = 2.5
ALL = {"candidates": "all"}
"""Of strategies that by default see ten times the batch."""
CALIBRATED = "u_herding, calibrated"
"""Its scores come from logits divided by the temperature under which the labels known so far are likeliest, see `Calibrated`."""
CONTENDERS = {
    one.name: one
    for one in (
        Contender("random", "random"),
        Contender("entropy", "top_k", "entropy"),
        Contender("margin", "top_k"),
        Contender("core_set", "core_set", options=ALL),
        Contender("margin, 10 x, core_set", "core_set"),
        Contender("badge", "badge", options=ALL),
        Contender("typiclust", "typiclust"),
        Contender("margin, 10 x, k_means", "k_means"),
        Contender("u_herding", "u_herding"),
        Contender(CALIBRATED, "u_herding"),
        Contender("cluster_margin", "cluster_margin"),
        Contender("prob_cover", "prob_cover"),
        Contender("facility_location", "facility_location"),
        Contender("lcmd", "lcmd"),
        Contender("k_means_pp", "k_means_pp"),
        Contender("diverse", "diverse"),
        Contender("power", "power"),
    )
}


@dataclass(frozen=True)
class Table:
    """A protocol's table.

    Attributes:
        seeds: how many runs.
        reference: by contender, (mean, standard error or None) in percent at each of the protocol's `at`; of others it is `random` on
            the same seeds.
    """

    seeds: int
    reference: Mapping[str, Sequence[tuple[float, float | None]]] = field(default_factory=dict)


def _with_errors(*values: float) -> list[tuple[float, float | None]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _means(*values: float) -> list[tuple[float, float | None]]:
    return [(value, None) for value in values]


TABLES = {
    "digits": Table(
        10,
        {
            "random": _with_errors(82.5, 0.7, 88.9, 0.7, 90.7, 0.7, 92.5, 0.4),
            "entropy": _with_errors(76.8, 1.2, 87.1, 0.6, 91.5, 0.4, 93.9, 0.4),
            "margin": _with_errors(84.9, 1.1, 92.4, 0.2, 94.9, 0.3, 95.9, 0.3),
            "core_set": _with_errors(85.9, 0.8, 90.2, 0.4, 92.7, 0.4, 94.0, 0.4),
            "margin, 10 x, core_set": _with_errors(87.3, 0.6, 92.5, 0.4, 94.4, 0.2, 95.4, 0.2),
            "badge": _with_errors(84.1, 0.7, 90.3, 0.5, 93.5, 0.3, 94.4, 0.3),
            "typiclust": _with_errors(88.9, 0.5, 91.9, 0.3, 92.9, 0.4, 93.5, 0.3),
            "margin, 10 x, k_means": _with_errors(89.4, 0.8, 93.5, 0.4, 94.7, 0.4, 95.5, 0.4),
            "u_herding": _with_errors(89.5, 0.8, 93.7, 0.6, 94.6, 0.6, 95.4, 0.4),
        },
    ),
    "redundant": Table(
        6,
        {
            "random": _means(87.5),
            "entropy": _means(68.4),
            "margin": _means(88.9),
            "core_set": _means(90.7),
            "margin, 10 x, core_set": _means(92.5),
            "badge": _means(91.7),
            "margin, 10 x, k_means": _means(93.2),
            "u_herding": _means(92.5),
        },
    ),
    "mnist": Table(
        20,
        {
            "random": _means(64.6, 73.4, 79.4),
            "margin": _means(69.7, 77.6, 82.2),
            "core_set": _means(64.9, 70.4, 72.3),
            "badge": _means(68.0, 76.3, 82.4),
            "typiclust": _means(72.9, 79.1, 82.3),
            "margin, 10 x, k_means": _means(71.9, 78.0, 84.0),
            "u_herding": _means(75.9, 81.7, 85.8),
        },
    ),
    "minilm": Table(10),
    "tfidf": Table(10),
}


@dataclass(frozen=True)
class Calibrated:
    """A trainer whose models' probabilities are those at the temperature that fits the labels."""

    trainer: Trainer
    arguments: Mapping[str, float]

    def fit(self, rows: TrainingRows, previous: Fitted | None, seed: int) -> CalibratedFitted:
        """The inner trainer's model, and the temperature."""
        return CalibratedFitted(self.trainer.fit(rows, previous, seed), temperature(rows.inputs[0], rows.labels, self.arguments))

    def load(self, section: Any, classes: Any) -> Fitted:
        """Nothing is saved here."""
        raise NotImplementedError


@dataclass(frozen=True)
class CalibratedFitted:
    """A model, softened."""

    inner: Fitted
    temperature: float

    @property
    def classes(self) -> Any:
        """The inner one's."""
        return self.inner.classes

    @property
    def native(self) -> Any:
        """The inner one's."""
        return self.inner.native

    def predict(self, inputs: tuple[Array, ...], *, embedding: bool = False) -> Predicted:
        """p^(1/T), scaled to sum to 1."""
        found = self.inner.predict(inputs, embedding=embedding)
        softened = found.values ** (1 / self.temperature)
        return Predicted(softened / softened.sum(axis=1, keepdims=True), found.embedding)

    def save(self, folder: Path) -> dict[str, Any]:
        """Nothing is saved here."""
        raise NotImplementedError


def temperature(x: Array, labels: Array, arguments: dict[str, float]) -> float:
    """The one that fits the labels, from logits of models that were fitted to the other folds of five."""
    classes, number = np.unique(labels, return_inverse=True)
    logits, fold = np.full((len(x), len(classes)), -np.inf), np.random.default_rng(0).permutation(len(x)) % 5
    for i in range(5):
        model = LogisticRegression(**arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[fold != i], number[fold != i])
        logits[np.ix_(fold == i, model.classes_)] = model.decision_function(x[fold == i])
    # a class of which all rows are in one fold has no logit there
    seen = np.isfinite(logits[np.arange(len(x)), number])
    return fit_temperature(logits[seen], number[seen]).temperature


def accuracies(table: str, name: str, seeds: int, processes: int = 1) -> Array:
    """(seeds, len(at)) accuracies in percent."""
    protocol = curves.PROTOCOLS[table]
    trainer = None
    if name == CALIBRATED:
        plain = make_trainer("sklearn", {"estimator": "sklearn.linear_model:LogisticRegression", **protocol.model})
        trainer = Calibrated(plain, protocol.model)
    found = curves.curves(table, [CONTENDERS[name]], seeds, processes=processes, trainer=trainer)[name]
    return np.array(
        [[100 * {played.labels: played.metrics["accuracy"] for played in history}[at] for at in protocol.at] for history in found]
    )


def summary(values: Array) -> list[tuple[float, float]]:
    """(mean, standard error) of each column."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(values.shape[1], np.nan)
    return [(float(a), float(b)) for a, b in zip(values.mean(axis=0), error, strict=True)]


def measure(table: str, name: str, seeds: int) -> list[tuple[float, float]]:
    """(mean, standard error) of the accuracy in percent at each of the protocol's `at`."""
    return summary(accuracies(table, name, seeds))


@dataclass(frozen=True)
class Comparison:
    """Ours and the reference at one number of labels; `off` counts standard errors of the difference, or points without any."""

    labels: int
    mean: float
    error: float
    reference: float
    reference_error: float | None
    off: float
    outside: bool


def compare(labels: int, ours: tuple[float, float], reference: tuple[float, float | None]) -> Comparison:
    """One cell of a table."""
    difference, wanted_error = ours[0] - reference[0], reference[1]
    if wanted_error is None:
        return Comparison(labels, *ours, reference[0], None, round(difference, 2), abs(difference) > NO_ERROR_POINTS)
    off = difference / float(np.hypot(ours[1], wanted_error))
    return Comparison(labels, *ours, reference[0], wanted_error, round(off, 2), not abs(off) <= 3)


def beside_random(at: Sequence[int], ours: Array, chance: Array) -> list[Comparison]:
    """The cells of a row whose seeds are those of `chance`, both (seeds, len(at))."""
    cells = []
    for labels, own, other, paired in zip(at, summary(ours), summary(chance), summary(ours - chance), strict=True):
        off = paired[0] / paired[1] if paired[1] else 0.0
        cells.append(Comparison(labels, *own, *other, round(off, 2), off < -3))
    return cells


def table(name: str, seeds: int, wanted: Sequence[str]) -> dict[str, list[Comparison]]:
    """Measure and print one table."""
    at, reference = curves.PROTOCOLS[name].at, TABLES[name].reference
    print(f"\n{name}: mean accuracy % (standard error) | reference | difference; {seeds} seeds")
    print(f"{'':<24}" + "".join(f"{f'{labels} labels':>34}" for labels in at))
    result = {}
    chance: Array | None = None
    for label in CONTENDERS:
        if wanted and label not in wanted:
            continue
        start = time.perf_counter()
        ours = accuracies(name, label, seeds, cores())
        if label in reference:
            cells = [compare(*cell) for cell in zip(at, summary(ours), reference[label], strict=True)]
        else:
            chance = accuracies(name, "random", seeds, cores()) if chance is None else chance
            cells = beside_random(at, ours, chance)
        result[label] = cells
        print(f"{label:<24}" + "".join(_cell(cell) for cell in cells) + f"   {time.perf_counter() - start:.0f} s", flush=True)
    return result


def _cell(cell: Comparison) -> str:
    wanted = f"{cell.reference:.1f}" + ("" if cell.reference_error is None else f" ({cell.reference_error:.1f})")
    off = f"{cell.off:+.1f}" + (" pt" if cell.reference_error is None else " se") + ("*" if cell.outside else " ")
    return f"{cell.mean:>10.1f} ({cell.error:.1f}) |{wanted:>11} |{off:>8}"


def main() -> int:
    """Measure, print the tables, what lies outside, and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 seeds instead of 5 to 20")
    parser.add_argument("--seeds", type=int, help="so many for every table")
    parser.add_argument("--only", choices=TABLES, action="append", help="one table; may be repeated")
    parser.add_argument("contenders", nargs="*", help="their names; left out: all")
    args = parser.parse_args()
    unknown = [name for name in args.contenders if name not in CONTENDERS]
    if unknown:
        parser.error(f"unknown contender {unknown[0]!r}; expected {', '.join(CONTENDERS)}")
    before = environment()
    results = {}
    for name in args.only or TABLES:
        try:
            results[name] = table(name, args.seeds or (3 if args.quick else TABLES[name].seeds), args.contenders)
        except Missing as missing:
            print(f"\n{name}: left out, for want of {missing}")
    outside = [
        f"{name}, {label}, {cell.labels} labels: {cell.mean:.1f} instead of {cell.reference:.1f}"
        for name, rows in results.items()
        for label, cells in rows.items()
        for cell in cells
        if cell.outside
    ]
    print(f"\n{len(outside)} outside: by 3 standard errors of the difference, or by 2.5 points of a reference without any")
    for line in outside:
        print(f"  {line}")
    measured = {name: {label: [asdict(cell) for cell in cells] for label, cells in rows.items()} for name, rows in results.items()}
    print(json.dumps({"benchmark": "quality", "environment": before, "quick": args.quick, "measured": measured, "outside": outside}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
