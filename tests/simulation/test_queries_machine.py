"""Queries that share units, `gc`, damage and time, in any order: against a list of what must be there."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from raystream.lake import LOCAL
from raystream.lake.retry import Patience
from raystream.store.bucket import ObjectStore
from raystream.store.gc import GRACE, collect
from simulation.bucket import Bucket, Weather
from simulation.runs import URI, Ended, Pool, Run
from simulation.trial import simulated
from simulation.workers import Manners, Tally
from simulation.world import Process, World

QUERIES = st.sampled_from(["a", "b", "c"])


class QueriesMachine(RuleBasedStateMachine):
    """Each query's pool is the first so many units of one, so that they share."""

    @initialize(skew=st.sampled_from([0.0, -3600.0, 3600.0]))
    def begin(self, skew: float) -> None:
        self.world = World(0)
        self.bucket = Bucket(self.world, Weather(), skew)
        self.context = simulated(self.world, self.bucket)
        self.context.__enter__()
        self.pools: dict[str, Pool] = {}
        self.scored: set[tuple[str, str]] = set()

    def teardown(self) -> None:
        if hasattr(self, "context"):
            self.context.__exit__(None, None, None)

    @rule(query=QUERIES, units=st.integers(1, 9), kinds=st.integers(1, 2))
    def run(self, query: str, units: int, kinds: int) -> None:
        """What is there is not scored, and what is committed is told again."""
        pool = self.pools.setdefault(query, Pool.of(units, kinds))
        committed = f"queries/{query}/manifest.json" in self.bucket.files
        tally, ended = Tally(), Ended()
        Run(self.world, query, self.bucket, pool, 2, Manners(seconds=0.1), False, tally, ended, query).begin()
        self.world.run(GRACE)
        [result] = ended.results
        assert not ended.refusals
        assert result.selection.equals(pool.chosen({}))
        assert result.new != committed
        wanted = set() if committed else self._outputs(pool) - self.scored
        assert {(key, output) for _, key, outputs in tally.attempts for output in outputs.split()} == wanted
        self.scored |= wanted

    @rule()
    def a_day_passes(self) -> None:
        self.world.spawn(Process("clock"), lambda: self.world.sleep(2 * GRACE))
        self.world.run(4 * GRACE)

    @rule(query=QUERIES)
    def drop(self, query: str) -> None:
        """Its units go when nobody else needs them, those that are old."""
        if f"queries/{query}/manifest.json" in self.bucket.files:
            self._collect(drop=[query])
            del self.pools[query]
            assert not [name for name in self.bucket.files if name.startswith(f"queries/{query}/")]

    @rule()
    def collect(self) -> None:
        self._collect()

    @rule(number=st.integers(0, 99))
    def damage(self, number: int) -> None:
        """A unit's file is gone: its receipt says what isn't so, and whoever looks scores it again."""
        files = sorted(name for name in self.bucket.files if name.startswith("units/") and name.endswith(".parquet"))
        lying = [name for name in files if not self._is_needed(name)]
        if lying:
            name = lying[number % len(lying)]
            del self.bucket.files[name]
            self.scored -= {(key, output) for key, output in self.scored if key in name and f"/{output}-" in name}

    def _collect(self, **options: Any) -> None:
        self.bucket.dropping = True
        patience = Patience(from_start=True)

        def work() -> None:
            collect(ObjectStore(URI, LOCAL, patience), delete=True, **options)

        self.world.spawn(Process("gc", 7200.0), work)
        self.world.run(GRACE)
        self.bucket.dropping = False
        there = {name for name in self.bucket.files if name.endswith(".receipt.json")}
        self.scored = {(key, output) for key, output in self.scored if f"units/{key[:2]}/{key}/{output}.receipt.json" in there}

    def _outputs(self, pool: Pool) -> set[tuple[str, str]]:
        return {(key, output.name) for key in pool.keys for output in pool.outputs}

    def _is_needed(self, name: str) -> bool:
        return any(f"/{key}/{output}-" in name for pool in self.pools.values() for key, output in self._outputs(pool))

    @invariant()
    def all_that_queries_need_is_there(self) -> None:
        for query, pool in getattr(self, "pools", {}).items():
            if f"queries/{query}/manifest.json" in self.bucket.files:
                assert self._outputs(pool) <= self.scored


def test_queries_share_units_and_gc_leaves_what_they_need() -> None:
    """Whatever is asked, dropped and collected in whatever order."""
    run_state_machine_as_test(QueriesMachine, settings=settings(max_examples=15, stateful_step_count=12, deadline=None))
