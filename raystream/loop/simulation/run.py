"""A simulation: what is left to do of it, done by several processes, and told.

Compares strategies on a labelled pool: every strategy under every seed, each run kept in the store, curves, figures and a verdict.

A run is a strategy under a seed. It is played in memory and committed, put if absent, under `simulations/<name>/runs/`; so a simulation
that was killed goes on, and more seeds or strategies asked for later join those that are there.

Many independent pieces of work in processes of one thread each: short ones in this process, since another takes seconds to start.

One thread whatever the number of processes: sums depend on the number of threads, and results must not.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock
from typing import Any, Generic, TypeVar

import faiss
import pyarrow.parquet as pq
import torch

from raystream.cluster.task import has_cluster
from raystream.errors import ClusterError, QueryError, StoreError
from raystream.loop.models import trainer_of
from raystream.loop.simulation.labelled_pool import LabelledPool, read_labelled_pool
from raystream.loop.simulation.outcome import Simulated, outcome, page
from raystream.loop.simulation.rounds import Campaign, Contender, Played, ceiling, check_score, play, split
from raystream.loop.trainers.sklearn_trainer import SklearnTrainer
from raystream.loop.trainers.training import TrainingRows
from raystream.model import code_hash, fingerprint, with_local_files
from raystream.query import Cluster, Model
from raystream.query.catalogue import TRAITS
from raystream.query.catalogue.strategies import AUTO
from raystream.query.simulate import Simulation
from raystream.report.curves import write_simulation_report
from raystream.scoring.progress import Reporter, Silent
from raystream.store.opening import open_store
from raystream.store.protocol import Store

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

WORTH_SECONDS = 8.0
"""So much work left is worth starting processes for: each imports torch and is given the data."""
_AHEAD = 8
"""At most so many pieces a process is given at a time: this one works itself, and looks only between two pieces, which differ in length."""
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_shared: Any = None


def each_result(
    work: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with what the work makes of it, as they are done, in no particular order.

    This process works, too: others are started once it is seen that there is enough to do.

    Args:
        work: a function of a module, which processes can import.
        shared: the same for every item; given to each process once.
        items: pieces of work.
        processes: the most, this one included; 1 starts none.

    Raises:
        ClusterError: a process died.
        Exception: what the work raised, the first of it; nothing more is begun then.
    """
    waiting, seconds = deque(items), list[float]()
    helpers: _Helpers[Shared, Item, Result] | None = None
    try:
        with one_thread_each():
            while waiting or (helpers and helpers.busy):
                if helpers is None and processes > 1 and _left(seconds, len(waiting)) > WORTH_SECONDS:
                    helpers = _Helpers(work, shared, min(processes - 1, len(waiting)))
                if helpers is not None:
                    yield from helpers.exchange(waiting, wait=not waiting)
                if waiting:
                    item, began = waiting.popleft(), time.perf_counter()
                    result = work(shared, item)
                    seconds.append(time.perf_counter() - began)
                    yield item, result
    finally:
        if helpers is not None:
            helpers.end()


def _left(seconds: Sequence[float], waiting: int) -> float:
    """Return what the rest will take, given what pieces took; the first one imports what all need, and tells only that pieces are long."""
    if len(seconds) < 2:
        return seconds[0] if seconds and waiting and seconds[0] > WORTH_SECONDS else 0.0
    return sum(seconds[1:]) / len(seconds[1:]) * waiting


def cores() -> int:
    """Count how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Hold torch, faiss and, where it can be told, linear algebra to one thread."""
    before, faiss_before = torch.get_num_threads(), faiss.omp_get_max_threads()
    with ExitStack() as stack:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            pass
        else:
            stack.enter_context(threadpool_limits(1))
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            faiss.omp_set_num_threads(faiss_before)


class _Helpers(Generic[Shared, Item, Result]):
    """Processes that are gone when this one is, however it ends."""

    def __init__(self, work: Callable[[Shared, Item], Result], shared: Shared, count: int) -> None:
        self._work, self._count = work, count
        self._others = set(multiprocessing.active_children())
        spawn = multiprocessing.get_context("spawn")
        # by a thread, for whoever gives a process as it starts more than a pipe holds waits until it has imported everything
        self._reader, writer = spawn.Pipe(duplex=False)
        self._giver = threading.Thread(target=_give, args=(writer, pickle.dumps(shared), count), daemon=True)
        self._giver.start()
        self._executor = ProcessPoolExecutor(count, spawn, _begin, (self._reader, spawn.Lock()))
        self._given: dict[Future[Result], Item] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is still to come back."""
        return bool(self._given)

    def exchange(self, waiting: deque[Item], *, wait: bool) -> Iterator[tuple[Item, Result]]:
        """Return what is done by now, once new work was handed out for it.

        Args:
            waiting: work is taken from its front.
            wait: until something is done.
        """
        done = futures.wait(self._given, None if wait else 0, futures.FIRST_COMPLETED).done if self._given else set()
        finished = [(self._given.pop(future), future) for future in done]
        each = min(_AHEAD, max(len(waiting) // (2 * self._count + 2), 1))  # the last pieces wait for whoever is free first
        with _environment(dict.fromkeys(_VARIABLES, "1")):  # a process is started when work is handed out
            while waiting and len(self._given) < each * self._count:
                item = waiting.popleft()
                self._given[self._executor.submit(_call, self._work, item)] = item
        for item, future in finished:
            try:
                yield item, future.result()
            except BrokenProcessPool:
                raise ClusterError(
                    "a process of the simulation died, perhaps for want of memory; run the command again to go on, or set cluster.workers "
                    "lower"
                ) from None

    def end(self) -> None:
        """Let the processes go; those that still work are ended."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self.busy:
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self._executor.shutdown(wait=True)
        self._reader.close()  # with which whoever still gives stops, too
        self._giver.join()


def _give(writer: Connection, data: bytes, count: int) -> None:
    """Send what is shared, once for each process."""
    with writer, suppress(OSError):  # nobody is left to read it
        for _ in range(count):
            writer.send_bytes(data)


def _begin(reader: Connection, turn: Lock) -> None:
    """Get a process ready: signals are its parent's affair, and it goes when that has gone."""
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with turn:
        data = reader.recv_bytes()
    _shared = pickle.loads(data)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(work: Callable[[Any, Item], Result], item: Item) -> Result:
    with one_thread_each():
        return work(_shared, item)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_CEILING = "all labels"
_LINE_SECONDS = 10.0
_PLAYING = "the way rounds are played"
_VERSION = 1
"""Of how runs are played; part of what they are named after."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What every run is given."""

    data: LabelledPool
    campaign: Campaign
    evaluate: float | None
    seed: int


@dataclass(frozen=True)
class SimulatedRun:
    """A strategy under a seed, and where it is kept; without a strategy, the trainer on all labels."""

    contender: Contender | None
    seed: int
    place: str


def simulate(simulation: Simulation, *, reporter: Reporter | None = None) -> Simulated:
    """Play what isn't there yet, and compare.

    Args:
        simulation: what is played, and which strategies.
        reporter: told how far it is; silent if left out.

    Raises:
        QueryError: the store holds another simulation of that name, or something that can't be simulated.
        DataError: the pool, its labels or what the trainer makes of them.
    """
    reporter = reporter or Silent()
    trainer = trainer_of(simulation)
    contenders = _contenders(simulation)
    reporter.stage("Reading the labelled pool")
    data = read_labelled_pool(simulation, trainer)
    campaign = Campaign(
        trainer,
        tuple(simulation.metrics),
        Contender("start", simulation.loop.start.strategy, simulation.acquire.score, simulation.start_options),
        simulation.start_budget,
        simulation.select.budget,
        simulation.loop.rounds,
        simulation.loop.budget,
        simulation.loop.committee,
        simulation.loop.warm_start,
        None if simulation.select.cost is None else simulation.select.cost.budget,
    )
    evaluate = simulation.loop.evaluate if isinstance(simulation.loop.evaluate, float) else None
    bench = Bench(data, campaign, evaluate, simulation.seed)
    _check_first(bench, contenders)
    store = open_store(simulation.store.uri, simulation.query_with(simulation.trained_model()).store_options)
    folder = f"simulations/{simulation.name}"
    _claim(store, folder, simulation, data)
    seeds = range(simulation.simulate.seeds)
    wanted = [SimulatedRun(contender, seed, _place(folder, contender, seed)) for seed in seeds for contender in (*contenders, None)]
    there = {run.place: found for run in wanted if (found := _read(store, run.place)) is not None}
    missing = [run for run in wanted if run.place not in there]
    began = said = time.monotonic()
    if missing:
        reporter.stage(f"Playing {len(missing)} runs")
    for done, (run, result) in enumerate(_played(simulation.cluster, bench, missing), 1):
        there[run.place] = _keep(store, run.place, result)
        if time.monotonic() - said >= _LINE_SECONDS:
            said = time.monotonic()
            left = (said - began) / done * (len(missing) - done)
            reporter.stage(f"Played {done} of {len(missing)} runs, about {left:.0f} s left")
    return _finish(simulation, store, folder, data, [(run, there[run.place]) for run in wanted], len(missing))


def _contenders(simulation: Simulation) -> list[Contender]:
    """Return all of them, chance first.

    Raises:
        QueryError: one needs what rounds in memory don't have.
    """
    found, members = [], simulation.loop.committee
    for name, (select, score) in simulation.contestants.items():
        where, traits = f"simulate.strategies, {name}", select.traits
        if traits.samples and members < 2:
            raise QueryError(f"{where}: {select.strategy} compares several opinions of a row; set loop.committee to 2 or more")
        if (traits.probabilities or traits.samples) and simulation.task != "classes":
            raise QueryError(f"{where}: {select.strategy} needs one class a row, but model.task is {simulation.task}; remove it")
        by_numbers = simulation.task == "regression" and (select.strategy == AUTO or (not traits.score and select.candidates is None))
        if select.needs_score and not by_numbers:
            check_score(score, simulation.task, members)
        given = select.model_dump(exclude_unset=True, exclude={"strategy", "budget", "cost", "memory", "similar_to"})
        found.append(Contender(name, select.strategy, score, given))
    return found


def _check_first(bench: Bench, contenders: Sequence[Contender]) -> None:
    """Refuse a start without an embedding to start by, or one that takes all rows."""
    start, pool = bench.campaign.start, bench.data.pool
    if start.strategy != AUTO and TRAITS[start.strategy].embedding and pool.first is None:
        raise QueryError(
            f"loop.start.strategy is {start.strategy}, but texts have no embedding before training; use auto or random, or another model"
        )
    share = bench.evaluate or 0.0
    rows = len(pool.rows) - (round(share * len(pool.rows)) if share else 0)
    if bench.campaign.start_budget >= rows:
        raise QueryError(
            f"the first batch is of {bench.campaign.start_budget:,} rows, but only {rows:,} may be chosen; lower loop.start.budget"
        )


def _play(bench: Bench, run: SimulatedRun) -> dict[str, Any]:
    """Play one run, and return it as it is kept."""
    rows, seed = bench.data.pool.rows, bench.seed + run.seed
    test, among = bench.data.test, None
    if bench.evaluate is not None:
        among, judged = split(rows, bench.evaluate, seed)
        test = rows.at(judged)
    assert isinstance(test, TrainingRows)
    if run.contender is None:
        return {"strategy": _CEILING, "seed": run.seed, "metrics": ceiling(bench.data.pool, test, bench.campaign, seed, among=among)}
    history = play(bench.data.pool, test, bench.campaign, run.contender, seed, among=among)
    return {"strategy": run.contender.name, "seed": run.seed, "rounds": [asdict(played) for played in history]}


def _played(cluster: Cluster, bench: Bench, runs: Sequence[SimulatedRun]) -> Iterator[tuple[SimulatedRun, dict[str, Any]]]:
    """Return the runs as they are done: on the cluster where there is one, else by processes of this machine."""
    if not runs or not has_cluster(cluster):
        return each_result(_play, bench, runs, cores() if cluster.workers == "auto" else cluster.workers)
    from raystream.cluster.task import each_on_cluster

    return each_on_cluster(cluster, _play_alone, bench, runs, on_cpu=isinstance(bench.campaign.trainer, SklearnTrainer))


def _play_alone(bench: Bench, run: SimulatedRun) -> dict[str, Any]:
    with one_thread_each():
        return _play(bench, run)


def _place(folder: str, contender: Contender | None, seed: int) -> str:
    if contender is None:
        return f"{folder}/runs/all-labels/{seed}.json"
    told = json.dumps([contender.strategy, contender.score, dict(contender.options)], sort_keys=True, default=str)
    return f"{folder}/runs/{contender.strategy}-{hashlib.sha256(told.encode()).hexdigest()[:12]}/{seed}.json"


def _claim(store: Store, folder: str, simulation: Simulation, data: LabelledPool) -> None:
    """Write what the simulation is, or see that what is there is the same."""
    identity = {**simulation.identity, **_sources(simulation), "the pool's files": str(data.snapshot), _PLAYING: str(_VERSION)}
    name = f"{folder}/simulation.json"
    store.put(f"{folder}/simulation.yaml", simulation.to_yaml().encode())
    if store.put_if_absent(name, json.dumps(identity, indent=1, sort_keys=True).encode()):
        return
    try:
        there = json.loads(store.read(name))
    except ValueError:
        raise StoreError(f"store: {store.place(name)} is damaged; remove {store.place(folder)} and run the simulation again") from None
    differ = sorted(key for key in {*there, *identity} if there.get(key) != identity.get(key))
    if differ:
        raise QueryError(
            f"simulation {simulation.name} is in the store already and differs in {', '.join(differ)}; give it another simulate.name (more "
            "strategies and seeds would join it)"
        )


def _sources(simulation: Simulation) -> dict[str, str]:
    """Return hashes of the code and weights that the user gave: of another trainer the runs are no longer comparable."""
    found = {}
    if ":" in simulation.loop.trainer:
        found["the trainer's source"] = code_hash(simulation.loop.trainer, "loop.trainer")
    if "source" in simulation.model:
        found["the model's source and weights"] = fingerprint(with_local_files(Model(**simulation.model), simulation.pool.options))
    return found


def _read(store: Store, place: str) -> dict[str, Any] | None:
    data = store.read_if_there(place)
    if data is None:
        return None
    try:
        found: dict[str, Any] = json.loads(data)
    except ValueError:
        raise StoreError(f"store: {store.place(place)} is damaged; remove it and run the simulation again") from None
    return found


def _keep(store: Store, place: str, result: dict[str, Any]) -> dict[str, Any]:
    """Commit a run; what somebody else committed first counts."""
    if not store.put_if_absent(place, json.dumps(result).encode()):
        found = _read(store, place)
        assert found is not None
        return found
    return result


def _finish(
    simulation: Simulation, store: Store, folder: str, data: LabelledPool, runs: Sequence[tuple[SimulatedRun, dict[str, Any]]], played: int
) -> Simulated:
    """Return curves, figures and the page, made anew from all runs."""
    of: dict[str, list[list[Played]]] = {name: [] for name in simulation.contestants}
    tops = []
    for run, found in runs:
        if run.contender is None:
            tops.append(found["metrics"])
        else:
            of[run.contender.name].append([Played(**played) for played in found["rounds"]])
    places = {name: store.place(f"{folder}/{name}") for name in ("curves.parquet", "summary.parquet", "report.html")}
    counts = (played, len(runs) - played)
    result = outcome(simulation.name, simulation.metrics[0], of, tops, counts, places, data.warnings)
    for name, table in (("curves", result.curves), ("summary", result.summary_table)):
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        store.put(f"{folder}/{name}.parquet", buffer.getvalue())
    write_simulation_report(store, folder, page(result, simulation, len(data.pool.rows)))
    return result
