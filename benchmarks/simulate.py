"""What simulations say: strategies beside chance on five data sets, what `auto` is worth, and how far the intervals are to be trusted.

    python benchmarks/simulate.py                     the curves and the speed: on two cores about 25 minutes with texts
    python benchmarks/simulate.py --quick             3 seeds, and no texts: about 4 minutes
    python benchmarks/simulate.py --only digits --only rare
    python benchmarks/simulate.py --thresholds        from how many labels a class `auto` should trust scores, each set left out in turn
    python benchmarks/simulate.py --coverage          how often the interval of labels saved holds, of 20 of 300 seeds of digits
    python benchmarks/simulate.py --speed             a simulation of digits from the command's own code, by one process and by two

benchmarks/curves.py says what the data are and how the curves are made. `auto` is good where its area is nowhere below random's by more
than a standard error of the paired difference, and within one of the best fixed strategy's. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import raystream as rs
from benchmarks.curves import PROTOCOLS, curves
from benchmarks.environment import environment
from benchmarks.glosses import Missing
from raystream.loop.simulation.comparison import Curves, area, compare
from raystream.loop.simulation.rounds import Contender, Played
from raystream.loop.simulation.run import cores
from raystream.query.catalogue.strategies import ENOUGH

Array = np.ndarray
NAMES = ("random", "margin", "k_means", "core_set", "badge", "typiclust", "u_herding", "auto")
CONTENDERS = tuple(Contender(name, "top_k" if name == "margin" else name) for name in NAMES)
SETS = ("digits", "redundant", "mnist", "rare", "minilm")
QUICK = ("digits", "redundant", "mnist", "rare")
THRESHOLDS = (0.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0)
POOL_OF_SEEDS, SUBSETS, SUBSET = 300, 200, 20


def as_curves(histories: Sequence[Sequence[Played]], metric: str) -> Curves:
    """Runs that were labelled in the same steps."""
    labels = np.array([played.labels for played in histories[0]])
    return Curves(labels, np.array([[played.metrics[metric] for played in history] for history in histories]))


def judged(name: str, seeds: int) -> dict[str, Any]:
    """One data set: every strategy beside chance, and `auto` beside the best of them."""
    protocol, began = PROTOCOLS[name], time.perf_counter()
    histories = curves(name, CONTENDERS, seeds, processes=cores(), top=True)
    found = {key: as_curves(histories[key], protocol.metric) for key in NAMES}
    figures = {key: compare(each, found["random"]) for key, each in found.items()}
    top = float(np.mean([history[0].metrics[protocol.metric] for history in histories["all labels"]]))
    seconds = time.perf_counter() - began
    print(
        f"\n{name}: {protocol.metric}, {seeds} seeds, {found['random'].labels[0]} to {found['random'].labels[-1]} labels, {seconds:.0f} s"
    )
    print(f"{'':<12}{'area':>8}{'(se)':>8}{'final':>8}{'saved':>8}{'95%':>16}{'p':>10}{'choosing':>10}  verdict")
    for key, of in sorted(figures.items(), key=lambda pair: -pair[1].auc):
        low_high = "" if of.low is None else f"{of.low:.0%} to {of.high:.0%}"
        choosing = np.mean([sum(played.seconds_query for played in history) for history in histories[key]])
        saved, p, se = (f"{value:.3g}" if value is not None else "" for value in (of.labels_saved, of.p_value, of.auc_se))
        print(f"{key:<12}{of.auc:>8.4f}{se:>8}{of.final:>8.4f}{saved:>8}{low_high:>16}{p:>10}{choosing:>9.2f}s  {of.verdict}")
    print(f"{'all labels':<12}{'':>16}{top:>8.4f}", flush=True)
    areas = {key: area(each.labels, each.values) for key, each in found.items()}
    best = max((key for key in NAMES if key != "auto"), key=lambda key: areas[key].mean())
    return {
        "seeds": seeds,
        "seconds": round(seconds, 1),
        "ceiling": top,
        "figures": {key: asdict(of) for key, of in figures.items()},
        "auto_above_random": beside(areas["auto"], areas["random"]),
        "default_above_random": beside(areas["k_means"], areas["random"]),
        "best": best,
        "auto_beside_best": beside(areas["auto"], areas[best]),
        "curves": {key: {int(n): float(v) for n, v in zip(each.labels, each.mean, strict=True)} for key, each in found.items()},
    }


def beside(ours: Array, theirs: Array) -> dict[str, float]:
    """The paired difference of areas, and its standard error."""
    difference = ours - theirs
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else float("nan")
    return {"difference": float(difference.mean()), "error": error, "errors": float(difference.mean()) / error if error else 0.0}


def auto_holds(found: Mapping[str, Any]) -> dict[str, Any]:
    """Whether `auto` and the default are what they should be."""
    below = [f"{key} on {name}" for name, of in found.items() for key in ("auto", "default") if of[f"{key}_above_random"]["errors"] < -1]
    near = [name for name, of in found.items() if of["auto_beside_best"]["errors"] >= -1 or of["auto_beside_best"]["difference"] >= 0]
    print(f"\nbelow random by more than one standard error: {', '.join(below) or 'none'}")
    print(f"auto within one standard error of the best fixed strategy on {len(near)} of {len(found)}: {', '.join(near)}")
    for name, of in found.items():
        difference, error = of["auto_beside_best"]["difference"], of["auto_beside_best"]["error"]
        print(f"  {name:<10} best {of['best']:<10} auto minus best {difference:+.4f} ({error:.4f})")
    return {"below_random": below, "near_best": near}


def thresholds(sets: Sequence[str], seeds: int | None) -> dict[str, Any]:
    """The area of `auto` by threshold, beside k_means throughout, from one random row a class on; each set judged by the others' choice."""
    gains: dict[str, Array] = {}
    for name in sets:
        protocol = PROTOCOLS[name]
        contenders = [Contender(f"{enough:g}", "auto", enough=enough) for enough in THRESHOLDS]
        classes = len(np.unique(protocol.load(0).pool_labels))
        found = curves(name, contenders, seeds or 30, processes=cores(), start=classes)
        areas = [area(of.labels, of.values) for of in (as_curves(found[c.name], protocol.metric) for c in contenders)]
        gains[name] = np.array([of - areas[0] for of in areas])
        cells = [beside(of, areas[0]) for of in areas]
        print(
            f"{name:<10}"
            + "".join(f"{c.name:>6}: {cell['difference']:+.4f} ({cell['error']:.4f})" for c, cell in zip(contenders, cells, strict=True))
        )
    chosen = {}
    for name in sets:
        others = [gains[other].mean(axis=1) for other in sets if other != name]
        best = int(np.mean(others, axis=0).argmax()) if others else THRESHOLDS.index(ENOUGH)
        chosen[name] = {"threshold": THRESHOLDS[best], "gain": float(gains[name][best].mean())}
        print(f"{name}: the others choose {THRESHOLDS[best]:g}, which gains {chosen[name]['gain']:+.4f} here")
    return {
        "gains": {name: dict(zip(map(str, THRESHOLDS), of.mean(axis=1).tolist(), strict=True)) for name, of in gains.items()},
        "left_out": chosen,
    }


def coverage() -> dict[str, Any]:
    """How often the interval from 20 seeds holds the value of 300."""
    contenders = [Contender("random", "random"), Contender("k_means", "k_means"), Contender("margin", "top_k")]
    found = {key: as_curves(of, "accuracy") for key, of in curves("digits", contenders, POOL_OF_SEEDS, processes=cores()).items()}
    rng, result = np.random.default_rng(0), {}
    for name in ("k_means", "margin"):
        truth = compare(found[name], found["random"]).labels_saved
        held = 0
        for _ in range(SUBSETS):
            rows = rng.choice(POOL_OF_SEEDS, SUBSET, replace=False)
            of = compare(*(Curves(found[key].labels, found[key].values[rows]) for key in (name, "random")))
            held += of.low is not None and of.high is not None and of.low <= truth <= of.high
        result[name] = {"saved": truth, "share": held / SUBSETS}
        print(f"{name}: {truth:.3f} of the labels saved; {held} of {SUBSETS} intervals from {SUBSET} of {POOL_OF_SEEDS} seeds hold it")
    return result


def speed() -> dict[str, Any]:
    """Digits, 8 strategies x 10 seeds x 15 rounds, from a Parquet file to the page, by one process and by two, in turn."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        pixels, labels = load_digits(return_X_y=True)
        x = (pixels / 16).astype(np.float32)
        kind = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
        pq.write_table(pa.table({"id": np.arange(len(x)), "pixels": kind, "label": labels}), f"{folder}/digits.parquet")
        for turn in range(2):
            for workers in (1, 2):
                simulation = rs.Simulation(
                    pool=rs.Pool(uri=f"{folder}/digits.parquet", id="id", inputs=["pixels"], label="label"),
                    select=rs.Select(budget=10),
                    loop={
                        "start": {"strategy": "random", "budget": 20},
                        "trainer": "sklearn",
                        "train": {"estimator": "sklearn.linear_model:LogisticRegression", "C": 1.0, "max_iter": 300, "tol": 1e-3},
                        "evaluate": 597 / 1797,
                        "rounds": 15,
                    },
                    simulate={
                        "name": "digits",
                        "strategies": [*(name for name in NAMES if name != "margin"), {"name": "margin", "select": {"strategy": "top_k"}}],
                        "seeds": 10,
                    },
                    cluster=rs.Cluster(workers=workers),
                    store=rs.Store(uri=f"{folder}/runs-{turn}-{workers}"),
                )
                began = time.perf_counter()
                rs.simulate(simulation)
                seconds[workers].append(round(time.perf_counter() - began, 1))
                print(f"{workers} process{'es' if workers > 1 else ''}: {seconds[workers][-1]} s", flush=True)
    ratio = min(seconds[1]) / min(seconds[2])
    print(f"two processes are {ratio:.2f} x as fast as one; to reach: under 240 s, 1.6 x")
    return {"seconds": seconds, "ratio": ratio}


def main() -> int:
    """Measure what is asked for, print it and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 seeds, and no texts")
    parser.add_argument("--seeds", type=int, help="so many for every data set")
    parser.add_argument("--only", choices=SETS, action="append", help="one data set; may be repeated")
    parser.add_argument("--thresholds", action="store_true")
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    before, measured = environment(), {}
    sets = args.only or (QUICK if args.quick else SETS)
    if args.thresholds:
        measured["thresholds"] = thresholds(sets, args.seeds)
    if args.coverage:
        measured["coverage"] = coverage()
    if not (args.thresholds or args.coverage or args.speed):
        found = {}
        for name in sets:
            try:
                found[name] = judged(name, args.seeds or (3 if args.quick else PROTOCOLS[name].seeds))
            except Missing as missing:
                print(f"\n{name}: left out, for want of {missing}")
        measured |= {"curves": found, "auto": auto_holds(found)}
    if args.speed or not (args.thresholds or args.coverage or args.only):
        measured["speed"] = speed()
    print(json.dumps({"benchmark": "simulate", "environment": before, "quick": args.quick, "measured": measured}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
