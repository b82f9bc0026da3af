"""What the driver keeps of every row, in bytes: peak memory of a query over scored units, at two sizes of the pool, their difference a row.

The pool is scored first, in a process of its own; each query then runs in a fresh one and scores nothing. Ids are strings of 60
characters, or integers; what their bytes alone take is subtracted in `beyond`.

    python benchmarks/driver_memory.py
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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

ID_BYTES = {"strings": 64, "integers": 8}
"""Of an id in Arrow: 60 characters and an offset, or 64 bits."""
STRATEGIES = ("top_k", "power", "k_means")
_FILE_ROWS = 250_000


def write(folder: Path, rows: int, ids: str) -> None:
    """A pool of files of 250,000 rows that carry probabilities and embeddings."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for start in range(0, rows, _FILE_ROWS):
        count = min(_FILE_ROWS, rows - start)
        numbers = np.arange(start, start + count) * 7919 + 1
        one = draw.random(count, np.float32)
        table = pa.table(
            {
                "k": pa.array([f"images/2024/camera-{i % 97:03d}/{i:015d}-0123456789abcdef.jpeg" for i in numbers.tolist()])
                if ids == "strings"
                else numbers,
                "p": pa.FixedSizeListArray.from_arrays(pa.array(np.stack([one, 1 - one], axis=1).reshape(-1)), 2),
                "e": pa.FixedSizeListArray.from_arrays(pa.array(draw.standard_normal(4 * count, np.float32)), 4),
            }
        )
        assert ids == "integers" or len(table.column("k")[0].as_py()) == 60
        pq.write_table(table, folder / f"{start:010d}.parquet")


def query(pool: Path, strategy: str) -> None:
    """In a process of its own: the whole query; prints the peak in MB and the seconds."""
    import raystream as rs

    asked = rs.Query(
        pool=rs.Pool(uri=str(pool), id="k"),
        model=rs.Model(kind="columns", probabilities="p", embedding="e"),
        select=rs.Select(strategy="k_means" if strategy == "score" else strategy, budget=1000),
        store=rs.Store(uri=f"{pool}-store"),
        cluster=rs.Cluster(address="in_process"),
    )
    began = time.perf_counter()
    if strategy == "score":
        from raystream.run import score

        score(asked)
        return
    result = rs.run(asked)
    assert result.manifest.units_scored == 0
    seconds = time.perf_counter() - began
    print(json.dumps({"mb": _peak(), "seconds": seconds, "batch": _digest(result.selection.column("k"))}))


def _digest(ids: pa.ChunkedArray) -> str:
    """Of the chosen ids in order: the same before and after a change that should change no batch."""
    return hashlib.sha256(json.dumps(ids.to_pylist()).encode()).hexdigest()[:12]


def _peak() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def ask(pool: Path, strategy: str) -> dict[str, float]:
    """`query` in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--query", str(pool), strategy], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout) if done.stdout else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[1_000_000, 4_000_000])
    parser.add_argument("--ids", nargs="+", choices=list(ID_BYTES), default=list(ID_BYTES))
    parser.add_argument("--query", nargs=2, metavar=("POOL", "STRATEGY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.query:
        query(Path(args.query[0]), args.query[1])
        return
    folder = Path(tempfile.mkdtemp())
    found = []
    try:
        for ids in args.ids:
            runs: dict[str, list[dict[str, float]]] = {strategy: [] for strategy in STRATEGIES}
            for rows in args.rows:
                pool = folder / f"{ids}-{rows}"
                write(pool, rows, ids)
                ask(pool, "score")
                for strategy, results in runs.items():
                    results.append(ask(pool, strategy))
                shutil.rmtree(folder)
                folder.mkdir()
            few, many = args.rows
            for strategy, (small, large) in runs.items():
                bytes_ = (large["mb"] - small["mb"]) * 1e6 / (many - few)
                found.append({"ids": ids, "strategy": strategy, "bytes": bytes_, "beyond": bytes_ - ID_BYTES[ids], "runs": [small, large]})
                print(
                    f"{ids:<8}  {strategy:<8} {bytes_:6.0f} bytes a row, {bytes_ - ID_BYTES[ids]:6.0f} beyond the ids; "
                    f"{large['mb']:.0f} MB and {large['seconds']:.1f} s at {many:,} rows"
                )
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"benchmark": "driver_memory", "rows": args.rows, "results": found, **environment()}))


if __name__ == "__main__":
    main()
