"""Compares strategies on a labelled pool: every strategy under every seed, each run kept in the store, curves, figures and a verdict.

A run is a strategy under a seed. It is played in memory and committed, put if absent, under `simulations/<name>/runs/`; so a simulation
that was killed goes on, and more seeds or strategies asked for later join those that are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from raystream.cluster.task import has_cluster
from raystream.errors import QueryError, StoreError
from raystream.loop.models import trainer_of
from raystream.loop.simulation.labelled_pool import LabelledPool, read_labelled_pool
from raystream.loop.simulation.outcome import Simulated, outcome, page
from raystream.loop.simulation.parallel import cores, each_result, one_thread_each
from raystream.loop.simulation.rounds import Campaign, Contender, Played, ceiling, play, split
from raystream.loop.simulation.scores import check_score
from raystream.loop.trainers.sklearn_trainer import SklearnTrainer
from raystream.loop.trainers.training import TrainingRows
from raystream.model import code_hash, fingerprint, with_local_files
from raystream.query import Cluster, Model
from raystream.query.catalogue import TRAITS
from raystream.query.catalogue.auto import AUTO
from raystream.query.simulate import Simulation
from raystream.report.simulation import write_simulation_report
from raystream.scoring.progress import Reporter, Silent
from raystream.store.opening import open_store
from raystream.store.protocol import Store

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
    from raystream.cluster.pieces import each_on_cluster

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
