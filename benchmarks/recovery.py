"""What it costs that a run can be resumed: checksums and commits while it scores, and the death of one of its workers.

`bookkeeping` scores the pool of `score.py` in one process: as it is, and without hashing what was written (files, their pages) and
without committing receipts (they are written, but neither synced nor linked), in turn. The difference is what both cost.

`death` runs a query of about `--seconds` on two workers of a Ray of its own, whose model waits and computes next to nothing: undisturbed,
and with one worker ended by SIGKILL in the middle, in turn. What the death costs is the difference of the seconds of scoring.

    python benchmarks/recovery.py bookkeeping
    python benchmarks/recovery.py death --rounds 3

Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

WORKERS, UNITS, BATCHES = 2, 40, 10
NETS = """
import os, time
from pathlib import Path
import torch

class Slow(torch.nn.Linear):
    def forward(self, x):
        time.sleep({pause})
        return super().forward(x)

def net():
    with (Path(__file__).parent / "pids").open("a") as file:
        file.write(f"{{os.getpid()}}\\n")
    return Slow(8, 4)
"""


@contextmanager
def careless() -> Iterator[None]:
    """Neither hash nor sync: what scoring would take without."""
    from raystream.scoring import outputs
    from raystream.store.local import LocalStore
    from raystream.store.protocol import StoredFile

    def put(store: LocalStore, name: str, data: bytes, *, wait: bool = True) -> bool:
        store.path(name).parent.mkdir(parents=True, exist_ok=True)
        store.path(name).write_bytes(data)
        return True

    with (
        mock.patch.object(LocalStore, "stored", lambda store, name: StoredFile(name, store.size(name) or 0, "")),
        mock.patch.object(LocalStore, "put_if_absent", put),
        mock.patch.object(outputs, "page_hashes", return_value=b""),
    ):
        yield


def bookkeeping(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of scoring with and without; medians, and the share that it is more."""
    from score import make_pool, query

    from raystream.cluster.growing import Processes
    from raystream.query import Cluster
    from raystream.scoring.plan import resolve
    from raystream.scoring.progress import Silent
    from raystream.scoring.session import Session

    make_pool(folder / "pool", rows)
    asked = resolve(query(folder / "pool", folder / "store").derived(cluster=Cluster(address="in_process")))
    found: dict[str, list[float]] = {"careful": [], "careless": []}
    with (
        Processes(asked.query.cluster, Silent()) as processes,
        Session(asked.job, asked.store, asked.folder, Silent(), processes) as session,
    ):
        for _ in range(rounds + 1):
            for how, seconds in found.items():
                shutil.rmtree(folder / "store" / "units", ignore_errors=True)
                os.sync()
                plan = asked.plan(asked.pool.units)
                with careless() if how == "careless" else nullcontext():
                    began = time.perf_counter()
                    session.score(plan)
                    seconds.append(time.perf_counter() - began)
    found = {how: seconds[1:] for how, seconds in found.items()}  # the first one loads the model, and touches memory for the first time
    medians = {how: statistics.median(seconds) for how, seconds in found.items()}
    share = medians["careful"] / medians["careless"] - 1
    return {"rows": rows, "units": len(plan.units), "medians": medians, "share": share, "seconds": found}


def lake(folder: Path, seconds: float) -> None:
    """Files of one unit each, and a model that takes its time."""
    (folder / "pool").mkdir(parents=True)
    (folder / "recovery_nets.py").write_text(NETS.format(pause=seconds * WORKERS / (UNITS * BATCHES)))
    for number in range(UNITS):
        values = np.random.default_rng(number).standard_normal(8 * 32 * BATCHES).astype(np.float32)
        x = pa.FixedSizeListArray.from_arrays(pa.array(values), 8)
        pq.write_table(pa.table({"rid": np.arange(32 * BATCHES) + number * 1000, "x": x}), folder / "pool" / f"{number:02d}.parquet")


def scored(store: Path) -> int:
    return len(list(store.glob("units/*/*/scores-*.receipt.json")))


def run(folder: Path, kill: bool) -> dict[str, float]:
    """The query as a command, one of whose workers may be ended once half of the units are scored."""
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    (folder / "pids").unlink(missing_ok=True)
    (folder / "query.yaml").write_text(
        json.dumps(
            {
                "pool": {"uri": "pool", "id": "rid", "inputs": ["x"]},
                "model": {"source": "recovery_nets:net", "batch_size": 32},
                "select": {"strategy": "top_k", "budget": 20},
                "cluster": {"address": "local", "workers": WORKERS},
                "store": {"uri": "store", "query": "q"},
            }
        )
    )
    command = [sys.executable, "-m", "raystream.cli", "query", "query.yaml", "--no-report"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def strike() -> None:
        while scored(store) < UNITS // 2 and process.poll() is None:
            time.sleep(0.05)
        os.kill(int((folder / "pids").read_text().split()[-1]), signal.SIGKILL)

    if kill:
        threading.Thread(target=strike, daemon=True).start()
    if process.wait():
        raise RuntimeError(f"exit {process.returncode}")
    manifest = json.loads((store / "queries/q/manifest.json").read_text())
    return {"seconds": manifest["seconds"]["score"], "loaded": len((folder / "pids").read_text().split())}


def death(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Seconds of scoring without and with a death, in turn; what it costs as a share of the undisturbed run's."""
    lake(folder, seconds)
    found: dict[str, list[dict[str, float]]] = {"undisturbed": [], "killed": []}
    for number in range(rounds):
        for how in found:
            found[how].append(run(folder, how == "killed"))
            print(f"round {number} {how:12} {found[how][-1]['seconds']:7.1f} s", file=sys.stderr, flush=True)
    medians = {how: statistics.median(one["seconds"] for one in runs) for how, runs in found.items()}
    return {"medians": medians, "share": medians["killed"] / medians["undisturbed"] - 1, "rounds": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bookkeeping", "death"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    try:
        found = bookkeeping(folder, args.rows, args.rounds) if args.what == "bookkeeping" else death(folder, args.seconds, args.rounds)
        print("\n".join(f"{how:12} {seconds:7.2f} s" for how, seconds in found["medians"].items()), f"\n{found['share']:.1%} more")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"benchmark": "recovery", "what": args.what, **found, **environment()}))


if __name__ == "__main__":
    main()
