"""Exact farthest-first against plain NumPy and torch loops: 1M x 256, 1000 picks, all rows candidates.

    python benchmarks/core_set.py                                     the full run: about 10 minutes a round
    python benchmarks/core_set.py --rows 20000 --picks 100 --rounds 2     in seconds
    python benchmarks/core_set.py --rival-picks 100                   rivals make 100 picks, extrapolated linearly

What is timed: from float32 rows in memory to the order of picks, the working copy included. Each run is
a process of its own, so that its peak memory is its own; contenders take turns within a round. The
rivals keep |x|^2, preallocate all that they need, take one matrix-vector product a pick, and use the
same threads. Their order is float32's and may differ from float64's; ours is checked against a float64
greedy, whole, on `--check-rows` rows and on 0/1, one-hot and count data.

The ceiling: a rival reads the rows once a pick, so memory bandwidth bounds it. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import environment

CONTENDERS = ("raystream", "raystream_float32", "numpy", "torch")


def data(kind: str, n: int, d: int) -> np.ndarray:
    """(n, d) float32, the same in every process."""
    rng = np.random.default_rng(0)
    if kind == "binary":
        return rng.integers(0, 2, (n, d)).astype(np.float32)
    if kind == "one_hot":
        return np.eye(d, dtype=np.float32)[rng.integers(0, d, n)]
    if kind == "counts":
        return rng.poisson(2.0, (n, d)).astype(np.float32)
    return rng.standard_normal((n, d), dtype=np.float32)


def numpy_greedy(x: np.ndarray, k: int) -> np.ndarray:
    """The plain loop: float32, one product a pick, no allocation inside."""
    square = np.einsum("ij,ij->i", x, x)
    mean = x.mean(axis=0)
    rows = np.empty(k, dtype=np.int64)
    rows[0] = int(np.argmax(square - 2 * (x @ mean)))
    nearest = np.full(len(x), np.inf, dtype=np.float32)
    now = np.empty(len(x), dtype=np.float32)
    for i in range(k):
        centre = rows[i]
        np.dot(x, x[centre], out=now)
        now *= -2
        now += square
        now += square[centre]
        np.minimum(nearest, now, out=nearest)
        nearest[centre] = -np.inf
        if i + 1 < k:
            rows[i + 1] = int(np.argmax(nearest))
    return rows


def torch_greedy(x: np.ndarray, k: int) -> np.ndarray:
    """The same in torch."""
    import torch

    wide = torch.from_numpy(x)
    square = torch.einsum("ij,ij->i", wide, wide)
    rows = np.empty(k, dtype=np.int64)
    rows[0] = int(torch.argmax(square - 2 * (wide @ wide.mean(0))))
    nearest = torch.full((len(x),), torch.inf)
    now = torch.empty(len(x))
    for i in range(k):
        centre = int(rows[i])
        torch.addmv(square, wide, wide[centre], beta=1, alpha=-2, out=now)
        now += square[centre]
        torch.minimum(nearest, now, out=nearest)
        nearest[centre] = -torch.inf
        if i + 1 < k:
            rows[i + 1] = int(torch.argmax(nearest))
    return rows


def float64_greedy(x: np.ndarray, k: int) -> np.ndarray:
    """The reference: sequential, every distance a float64 sum of squared differences."""
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    alive = np.ones(len(x), dtype=bool)
    nearest, rows = np.full(len(x), np.inf), np.empty(k, dtype=np.int64)
    room = np.empty_like(wide)
    for i in range(k):
        point = mean if i == 0 else wide[rows[i - 1]]
        np.subtract(wide, point, out=room)
        now = np.square(room, out=room).sum(axis=1)
        nearest = now if i <= 1 else np.minimum(nearest, now)
        rows[i] = int(np.argmax(np.where(alive, np.sqrt(nearest), -np.inf)))
        alive[rows[i]] = False
    return rows


def run_one(contender: str, n: int, d: int, k: int, threads: int) -> dict[str, Any]:
    """In a process of its own: time one contender, warm."""
    import torch

    from raystream.selection import LocalShards, farthest_first

    torch.set_num_threads(threads)
    x = data("normal", n, d)
    result: dict[str, Any] = {}

    def go(rows: np.ndarray, picks: int) -> np.ndarray:
        if contender == "numpy":
            return numpy_greedy(rows, picks)
        if contender == "torch":
            return torch_greedy(rows, picks)
        precision = "float32" if contender.endswith("float32") else "auto"
        chosen = farthest_first(LocalShards.of_array(rows, memory=2 * rows.nbytes), picks, precision=precision)
        result.update(passes=chosen.passes, refinements=chosen.refinements)
        return chosen.rows

    # libraries, code generation and thread pools warm up on a small piece
    go(x[: min(n, 20000)].copy(), min(k, 20))
    start = time.perf_counter()
    rows = go(x, k)
    result["seconds"] = time.perf_counter() - start
    result["picks"] = len(rows)
    result["rows"] = rows.tolist()
    result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return result


def spawn(contender: str, n: int, d: int, k: int, threads: int) -> dict[str, Any]:
    """`run_one` in a fresh process that has `threads` threads in every library."""
    import os

    settings = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    sizes = ["--rows", str(n), "--width", str(d), "--picks", str(k), "--threads", str(threads)]
    command = [sys.executable, __file__, "--one", contender, *sizes]
    done = subprocess.run(command, env={**os.environ, **settings}, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(n: int, d: int, k: int, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved rounds."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for number in range(args.rounds):
        for name in CONTENDERS:
            ours = name.startswith("raystream")
            picks = k if ours or not args.rival_picks else min(k, args.rival_picks)
            run = spawn(name, n, d, picks, args.threads)
            run["seconds"] *= k / picks
            runs[name].append(run)
            print(f"round {number + 1} {n} x {d} {name}: {run['seconds']:.2f} s", file=sys.stderr)
    orders = {tuple(run["rows"]) for name in ("raystream", "raystream_float32") for run in runs[name]}
    medians = {name: statistics.median(run["seconds"] for run in runs[name]) for name in CONTENDERS}
    rival = min(medians["numpy"], medians["torch"])
    return {
        "rows": n,
        "width": d,
        "picks": k,
        "seconds": {name: [round(run["seconds"], 3) for run in runs[name]] for name in CONTENDERS},
        "median": {name: round(value, 3) for name, value in medians.items()},
        "peak_gib": {name: round(max(run["peak_gib"] for run in runs[name]), 2) for name in CONTENDERS},
        "passes": runs["raystream"][0]["passes"],
        "refinements": runs["raystream"][0]["refinements"],
        "passes_float32": runs["raystream_float32"][0]["passes"],
        "ratio": round(rival / medians["raystream"], 2),
        "ratio_float32": round(rival / medians["raystream_float32"], 2),
        "one_order": len(orders) == 1,
        "rival_picks": args.rival_picks or k,
    }


def check(n: int, d: int, k: int) -> dict[str, Any]:
    """Whether the order is that of the float64 greedy, by kind of data."""
    from raystream.selection import LocalShards, farthest_first

    result: dict[str, Any] = {}
    for kind in ("normal", "binary", "one_hot", "counts"):
        rows = n if kind == "normal" else min(n, 20000)
        x = data(kind, rows, d)
        reference = float64_greedy(x, min(k, rows))
        for precision in ("auto", "float32"):
            start = time.perf_counter()
            chosen = farthest_first(LocalShards.of_array(x), k, precision=precision)
            seconds = round(time.perf_counter() - start, 3)
            same = bool(np.array_equal(chosen.rows, reference))
            result[f"{kind}_{precision}"] = {
                "rows": rows,
                "same_order": same,
                "passes": chosen.passes,
                "refinements": chosen.refinements,
                "seconds": seconds,
            }
            print(f"check {kind} {rows} x {d} {precision}: same order {same}, {chosen.passes} passes, {seconds} s", file=sys.stderr)
    return result


def main() -> int:
    """Run, print the table and the JSON line; 1 if an order is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--beside", type=int, default=100_000, help="rows of the second, smaller measurement; 0: none")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rival-picks", type=int, default=0, help="fewer picks for the rivals, extrapolated linearly; 0: all")
    parser.add_argument("--check-rows", type=int, default=100_000, help="rows of the whole float64 check; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one, args.rows, args.width, args.picks, args.threads)))
        return 0
    before = environment()
    checks = check(min(args.check_rows, args.rows), args.width, args.picks) if args.check_rows else {}
    sizes = [args.rows] + ([args.beside] if 0 < args.beside < args.rows else [])
    measured = [measure(n, args.width, args.picks, args) for n in sizes]
    print(f"{'rows':>9} {'contender':<18} {'median s':>9} {'peak GiB':>9} {'x slower':>9}")
    for size in measured:
        for name in CONTENDERS:
            slower = size["median"][name] / size["median"]["raystream"]
            print(f"{size['rows']:>9} {name:<18} {size['median'][name]:>9.2f} {size['peak_gib'][name]:>9.2f} {slower:>9.1f}")
        bounds = "bfloat16" if before["bfloat16_units"] else "float32"
        print(f"{'':>9} passes {size['passes']}; ratio {size['ratio']} with {bounds} bounds, {size['ratio_float32']} with float32 bounds")
    print(json.dumps({"benchmark": "core_set", "environment": before, "measured": measured, "checks": checks}))
    wrong = [name for name, found in checks.items() if not found["same_order"]]
    return 1 if wrong or not all(size["one_order"] for size in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
