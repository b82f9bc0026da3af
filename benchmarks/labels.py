"""Ten million labelled integer ids against a pool of one million: the merge should take 2 s at most, and 200 MB more memory.

The pool is scored once. Then each round merges it in two fresh processes, with the labelled ids and without: reading them,
joining the units' scores, and marking the labelled rows. Memory is how far the process's peak rises over what it was after imports.

    python benchmarks/labels.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

import raystream as rs

LIMIT_SECONDS, LIMIT_MB = 2.0, 200


def query(folder: Path, labelled: bool) -> rs.Query:
    """Ranks rows by probabilities that the pool carries; half of the labelled ids' files are in a folder of their own."""
    return rs.Query(
        pool=rs.Pool(uri=str(folder / "pool.parquet"), id="k", labelled=[str(folder / "labels")] if labelled else []),
        model=rs.Model(kind="columns", probabilities="p"),
        select=rs.Select(strategy="top_k", budget=1000),
        store=rs.Store(uri=str(folder / "store")),
        cluster=rs.Cluster(address="in_process"),
    )


def write(folder: Path, rows: int, labels: int) -> None:
    """A pool of which a tenth is labelled, in random order, and the labelled ids, in random order in two files."""
    draw = np.random.default_rng(0)
    ids = draw.permutation(4 * labels)[:labels] * 7919
    inside = np.concatenate([ids[: rows // 10], -1 - draw.permutation(rows - rows // 10)])[draw.permutation(rows)]
    one = draw.random(rows, np.float32)
    p = pa.FixedSizeListArray.from_arrays(pa.array(np.stack([one, 1 - one], axis=1).reshape(-1)), 2)
    pq.write_table(pa.table({"k": inside, "p": p}), folder / "pool.parquet")
    (folder / "labels" / "more").mkdir(parents=True)
    for name, part in zip(("a.parquet", "more/b.parquet"), np.array_split(ids, 2), strict=True):
        pq.write_table(pa.table({"k": part}), folder / "labels" / name)


def merge(folder: Path, labelled: bool) -> None:
    """In a process of its own: plan, join and mark, and print seconds of what the labels take part in, and the peak in MB."""
    from raystream.choosing.candidates import read_pool
    from raystream.choosing.labelled import find_labelled_rows
    from raystream.cluster.growing import Processes
    from raystream.pool import read_labelled
    from raystream.scoring.plan import resolve
    from raystream.scoring.progress import Silent
    from raystream.scoring.session import Session

    before = _memory("VmRSS")
    asked = query(folder, labelled)
    began, used = time.perf_counter(), time.process_time()
    if labelled:  # by itself, since `resolve` has other work, too; what is read is let go of
        read_labelled(asked.pool.labelled, "k", pa.int64())
    read, read_cpu = time.perf_counter() - began, time.process_time() - used
    resolved = resolve(asked)
    plan = resolved.plan(resolved.pool.units)
    with (
        Processes(asked.cluster, Silent()) as processes,
        Session(resolved.job, resolved.store, resolved.folder, Silent(), processes) as session,
    ):
        units = session.score(plan)
        began, used = time.perf_counter(), time.process_time()
        pool = read_pool(resolved, plan, units)
        covered = find_labelled_rows(resolved, pool, session)
        seconds, cpu = time.perf_counter() - began, read_cpu + time.process_time() - used
    print(json.dumps({"read": read, "merge": seconds, "cpu": cpu, "mb": _memory("VmHWM") - before, "labelled": covered.known}))


def _memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--labels", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--merge", nargs=2, metavar=("FOLDER", "LABELLED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.merge:
        merge(Path(args.merge[0]), args.merge[1] == "yes")
        return
    folder = Path(tempfile.mkdtemp())
    try:
        write(folder, args.rows, args.labels)
        rs.run(query(folder, False))
        found: dict[str, list[dict[str, float]]] = {"yes": [], "no": []}
        for _ in range(args.rounds):
            for labelled, results in found.items():
                command = [sys.executable, __file__, "--merge", str(folder), labelled]
                results.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    finally:
        shutil.rmtree(folder)
    assert all(result["labelled"] == args.rows // 10 for result in found["yes"])
    seconds = [result["read"] + result["merge"] for result in found["yes"]]
    more = [with_["mb"] - without["mb"] for with_, without in zip(found["yes"], found["no"], strict=True)]
    print(f"reading {args.labels:,} ids and merging: median {statistics.median(seconds):.2f} s (limit {LIMIT_SECONDS:g} s)")
    print(f"processor time of both: median {statistics.median(result['cpu'] for result in found['yes']):.2f} s, on all cores together")
    print(f"merging without labels: median {statistics.median(result['merge'] for result in found['no']):.2f} s")
    print(f"memory: {statistics.median(more):.0f} MB more than without labels (limit {LIMIT_MB} MB)")
    print(json.dumps({"benchmark": "labels", "rows": args.rows, "labels": args.labels, "runs": found, **environment()}))


if __name__ == "__main__":
    main()
