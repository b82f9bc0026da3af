"""k-means beside scikit-learn's, and beside another checkout: inertia, the distance to the chosen rows, and time.

    python benchmarks/k_means.py                                        some hours
    python benchmarks/k_means.py --parts quality --seeds 3              in a minute
    python benchmarks/k_means.py --before ../old                        beside another checkout of this project

quality   over 14 data sets, without weights and with uneven ones, the medians over seeds of the inertia and of the mean squared distance
          to the chosen rows, and their ratios to scikit-learn's `KMeans(n_init=1)`, whose centres give rows by the same rule as ours.
rival     the same at 100,000 rows of 256 numbers, 1,000 picks, on the pools of `whole_pool.py`: seconds, both in the same process.

How long `k_means` and the strategies that cluster take over whole pools, `whole_pool.py` says. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent.parent
ITERATIONS, ONE_LEVEL = 20, 20_000
WIDTH, PICKS = 256, 1000

Array = np.ndarray


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


# --- quality -----------------------------------------------------------------------------------------------------------


def data_sets() -> dict[str, tuple[Array, int]]:
    """name -> (rows, number of centres)."""
    rng = np.random.default_rng(0)

    def normal(n: int, d: int) -> Array:
        return rng.standard_normal((n, d))

    def unit(x: Array) -> Array:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

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
        "unit": (unit(normal(2000, 24)), 50),
        "one_dimension": (normal(1500, 1), 50),
        "wide": (normal(600, 4096), 30),
        "cauchy": (rng.standard_cauchy((1500, 10)), 50),
        "log_normal": (np.exp(2 * normal(2000, 3)), 50),
        "uneven": (4 * normal(60, 6)[groups] + 0.3 * normal(len(groups), 6), 60),
        "outliers": (far, 50),
        "offset": (1000 + 1e-2 * normal(2000, 8), 40),
    }
    return {name: (np.ascontiguousarray(x, dtype=np.float32), k) for name, (x, k) in sets.items()}


def cases(names: list[str]) -> list[tuple[str, Array, int, Array]]:
    """(name, rows, number of centres, weights)."""
    found = []
    for name, (x, k) in data_sets().items():
        if name not in names:
            continue
        found += [(name, x, k, np.ones(len(x))), (f"{name} weighted", x, k, np.random.default_rng(1).random(len(x)) ** 4)]
    return found


def ours(names: list[str], seeds: int) -> dict[str, list[float]]:
    """Median inertia and distance, by the package that this process imports."""
    from raystream.selection import k_means
    from raystream.selection.clusters import fit_centres

    result = {}
    for name, x, k, weight in cases(names):
        pairs = []
        for seed in range(seeds):
            centres = fit_centres(x, weight, k, seed, ITERATIONS, ONE_LEVEL)
            pairs.append((inertia(x, centres, weight), inertia(x, x[k_means(x, k, score=weight, seed=seed)], weight)))
        result[name] = np.median(pairs, axis=0).tolist()
    return result


def theirs(names: list[str], seeds: int) -> dict[str, list[float]]:
    """The same by scikit-learn."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    warnings.simplefilter("ignore", ConvergenceWarning)
    result = {}
    for name, x, k, weight in cases(names):
        pairs = []
        for seed in range(seeds):
            centres = KMeans(k, n_init=1, random_state=seed).fit(x, sample_weight=weight).cluster_centers_
            pairs.append((inertia(x, centres, weight), inertia(x, x[nearest_rows(x, centres, weight)], weight)))
        result[name] = np.median(pairs, axis=0).tolist()
    return result


def elsewhere(tree: Path, names: list[str], seeds: int) -> dict[str, list[float]]:
    """`ours` by the package of another checkout, in another process."""
    command = [sys.executable, __file__, "--tree", str(tree), "--seeds", str(seeds), "--sets", ",".join(names)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def quality(names: list[str], seeds: int, before: str | None) -> dict[str, dict[str, float]]:
    """Medians, and their ratios to those of scikit-learn and of the other checkout."""
    found = ours(names, seeds)
    others = {"sklearn": theirs(names, seeds)} | ({"before": elsewhere(Path(before).resolve(), names, seeds)} if before else {})
    rows = {}
    for name, pair in found.items():
        rows[name] = dict(zip(("inertia", "distance"), pair, strict=True))
        for other, values in others.items():
            rows[name] |= {f"inertia_to_{other}": ratio(pair[0], values[name][0]), f"distance_to_{other}": ratio(pair[1], values[name][1])}
        print(f"{name:24}" + "".join(f"{key} {value:<13.6g}" for key, value in rows[name].items()), flush=True)
    return rows


def ratio(a: float, b: float) -> float:
    """Of two errors that may both be what rounding leaves of nothing."""
    return float(a / b) if b > 1e-12 else float(a <= 1e-12) or float("inf")


# --- beside scikit-learn at size ---------------------------------------------------------------------------------------


def rival(kind: str, n: int) -> dict[str, Any]:
    """Both at one size in one process, ours first warmed up on a piece."""
    from sklearn.cluster import KMeans

    from benchmarks.whole_pool import data
    from raystream.selection import k_means
    from raystream.selection.clusters import fit_centres

    x = data(kind, n, WIDTH)
    k_means(x[: n // 5], PICKS // 10)
    began = time.perf_counter()
    rows = k_means(x, PICKS)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    fitted = KMeans(PICKS, n_init=1, random_state=0).fit(x).cluster_centers_
    their_seconds = time.perf_counter() - began
    centres = fit_centres(x, np.ones(n), PICKS, 0, ITERATIONS, ONE_LEVEL)
    return {
        "pool": kind,
        "rows": n,
        "seconds": round(seconds, 2),
        "sklearn_seconds": round(their_seconds, 2),
        "share": round(seconds / their_seconds, 4),
        "inertia_to_sklearn": inertia(x, centres) / inertia(x, fitted),
        "distance_to_sklearn": inertia(x, x[rows]) / inertia(x, x[nearest_rows(x, fitted, np.ones(n))]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="quality,rival")
    parser.add_argument("--sets", default=",".join(data_sets()), help="of `quality`")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--pools", default="normal,clustered,mixed", help="of `rival`")
    parser.add_argument("--rows", type=int, default=100_000, help="of `rival`")
    parser.add_argument("--before", help="another checkout, whose quality is measured too")
    parser.add_argument("--tree", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, args.tree or str(HERE))
    if args.tree:
        print(json.dumps(ours(args.sets.split(","), args.seeds)))
        return
    from benchmarks.environment import environment

    result: dict[str, Any] = {"benchmark": "k_means", "width": WIDTH, "picks": PICKS, **environment()}
    parts = args.parts.split(",")
    if "quality" in parts:
        result |= {"seeds": args.seeds, "quality": quality(args.sets.split(","), args.seeds, args.before)}
    if "rival" in parts:
        result["rival"] = []
        for kind in args.pools.split(","):
            result["rival"].append(rival(kind, args.rows))
            print("  ".join(f"{key} {value}" for key, value in result["rival"][-1].items()), flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
