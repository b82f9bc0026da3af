"""What a decision on a stream costs, and what the managers choose.

    python benchmarks/stream.py                            under a minute; beside scikit-activeml, where it is installed
    python benchmarks/stream.py --rows 2000 --rounds 1     in seconds

sampler    `StreamSampler` by the thousand and row by row, on scores uniform on [0, 0.5]; `density` on 64 and 768 dimensions. At least
           10,000 rows a second by the thousand, and less than a millisecond for a row alone. One core.
choice     on 20,000 rows, budget 0.1: the share chosen, most in any 100 rows, in the first 300, mean score of the chosen; the same of
           scores that jump between five levels, and of tied ones. scikit-activeml's managers on the same scores, by the thousand, with how
           many of their decisions are others row by row.
command    `raystream stream` in this process: a look over --files files of 5,000 rows, model of kind columns, to the last decision written.

Medians of --rounds. Prints tables, then one JSON line; ends in 1 if a requirement isn't met.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import raystream as rs
from benchmarks.environment import environment

BUDGET, CHUNK = 0.1, 1000
LEAST_RATE, MOST_SECONDS = 10_000, 1e-3
MANAGERS = ("quantile", "density", "fixed", "variable", "random_variable", "split", "random")
PEERS = {
    "quantile": ("BalancedIncrementalQuantileFilter", {}),
    "density": ("DensityBasedSplitBudgetManager", {"random_state": 0}),
    "fixed": ("FixedUncertaintyBudgetManager", {"classes": [0, 1]}),
    "variable": ("VariableUncertaintyBudgetManager", {}),
    "random_variable": ("RandomVariableUncertaintyBudgetManager", {"random_state": 0}),
    "split": ("SplitBudgetManager", {"random_state": 0}),
    "random": ("RandomBudgetManager", {"random_state": 0}),
}
"""The budget managers of scikit-activeml; its density is of rows that its strategy finds, so that it is given all."""


def by_chunks(scores: np.ndarray, size: int, decide: Callable[[slice], np.ndarray]) -> np.ndarray:
    """(n,) decisions, so many rows at a time."""
    return np.concatenate([decide(slice(at, at + size)) for at in range(0, len(scores), size)])


def ours(manager: str, scores: np.ndarray, vectors: np.ndarray | None, size: int, strict: bool = True) -> np.ndarray:
    used = rs.StreamSampler(manager, BUDGET, strict, classes=2)
    return by_chunks(scores, size, lambda part: used.decide(scores[part], None if vectors is None else vectors[part]))


def peer(manager: str, scores: np.ndarray, size: int) -> np.ndarray:
    import skactiveml.stream.budgetmanager as managers

    name, options = PEERS[manager]
    used = getattr(managers, name)(budget=BUDGET, **options)

    def decide(part: slice) -> np.ndarray:
        utilities = scores[part]
        queried = used.query_by_utility(utilities)
        more = {"utilities": utilities} if manager == "quantile" else {}
        used.update(utilities[:, None], queried, **more)
        found = np.zeros(len(utilities), dtype=bool)
        found[queried] = True
        return found

    return by_chunks(scores, size, decide)


def seconds(work: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def one_at_a_time(manager: str, scores: np.ndarray, vectors: np.ndarray | None) -> np.ndarray:
    """(n,) seconds a row."""
    used = rs.StreamSampler(manager, BUDGET, classes=2)
    found = np.empty(len(scores))
    for row in range(len(scores)):
        given = None if vectors is None else vectors[row : row + 1]
        start = time.perf_counter()
        used.decide(scores[row : row + 1], given)
        found[row] = time.perf_counter() - start
    return found


def speed(rows: int, rounds: int, rival: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 0.5, rows)
    found: dict[str, Any] = {}
    print(f"\n{'manager':24}{'rows/s by 1000':>16}{'median us alone':>17}{'99 in 100':>11}{'peer rows/s':>13}")
    for name, manager, width in [*((m, m, 64) for m in MANAGERS), ("density, 768-d", "density", 768)]:
        vectors = rng.standard_normal((rows, width)) if manager == "density" else None
        rate = rows / seconds(lambda m=manager, v=vectors: ours(m, scores, v, CHUNK), rounds)  # type: ignore[misc]
        alone = one_at_a_time(manager, scores, vectors)
        theirs = rows / seconds(lambda m=manager: peer(m, scores, CHUNK), 1) if rival and name in PEERS else None  # type: ignore[misc]
        found[name] = {"rows_per_second": rate, "alone_median": float(np.median(alone)), "alone_99": float(np.quantile(alone, 0.99))}
        found[name] |= {"peer_rows_per_second": theirs}
        told = "" if theirs is None else f"{theirs:,.0f}"
        print(f"{name:24}{rate:16,.0f}{np.median(alone) * 1e6:17.1f}{np.quantile(alone, 0.99) * 1e6:11.1f}{told:>13}")
    return found


def figures(scores: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    most = np.convolve(chosen, np.ones(100), "valid").max() if len(chosen) >= 100 else chosen.sum()
    mean = float(scores[chosen].mean()) if chosen.any() else float("nan")
    return {"share": float(chosen.mean()), "most": int(most), "first": int(chosen[:300].sum()), "mean": mean}


def choice(rows: int, rival: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    streams = {
        "uniform": rng.uniform(0, 0.5, rows),
        "jumping": np.concatenate([rng.uniform(low, low + 0.1, rows // 5) for low in (0.3, 0.0, 0.4, 0.1, 0.2)]),
        "tied": rng.choice([0.0, 0.2, 0.5], rows, p=[0.7, 0.2, 0.1]),
    }
    vectors = rng.standard_normal((rows, 8))
    found: dict[str, Any] = {}
    for kind, scores in streams.items():
        print(f"\n{kind:24}{'share':>8}{'most':>6}{'first':>7}{'mean':>7}   scikit-activeml: the same, decisions that differ by the row")
        for manager in MANAGERS:
            for strict in (False, True):
                chosen = ours(manager, scores, vectors if manager == "density" else None, CHUNK, strict)
                entry: dict[str, Any] = figures(scores, chosen)
                line = "{share:8.4f}{most:6}{first:7}{mean:7.3f}"
                told = f"{manager + (', strict' if strict else ''):24}" + line.format(**entry)
                if rival and not strict:
                    theirs = peer(manager, scores, CHUNK)
                    differ = int((theirs != peer(manager, scores, 1)).sum())
                    entry["peer"] = figures(scores, theirs) | {"differ": differ}
                    told += line.format(**entry["peer"]) + f"{differ:8}"
                found[f"{kind} {manager}{' strict' if strict else ''}"] = entry
                print(told)
    return found


def command(files: int, rounds: int) -> float:
    """Rows a second of a look."""
    rates, rows = [], 5000
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            lake = Path(folder) / "lake"
            lake.mkdir()
            rng = np.random.default_rng(0)
            for number in range(files):
                logits = pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(rows * 10).astype(np.float32)), 10)
                pq.write_table(pa.table({"id": np.arange(rows) + rows * number, "z": logits}), lake / f"{number}.parquet")
                os.utime(lake / f"{number}.parquet", (1e9, 1e9))
            stream = rs.Stream(
                pool={"uri": str(lake), "id": "id"},
                model={"kind": "columns", "logits": "z"},
                cluster={"address": "in_process"},
                store={"uri": f"{folder}/runs"},
                stream={"budget": BUDGET},
            )
            start = time.perf_counter()
            result = rs.run_stream(stream)
            rates.append(result.new_rows / (time.perf_counter() - start))
    return statistics.median(rates)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    about = environment()
    try:
        import skactiveml

        rival = str(skactiveml.__version__)
    except ImportError:
        rival = ""
        print("scikit-activeml is not installed; ours alone")
    sampler = speed(asked.rows, asked.rounds, bool(rival))
    chosen = choice(asked.rows, bool(rival))
    rate = command(asked.files, asked.rounds)
    print(f"\nraystream stream: {rate:,.0f} rows/s over {asked.files} files of 5,000 rows")
    slow = [name for name, one in sampler.items() if one["rows_per_second"] < LEAST_RATE or one["alone_median"] > MOST_SECONDS]
    if slow:
        print(f"too slow: {', '.join(slow)}")
    print(json.dumps({"benchmark": "stream", "sampler": sampler, "choice": chosen, "command": rate, "skactiveml": rival, "on": about}))
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
