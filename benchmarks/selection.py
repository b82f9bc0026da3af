"""Every strategy at 10k, 100k and 1M x 256 rows with 100 and 1000 picks: seconds, peak memory, passes; rivals beside them.

    python benchmarks/selection.py                                   everything: about an hour
    python benchmarks/selection.py --rows 10000 --picks 100           in a minute
    python benchmarks/selection.py --only core_set,badge --rounds 5   some of them, medians of five

What is timed: from float32 rows in memory to the rows of the batch. Each run is a process of its own, so that its peak
memory is its own; it has `--limit` seconds. Rivals (`pip install '.[rivals]'`) run where they are installed, at the sizes
that they can hold; one that needs minutes makes `--rival-picks` picks and is extrapolated linearly, which its line says.
The data: a mixture of 50 clusters, 256-d, and a score that is random. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import environment

WIDTH, CLASSES, MEMBERS = 256, 10, 20
LARGEST_BATCH_BALD = (10_000, 50)


def data(n: int) -> np.ndarray:
    """(n, 256) float32, the same in every process."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, WIDTH), dtype=np.float32) * 0.5
    x = rng.standard_normal((n, WIDTH), dtype=np.float32)
    for start in range(0, n, 100_000):
        x[start : start + 100_000] += centres[rng.integers(0, 50, len(x[start : start + 100_000]))]
    return x


# --- raystream ---------------------------------------------------------------------------------------------------------


def ours(strategy: str, x: np.ndarray, picks: int) -> tuple[float, int, dict[str, Any]]:
    """Seconds, passes and facts of one choice."""
    from raystream.query.catalogue import TRAITS
    from raystream.selection import Candidates, Constraints, LocalShards, Request, Rows, row_hash
    from raystream.selection.select import STRATEGIES
    from raystream.selection.shards import ArrayPart

    rng, n, traits = np.random.default_rng(1), len(x), TRAITS[strategy]
    logits = rng.standard_normal((n, CLASSES), dtype=np.float32) * 2
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    samples = None
    if getattr(traits, "samples", False):
        drawn = logits[:, None] + rng.standard_normal((n, MEMBERS, CLASSES))
        samples = drawn - np.log(np.exp(drawn).sum(-1, keepdims=True))
    memory = 5 << 30
    candidates = Candidates(
        score=rng.random(n, dtype=np.float32),
        keys=row_hash(0, np.arange(n)),
        shards=LocalShards.of_array(x, memory=memory),
        probabilities=Rows([ArrayPart(p)]) if traits.probabilities else None,
        samples=samples,
        similar_to=x[:5] if "similar_to" in traits.keys else None,
    )
    request = Request(picks, 0, np.empty((0, WIDTH), np.float32), Constraints(picks), memory=memory)
    began = time.perf_counter()
    picked = STRATEGIES[strategy](candidates, request)
    seconds = time.perf_counter() - began
    assert len(set(picked.rows.tolist())) == picks, (len(picked.rows), picked.note)
    return seconds, picked.passes, dict(picked.facts)


# --- rivals ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rival:
    """Somebody else's way to do what `strategy` does.

    Attributes:
        package: that must be importable.
        strategy: ours that it is compared with.
        most_rows: what it can hold or finish.
        scaled: whether its time grows with the picks, so that it may be extrapolated.
        run: (x, picks) -> rows.
    """

    package: str
    strategy: str
    most_rows: int
    scaled: bool
    run: Callable[[np.ndarray, int], Any]


def _skactiveml_core_set(x: np.ndarray, picks: int) -> Any:
    from skactiveml.pool import k_greedy_center

    return k_greedy_center(x, np.r_[0.0, np.full(len(x) - 1, np.nan)], batch_size=picks, random_state=0)


def _small_text_core_set(x: np.ndarray, picks: int) -> Any:
    from small_text.query_strategies.coresets import greedy_coreset

    every = np.arange(len(x))
    return greedy_coreset(x, every[1:], every[:1], picks, distance_metric="euclidean", batch_size=1000)


def _mundig_core_set(x: np.ndarray, picks: int) -> Any:
    from lightly_mundig import Selection

    selection = Selection()
    selection.add_diversifying_strategy(x, 1.0)
    return selection.run_selection([], len(x), picks)


def _sklearn_k_means(x: np.ndarray, picks: int) -> Any:
    from sklearn.cluster import KMeans

    return KMeans(picks, n_init=1, max_iter=20, random_state=0).fit(x).cluster_centers_


def _sklearn_k_means_pp(x: np.ndarray, picks: int) -> Any:
    from sklearn.cluster import kmeans_plusplus

    return kmeans_plusplus(x, picks, random_state=0, n_local_trials=1)[1]


def _skactiveml(name: str) -> Callable[[np.ndarray, int], Any]:
    def run(x: np.ndarray, picks: int) -> Any:
        import skactiveml.pool

        y = np.full(len(x), np.nan)
        return getattr(skactiveml.pool, name)(random_state=0).query(x, y, batch_size=picks)

    return run


def _skactiveml_badge(x: np.ndarray, picks: int) -> Any:
    from skactiveml.classifier import SklearnClassifier
    from skactiveml.pool import Badge
    from sklearn.linear_model import LogisticRegression

    y = np.full(len(x), np.nan)
    y[:100] = np.arange(100) % CLASSES
    classifier = SklearnClassifier(LogisticRegression(max_iter=20), classes=range(CLASSES)).fit(x, y)
    return Badge(random_state=0).query(x, y, classifier, fit_clf=False, batch_size=picks)


def _apricot(x: np.ndarray, picks: int) -> Any:
    from apricot import FacilityLocationSelection

    return FacilityLocationSelection(picks, metric="cosine", optimizer="lazy").fit(x).ranking


RIVALS: dict[str, Rival] = {
    "scikit-activeml core set": Rival("skactiveml", "core_set", 1_000_000, True, _skactiveml_core_set),
    "small-text core set": Rival("small_text", "core_set", 100_000, True, _small_text_core_set),
    "lightly-mundig diversity": Rival("lightly_mundig", "core_set", 1_000_000, True, _mundig_core_set),
    "scikit-learn k-means": Rival("sklearn", "k_means", 100_000, False, _sklearn_k_means),
    "scikit-learn k-means++": Rival("sklearn", "k_means_pp", 1_000_000, True, _sklearn_k_means_pp),
    "scikit-activeml badge": Rival("skactiveml", "badge", 10_000, True, _skactiveml_badge),
    "scikit-activeml typiclust": Rival("skactiveml", "typiclust", 10_000, False, _skactiveml("TypiClust")),
    "scikit-activeml prob-cover": Rival("skactiveml", "prob_cover", 10_000, True, _skactiveml("ProbCover")),
    "scikit-activeml max-herding": Rival("skactiveml", "u_herding", 10_000, True, _skactiveml("MaxHerding")),
    "apricot facility location": Rival("apricot", "facility_location", 10_000, True, _apricot),
}


# --- one run in a process of its own -----------------------------------------------------------------------------------


def one(name: str, rows: int, picks: int) -> dict[str, Any]:
    """What a single run measures."""
    x = data(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    passes, facts = 0, {}
    if name in RIVALS:
        began = time.perf_counter()
        RIVALS[name].run(x, picks)
        seconds = time.perf_counter() - began
    else:
        seconds, passes, facts = ours(name, x, picks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_bytes": peak * 1024, "input_bytes": before * 1024, "passes": passes, "facts": facts}


def measure(name: str, rows: int, picks: int, limit: float) -> dict[str, Any] | str:
    """The same in another process; why there is no figure, if there is none."""
    command = [sys.executable, __file__, "--one", name, "--rows", str(rows), "--picks", str(picks)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit + 60)
    except subprocess.TimeoutExpired:
        return f"more than {limit:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:120]
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def plan(rows: list[int], picks: list[int], only: list[str]) -> list[tuple[str, int, int]]:
    """What to run: ours, each with its rivals behind it."""
    from raystream.query.catalogue import TRAITS

    runs = []
    for strategy in sorted(TRAITS):
        rivals = [name for name, rival in RIVALS.items() if rival.strategy == strategy]
        if only and strategy not in only:
            continue
        for n in rows:
            for k in picks:
                if strategy == "batch_bald":
                    n, k = min(n, LARGEST_BATCH_BALD[0]), min(k, LARGEST_BATCH_BALD[1])
                runs += [(name, n, k) for name in (strategy, *rivals) if name not in RIVALS or n <= RIVALS[name].most_rows]
    return list(dict.fromkeys(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--picks", default="100,1000")
    parser.add_argument("--only", default="", help="strategies, separated by commas")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a run may take")
    parser.add_argument("--rival-picks", type=int, default=100, help="above 100k rows rivals make so many picks and are extrapolated")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows, picks = [int(n) for n in args.rows.split(",")], [int(k) for k in args.picks.split(",")]
    if args.one:
        print(json.dumps(one(args.one, rows[0], picks[0])))
        return
    here = environment()
    runs = plan(rows, picks, [name for name in args.only.split(",") if name])
    absent = sorted({rival.package for rival in RIVALS.values() if importlib.util.find_spec(rival.package) is None})
    if absent:
        print(f"not installed, so left out: {', '.join(absent)}; pip install '.[rivals]' brings them")
    if args.no_rivals:
        runs = [run for run in runs if run[0] not in RIVALS]
    runs = [run for run in runs if run[0] not in RIVALS or RIVALS[run[0]].package not in absent]
    found: dict[tuple[str, int, int], list[dict[str, Any] | str]] = {run: [] for run in runs}
    for _ in range(args.rounds):
        for name, n, k in runs:
            rival = RIVALS.get(name)
            made = min(k, args.rival_picks) if rival is not None and rival.scaled and n > 100_000 else k
            result = measure(name, n, made, args.limit)
            if isinstance(result, dict):
                result |= {"seconds": result["seconds"] * k / made, "extrapolated": made != k}
            found[name, n, k].append(result)
            print(row(name, n, k, found[name, n, k]), flush=True)
    print(f"\n{'':30}{'rows':>9}{'picks':>7}{'seconds':>10}{'peak MiB':>10}{'passes':>8}")
    for (name, n, k), results in found.items():
        print(row(name, n, k, results))
    table = [{"name": name, "rows": n, "picks": k, "results": results} for (name, n, k), results in found.items()]
    print(json.dumps({"benchmark": "selection", "width": WIDTH, "table": table, **here}))


def row(name: str, n: int, k: int, results: list[dict[str, Any] | str]) -> str:
    """A line of the table."""
    done = [result for result in results if isinstance(result, dict)]
    head = f"{'  ' if name in RIVALS else ''}{name:{28 if name in RIVALS else 30}}{n:9,}{k:7,}"
    if not done:
        return f"{head}  {results[-1]}"
    seconds, peak = statistics.median(r["seconds"] for r in done), max(r["peak_bytes"] for r in done)
    note = " extrapolated" if done[-1]["extrapolated"] else ""
    facts = "".join(f" {key} {value}" for key, value in done[-1]["facts"].items())
    return f"{head}{seconds:10.2f}{peak / 2**20:10,.0f}{done[-1]['passes'] or '':>8}{note}{facts}"


if __name__ == "__main__":
    main()
