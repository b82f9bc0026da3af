"""Selection actors: the rows that one process chooses, whatever becomes of the actors."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import xxhash
from oracle import data

import raystream as rs
from raystream.cluster.selection_actors import _ActorHosts, selection_actors
from raystream.errors import ClusterError, DataError, StoreError
from raystream.query import Cluster
from raystream.query.catalogue import TRAITS
from raystream.selection import Candidates, Chosen, LocalShards, Rows, Shards, choose
from raystream.selection.rows import as_rows
from raystream.store.protocol import StoredFile
from raystream.store.vectors import MappedEmbeddings

MakeQuery = Callable[..., rs.Query]
OPTIONS = {"strategy": "core_set", "budget": 40, "weight": 0.5, "near_duplicates": 0.97}
N, D = 3000, 8


def stored(folder: Path, x: np.ndarray) -> list[MappedEmbeddings]:
    (folder / "x").write_bytes(x.tobytes())
    return [MappedEmbeddings(folder / "x", 4 * D * first, N // 3, D, "float32") for first in range(0, N, N // 3)]


def chosen(shards: Shards, x: np.ndarray) -> Chosen:
    score = np.random.default_rng(1).random(len(x))
    return choose(Candidates(score=score, shards=shards, labelled=x[:5]), **OPTIONS)


def assert_same(found: Chosen, alone: Chosen) -> None:
    np.testing.assert_array_equal(found.rows, alone.rows)
    np.testing.assert_array_equal(found.gain, alone.gain)
    np.testing.assert_array_equal(found.represents, alone.represents)
    assert found.certificate == alone.certificate


def is_gone(actor: object) -> bool:
    """Whether the actor ends: Ray ends it in its own time, so that a few calls may still be answered."""
    for _ in range(1000):
        try:
            ray.get(actor.ready.remote())  # type: ignore[attr-defined]
        except ray.exceptions.RayActorError:
            return True
    return False


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("count", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_actors_chooses_the_same(tmp_path: Path, count: int) -> None:
    """Scores, labelled rows and near-duplicates included."""
    x = data("clustered", N, D, 0)
    with selection_actors(Cluster(), count) as rounds:
        found = chosen(Shards(Rows(stored(tmp_path, x)), count, rounds.spread, memory=1 << 20), x)
    assert_same(found, chosen(LocalShards.of_array(x), x))
    assert (rounds.record.actors, rounds.record.restarts) == (count, 0)


@pytest.mark.usefixtures("own_ray")
def test_damage_that_an_actor_finds_is_the_error_of_the_query(tmp_path: Path) -> None:
    """A file that isn't what was written, looked at in another process: the sentence alone, with its exit code, and no traceback."""
    x = data("clustered", N, D, 0)
    whole = StoredFile("x", x.nbytes, xxhash.xxh3_128_hexdigest(x.tobytes()))
    x[N // 2] += 1
    parts = [replace(part, written=whole) for part in stored(tmp_path, x)]
    with pytest.raises(StoreError) as caught, selection_actors(Cluster(), 1) as rounds:
        chosen(Shards(Rows(parts), 1, rounds.spread, memory=1 << 20), x)
    assert str(caught.value).startswith(f"store: {tmp_path / 'x'} is damaged: its content is not what was written")
    assert caught.value.exit_code == 3


SHARDED = sorted(name for name, of in TRAITS.items() if of.sharded)


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
def test_every_strategy_that_shards_runs_on_actors(tmp_path: Path) -> None:
    """The same rows, gains and certificate from two actors as from this process, for each of them, exact repeats passed over."""
    assert {"core_set", "diverse", "badge", "k_means_pp"} <= set(SHARDED)
    rng = np.random.default_rng(1)
    x = data("clustered", N, D, 0)
    x = np.where(rng.random(N)[:, None] < 0.7, x[rng.integers(0, 20, N)], x)
    score, p = rng.random(N), rng.dirichlet(np.ones(4), N).astype(np.float32)

    def choice(strategy: str, shards: Shards) -> Chosen:
        candidates = Candidates(score=score, shards=shards, labelled=x[:5], probabilities=as_rows(p))
        return choose(candidates, strategy=strategy, budget=40, args={"outliers": 3} if strategy == "core_set" else {})

    for strategy in SHARDED:
        with selection_actors(Cluster(), 2) as rounds:
            found = choice(strategy, Shards(Rows(stored(tmp_path, x)), 2, rounds.spread, memory=1 << 20))
        assert_same(found, choice(strategy, LocalShards.of_array(x)))
        assert found.facts["exact_repeats"] > 100
        assert len(np.unique(x[found.rows], axis=0)) == 40


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("strategy", ["k_means", "cluster_margin", "typiclust"])
def test_clusters_of_rows_that_only_actors_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    """Too many rows to gather: the same rows and gains as of one process, also when an actor dies between two iterations."""
    monkeypatch.setattr("raystream.selection.clusters._POINTS", 1000)
    monkeypatch.setattr("raystream.selection.clusters._SMALL", 0)  # so few rows would be iterated over in samples alone
    x = data("clustered", N, D, 0)
    score = np.random.default_rng(1).random(N)
    submit, killed = _ActorHosts._submit, []

    def kill(places: _ActorHosts, place: int, steps: list) -> object:
        if place == 0 and steps[-1].method == ("sums" if strategy == "k_means" else "nearest") and len(killed) < 2:
            killed.append(place)
            if len(killed) == (2 if strategy == "k_means" else 1):
                ray.kill(places._actors[place])
        return submit(places, place, steps)

    def choice(shards: Shards, memory: int) -> Chosen:
        args = {"clusters": 12} if strategy == "cluster_margin" else {}
        return choose(Candidates(score=score, shards=shards, labelled=x[:5]), strategy=strategy, budget=10, memory=memory, args=args)

    with selection_actors(Cluster(), 2) as rounds:
        monkeypatch.setattr(_ActorHosts, "_submit", kill)
        found = choice(Shards(Rows(stored(tmp_path, x)), rounds.processes, rounds.spread, memory=1 << 20), 4 * N * D - 1)
    assert_same(found, choice(LocalShards.of_array(x), 1 << 30))
    assert rounds.record.restarts == 1


@pytest.mark.slow
@pytest.mark.usefixtures("own_ray")
def test_actors_that_are_killed_are_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of three dies while it works on a round, its successor between two rounds: the selection is the same."""
    x = data("clustered", N, D, 0)
    submit, killed = _ActorHosts._submit, []

    def kill(places: _ActorHosts, place: int, steps: list) -> object:
        method = steps[-1].method
        if place != 2 or method in killed or method not in ("advance", "cover"):
            return submit(places, place, steps)
        killed.append(method)
        if method == "cover":
            ray.kill(places._actors[place])
        ref = submit(places, place, steps)
        if method == "advance":
            os.kill(pid, signal.SIGKILL)
        return ref

    with selection_actors(Cluster(), 3) as rounds:
        pid = ray.get(rounds._places._actors[-1].pid.remote())
        monkeypatch.setattr(_ActorHosts, "_submit", kill)
        found = chosen(Shards(Rows(stored(tmp_path, x)), 3, rounds.spread, memory=1 << 20), x)
    assert_same(found, chosen(LocalShards.of_array(x), x))
    assert (rounds.record.actors, rounds.record.restarts) == (3, 2)


@pytest.mark.usefixtures("own_ray")
def test_errors_of_ours_and_of_the_store(tmp_path: Path) -> None:
    """NaN found by an actor is exit 3 here, a file that an actor can't see exit 5; no actor is left behind."""
    x = data("normal", N, D, 0)
    x[2000, 3] = np.nan
    rows = Rows(stored(tmp_path, x))
    with selection_actors(Cluster(), 1) as rounds:
        [actor] = rounds._places._actors
        shards = Shards(rows, 1, rounds.spread, memory=0)
        with pytest.raises(DataError, match=r"1 candidate embeddings .* rows 2000"):
            chosen(shards, x)
        (tmp_path / "x").unlink()
        with pytest.raises(ClusterError, match=r"can't see .*/x; give store\.uri"):
            Shards(rows, 1, rounds.spread, memory=0).survey()
    assert is_gone(actor)


@pytest.mark.usefixtures("own_ray")
def test_an_interrupt_ends_the_actors() -> None:
    """Whatever ends the choice, nobody goes on holding embeddings."""
    actors = []

    def interrupted() -> None:
        with selection_actors(Cluster(), 1) as rounds:
            actors.extend(rounds._places._actors)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert is_gone(actors[0])


@pytest.mark.usefixtures("own_ray")
def test_what_does_not_find_a_place_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """More actors than CPUs: those that are placed do the work; none that is placed is an error."""
    monkeypatch.setattr("raystream.cluster.selection_actors._GATHERING_SECONDS", 0)
    with selection_actors(Cluster(cpus_per_worker=2), 3) as rounds:
        assert rounds.processes == 1
    monkeypatch.setattr("raystream.cluster.selection_actors._PLACING_SECONDS", 0)
    with pytest.raises(ClusterError, match="no room for a selection actor of 512 CPUs"), selection_actors(Cluster(cpus_per_worker=512), 1):
        pass


@pytest.mark.usefixtures("own_ray")
def test_a_query_beyond_the_memory_of_one_process(make_query: MakeQuery) -> None:
    """A tiny `select.memory` means actors and the same selection; the manifest counts them, their rounds and the bytes."""
    select = {"strategy": "core_set", "budget": 12, "candidates": "all", "weight": 1.0}
    plenty = rs.run(make_query(select=select))
    assert plenty.manifest.selection_rounds is None
    tight = rs.run(make_query(select=select | {"memory": 30_000}, cluster={"workers": 2}))
    assert tight.manifest.units_scored == 0
    assert tight.selection.equals(plenty.selection)
    rounds = tight.manifest.selection_rounds
    assert rounds is not None
    assert (rounds.actors, rounds.restarts) == (2, 0)
    assert rounds.rounds == len(rounds.bytes_per_round) >= 6
    assert rounds.bytes == sum(rounds.bytes_per_round)
    assert tight.summary()["selection_rounds"]["rounds"] == rounds.rounds
    again = rs.run(make_query(select=select | {"memory": 30_000}))
    assert again.manifest == tight.manifest
