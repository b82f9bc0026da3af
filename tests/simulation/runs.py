"""A run of a query: look up, score, choose, commit; and `raystream gc` beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import xxhash

from raystream.choosing.batch import ScoringFacts, commit
from raystream.errors import RaystreamError
from raystream.lake import LOCAL
from raystream.lake.retry import Patience
from raystream.pool import Unit
from raystream.pool.files import File
from raystream.query import Query
from raystream.scoring.executor import Executor
from raystream.scoring.job import ScoringJob, UnitTask
from raystream.scoring.output_kinds import Output
from raystream.scoring.plan import ResolvedQuery, plan_scoring, write_plan
from raystream.scoring.progress import Silent
from raystream.scoring.session import Session
from raystream.store.bucket import ObjectStore
from raystream.store.events import EventLog
from raystream.store.gc import collect
from raystream.store.life import SignOfLife
from raystream.store.manifest import Seconds
from raystream.store.receipt_table import Keys
from raystream.store.receipts import receipt_name
from raystream.store.result import read_result
from simulation.bucket import Broken, Bucket
from simulation.workers import Machines, Manners, SimulatedWorker, Tally, content
from simulation.world import Process, World

URI = "s3://bucket/runs"
OUTPUTS = (Output("scores", ()), Output("embeddings", (("dtype", "float32"),)))
_CHOSEN = 5


@dataclass(frozen=True)
class Pool:
    """A pool of so many units, and what is asked of each."""

    units: tuple[Unit, ...]
    outputs: tuple[Output, ...]

    @classmethod
    def of(cls, count: int, kinds: int) -> Pool:
        file = _file()
        return cls(tuple(Unit(file, (i,), 10 * i, 10, 1000 - i) for i in range(count)), OUTPUTS[:kinds])

    @property
    def keys(self) -> list[str]:
        """Of the units, in their order."""
        return [hashlib.sha256(unit.name.encode()).hexdigest() for unit in self.units]

    def of_units(self, units: Any) -> Keys:
        """As `UnitKeys.of`."""
        return Keys.of(hashlib.sha256(unit.name.encode()).hexdigest() for unit in units)

    def chosen(self, without: Mapping[str, str]) -> pa.Table:
        """The batch, if these units can't be scored: by plain calls, from what every output must hold."""
        found = [
            (xxhash.xxh3_64_hexdigest(b"".join(content(key, output.name) for output in self.outputs)), unit.name)
            for key, unit in zip(self.keys, self.units, strict=True)
            if key not in without
        ]
        return _batch(found)


def _batch(found: list[tuple[str, str]]) -> pa.Table:
    best = sorted(found)[:_CHOSEN]
    return pa.table({"unit": [name for _, name in best], "score": [value for value, _ in best]})


@cache
def _file() -> File:
    return File("pool/a.parquet", 1000, "1")


@cache
def _query() -> Query:
    return Query(
        pool={"uri": "pool", "id": "rid", "inputs": ["x"]},
        model={"source": "user_nets:net"},
        select={"budget": _CHOSEN, "strategy": "top_k"},
        cluster={"address": "in_process"},
        store={"uri": URI, "query": "q"},
    )


class Life(SignOfLife):
    """Signs of life by a task of the run's process instead of a thread."""

    def __init__(self, world: World) -> None:
        ended: list[bool] = []

        def wait(seconds: float) -> bool:
            world.sleep(seconds)
            return bool(ended)

        super().__init__(wait)
        process = world.me
        self._thread: Any = SimpleNamespace(start=lambda: world.spawn(process, self._give), join=lambda seconds: ended.append(True))


@dataclass
class Ended:
    """How runs of one seed ended."""

    results: list[Any] = field(default_factory=list)
    refusals: list[RaystreamError] = field(default_factory=list)


class Run:
    """One process that runs the query.

    Args:
        world: decides what happens.
        name: of the run.
        bucket: the store's.
        pool: what is scored.
        workers: how many at once.
        manners: of units and workers.
        skip: whether the query leaves out what can't be scored.
        tally: of what all runs did.
        ended: how they ended.
        query: the query's name.
    """

    def __init__(
        self,
        world: World,
        name: str,
        bucket: Bucket,
        pool: Pool,
        workers: int,
        manners: Manners,
        skip: bool,
        tally: Tally,
        ended: Ended,
        query: str = "q",
    ) -> None:
        self._world, self._bucket, self._pool, self._workers, self._manners = world, bucket, pool, workers, manners
        self._skip, self._tally, self._ended = skip, tally, ended
        self.name, self.query = name, query
        self.process = Process(name, world.random.choice([0.0, -3600.0, 3600.0]))
        self.machines: Machines | None = None
        self.over = False
        self.noted: dict[int, str] = {}
        self._looked = 0.0
        self.process.at_death.append(self._orphan)

    def begin(self, after: float = 0.0) -> None:
        """Start the process."""
        self._world.spawn(self.process, self._go, after)

    def workers(self, job: ScoringJob, rows: int, size: int) -> tuple[Executor, int]:
        """As `WorkerSource`."""
        self.machines = Machines(self._world, self.name, lambda: self._worker(job), self._tally, self._check)
        return self.machines, self._workers

    @property
    def patience(self) -> Patience:
        return Patience(from_start=True, pause=self._pause, clock=lambda: self._world.now)

    def _pause(self, seconds: float) -> bool:
        self._world.sleep(seconds)
        return False

    def _worker(self, job: ScoringJob) -> SimulatedWorker:
        return SimulatedWorker(job, ObjectStore(URI, LOCAL, self.patience), self.patience, self._world, self._manners)

    def _orphan(self) -> None:
        """Workers outlive their driver by a while, and write."""
        self.over = True
        machines = self.machines
        if machines is not None:
            self._world.at(self._world.random.uniform(0.0, 30.0), machines.close)

    def _check(self, task: UnitTask) -> None:
        """No unit is scored again whose receipt was there when the run began to look."""
        for output in task.outputs:
            name = receipt_name(task.key, output.name)
            first = self._bucket.first.get(name)
            if first is not None and first < self._looked and self._bucket.names_whole(self._bucket.files[name][0]):
                raise Broken(f"{task.unit.name} is scored again by {self.name}: {output.name} was committed before it looked")

    def _go(self) -> None:
        try:
            self._ended.results.append(self._run())
            self._world.log("is done")
        except KeyboardInterrupt:
            self._world.log("was interrupted")
            if self.machines is not None and not self.machines.closed:
                raise Broken("an interrupted run leaves workers behind") from None
        except RaystreamError as error:
            self._world.log("ends:", error)
            self._ended.refusals.append(error)
        self.over = True

    def _run(self) -> Any:
        store, pool = ObjectStore(URI, LOCAL, self.patience), self._pool
        asked = ResolvedQuery(
            query=_query(), given=_query(), store=store, pool=SimpleNamespace(snapshot=[("pool/a.parquet", 1000, "1")], rows=10, tables=()),
            classes=None, labelled=None, fingerprint="f", identity={"the model": "f", "on_error": str(self._skip)}, name=self.query,
            kinds=None, calibration=None,
        )  # fmt: skip
        committed = asked.committed
        if committed is not None:
            return read_result(store, committed)
        self._log = EventLog(store, asked.folder)
        self._note("started")
        with Life(self._world) as life:
            life.begin(store, asked.folder)
            self._looked = self._world.now
            plan = plan_scoring(store, SimpleNamespace(of=pool.of_units), pool.units, pool.outputs)  # type: ignore[arg-type]
            write_plan(asked, plan)
            self._note("planned")
            with Session(_job(self._skip), store, asked.folder, Silent(), self, life) as session:
                units = session.score(plan)
                session.end_workers()
            found = [
                (xxhash.xxh3_64_hexdigest(b"".join(self._read(store, receipt.file) for receipt in unit.receipts)), unit.unit)
                for unit in units
            ]
            batch = SimpleNamespace(
                selection=_batch(found), eligible=len(found), candidates=len(found), passes=1, certificate=None, facts={}, rounds=None
            )
            scored: Any = _Scored(units)
            covered: Any = SimpleNamespace(known=0, elsewhere=[])
            self._note("scored")
            result = commit(asked, ScoringFacts(plan, (), session.units_scored, 0), scored, covered, batch, Seconds(), session.warnings)
        self._note("committed")
        return result

    def _note(self, kind: str) -> None:
        """Write an event, as a run does: it goes on without, where none can be written."""
        with suppress(RaystreamError):
            self.noted[self._log.append(kind, run=self.name)] = kind

    def _read(self, store: ObjectStore, file: Any) -> bytes:
        data = store.read(file.name)
        if xxhash.xxh3_128_hexdigest(data) != file.xxh3:
            raise Broken(f"{file.name} is not what its receipt says")
        return data


class _Scored:
    def __init__(self, units: Any) -> None:
        self.units = units

    def __len__(self) -> int:
        return int(self.units.rows.sum())


def _job(skip: bool) -> ScoringJob:
    query: Any = _query()
    return ScoringJob(
        model=query.model, fingerprint="f", read=None, store=URI, outputs=OUTPUTS, mc_samples=0, seed=0, threads=1,  # type: ignore[arg-type]
        skip_bad_rows=skip, max_quarantined=1.0, import_paths=(),
    )  # fmt: skip


def collecting(run: Run, patience: Patience) -> Callable[[], None]:
    """`raystream gc --delete`, with a day's grace."""

    def collected() -> None:
        try:
            collect(ObjectStore(URI, LOCAL, patience), delete=True)
        except RaystreamError as error:
            run._world.log("gc ends:", error)

    return collected
