"""Strategies that look at the whole pool, in units of P, on three pools: seconds, peak memory, what the batch is worth.

    python benchmarks/whole_pool.py                                      everything at 1M x 256, 1000 picks: hours on two cores
    python benchmarks/whole_pool.py --shapes 10000x128x100 --rounds 3    one size, rows x width x picks
    python benchmarks/whole_pool.py --before ../old --only core_set,lcmd  beside another checkout of this project

P is one float32 product of the pool with 1,000 vectors, on the same cores and in the same process as the run it stands beside. The
pools: `normal`, no structure at all; `clustered`, 1,000 normal centres and noise of .5; `mixed`, 40 centres with noise of .3 to 1.
What is timed: from float32 rows in memory to the rows of the batch. Each run is a process of its own and chooses twice: fresh, and
warm. What a batch is worth, by plain float32 and nothing of ours:

    core_set           the covering radius over all rows; less is better
    k_means, cluster_margin, typiclust, lcmd      the mean squared distance of 20,000 rows to the nearest chosen one; less is better
    facility_location  the mean of 20,000 rows' largest cosine; more is better
    u_herding          the same, of the kernel, weighted by the scores
    prob_cover         the share of all rows within `delta`

Where two checkouts are compared, `digests` tell whether the rows are the same. With `--no-units` bfloat16 is off. Prints a table, then
one JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent.parent
POOLS = ("normal", "clustered", "mixed")
FULL = "1000000x256x1000"
TARGETS = {
    "core_set": (1.6, 4.0),
    "k_means": (14.0, 28.0),
    "cluster_margin": (15.0, 30.0),
    "typiclust": (15.0, 30.0),
    "lcmd": (20.0, 40.0),
    "facility_location": (20.0, 40.0),
    "u_herding": (36.0, 72.0),
    "prob_cover": (42.0, 84.0),
}
"""What 1,000 picks of 1M x 256 may take, in P, with bfloat16 units and without."""
CLASSES, JUDGES = 10, 20_000


def data(kind: str, n: int, width: int) -> np.ndarray:
    """(n, width) float32, the same in every process."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, width), dtype=np.float32)
    if kind == "normal":
        return x
    centres = rng.standard_normal((1000 if kind == "clustered" else 40, width), dtype=np.float32)
    scale = np.full(1000, 0.5, np.float32) if kind == "clustered" else np.linspace(0.3, 1.0, 40, dtype=np.float32)
    for begin in range(0, n, 1 << 16):
        block = x[begin : begin + (1 << 16)]
        which = rng.integers(0, len(centres), len(block))
        block *= scale[which, None]
        block += centres[which]
    return x


def product_seconds(x: np.ndarray) -> float:
    """P: the least of three."""
    import torch

    wide = torch.from_numpy(x)
    vectors = torch.randn(1000, x.shape[1], generator=torch.Generator().manual_seed(0))
    out, took = torch.empty(8192, 1000), []
    for _ in range(3):
        began = time.perf_counter()
        for begin in range(0, len(wide), 8192):
            block = wide[begin : begin + 8192]
            torch.mm(block, vectors.T, out=out[: len(block)])
        took.append(time.perf_counter() - began)
    return min(took)


def nearest_squared(x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(n,) float64: the squared distance to the nearest chosen row."""
    import torch

    centres = torch.from_numpy(chosen)
    found = np.empty(len(x))
    for begin in range(0, len(x), 8192):
        block = torch.from_numpy(x[begin : begin + 8192])
        nearest = (centres.square().sum(1) - 2 * (block @ centres.T)).argmin(1)
        found[begin : begin + 8192] = (block - centres[nearest]).double().square().sum(1).numpy()
    return found


def worth(strategy: str, x: np.ndarray, rows: np.ndarray, score: np.ndarray, facts: dict[str, Any]) -> float:
    """What the batch reaches."""
    import torch

    if strategy == "core_set":
        return float(np.sqrt(nearest_squared(x, x[rows]).max()))
    if strategy == "prob_cover":
        return float((nearest_squared(x, x[rows]) <= facts["delta"] ** 2).mean())
    judges = np.random.default_rng(2).permutation(len(x))[:JUDGES]
    if strategy not in ("facility_location", "u_herding"):
        return float(nearest_squared(x[judges], x[rows]).mean())
    unit = torch.nn.functional.normalize
    cosine = (unit(torch.from_numpy(x[judges])) @ unit(torch.from_numpy(x[rows])).T).amax(1).double()
    if strategy == "facility_location":
        return float(cosine.clamp(min=0).mean())
    weight = torch.from_numpy(score[judges].astype(np.float64))
    return float((weight * ((2 * cosine - 2) / facts["delta"] ** 2).exp()).sum() / weight.sum())


def one(strategy: str, pool: str, n: int, width: int, picks: int, *, units: bool, times: int) -> dict[str, Any]:
    """What a single process measures."""
    import torch

    try:
        from raystream.query.catalogue import TRAITS
    except ModuleNotFoundError:  # an older checkout
        from raystream.strategies import TRAITS
    try:
        from raystream.selection.select import STRATEGIES
    except ImportError:  # the same
        from raystream.selection.choose import STRATEGIES
    from raystream.selection import Candidates, Constraints, LocalShards, Request, Rows, bounds, row_hash
    from raystream.selection.rows import ArrayPart

    x = data(pool, n, width)
    score = np.random.default_rng(1).random(n, dtype=np.float32)
    probabilities = None
    if TRAITS[strategy].probabilities:
        p = np.exp(np.random.default_rng(3).standard_normal((n, CLASSES), dtype=np.float32) * 2)
        p /= p.sum(1, keepdims=True)
        probabilities = Rows([ArrayPart(p)])
    if not units:
        bounds.has_bfloat16_units.cache_clear()
        torch.cpu.get_capabilities = dict
        assert not bounds.has_bfloat16_units()
    empty, took, base = np.empty((0, width), np.float32), [], float("inf")
    for _ in range(times):
        memory = 2 << 30
        candidates = Candidates(
            score=score, keys=row_hash(0, np.arange(n)), shards=LocalShards.of_array(x, memory=memory), probabilities=probabilities
        )
        request = Request(picks, 0, empty, Constraints(picks), memory=memory)
        began = time.perf_counter()
        picked = STRATEGIES[strategy](candidates, request)
        took.append(time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        base = min(base, product_seconds(x))
    return {
        "seconds": took[-1], "fresh_seconds": took[0], "product_seconds": base, "peak_bytes": peak, "threads": torch.get_num_threads(),
        "worth": worth(strategy, x, picked.rows, score, picked.facts), "digest": hashlib.sha256(picked.rows.tobytes()).hexdigest()[:12],
        "passes": picked.passes, "facts": dict(picked.facts),
    }  # fmt: skip


def measure(tree: Path, strategy: str, pool: str, shape: str, args: argparse.Namespace) -> dict[str, Any] | str:
    """The same in another process, with the package of `tree`; why there is no figure, if there is none."""
    command = [sys.executable, __file__, "--one", strategy, "--pools", pool, "--shapes", shape, "--tree", str(tree)]
    command += ["--times", str(args.times)] + (["--no-units"] if args.no_units else [])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return f"more than {args.limit:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:120]
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def summary(results: list[dict[str, Any] | str]) -> dict[str, Any]:
    """Medians over the rounds."""
    done = [result for result in results if isinstance(result, dict)]
    if not done:
        return {"failed": results[-1]}
    return {
        "seconds": round(statistics.median(r["seconds"] for r in done), 3),
        "fresh_seconds": round(statistics.median(r["fresh_seconds"] for r in done), 3),
        "in_p": round(statistics.median(r["seconds"] / r["product_seconds"] for r in done), 2),
        "fresh_in_p": round(statistics.median(r["fresh_seconds"] / r["product_seconds"] for r in done), 2),
        "product_seconds": round(statistics.median(r["product_seconds"] for r in done), 3),
        "peak_gib": round(max(r["peak_bytes"] for r in done) / 2**30, 3),
        "worth": done[-1]["worth"], "rounds": len(done), "digests": sorted({r["digest"] for r in done}),
        "passes": done[-1]["passes"], "facts": done[-1]["facts"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=FULL, help="rows x width x picks, separated by commas")
    parser.add_argument("--pools", default=",".join(POOLS))
    parser.add_argument("--only", default=",".join(TARGETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=2, help="how often each process chooses; the last is the warm one")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that a process may take")
    parser.add_argument("--before", help="another checkout, measured in turns with this one")
    parser.add_argument("--before-rounds", type=int, help="measure that one in this many of the rounds only: where it takes minutes")
    parser.add_argument("--no-units", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--tree", default=str(HERE), help=argparse.SUPPRESS)
    args = parser.parse_args()
    shapes, pools = args.shapes.split(","), args.pools.split(",")
    if args.one:
        sys.path.insert(0, args.tree)
        rows, width, picks = map(int, shapes[0].split("x"))
        print(json.dumps(one(args.one, pools[0], rows, width, picks, units=not args.no_units, times=args.times)))
        return
    sys.path.insert(0, str(HERE))
    from benchmarks.environment import environment

    here = environment()
    units = here["bfloat16_units"] and not args.no_units
    trees = {"after": HERE} | ({"before": Path(args.before).resolve()} if args.before else {})
    runs = [(shape, pool, strategy) for shape in shapes for pool in pools for strategy in args.only.split(",")]
    found: dict[tuple[str, str, str, str], list[dict[str, Any] | str]] = {}
    for done in range(args.rounds):
        if args.before and done == args.before_rounds:
            del trees["before"]
        for shape, pool, strategy in runs:
            for name, tree in trees.items():
                results = found.setdefault((shape, pool, strategy, name), [])
                results.append(measure(tree, strategy, pool, shape, args))
                print(shape, pool, strategy, name, summary(results), file=sys.stderr, flush=True)
    table = [
        {"shape": shape, "pool": pool, "strategy": strategy, "tree": name, **summary(results)}
        for (shape, pool, strategy, name), results in found.items()
    ]
    heads = f"{'warm s':>9}{'fresh s':>9}{'in P':>8}{'fresh':>8}{'of':>6}{'peak GiB':>10}"
    print(f"{'rows x width x picks':22}{'pool':11}{'strategy':19}{'':8}{heads}  worth")
    for row in table:
        head = f"{row['shape']:22}{row['pool']:11}{row['strategy']:19}{row['tree']:8}"
        if "failed" in row:
            print(f"{head}  {row['failed']}")
            continue
        limit = f"{TARGETS[row['strategy']][0 if units else 1]:6.1f}" if row["shape"] == FULL else " " * 6
        seconds = f"{row['seconds']:9.2f}{row['fresh_seconds']:9.2f}{row['in_p']:8.1f}{row['fresh_in_p']:8.1f}"
        print(f"{head}{seconds}{limit}{row['peak_gib']:10.2f}  {row['worth']:.6f}")
    print(json.dumps({"benchmark": "whole_pool", "units": units, "table": table, **here}))


if __name__ == "__main__":
    main()
