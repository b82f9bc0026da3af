"""What a newcomer waits for, each in a fresh process, by turns: medians of five.

* from the shell to the first scored unit, and a query over 5,000 rows of 128 numbers all told: in process, as `cluster.address: auto`
  decides, and on a Ray of its own;
* the same over a million rows, where `auto` starts a Ray while a child process scores the first units;
* what of that is Ray's: a bare script that starts one and has two actors import torch, nothing of ours in it;
* a second query over a million scored rows, the report included;
* the score stage of a process that has scored nothing before, beside the hand-written loop of `score.py`, as fresh: one process and one
  thread on each side, the same outputs, model loaded and imports done before the clock starts.

Beside the seconds stand those of processors, which other work on the machine changes less.

    python benchmarks/first_minute.py
    python benchmarks/first_minute.py --through cores     # each measurement behind a command that waits for quiet cores
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

SMALL, LARGE = 5_000, 1_000_000
LIMITS = {
    "5,000 rows, in_process": {"first unit": 3.0},
    "5,000 rows, auto": {"first unit": 3.0, "all told": 5.0},
    "5,000 rows, local": {"first unit": 6.0},
    "1,000,000 rows, local": {"first unit": 6.0},
    "second query over 1,000,000": {"all told": 3.0},
}
LIMIT_RATIO = 1.1


def command(*words: str) -> tuple[float, float, dict[str, Any]]:
    """When it began, how long it took, and what `raystream … --json` said."""
    began, clock = time.time(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "raystream.cli", *words, "--json"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    taken = time.perf_counter() - clock
    if done.returncode:
        raise RuntimeError(done.stderr)
    return began, taken, json.loads(done.stdout)


def asked(pool: Path, address: str, rows: int) -> dict[str, float]:
    """A query in a store of its own, from the shell."""
    from score import query

    with tempfile.TemporaryDirectory(dir=pool.parent) as folder:
        spec = Path(folder) / "query.yaml"
        asked = query(pool, Path(folder) / "store")
        spec.write_text(asked.model_copy(update={"cluster": asked.cluster.model_copy(update={"address": address})}).to_yaml())
        began, taken, summary = command("query", str(spec))
        assert summary["rows"] == 1000
        events = [json.loads(line) for line in (Path(summary["selection"]).parent / "workers.jsonl").read_text().splitlines()]
    ended = [event for event in events if event["event"] == "UnitEnded"]
    found = {"first unit": ended[0]["time"] - began, "all told": taken}
    others = [event["time"] - began for event in ended if event["worker"]]
    return found | ({"first unit of a second worker": others[0]} if others else {})


BARE = """
import ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100 << 20)
@ray.remote
class Actor:
    def there(self):
        import torch
ray.get([actor.there.remote() for actor in [Actor.remote(), Actor.remote()]])
"""


def bare_ray() -> dict[str, float]:
    """From the shell to two actors that have imported torch, and nothing of ours."""
    began = time.perf_counter()
    words = [sys.executable, "-c", BARE + "import time; print(time.perf_counter())"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {"two actors": float(done.stdout.splitlines()[-1]) - began}


def second(pool: Path) -> dict[str, float]:
    """A query with another seed over scored rows, from the shell."""
    spec = scored(pool)
    _, taken, summary = command("query", str(spec), "--set", f"seed={time.time_ns() % 2**31}")
    assert (summary["units_scored"], summary["bytes_read"]) == (0, 0), summary
    return {"all told": taken}


def scored(pool: Path) -> Path:
    """The query file of a store in which the pool is scored."""
    from score import query

    store = pool.parent / "first-minute-store"
    spec = store / "query.yaml"
    if not spec.exists():
        store.mkdir(parents=True, exist_ok=True)
        spec.write_text(query(pool, store).to_yaml())
        command("score", str(spec))
    return spec


def stage_of_raystream(pool: Path) -> dict[str, float]:
    """Seconds from the first unit assigned to the last receipt, in this process, in which nothing ran before."""
    from score import query

    from raystream.cluster.growing import Processes
    from raystream.query import Cluster
    from raystream.scoring.executor import WorkerReady
    from raystream.scoring.plan import resolve
    from raystream.scoring.progress import Silent
    from raystream.scoring.session import Session

    with tempfile.TemporaryDirectory(dir=pool.parent) as folder:
        changes = {"cluster": Cluster(address="in_process")}
        whole = resolve(query(pool, Path(folder)).model_copy(update=changes))
        plan = whole.plan(whole.pool.units)
        with (
            Processes(whole.query.cluster, Silent()) as processes,
            Session(whole.job, whole.store, whole.folder, Silent(), processes) as session,
        ):
            told = session._progress.on_event
            ready: list[float] = []

            def on_event(event: object) -> None:
                if isinstance(event, WorkerReady):
                    ready.append(time.perf_counter())
                told(event)  # type: ignore[arg-type]

            session._progress.on_event = on_event  # type: ignore[method-assign, assignment]
            units = session.score(plan)
            seconds = time.perf_counter() - ready[0]
        assert sum(unit.rows for unit in units if unit) == whole.pool.rows
    return {"score stage": seconds}


def stage_by_hand(pool: Path) -> dict[str, float]:
    """The same by the loop of `score.py`: reader, net and writer in turn."""
    import warnings

    import pyarrow as pa
    import torch
    from score import network, score_files

    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    torch.manual_seed(0)
    net = network().eval()
    with tempfile.TemporaryDirectory(dir=pool.parent) as folder:
        began = time.perf_counter()
        score_files(net, sorted(pool.glob("*.parquet")), Path(folder))  # type: ignore[arg-type]
        return {"score stage": time.perf_counter() - began}


def kinds(data: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """What is measured, by name, in the order of a round."""
    small, large = data / f"pool-{SMALL}x128", data / f"pool-{LARGE}x128"
    found: dict[str, Callable[[], dict[str, float]]] = {}
    for pool, rows, addresses in ((small, SMALL, ("in_process", "auto", "local")), (large, LARGE, ("auto", "local"))):
        for address in addresses:
            found[f"{rows:,} rows, {address}"] = lambda pool=pool, address=address, rows=rows: asked(pool, address, rows)
    found["bare Ray"] = bare_ray
    found[f"second query over {LARGE:,}"] = lambda: second(large)
    found["fresh score stage, hand-written"] = lambda: stage_by_hand(large)
    found["fresh score stage, raystream"] = lambda: stage_of_raystream(large)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--only", help="a part of the names of what is measured")
    parser.add_argument("--through", default="", help="a command that runs each measurement")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    data = args.data.absolute()
    if args.one:
        own = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        found = kinds(data)[args.one]()
        own = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - own
        print(json.dumps(found | {"processors": own + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])}))
        return
    from environment import environment
    from score import make_pool

    for rows in (SMALL, LARGE):
        make_pool(data / f"pool-{rows}x128", rows)
    shutil.rmtree(data / "first-minute-store", ignore_errors=True)
    names = [name for name in kinds(data) if (args.only or "") in name]
    if any(name.startswith("second") for name in names):
        scored(data / f"pool-{LARGE}x128")
    measured: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for _ in range(args.rounds):
        for name in names:
            words = [*shlex.split(args.through), sys.executable, __file__, "--data", str(data), "--one", name]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
            print(f"{name}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
            for what, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                measured[name].setdefault(what, []).append(seconds)
    shutil.rmtree(data / "first-minute-store", ignore_errors=True)
    for name, parts in measured.items():
        for what, values in parts.items():
            limit = LIMITS.get(name, {}).get(what)
            told = "" if limit is None else f" (limit {limit:g} s)"
            print(f"{name}: {what} {statistics.median(values):.2f} s, {min(values):.2f} to {max(values):.2f}{told}")
    sides = [measured.get(f"fresh score stage, {side}", {}).get("score stage") for side in ("raystream", "hand-written")]
    if all(sides):
        ratio = statistics.median(sides[0] or []) / statistics.median(sides[1] or [])
        print(f"fresh score stage: {ratio:.2f} x the hand-written loop (limit {LIMIT_RATIO} x)")
    print(json.dumps({"benchmark": "first_minute", "rows": [SMALL, LARGE], "seconds": measured, **environment()}))


if __name__ == "__main__":
    main()
