"""The demo of a loop: five rounds on real images, and the same five with rows drawn at random."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow.parquet as pq

from raystream.loop.campaign import ActiveLearningLoop, LoopState
from raystream.loop.demos import mnist
from raystream.loop.demos.mnist import Images
from raystream.query import Cluster, Pool, Select, Store
from raystream.query.loop import Loop, LoopSettings
from raystream.scoring.progress import Reporter

ROUNDS, BUDGET = 5, 40
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
            f"loop     {ROUNDS} rounds of {BUDGET} labels: the first by {rows[0][0]['strategy']}, then margin and k_means; beside it the "
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
        select=Select(budget=BUDGET, strategy=strategy),
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
