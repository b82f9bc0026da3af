"""The demos: one query, and a loop of five rounds.

The demo: which 50 of 4,000 digits should be labelled next, and what that is worth beside 50 random ones.

The demo of a loop: five rounds on real images, and the same five with rows drawn at random.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import safetensors.torch

from raystream.loop.campaign import ActiveLearningLoop, LoopState
from raystream.loop.demos import mnist
from raystream.loop.demos.mnist import Images, accuracy, train
from raystream.query import Cluster, Model, Pool, Query, Select, Store
from raystream.query.loop import Loop, LoopSettings
from raystream.report.page import write_report
from raystream.report.text import describe_certificate, describe_seconds, rows_as_text
from raystream.run import run
from raystream.scoring.progress import Reporter, Silent
from raystream.store.result import Result

START = 100
BUDGET = 50
_EPOCHS = 40
_ROWS_SHOWN = 8


@dataclass(frozen=True)
class Comparison:
    """Test accuracy of one repetition, shares of 1: before, with the chosen labels, with as many random ones."""

    seed: int
    before: float
    chosen: float
    random: float


def run_demo(folder: Path, *, workers: int, seeds: int, reporter: Reporter) -> str:
    """Run the whole round on real images and say what came out.

    The first repetition's query runs on Ray and gets a report; the others run meanwhile, in processes of their own. All of it is drawn
    from seeds: in the same folder, a second call finds the same queries committed and returns what they hold.

    Args:
        folder: where the pool, the store and the report are kept.
        workers: Ray workers.
        seeds: how often the comparison is repeated, each time from other labelled rows.
        reporter: told how far it is.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    began = time.perf_counter()
    folder = folder.absolute()
    reporter.stage("Reading 5,000 images")
    pool, test = mnist.split(mnist.load_images())
    mnist.write_pool(pool, folder / "pool")
    mnist.write_labels(pool, folder / "labels.parquet")
    with _Repetitions(folder, pool, test, seeds) as others:
        first, comparison = _repetition(folder, pool, test, seed=0, cluster=Cluster(address="local", workers=workers), reporter=reporter)
        report = write_report(first)
        comparisons = [comparison]
        for seed in range(1, seeds):
            reporter.stage(f"Comparing with random rows, repetition {seed + 1} of {seeds}")
            comparisons.append(others.comparison(seed))
    return "\n".join(
        [
            *_what_was_read(folder, pool, test, first),
            "",
            rows_as_text(first.selection, _ROWS_SHOWN),
            "",
            *describe_comparisons(comparisons),
            "",
            *_where_it_is(first, report, workers, time.perf_counter() - began),
        ]
    )


def demo_query(folder: Path, seed: int, cluster: Cluster) -> Query:
    """Return the default query, over the demo's pool; one repetition differs from another in its labelled rows and weights."""
    return Query(
        pool=Pool(
            uri=str(folder / "pool"),
            id="image_id",
            inputs=["pixels"],
            labelled=[str(folder / f"seed-{seed}" / "labelled.parquet")],
        ),
        model=Model(source="raystream.loop.demos.mnist:network", weights=str(folder / f"seed-{seed}" / "weights.safetensors")),
        select=Select(budget=BUDGET),
        cluster=cluster,
        store=Store(uri=str(folder / "runs")),
        seed=seed,
    )


class _Repetitions:
    """All repetitions but the first, in at most two processes beside this one, which mostly waits for Ray; ended with the block."""

    def __init__(self, folder: Path, pool: Images, test: Images, seeds: int) -> None:
        self._rows = (folder, pool, test)
        self._seeds = range(1, seeds)
        self._processes: multiprocessing.pool.Pool | None = None
        self._found: dict[int, multiprocessing.pool.AsyncResult[Comparison]] = {}

    def __enter__(self) -> _Repetitions:
        if self._seeds:
            # Not forked: this process has threads, of torch and Arrow.
            context = multiprocessing.get_context("spawn")
            self._processes = context.Pool(min(2, len(self._seeds)), _stand_back)
            self._found = {seed: self._processes.apply_async(_compared, (*self._rows, seed)) for seed in self._seeds}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._processes is not None:
            self._processes.terminate()
            self._processes.join()

    def comparison(self, seed: int) -> Comparison:
        """Return the comparison of a repetition, waited for."""
        return self._found[seed].get()


def _stand_back() -> None:
    """Leave the main process the processors while it wants them, and Ctrl-C, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)


def _compared(folder: Path, pool: Images, test: Images, seed: int) -> Comparison:
    return _repetition(folder, pool, test, seed, Cluster(address="in_process"), reporter=Silent())[1]


def _repetition(folder: Path, pool: Images, test: Images, seed: int, cluster: Cluster, reporter: Reporter) -> tuple[Result, Comparison]:
    """Train on the start, ask, add the labels, train again; and the same with random rows."""
    place = folder / f"seed-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    start = mnist.stratified_start(pool, START, seed)
    reporter.stage(f"Training on {START} labelled images")
    network = mnist.network()
    before = _fit(network, pool, start, test, seed)
    mnist.write_labels(pool.at(start), place / "labelled.parquet")
    _save(network, place / "weights.safetensors")
    result = run(demo_query(folder, seed, cluster), reporter=reporter)
    reporter.stage(f"Training with {BUDGET} labels more")
    # The oracle: a chosen id's label is looked up.
    chosen = pool.rows_of(np.array(result.selection.column("image_id").to_pylist()))
    free = np.setdiff1d(np.arange(len(pool)), start)
    random = np.random.default_rng([seed, BUDGET]).choice(free, len(chosen), replace=False)
    return result, Comparison(
        seed,
        before,
        chosen=_fit(mnist.network(), pool, np.concatenate([start, chosen]), test, seed),
        random=_fit(mnist.network(), pool, np.concatenate([start, random]), test, seed),
    )


def _fit(network: mnist.Network, pool: Images, rows: npt.NDArray[np.int64], test: Images, seed: int) -> float:
    """Train on these rows of the pool; the accuracy on the held-out images."""
    labelled = pool.at(rows)
    train(network, labelled.pixels, labelled.labels, seed=seed, epochs=_EPOCHS)
    return accuracy(network, test.pixels, test.labels)


def _save(network: mnist.Network, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.new")
    safetensors.torch.save_file(network.state_dict(), temporary)
    os.replace(temporary, path)


def describe_comparisons(comparisons: list[Comparison]) -> list[str]:
    """Return the repetitions as an aligned table, and what they say on the difference between chosen and random rows."""
    lines = [
        f"accuracy on 1,000 held-out images, in %: {START} labels, then {BUDGET} more",
        f"{'seed':>8}{f'{START} labels':>14}{f'+ {BUDGET} chosen':>14}{f'+ {BUDGET} random':>14}{'chosen - random':>18}",
    ]
    rows = [(str(c.seed), c.before, c.chosen, c.random) for c in comparisons]
    if len(comparisons) > 1:
        means = [statistics.fmean(values) for values in zip(*(row[1:] for row in rows), strict=True)]
        rows.append(("mean", means[0], means[1], means[2]))
    for name, before, chosen, random in rows:
        lines.append(f"{name:>8}{100 * before:14.1f}{100 * chosen:14.1f}{100 * random:14.1f}{100 * (chosen - random):+18.1f}")
    differences = [100 * (c.chosen - c.random) for c in comparisons]
    if len(differences) == 1:
        return [*lines, "one repetition says little: another start changes each figure by some points"]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    better = sum(difference > 0 for difference in differences)
    verdict = f"chosen minus random: {statistics.fmean(differences):+.1f} points, standard error {error:.1f}"
    return [*lines, f"{verdict}; better in {better} of {len(differences)} repetitions"]


def _what_was_read(folder: Path, pool: Images, test: Images, result: Result) -> list[str]:
    counts, manifest = result.manifest.counts, result.manifest
    files = len(manifest.files)
    lines = [
        f"pool         {counts.pool:,} MNIST images in {files} Parquet files ({folder / 'pool'}); {len(test):,} more are held out",
        f"labelled     {counts.labelled:,} images, on which a small convolutional net with dropout was trained",
        f"query        {result.query}: {counts.chosen} of {counts.candidates:,} candidates, margin and k_means",
        f"scored       {manifest.units_scored} units now, {manifest.units_reused} reused; {manifest.bytes_read / 2**20:.1f} MiB read",
    ]
    if not result.new:
        lines.append("             this very query was committed before: what follows is that result, and nothing was scored again")
    return lines + [f"warning      {warning}" for warning in manifest.warnings]


def _where_it_is(result: Result, report: str, workers: int, seconds: float) -> list[str]:
    where = f"on Ray with {workers} workers" if result.new else "when it was committed"
    return [
        f"certificate  {describe_certificate(result.manifest.certificate)}",
        f"seconds      {describe_seconds(result.manifest.seconds)} ({where}); the whole demo took {seconds:.0f}",
        f"selection    {result.path}",
        f"report       {report}",
        f"again        raystream show {result.query} --store {result.store.uri}",
        "rounds       raystream demo --loop plays five, beside random rows",
    ]


ROUNDS, BATCH = 5, 40
_STEPS = 160


def run_loop_demo(folder: Path, *, reporter: Reporter) -> str:
    """Play a loop whose labels are given by a file, as people would give them: batch by batch, into a folder.

    In the same folder, a second call finds the rounds done and returns what they hold.

    Args:
        folder: where the pool, the labels, the store and the report are kept.
        reporter: told how far it is.

    Raises:
        RaystreamError: see `raystream.errors` for the kinds.
    """
    began = time.perf_counter()
    folder = folder.absolute()
    reporter.stage("Reading 5,000 images")
    pool, test = mnist.split(mnist.load_images())
    mnist.write_pool(pool, folder / "pool")
    mnist.write_rows(test, folder / "test.parquet")
    played = {}
    for name, strategy in (("digits", "k_means"), ("digits-random", "random")):
        driver = ActiveLearningLoop(demo_loop(folder, name, strategy), reporter)
        played[strategy] = driver, _play(driver, pool, folder / f"labels-{name}")
    (loop, state), (random, _) = played["k_means"], played["random"]
    report = loop.report_beside(state, {"random rows": random.history})
    rows = [loop.history.to_pylist(), random.history.to_pylist()]
    return "\n".join(
        [
            f"pool     {len(pool):,} MNIST images; {len(test):,} more are held out to judge by",
            f"loop     {ROUNDS} rounds of {BATCH} labels: the first by {rows[0][0]['strategy']}, then margin and k_means; beside it the "
            "same first batch, then random rows",
            "",
            "accuracy on the held-out images, in %",
            "  labels  chosen  random",
            *(f"{a['labels']:>8}{100 * a['accuracy']:>8.1f}{100 * b['accuracy']:>8.1f}" for a, b in zip(*rows, strict=True)),
            "one loop says little: raystream simulate repeats it under many seeds, with intervals",
            "",
            f"seconds  {time.perf_counter() - began:.0f} in all",
            f"labels   {_shown(folder / 'labels-digits')}, a file a batch, as people would give them",
            f"history  {_shown(state.history or '')}",
            f"report   {_shown(report)}",
        ]
    )


def demo_loop(folder: Path, name: str, strategy: str) -> Loop:
    """Return one of the two loops, which differ in their strategy alone."""
    return Loop(
        pool=Pool(uri=str(folder / "pool"), id="image_id", inputs=["pixels"], label="label"),
        model={"source": "raystream.loop.demos.mnist:network"},
        select=Select(budget=BATCH, strategy=strategy),
        cluster=Cluster(address="in_process"),
        store=Store(uri=str(folder / "runs")),
        loop=LoopSettings(
            name=name,
            oracle=str(folder / f"labels-{name}"),
            trainer="torch",
            train={"least_steps": _STEPS, "epochs": 1, "learning_rate": 0.006},
            evaluate=str(folder / "test.parquet"),
            rounds=ROUNDS,
        ),
    )


def _play(driver: ActiveLearningLoop, pool: Images, labels: Path) -> LoopState:
    """Label each batch until the loop ends."""
    labels.mkdir(parents=True, exist_ok=True)
    while True:
        state = driver.step()
        if state.state != "waiting":
            return state
        assert state.batch is not None
        ids = pq.read_table(state.batch, columns=["image_id"]).column(0).to_numpy(zero_copy_only=False).astype(str)
        mnist.write_labels(pool.at(pool.rows_of(ids)), labels / f"batch-{state.round}.parquet")


def _shown(path: str | Path) -> str:
    relative = os.path.relpath(path)
    return min(relative, str(path), key=len)
