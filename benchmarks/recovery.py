"""What it costs that a run can be resumed: checksums and commits while it scores, and the death of one of its workers.

`bookkeeping` scores the pool of `score.py` in one process and adds up the seconds of all calls that hash what was written (files, their
pages, positions) and of those that commit receipts, each of which waits for the disk. Calls overlap the next unit's computing, so their
share of the scoring is an upper bound of what they cost it.

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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
def timed(spent: Counter[str]) -> Iterator[None]:
    """Add up the seconds of the calls that hash and commit."""
    from raystream.scoring import outputs
    from raystream.store.local import LocalStore

    def measuring(real: Callable[..., Any], what: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return real(*arguments, **options)
            finally:
                spent[what] += time.perf_counter() - began  # type: ignore[assignment]

        return call

    with (
        mock.patch.object(LocalStore, "stored", measuring(LocalStore.stored, "checksums")),
        mock.patch.object(outputs, "page_hashes", measuring(outputs.page_hashes, "checksums")),
        mock.patch.object(outputs.OutputWriter, "receipts", measuring(outputs.OutputWriter.receipts, "checksums")),
        mock.patch.object(LocalStore, "put_if_absent", measuring(LocalStore.put_if_absent, "commits")),
    ):
        yield


def bookkeeping(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Shares of the scoring, by what they are spent on; medians over the rounds."""
    from score import make_pool, query

    from raystream.cluster.processes import Processes
    from raystream.query import Cluster
    from raystream.scoring.plan import resolve
    from raystream.scoring.progress import Silent
    from raystream.scoring.session import Session

    make_pool(folder / "pool", rows)
    asked = resolve(query(folder / "pool", folder / "store").derived(cluster=Cluster(address="in_process")))
    found = []
    with (
        Processes(asked.query.cluster, Silent()) as processes,
        Session(asked.job, asked.store, asked.folder, Silent(), processes) as session,
    ):
        for _ in range(rounds + 1):
            shutil.rmtree(folder / "store" / "units", ignore_errors=True)
            os.sync()
            plan, spent = asked.plan(asked.pool.units), Counter[str]()
            with timed(spent):
                began = time.perf_counter()
                session.score(plan)
                seconds = time.perf_counter() - began
            found.append({"seconds": seconds, **{what: spent[what] / seconds for what in ("checksums", "commits")}})
    found = found[1:]  # the first one loads the model, and touches memory for the first time
    shares = {what: statistics.median(one[what] for one in found) for what in ("checksums", "commits")}
    return {"rows": rows, "units": len(plan.units), "shares": shares, "share": sum(shares.values()), "rounds": found}


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
        if args.what == "bookkeeping":
            found = bookkeeping(folder, args.rows, args.rounds)
            print("\n".join(f"{what:10} {share:7.2%} of the scoring" for what, share in found["shares"].items()))
        else:
            found = death(folder, args.seconds, args.rounds)
            print("\n".join(f"{how:12} {seconds:7.1f} s" for how, seconds in found["medians"].items()), f"\n{found['share']:.1%} more")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"benchmark": "recovery", "what": args.what, **found, **environment()}))


if __name__ == "__main__":
    main()
