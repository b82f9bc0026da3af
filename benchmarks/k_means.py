"""k-means and what clusters by it, against P and scikit-learn: time, peak memory, inertia, distance to the chosen rows.

    python benchmarks/k_means.py                                        everything: some hours
    python benchmarks/k_means.py --parts speed --rows 10000 --rounds 1      in a minute
    python benchmarks/k_means.py --parts quality --seeds 3                  likewise

speed     `k_means`, `cluster_margin` and `typiclust` over three pools of 256-d rows, 1000 picks, defaults as they are: normal; clustered
          (1000 centres + .5 noise); mixed (40 centres, scales .3 to 1). With and without bfloat16 units, which are switched off by
          saying that there are none. Each run is a process of its own: the first call is `fresh`, the median of those after it `warm`.
          P is the float32 product (1M x 256) (256 x 1000), a block of rows after another, before and after the calls.
rival     scikit-learn's `KMeans(n_init=1)` at 100k rows, beside ours in the same process.
quality   inertia, and the mean squared distance to the chosen rows, over 14 data sets: the ratio of our median over seeds to
          scikit-learn's, without weights and with random ones. Its centres give rows by the same rule as ours.

Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import environment

Array = np.ndarray
POOLS = ("normal", "clustered", "mixed")
STRATEGIES = ("k_means", "cluster_margin", "typiclust")
ITERATIONS = {"k_means": 20, "cluster_margin": 5, "typiclust": 20}
WIDTH, PICKS = 256, 1000
P_ROWS, P_BLOCK = 1_000_000, 8192


def pool(kind: str, n: int) -> Array:
    """(n, 256) float32, the same in every process."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, WIDTH), dtype=np.float32)
    count = {"clustered": 1000, "mixed": 40}.get(kind, 0)
    if count:
        centres = rng.standard_normal((count, WIDTH), dtype=np.float32)
        scales = np.linspace(0.3, 1, 40, dtype=np.float32) if kind == "mixed" else np.full(count, 0.5, dtype=np.float32)
        for begin in range(0, n, 65536):
            block = x[begin : begin + 65536]
            of = rng.integers(0, count, len(block))
            block *= scales[of][:, None]
            block += centres[of]
    return x


# --- speed -------------------------------------------------------------------------------------------------------------


def product_seconds(x: Array) -> float:
    """P: the product of a million rows with a thousand, in blocks, which takes less than all at once."""
    import torch

    rows, centres = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(x[:PICKS]))
    out = torch.empty((P_BLOCK, len(centres)))
    began = time.perf_counter()
    done = 0
    while done < P_ROWS:
        for begin in range(0, len(rows) - len(rows) % P_BLOCK, P_BLOCK):
            torch.mm(rows[begin : begin + P_BLOCK], centres.T, out=out)
            done += P_BLOCK
            if done >= P_ROWS:
                break
    return time.perf_counter() - began


def without_units() -> None:
    """From here on this process finds no bfloat16 units."""
    from raystream.selection import bounds

    bounds.has_bfloat16_units = lambda: False  # type: ignore[assignment]


def choose(strategy: str, x: Array, score: Array) -> Array:
    """The rows of one call of the public function."""
    from raystream.selection import cluster_margin, k_means, typiclust

    memory = 2 * x.nbytes
    if strategy == "k_means":
        return k_means(x, PICKS, memory=memory)
    if strategy == "cluster_margin":
        return cluster_margin(x, score, PICKS, memory=memory)
    return typiclust(x, PICKS, memory=memory)


def inertia(x: Array, centres: Array, weight: Array | None = None) -> float:
    """The weighted mean squared distance to the nearest centre."""
    from raystream.selection.represents import assign
    from raystream.selection.rows import as_rows, squared_distances

    nearest, total = assign(as_rows(x), centres).nearest, 0.0
    for begin in range(0, len(x), 8192):
        at = slice(begin, begin + 8192)
        squared = squared_distances(x[at], centres[nearest[at]])
        total += float((squared if weight is None else squared * weight[at]).sum())
    return total / (len(x) if weight is None else float(weight.sum()))


def typicality_of(x: Array, rows: Array) -> float:
    """The median over the chosen rows of the mean distance to the 20 nearest of all rows: less is denser."""
    from raystream.selection.rows import squared_distances

    found = []
    for row in rows[::10]:
        squared = np.concatenate([squared_distances(x[b : b + 8192], x[row]) for b in range(0, len(x), 8192)])
        found.append(float(np.sqrt(np.partition(squared, 20)[:21]).sum() / 20))
    return statistics.median(found)


def objectives(strategy: str, x: Array, rows: Array) -> dict[str, float]:
    """What the strategy's clustering and its rows are worth."""
    from raystream.selection.clusters import clusters, fit_centres

    if strategy == "k_means":
        centres = fit_centres(x, np.ones(len(x)), PICKS, 0, ITERATIONS[strategy], 20_000)
        return {"inertia": inertia(x, centres), "distance": inertia(x, x[rows])}
    count = {"cluster_margin": 4 * PICKS, "typiclust": 500}[strategy]
    found = {"inertia": inertia(x, clusters(x, count, 0, iterations=ITERATIONS[strategy]).centres)}
    if strategy == "typiclust":
        found["neighbour_distance"] = typicality_of(x, rows)
    return found


def one(kind: str, strategy: str, n: int, warm: int, objective: bool) -> dict[str, Any]:
    """What a single process measures."""
    x = pool(kind, n)
    score = np.random.default_rng(1).random(n)
    before = [product_seconds(x) for _ in range(3)][1:]
    times = []
    for _ in range(1 + warm):
        began = time.perf_counter()
        rows = choose(strategy, x, score)
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    after = [product_seconds(x) for _ in range(2)]
    assert len(set(rows.tolist())) == min(PICKS, n)
    return {
        "P": before + after,
        "fresh": times[0],
        "warm": times[1:],
        "peak_gib": peak / 2**20,
        "rows": f"{np.uint32(np.bitwise_xor.reduce((rows * 2654435761 + np.arange(len(rows)) * 40503) % 2**32)):08x}",
        **(objectives(strategy, x, rows) if objective else {}),
    }


def speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every strategy on every pool, at every size, with and without units, each round in fresh processes."""
    found = []
    for n in args.rows:
        for kind in args.pools:
            for strategy in args.strategies:
                for units in (True, False):
                    if not units and (args.only_units or n < P_ROWS):
                        continue
                    runs = []
                    for number in range(args.rounds):
                        words = ["--one", f"{kind},{strategy},{n}", "--warm", str(args.warm)]
                        words += [] if units else ["--no-units"]
                        words += ["--objective"] if number == 0 and units else []
                        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
                        if done.returncode:
                            raise SystemExit(done.stderr)
                        runs.append(json.loads(done.stdout.splitlines()[-1]))
                    found.append(_summary(kind, strategy, n, units, runs))
                    print(line(found[-1]), flush=True)
    return found


def _summary(kind: str, strategy: str, n: int, units: bool, runs: list[dict[str, Any]]) -> dict[str, Any]:
    p = statistics.median(value for run in runs for value in run["P"])
    warm, fresh = [value for run in runs for value in run["warm"]], [run["fresh"] for run in runs]
    more = {key: runs[0][key] for key in ("inertia", "distance", "neighbour_distance") if key in runs[0]}
    return {
        "pool": kind,
        "strategy": strategy,
        "rows": n,
        "units": units,
        "P": round(p, 3),
        "fresh": [round(value, 3) for value in fresh],
        "warm": [round(value, 3) for value in warm],
        "fresh_in_P": round(statistics.median(fresh) / p, 2),
        "warm_in_P": round(statistics.median(warm or fresh) / p, 2),
        "peak_gib": round(max(run["peak_gib"] for run in runs), 2),
        "same_rows": len({run["rows"] for run in runs}) == 1,
        **more,
    }


def line(found: dict[str, Any]) -> str:
    """A line of the table."""
    head = f"{found['strategy']:15}{found['pool']:10}{found['rows']:9,} {'units' if found['units'] else 'none ':6}"
    warm = statistics.median(found["warm"] or found["fresh"])
    times = f"P {found['P']:5.2f}  warm {warm:7.2f} s {found['warm_in_P']:6.2f} P  fresh {found['fresh_in_P']:6.2f} P"
    more = "".join(f"  {key} {found[key]:.6g}" for key in ("inertia", "distance", "neighbour_distance") if key in found)
    return f"{head}{times}  {found['peak_gib']:.2f} GiB{more}"


# --- beside scikit-learn -----------------------------------------------------------------------------------------------


def nearest_rows(x: Array, centres: Array, weight: Array) -> Array:
    """To each centre, the heaviest first, the nearest unused row, those of its own cluster first."""
    from raystream.selection.represents import assign
    from raystream.selection.rows import as_rows, squared_distances

    nearest = assign(as_rows(x), centres).nearest
    heavy = np.bincount(nearest, weights=weight, minlength=len(centres))
    used = np.zeros(len(x), dtype=bool)
    rows = []
    for centre in np.argsort(-heavy, kind="stable"):
        free = np.flatnonzero((nearest == centre) & ~used)
        free = free if len(free) else np.flatnonzero(~used)
        rows.append(int(free[np.argmin(squared_distances(x[free], centres[centre]))]))
        used[rows[-1]] = True
    return np.asarray(rows)


def rival(kind: str, n: int) -> dict[str, Any]:
    """Both at one size in one process, ours first warmed up on a piece."""
    from sklearn.cluster import KMeans

    from raystream.selection import k_means
    from raystream.selection.clusters import fit_centres

    x = pool(kind, n)
    k_means(x[:20000], 100)
    began = time.perf_counter()
    rows = k_means(x, PICKS)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    theirs = KMeans(PICKS, n_init=1, random_state=0).fit(x)
    their_seconds = time.perf_counter() - began
    centres = fit_centres(x, np.ones(n), PICKS, 0, 20, 20_000)
    return {
        "pool": kind,
        "rows": n,
        "seconds": round(seconds, 2),
        "sklearn_seconds": round(their_seconds, 2),
        "share": round(seconds / their_seconds, 4),
        "inertia": inertia(x, centres) / inertia(x, theirs.cluster_centers_),
        "distance": inertia(x, x[rows]) / inertia(x, x[nearest_rows(x, theirs.cluster_centers_, np.ones(n))]),
    }


# --- quality -----------------------------------------------------------------------------------------------------------


def data_sets() -> dict[str, tuple[Array, int]]:
    """name -> (rows, number of centres)."""
    rng = np.random.default_rng(0)

    def normal(n: int, d: int) -> Array:
        return rng.standard_normal((n, d))

    groups = np.repeat(np.arange(60), rng.permutation(np.geomspace(2, 400, 60).astype(int)))
    far = normal(2000, 16)
    far[:20] *= 100
    sets: dict[str, tuple[Array, int]] = {
        "random": (normal(2000, 32), 50),
        "clustered": (3 * normal(50, 16)[rng.integers(0, 50, 3000)] + 0.5 * normal(3000, 16), 50),
        "copies": (np.repeat(normal(100, 8), 15, axis=0), 50),
        "near_copies": (np.repeat(normal(100, 8), 15, axis=0) + 1e-3 * normal(1500, 8), 100),
        "binary": (rng.integers(0, 2, (2000, 20)), 60),
        "counts": (rng.poisson(1.0, (2000, 12)), 40),
        "unit": (_unit(normal(2000, 24)), 50),
        "one_dimension": (normal(1500, 1), 50),
        "wide": (normal(600, 4096), 30),
        "cauchy": (rng.standard_cauchy((1500, 10)), 50),
        "log_normal": (np.exp(2 * normal(2000, 3)), 50),
        "uneven": (4 * normal(60, 6)[groups] + 0.3 * normal(len(groups), 6), 60),
        "outliers": (far, 50),
        "offset": (1000 + 1e-2 * normal(2000, 8), 40),
    }
    return {name: (np.ascontiguousarray(x, dtype=np.float32), k) for name, (x, k) in sets.items()}


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def quality(seeds: int) -> dict[str, dict[str, float]]:
    """Our medians, and their ratios to scikit-learn's."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    from raystream.selection import k_means
    from raystream.selection.clusters import fit_centres

    warnings.simplefilter("ignore", ConvergenceWarning)
    found = {}
    for name, (x, k) in data_sets().items():
        for kind, weight in (("", np.ones(len(x))), (" weighted", np.random.default_rng(1).random(len(x)) ** 4)):
            ours, theirs = [], []
            for seed in range(seeds):
                centres = fit_centres(x, weight, k, seed, 20, 20_000)
                rows = k_means(x, k, weight=weight, seed=seed)
                ours.append((inertia(x, centres, weight), inertia(x, x[rows], weight)))
                fitted = KMeans(k, n_init=1, random_state=seed).fit(x, sample_weight=weight).cluster_centers_
                theirs.append((inertia(x, fitted, weight), inertia(x, x[nearest_rows(x, fitted, weight)], weight)))
            a, b = np.median(ours, axis=0), np.median(theirs, axis=0)
            found[name + kind] = {
                "inertia": float(a[0]),
                "distance": float(a[1]),
                "inertia_ratio": _ratio(a[0], b[0]),
                "distance_ratio": _ratio(a[1], b[1]),
            }
            print(f"{name + kind:24}" + "".join(f"{key} {value:<14.6g}" for key, value in found[name + kind].items()), flush=True)
    return found


def _ratio(a: float, b: float) -> float:
    """Of two errors that may both be what rounding leaves of nothing."""
    return float(a / b) if b > 1e-12 else float(a <= 1e-12) or float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="speed,rival,quality")
    parser.add_argument("--rows", default="10000,100000,1000000", help="of the pools whose speed is measured")
    parser.add_argument("--pools", default=",".join(POOLS))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--rounds", type=int, default=5, help="processes for each figure of speed")
    parser.add_argument("--warm", type=int, default=1, help="calls after the first in each of them")
    parser.add_argument("--only-units", action="store_true", help="not again without bfloat16 units")
    parser.add_argument("--rival-rows", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--no-units", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--objective", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rows = [int(n) for n in args.rows.split(",")]
    args.pools, args.strategies = args.pools.split(","), args.strategies.split(",")
    if args.no_units:
        without_units()
    if args.one:
        kind, strategy, n = args.one.split(",")
        print(json.dumps(one(kind, strategy, int(n), args.warm, args.objective)))
        return
    result: dict[str, Any] = {"benchmark": "k_means", "width": WIDTH, "picks": PICKS, **environment()}
    parts = args.parts.split(",")
    if "speed" in parts:
        result["speed"] = speed(args)
    if "rival" in parts:
        result["rival"] = [rival(kind, args.rival_rows) for kind in args.pools]
        for found in result["rival"]:
            print("  ".join(f"{key} {value}" for key, value in found.items()))
    if "quality" in parts:
        result["quality"] = quality(args.seeds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
