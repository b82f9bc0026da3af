"""BADGE in few passes against sequential factorised sampling: 1M x 256, 10 classes, 1000 picks, all rows candidates.

    python benchmarks/badge.py                                      the full run: about 10 minutes a round
    python benchmarks/badge.py --rows 20000 --picks 100 --rounds 2      in seconds
    python benchmarks/badge.py --rival-picks 100                    rivals make 100 picks, extrapolated linearly

What is timed: from float32 embeddings and probabilities in memory to the order of picks, the working copy
included. Each run is a process of its own, so that its peak memory is its own; contenders take turns within
a round. The rivals use the factorised formula: they keep p - e_top, the squared norms and all that they need,
take one product with the embeddings, one with the residuals and one prefix sum a pick, and use the same
threads. Two kinds of data: `normal`, and `clustered`, where rows of 200 clusters share predictions.

The law is the same, the draws are not: `--check-seeds` batches of each on a small pool are compared by the mean squared
distance of the pool's gradients to the batch. Ceiling: a rival reads the embeddings once a pick, so memory bandwidth
bounds it. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
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
KINDS = ("normal", "clustered")


def data(kind: str, n: int, d: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, c) probabilities by a linear layer and (n, d) embeddings, float32, the same in every process."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((n, d), dtype=np.float32)
    if kind == "clustered":
        centres = 2 * rng.standard_normal((200, d), dtype=np.float32)
        member = rng.integers(0, 200, n)
        for begin in range(0, n, 8192):
            h[begin : begin + 8192] += centres[member[begin : begin + 8192]]
    logits = h @ (rng.standard_normal((d, c), dtype=np.float32) * np.float32(2 / np.sqrt(d)))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True), h


def numpy_sequential(p: np.ndarray, h: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The plain loop: float32, every row's D brought up to date at every pick, no allocation of n x d inside."""
    rng = np.random.default_rng(seed)
    a = p.copy()
    a[np.arange(len(a)), p.argmax(axis=1)] -= 1
    square = np.einsum("ij,ij->i", a, a) * (np.einsum("ij,ij->i", h, h) + 1)
    rows = np.empty(k, dtype=np.int64)
    rows[0] = int(np.argmax(square))
    nearest, now, other = np.full(len(h), np.inf, dtype=np.float32), np.empty(len(h), dtype=np.float32), np.empty(len(h), dtype=np.float32)
    total = np.empty(len(h), dtype=np.float64)
    for i in range(k - 1):
        centre = rows[i]
        np.dot(h, h[centre], out=now)
        now += 1
        np.dot(a, a[centre], out=other)
        now *= other
        now *= -2
        now += square
        now += square[centre]
        np.minimum(nearest, now, out=nearest)
        np.maximum(nearest, 0, out=nearest)
        nearest[centre] = 0
        np.cumsum(nearest, dtype=np.float64, out=total)
        rows[i + 1] = np.searchsorted(total, rng.random() * total[-1], side="right")
    return rows


def torch_sequential(p: np.ndarray, h: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The same in torch."""
    import torch

    rng = np.random.default_rng(seed)
    wide, a = torch.from_numpy(h), torch.from_numpy(p.copy())
    a[torch.arange(len(a)), a.argmax(1)] -= 1
    square = torch.einsum("ij,ij->i", a, a) * (torch.einsum("ij,ij->i", wide, wide) + 1)
    rows = np.empty(k, dtype=np.int64)
    rows[0] = int(torch.argmax(square))
    nearest, one = torch.full((len(h),), torch.inf), torch.ones(())
    now, other, total = torch.empty(len(h)), torch.empty(len(h)), torch.empty(len(h), dtype=torch.float64)
    for i in range(k - 1):
        centre = int(rows[i])
        torch.addmv(one.expand(len(h)), wide, wide[centre], out=now)
        torch.mv(a, a[centre], out=other)
        torch.addcmul(square, now, other, value=-2, out=now)
        now += square[centre]
        torch.minimum(nearest, now.clamp_(min=0), out=nearest)
        nearest[centre] = 0
        torch.cumsum(nearest, 0, dtype=torch.float64, out=total)
        rows[i + 1] = int(torch.searchsorted(total, rng.random() * float(total[-1]), right=True))
    return rows


def ours(p: np.ndarray, h: np.ndarray, k: int, seed: int, precision: Any) -> Any:
    """BADGE as a query runs it."""
    from raystream.selection import LocalShards
    from raystream.selection.rows import as_rows
    from raystream.selection.strategies.badge import sample

    return sample(LocalShards.of_array(h), as_rows(p), k, centres=(p[:0], h[:0]), seed=seed, precision=precision)


def run_one(contender: str, kind: str, n: int, args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: time one contender, warm."""
    import torch

    torch.set_num_threads(args.threads)
    p, h = data(kind, n, args.width, args.classes)
    result: dict[str, Any] = {}

    def go(rows: int, picks: int) -> np.ndarray:
        if contender == "numpy":
            return numpy_sequential(p[:rows], h[:rows], picks, args.seed)
        if contender == "torch":
            return torch_sequential(p[:rows], h[:rows], picks, args.seed)
        found = ours(p[:rows], h[:rows], picks, args.seed, "float32" if contender.endswith("float32") else "auto")
        result.update(passes=found.passes, refinements=found.refinements, proposals=found.proposals)
        chosen: np.ndarray = found.rows
        return chosen

    # libraries, code generation and thread pools warm up on a small piece
    go(min(n, 20000), min(args.picks, 20))
    start = time.perf_counter()
    rows = go(n, args.picks)
    result["seconds"] = time.perf_counter() - start
    result["picks"] = len(rows)
    result["rows"] = rows.tolist()
    result["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return result


def spawn(contender: str, kind: str, n: int, picks: int, args: argparse.Namespace) -> dict[str, Any]:
    """`run_one` in a fresh process that has `threads` threads in every library."""
    settings = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    sizes = {"rows": n, "width": args.width, "classes": args.classes, "picks": picks, "threads": args.threads, "seed": args.seed}
    command = [sys.executable, __file__, "--one", contender, "--kinds", kind]
    command += [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, env={**os.environ, **settings}, check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(kind: str, n: int, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved rounds."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for number in range(args.rounds):
        for name in CONTENDERS:
            rival = not name.startswith("raystream")
            picks = min(args.picks, args.rival_picks) if rival and args.rival_picks else args.picks
            run = spawn(name, kind, n, picks, args)
            run["seconds"] *= args.picks / picks
            runs[name].append(run)
            print(f"round {number + 1} {kind} {n} x {args.width} {name}: {run['seconds']:.2f} s", file=sys.stderr)
    medians = {name: statistics.median(run["seconds"] for run in runs[name]) for name in CONTENDERS}
    rival = min(medians["numpy"], medians["torch"])
    return {
        "kind": kind,
        "rows": n,
        "width": args.width,
        "classes": args.classes,
        "picks": args.picks,
        "seconds": {name: [round(run["seconds"], 3) for run in runs[name]] for name in CONTENDERS},
        "median": {name: round(value, 3) for name, value in medians.items()},
        "peak_gib": {name: round(max(run["peak_gib"] for run in runs[name]), 2) for name in CONTENDERS},
        "passes": {name: runs[name][0]["passes"] for name in CONTENDERS[:2]},
        "proposals": {name: runs[name][0]["proposals"] for name in CONTENDERS[:2]},
        "ratio": round(rival / medians["raystream"], 2),
        "ratio_float32": round(rival / medians["raystream_float32"], 2),
        "repeats": all(len({tuple(run["rows"]) for run in runs[name]}) == 1 for name in CONTENDERS[:2]),
        "rival_picks": args.rival_picks or args.picks,
    }


def check(kind: str, seeds: int) -> dict[str, Any]:
    """Whether batches are as good as sequential ones: mean squared distances of 1000 gradients to batches of 50, ours over theirs."""
    p, h = data(kind, 1000, 16, 10)
    a = p.astype(np.float64)
    a[np.arange(len(a)), p.argmax(axis=1)] -= 1
    g = (a[:, :, None] * np.pad(h.astype(np.float64), ((0, 0), (0, 1)), constant_values=1)[:, None]).reshape(len(h), -1)
    square = np.square(g).sum(axis=1)

    def potential(rows: np.ndarray) -> float:
        return float(np.maximum(square[:, None] + square[rows] - 2 * g @ g[rows].T, 0).min(axis=1).mean())

    theirs = [potential(numpy_sequential(p, h, 50, seed)) for seed in range(seeds)]
    result: dict[str, Any] = {"seeds": seeds}
    for precision in ("auto", "float32"):
        found = [potential(ours(p, h, 50, seed, precision).rows) for seed in range(seeds)]
        result[precision] = round(float(np.mean(found) / np.mean(theirs)), 4)
        error = np.hypot(np.std(found) / np.mean(found), np.std(theirs) / np.mean(theirs)) / np.sqrt(seeds)
        result[f"{precision}_standard_error"] = round(float(error), 4)
    print(f"check {kind}: mean potential over sequential {result['auto']} +- {result['auto_standard_error']}", file=sys.stderr)
    return result


def main() -> int:
    """Run, print the table and the JSON line; 1 if draws don't repeat or batches are worse than sequential ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--beside", type=int, default=100_000, help="rows of the second, smaller measurement; 0: none")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rival-picks", type=int, default=0, help="fewer picks for the rivals, extrapolated linearly; 0: all")
    parser.add_argument("--check-seeds", type=int, default=200, help="batches of each side whose potentials are compared; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(args.one, args.kinds[0], args.rows, args)))
        return 0
    before = environment()
    checks = {kind: check(kind, args.check_seeds) for kind in args.kinds} if args.check_seeds else {}
    sizes = [args.rows] + ([args.beside] if 0 < args.beside < args.rows else [])
    measured = [measure(kind, n, args) for n in sizes for kind in args.kinds]
    print(f"{'rows':>9} {'data':<10} {'contender':<18} {'median s':>9} {'peak GiB':>9} {'x slower':>9}")
    for size in measured:
        for name in CONTENDERS:
            median = size["median"][name]
            line = f"{size['rows']:>9} {size['kind']:<10} {name:<18} {median:>9.2f} {size['peak_gib'][name]:>9.2f}"
            print(f"{line} {median / size['median']['raystream']:>9.1f}")
        bounds = "bfloat16" if before["bfloat16_units"] else "float32"
        print(
            f"{'':>9} passes {size['passes']['raystream']}, proposals {size['proposals']['raystream']}; "
            f"ratio {size['ratio']} with {bounds} bounds, {size['ratio_float32']} with float32 bounds"
        )
    print(json.dumps({"benchmark": "badge", "environment": before, "measured": measured, "checks": checks}))
    worse = [kind for kind, found in checks.items() if max(found["auto"], found["float32"]) > 1 + 4 * found["auto_standard_error"]]
    return 1 if worse or not all(size["repeats"] for size in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
