"""What bookkeeping costs a unit, in microseconds and bytes of the driver, at several sizes; and the requests that it makes of a bucket.

No row is read and no model runs: units are given to the plan as they come from footers, eight a file, and their outputs (scores and
embeddings) are files of some bytes that a process before has left in the store, with receipts and packs. Each size is measured in a
fresh process, after one that has looked at the same files, so that the disk's names are warm. The steps:

* plan: the table of units and their keys
* lookup: which outputs are there
* write: `plan.parquet`, and what it is held against when it is written again
* warnings: whatever is told of the units, and that one model scored them
* scheduling: a run over as many units that nobody has scored, planned before, whose workers answer at once; the time that these take to
  make up their receipts is left out, and that to pack them is not
* gc: what no query needs

With `--without-files`, no file of outputs is on the disk, since those of a million units take long to write and to remove: units are
scheduled, packed and looked up by their packs, a store answers for all sizes without looking, and `gc` is left out.

A step's bytes are what the peak of memory grew by in it; `us` is by the clock, `cpu_us` by the processor, which other processes disturb
less. With `--scores`, there are no embeddings. The bucket is one in memory, behind a count of requests: a listing makes one for
each thousand files.

    python benchmarks/units.py --units 10000 100000
    python benchmarks/units.py --units 1000000 --without-files
    python benchmarks/units.py --bucket 100000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

from raystream import Cluster, Model, Query, Select
from raystream import Pool as PoolSection
from raystream import Store as StoreSection
from raystream.pool import File, ReadSpec, Unit, UnitNames
from raystream.scoring.executor import UnitEnded, WorkerReady
from raystream.scoring.job import ScoringJob
from raystream.scoring.output_kinds import QueryOutputs, UnitKeys
from raystream.scoring.plan import plan_scoring, write_plan
from raystream.scoring.progress import Silent
from raystream.scoring.session import Session, model_notes, refuse_quarantined, score_warnings
from raystream.store.gc import collect
from raystream.store.local import LocalStore
from raystream.store.opening import open_store
from raystream.store.packs import read_receipts, write_packs
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipts import Receipt, UnitOutputs, receipt_name, unit_folder
from raystream.store.unit_columns import check_same_model, whole_units

SPEC = ReadSpec("id", pa.string(), ())
COLUMNS = ("id", "least_confidence", "margin", "entropy", "ratio", "energy", "prediction", "confidence", "row")
UNITS_OF_A_FILE = 8
CONTENT = b"outputs"
SCORES_ALONE, WITHOUT_FILES = "--scores" in sys.argv, "--without-files" in sys.argv


def query(store: str) -> Query:
    return Query(
        pool=PoolSection(uri="/lake", id="id", inputs=["x"]),
        model=Model(source="nets:net"),
        select=Select(budget=1000, strategy="top_k" if SCORES_ALONE else "k_means"),
        store=StoreSection(uri=store),
        cluster=Cluster(address="in_process"),
    )


def units(count: int) -> Iterator[Unit]:
    """Units as footers give them."""
    for number in range(0, count, UNITS_OF_A_FILE):
        file = File(f"/lake/images/year=2026/part-{number // UNITS_OF_A_FILE:08d}.parquet", 268_435_456, "1764380000000000000")
        for group in range(min(UNITS_OF_A_FILE, count - number)):
            yield Unit(file, (group,), 4096 * group, 4096, 33_554_432)


def receipts(key: str, unit: str, outputs: Any) -> tuple[Receipt, ...]:
    """What a worker says of a unit."""
    found = []
    for output in outputs:
        vectors = output.kind == "embeddings"
        digits = hashlib.sha256(f"{key}{output.name}".encode()).hexdigest()
        name = f"{unit_folder(key)}/{output.name}-{digits[:12]}.{'arrow' if vectors else 'parquet'}"
        found.append(
            Receipt(
                key=key, output=output.name, unit=unit, rows=4096, positions=digits[:16],
                file=StoredFile(name, len(CONTENT), digits[:32]), columns=() if vectors else COLUMNS, width=256 if vectors else None,
                members=None, classes=None if vectors else 10, batch_size=256, state_hash="0123456789abcdef", quarantined=0,
                quarantine_reasons=(), bytes_read=33_554_432, seconds=1.25,
            )
        )  # fmt: skip
    same = found[0].positions
    return tuple(receipt if receipt.positions == same else Receipt(**_fields(receipt) | {"positions": same}) for receipt in found)


def _fields(receipt: Receipt) -> dict[str, Any]:
    return {name: getattr(receipt, name) for name in Receipt.__slots__}


class AtOnce:
    """Workers that answer at once; their files aren't written."""

    def __init__(self) -> None:
        self._events: list[WorkerReady] = []
        self._given: list[tuple[int, int, Any]] = []
        self.seconds = self.cpu = 0.0

    def workers(self, job: ScoringJob, rows: int, size: int) -> tuple[AtOnce, int]:
        return self, 8

    def start_worker(self, worker: int) -> None:
        self._events.append(WorkerReady(worker))

    def assign(self, worker: int, unit: int, task: Any) -> None:
        self._given.append((worker, unit, task))

    def wait(self, timeout: float) -> list[Any]:
        """Make up all receipts that are due at once: to ask for the processor's time takes as long as a tenth of a unit's bookkeeping."""
        began, cpu = time.perf_counter(), time.process_time()
        ended = [
            UnitEnded(worker, unit, UnitOutputs(receipts(task.key, task.unit.name, task.outputs))) for worker, unit, task in self._given
        ]
        self.seconds += time.perf_counter() - began
        self.cpu += time.process_time() - cpu
        events = [*self._events, *ended]
        self._events.clear()
        self._given.clear()
        return events

    def close(self) -> None:
        """There is nothing to end."""


def prepare(store: Store, count: int, bare: bool) -> None:
    """Leave the outputs of so many units in a store, with their receipts and packs."""
    asked = query(store.uri)
    outputs = QueryOutputs(asked, None).needed()
    plan = plan_scoring(store, UnitKeys(asked, SPEC, "f" * 64), units(count), outputs)
    for place, (key, name) in enumerate(zip(plan.keys, (unit.name for unit in plan.units), strict=True)):
        for table, receipt in zip(plan.found, receipts(key, name, outputs), strict=True):
            assert receipt.file is not None
            put(store, receipt.file.name, CONTENT, bare)
            put(store, receipt_name(key, receipt.output), receipt.to_json(), bare)
            table.add(place, receipt)
    write_packs(store, plan.found)


def put(store: Store, name: str, data: bytes, bare: bool) -> None:
    if not bare:
        store.put(name, data)
        return
    path = Path(store.place(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)  # without the wait for the disk


def job_of(asked: Query, outputs: Any) -> ScoringJob:
    return ScoringJob(asked.model, "e" * 64, SPEC, asked.store.uri, outputs, 0, 0, 1, False, 0.0, ())


def steps(store: Store, count: int, note: Callable[..., None]) -> None:
    """All that a run does with units beside scoring them; `note` is told at the end of each step, and seconds that don't count."""
    asked = query(store.uri)
    outputs = QueryOutputs(asked, None).needed()
    folder = "queries/benchmark"
    resolved: Any = SimpleNamespace(store=store, folder=folder, given=asked)
    note("")
    keys = UnitKeys(asked, SPEC, "f" * 64)
    plan = plan_scoring(open_store(f"{store.uri}-empty") if not store.remote else store, keys, units(count), outputs)
    note("plan")
    tables = read_receipts(store, plan.keys, [output.name for output in outputs], UnitNames(plan.units))
    plan = replace(plan, found=tables, to_compute=np.empty(0, np.int64))  # keys are made once, which is counted above
    found = whole_units(store, plan.found)
    assert len(found) == count
    note("lookup")
    write_plan(resolved, plan)
    write_plan(resolved, plan)
    note("write")
    workers: Any = AtOnce()
    session = Session(job_of(asked, outputs), store, folder, Silent(), workers)
    refuse_quarantined(asked, found)
    score_warnings(asked, found, session)
    model_notes(found)
    check_same_model(found)
    assert int(found.rows.sum()) == 4096 * count
    note("warnings")
    del plan, found
    other = plan_scoring(store, UnitKeys(asked, SPEC, "e" * 64), units(count), outputs)
    note("")  # a run plans once, which is counted above
    with session:
        assert len(session.score(other)) == count
    note("scheduling", workers.seconds, workers.cpu)
    del other
    collect(store)
    note("gc")


class SizesAlone(LocalStore):
    """A store in which every file has the size that was written, whether or not it is there."""

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        return [len(CONTENT)] * len(names)


def steps_without_files(store: Store, count: int, note: Callable[..., None]) -> None:
    """Those of `steps` that need no files."""
    asked = query(store.uri)
    outputs = QueryOutputs(asked, None).needed()
    resolved: Any = SimpleNamespace(store=store, folder="queries/benchmark", given=asked)
    workers: Any = AtOnce()
    session = Session(job_of(asked, outputs), store, resolved.folder, Silent(), workers)
    (Path(store.uri) / "units/00").mkdir(parents=True, exist_ok=True)
    note("")
    plan = plan_scoring(store, UnitKeys(asked, SPEC, "e" * 64), units(count), outputs)
    note("plan")
    with session:
        found = session.score(plan)
    assert len(found) == count
    note("scheduling", workers.seconds, workers.cpu)
    write_plan(resolved, plan)
    write_plan(resolved, plan)
    note("write")
    refuse_quarantined(asked, found)
    score_warnings(asked, found, session)
    model_notes(found)
    check_same_model(found)
    note("warnings")
    del found
    again = read_receipts(store, plan.keys, [output.name for output in outputs], UnitNames(plan.units))
    assert len(whole_units(store, again)) == count
    note("lookup")


def measure(folder: str, count: int) -> dict[str, Any]:
    """In a process of its own: microseconds and bytes a unit of each step, the second time that it is done."""
    store = SizesAlone(folder) if WITHOUT_FILES else open_store(folder)
    result: dict[str, Any] = {"units": count, "us": {}, "cpu_us": {}, "bytes": {}}
    state = {"time": 0.0, "cpu": 0.0, "peak": 0.0}
    pa.array(np.zeros(1))  # loads pandas, where it is installed, whatever is counted afterwards

    def note(step: str, apart: float = 0.0, apart_cpu: float = 0.0) -> None:
        if step:
            result["us"][step] = (time.perf_counter() - state["time"] - apart) / count * 1e6
            result["cpu_us"][step] = (time.process_time() - state["cpu"] - apart_cpu) / count * 1e6
            result["bytes"][step] = (_peak() - state["peak"]) / count
        state["peak"], state["time"], state["cpu"] = _peak(), time.perf_counter(), time.process_time()

    (steps_without_files if WITHOUT_FILES else steps)(store, count, note)
    for name in ("us", "cpu_us", "bytes"):
        result[name]["all"] = sum(result[name].values())
    return result


def _peak() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024.0


class Requests:
    """Counts the requests that `obstore` would make of a server."""

    def __init__(self) -> None:
        import obstore

        self._real, self.count = obstore, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in ("get", "get_range", "head", "put", "delete", "list", "list_with_delimiter"):
            return found

        def call(*given: Any, **options: Any) -> Any:
            self.count[name] += 1
            answer = found(*given, **options)
            return self._pages(answer) if name == "list" else answer

        return call

    def _pages(self, answer: Any) -> Iterator[Any]:
        seen = 0
        for page in answer:
            self.count["list"] += (seen + len(page)) // 1000 - seen // 1000
            seen += len(page)
            yield page


def bucket(count: int) -> dict[str, Any]:
    """Requests of each step."""
    from obstore.store import MemoryStore

    from raystream.store import bucket as module

    memory, requests = MemoryStore(), Requests()
    module.bucket_of, module.obstore = (lambda uri, storage: memory), requests
    store = open_store("s3://bucket/runs")
    prepare(store, count, bare=False)
    result: dict[str, Any] = {"units": count, "requests": {}}

    def note(step: str, apart: float = 0.0, apart_cpu: float = 0.0) -> None:
        if step:
            result["requests"][step] = dict(requests.count)
        requests.count.clear()

    steps(store, count, note)
    return result


def _ask(*arguments: str) -> str:
    arguments = (*arguments, *["--scores"] * SCORES_ALONE, *["--without-files"] * WITHOUT_FILES)
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--bucket", type=int, help="count requests over so many units")
    parser.add_argument("--scores", action="store_true", help="scores alone, without embeddings")
    parser.add_argument("--without-files", action="store_true", help="what needs no files of outputs, for a million units")
    parser.add_argument("--keep", help="leave the stores of --units in this folder, and take them from there")
    parser.add_argument("--step", nargs=3, metavar=("WHAT", "FOLDER", "UNITS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        what, folder, count = args.step[0], args.step[1], int(args.step[2])
        if what == "prepare":
            prepare(open_store(folder), count, bare=True)
        else:
            print(json.dumps(measure(folder, count)))
        return
    if args.bucket:
        print(json.dumps({"benchmark": "units", "bucket": bucket(args.bucket), **environment()}))
        return
    top = Path(args.keep or tempfile.mkdtemp())
    results = []
    try:
        for count in args.units:
            folder = str(top / f"store-{count}{'-scores' * SCORES_ALONE}{'-bare' * WITHOUT_FILES}")
            if not WITHOUT_FILES:
                if not Path(folder).exists():
                    _ask("--step", "prepare", folder, str(count))
                _ask("--step", "measure", folder, str(count))
            results.append(json.loads(_ask("--step", "measure", folder, str(count))))
            told = []
            for name in ("us", "cpu_us", "bytes"):
                each = ", ".join(f"{step} {value:.1f}" for step, value in results[-1][name].items())
                told.append(f"{name} {each}")
            print(f"{count:>9,} units: {'; '.join(told)}")
    finally:
        if not args.keep:
            shutil.rmtree(top)
    print(json.dumps({"benchmark": "units", "results": results, **environment()}))


if __name__ == "__main__":
    main()
