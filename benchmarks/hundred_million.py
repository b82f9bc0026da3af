"""A pool of 100,000,000 rows, for real: scored as columns by two workers, killed in the middle, chosen from; seconds and peak memory.

The pool has ids of 60 characters (or integers), two probabilities and 16 float16 dimensions a row, in files of a million rows. Scoring
is ended by SIGKILL once a third of the units are done, all its processes at once, and asked for again. Then each strategy chooses
1,000 rows in a fresh process that scores nothing: `top_k`, `power`, the default, and a core set of all rows. Last, the batches are
compared with those of a second store that was scored without a disturbance, in one process, once the first is removed.

    python benchmarks/hundred_million.py                     two hours of two cores and 20 GB of disk
    python benchmarks/hundred_million.py --rows 2000000      the same, small
    python benchmarks/hundred_million.py --again top_k       the other strategies are not repeated over the second store
    python benchmarks/hundred_million.py --rows 10000000 --merge     the merge alone, five times in one process

Peak memory is `VmHWM` of the process that runs the query, mapped pages included. `merge` are the seconds from the last unit's lookup to
the strategy: reading ids and scores, hashing ids, checking that they are unique. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

STRATEGIES = ("top_k", "power", "k_means", "core_set")
WIDTH = 16
FILE_ROWS, GROUP_ROWS = 1_000_000, 250_000
_PREFIX, _SUFFIX = b"lake/images/2026/camera-", b"-0123456789abcdef.jpeg"
_DIGITS = 60 - len(_PREFIX) - len(_SUFFIX)


def ids(start: int, count: int, kind: str) -> pa.Array:
    """Numbers without order, or 60 characters each."""
    numbers = (np.arange(start, start + count, dtype=np.int64) * 7919 + 1) % 10**_DIGITS
    if kind == "integers":
        return pa.array(numbers)
    text = np.empty((count, 60), np.uint8)
    text[:, : len(_PREFIX)] = np.frombuffer(_PREFIX, np.uint8)
    text[:, -len(_SUFFIX) :] = np.frombuffer(_SUFFIX, np.uint8)
    for place in range(_DIGITS):
        text[:, len(_PREFIX) + _DIGITS - 1 - place] = numbers % 10 + ord("0")
        numbers //= 10
    offsets = np.arange(0, 60 * count + 1, 60, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def write(folder: Path, rows: int, kind: str) -> None:
    """Files of a million rows: 64 clusters of unequal size, and probabilities."""
    folder.mkdir(parents=True)
    centres = np.random.default_rng(0).standard_normal((64, WIDTH), np.float32) * 3
    for start in range(0, rows, FILE_ROWS):
        draw = np.random.default_rng([1, start])
        count = min(FILE_ROWS, rows - start)
        at = np.minimum(draw.geometric(0.08, count) - 1, 63)
        embedding = (centres[at] + draw.standard_normal((count, WIDTH), np.float32)).astype(np.float16)
        one = draw.random(count, np.float32)
        probabilities = pa.array(np.stack([one, 1 - one], axis=1).reshape(-1))
        table = pa.table(
            {
                "k": ids(start, count, kind),
                "p": pa.FixedSizeListArray.from_arrays(probabilities, 2),
                "e": pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), WIDTH),
            }
        )
        codecs = {"k": "zstd", "p": "none", "e": "none"}
        pq.write_table(table, folder / f"{start:011d}.parquet", row_group_size=GROUP_ROWS, use_dictionary=False, compression=codecs)


def query(pool: str, store: str, strategy: str, workers: str) -> None:
    """In a process of its own: one query, or the scoring alone."""
    import raystream as rs
    from raystream.run import score
    from raystream.scoring.progress import Silent

    class Stages(Silent):
        """Notes when each stage begins."""

        began: dict[str, float] = {}

        def stage(self, text: str) -> None:
            self.began[text.split()[0]] = time.perf_counter()

    select: dict[str, Any] = {"strategy": "k_means" if strategy == "score" else strategy, "budget": 1000}
    if strategy == "core_set":
        select["candidates"] = "all"
    cluster = {"address": "in_process"} if workers == "1" else {"address": "local", "workers": int(workers)}
    asked = rs.Query(
        pool=rs.Pool(uri=pool, id="k"), model=rs.Model(kind="columns", probabilities="p", embedding="e"), select=rs.Select(**select),
        store=rs.Store(uri=store), cluster=rs.Cluster(**cluster),
    )  # fmt: skip
    began = time.perf_counter()
    if strategy == "score":
        scores = score(asked)
        facts = {"units_scored": scores.units_scored, "units_reused": scores.units_reused}
    else:
        result = rs.run(asked, reporter=Stages())
        merge = Stages.began["Choosing"] - Stages.began["Merging"]
        batch = hashlib.sha256(json.dumps(result.selection.column("k").to_pylist()).encode()).hexdigest()[:12]
        seconds = result.manifest.seconds
        facts = {"units_scored": result.manifest.units_scored, "batch": batch, "merge": round(merge, 2)}
        facts["stages"] = {k: round(v, 2) for k, v in vars(seconds).items()}
    print(json.dumps({"seconds": round(time.perf_counter() - began, 2), "peak_gib": round(_peak(), 3), **facts}))


def merges(pool: str, store: str, strategy: str) -> list[float]:
    """Seconds of the merge of a query of which all is scored, five times."""
    import raystream as rs
    from raystream.choosing.candidates import read_pool
    from raystream.cluster.growing import Processes
    from raystream.scoring.plan import resolve
    from raystream.scoring.progress import Silent
    from raystream.scoring.session import Session

    asked = resolve(
        rs.Query(
            pool=rs.Pool(uri=pool, id="k"), model=rs.Model(kind="columns", probabilities="p", embedding="e"),
            select=rs.Select(strategy=strategy, budget=1000), store=rs.Store(uri=store), cluster=rs.Cluster(address="in_process"),
        )
    )  # fmt: skip
    seconds = []
    with (
        Processes(asked.query.cluster, Silent()) as processes,
        Session(asked.job, asked.store, asked.folder, Silent(), processes, may_score=False) as session,
    ):
        plan = asked.plan(asked.pool.units)
        units = session.score(plan)
        for _ in range(5):
            began = time.perf_counter()
            read_pool(asked, plan, units)
            seconds.append(round(time.perf_counter() - began, 3))
    return seconds


def measure_merge(folder: Path, rows: int) -> dict[str, Any]:
    """The merge with hashes for a draw of all rows (`power`), and without (`top_k`): seconds, and the medians in microseconds a row."""
    pool, store = folder / "pool", folder / "store"
    write(pool, rows, "strings")
    ask(pool, store, "score")
    seconds = {strategy: merges(str(pool), str(store), strategy) for strategy in ("top_k", "power")}
    return {"seconds": seconds, "us_a_row": {name: round(statistics.median(some) / rows * 1e6, 4) for name, some in seconds.items()}}


def _peak() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def start(pool: Path, store: Path, strategy: str, workers: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--query", str(pool), str(store), strategy, str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def ask(pool: Path, store: Path, strategy: str, workers: int = 1) -> dict[str, Any]:
    """`query` in a fresh process."""
    out, _ = (process := start(pool, store, strategy, workers)).communicate()
    if process.returncode:
        raise RuntimeError(f"{strategy}: exit {process.returncode}")
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    print(f"{pool.name} {strategy:10} {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def done_units(store: Path) -> int:
    """Outputs that are complete: their receipts are written last."""
    return sum(1 for _ in (store / "units").rglob("*.receipt.json")) if (store / "units").exists() else 0


def kill_in_the_middle(pool: Path, store: Path, units: int, workers: int) -> int:
    """Score until a third of the units have receipts, then end every process of it at once; the number of receipts then."""
    process = start(pool, store, "score", workers)
    while done_units(store) < units // 3:
        if process.poll() is not None:
            raise RuntimeError("scored before it could be killed")
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return done_units(store)


def measure(folder: Path, rows: int, kind: str, workers: int, strategies: list[str], repeated: list[str]) -> dict[str, Any]:
    pool = folder / f"{kind}-{rows}"
    began = time.perf_counter()
    write(pool, rows, kind)
    wrote = round(time.perf_counter() - began, 1)
    units = -(-rows // GROUP_ROWS)
    killed = kill_in_the_middle(pool, folder / "killed", min(units, rows // GROUP_ROWS), workers)
    found = {"written_seconds": wrote, "receipts_when_killed": killed, "resumed": ask(pool, folder / "killed", "score", workers)}
    found["chosen"] = {strategy: ask(pool, folder / "killed", strategy) for strategy in strategies}
    shutil.rmtree(folder / "killed")
    found["undisturbed"] = ask(pool, folder / "whole", "score")
    again = {strategy: ask(pool, folder / "whole", strategy) for strategy in repeated}
    found["compared"] = repeated
    found["same_batches"] = all(again[s]["batch"] == found["chosen"][s]["batch"] for s in repeated)
    shutil.rmtree(folder)
    folder.mkdir()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--ids", nargs="+", choices=["strings", "integers"], default=["strings", "integers"])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--again", nargs="+", choices=STRATEGIES, help="of these, which are repeated over the undisturbed store; all")
    parser.add_argument("--merge", action="store_true", help="measure the merge of rows with ids of 60 characters alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where pool and stores lie, left out a temporary folder")
    parser.add_argument("--query", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.query:
        query(*args.query)
        return
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    repeated = [strategy for strategy in args.strategies if strategy in (args.again or args.strategies)]
    try:
        if args.merge:
            print(json.dumps({"benchmark": "merge", "rows": args.rows, **measure_merge(folder, args.rows), **environment()}))
            return
        found = {kind: measure(folder, args.rows, kind, args.workers, args.strategies, repeated) for kind in args.ids}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{'ids':10}{'strategy':11}{'seconds':>9}{'merge':>9}{'peak GiB':>10}  the same batch as undisturbed")
    for kind, facts in found.items():
        for strategy, run in facts["chosen"].items():
            same = facts["same_batches"] if strategy in facts["compared"] else "not compared"
            print(f"{kind:10}{strategy:11}{run['seconds']:9.1f}{run['merge']:9.1f}{run['peak_gib']:10.2f}  {same}")
    print(json.dumps({"benchmark": "hundred_million", "rows": args.rows, "workers": args.workers, "results": found, **environment()}))


if __name__ == "__main__":
    main()
