"""Loops on scikit-learn's digits: what a round costs beside training, whether control rows tell the truth, whether a kill changes anything.

    python benchmarks/loop.py                     overhead, then 100 loops for the control rows, 100 loops killed at random moments, LURE
    python benchmarks/loop.py --only overhead --rows 1000000
    python benchmarks/loop.py --only control --loops 30 --first 60
    python benchmarks/loop.py --only kills --loops 100
    python benchmarks/loop.py --only lure

*overhead*: seconds of a round without training and without the forward pass over the pool (a linear model's, scored by the query).
*control*: how often Wilson's 95% interval of the control rows holds the accuracy on 500 rows that no loop sees, after four rounds.
*kills*: loops in processes of their own, killed (SIGKILL) at random moments, again and again until they end; histories must be equal and
no row asked for twice.
*lure*: the mean of LURE's estimate over 2,000 rounds of draws beside the loss of all rows, of one model that was trained on none of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import raystream as rs
from benchmarks.environment import environment
from raystream.loop import lure

CONTROL = 0.3


def write(table: tuple[np.ndarray, np.ndarray], path: Path, first: str) -> None:
    """Rows with their labels, in row groups of 65,536."""
    x, y = table
    columns = {
        "rid": [f"{first}{i:08d}" for i in range(len(y))],
        "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1]),
        "y": y,
    }
    pq.write_table(pa.table(columns), path, row_group_size=65536)


def write_digits(folder: Path) -> None:
    """A pool of 1,297 digits, and 500 that no loop sees."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.data / 16).astype(np.float32)[order], digits.target[order]
    write((x[500:], y[500:]), folder / "pool.parquet", "p")
    write((x[:500], y[:500]), folder / "test.parquet", "t")


def spec(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A simulated loop of four rounds of 25."""
    settings = {
        "name": name,
        "oracle": {"column": "y"},
        "trainer": "sklearn",
        "train": {"estimator": "sklearn.linear_model:LogisticRegression", "max_iter": 300},
        "rounds": 4,
    }
    return {
        "pool": {"uri": str(folder / "pool.parquet"), "id": "rid", "inputs": ["x"]},
        "select": {"budget": 25},
        "cluster": {"address": "in_process"},
        "store": {"uri": str(folder / "runs")},
        "loop": settings | changes,
    }


def overhead(rows: int, folder: Path) -> dict[str, Any]:
    """Seconds of a round beside training and scoring, over a pool of so many rows; the second round's, when all is imported."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, rows)
    x = (rng.normal(size=(10, 16))[labels] * 2 + rng.normal(size=(rows, 16))).astype(np.float32)
    write((x, labels), folder / "pool.parquet", "p")
    given = spec(folder, f"overhead-{rows}", rounds=3, control=0.1)
    given["select"] = {"budget": 100, "strategy": "top_k"}
    walls = []
    for rounds in (1, 2, 3):
        began = time.perf_counter()
        given["loop"]["rounds"] = rounds
        state = rs.ActiveLearningLoop(rs.Loop(**given)).step()
        walls.append(time.perf_counter() - began)
    last = json.loads((folder / f"runs/queries/overhead-{rows}-r3/manifest.json").read_text())["seconds"]
    beside = walls[2] - state.rows[-1]["seconds_train"] - last["score"]
    print(f"a round over {rows:,} rows: {walls[2]:.2f} s, {beside:.2f} s beside training and scoring")
    return {"rows": rows, "round_seconds": walls[2], "beside_seconds": beside}


def control(loops: int, first: int, folder: Path) -> dict[str, Any]:
    """How often the interval of the control rows holds the accuracy on unseen rows."""
    write_digits(folder)
    held, errors = 0, []
    for seed in range(first, first + loops):
        given = spec(folder, f"control-{seed}", control=CONTROL, evaluate=str(folder / "test.parquet"))
        state = rs.ActiveLearningLoop(rs.Loop(**given, seed=seed), report=False).step()
        last = state.rows[-1]
        held += last["control_low"] <= last["accuracy"] <= last["control_high"]
        errors.append(last["control_accuracy"] - last["accuracy"])
    bias, error = float(np.mean(errors)), float(np.std(errors, ddof=1) / len(errors) ** 0.5)
    print(f"control rows: the interval held in {held} of {loops} loops; bias {100 * bias:+.2f} points (standard error {100 * error:.2f})")
    return {"loops": loops, "first": first, "held": held, "bias": bias, "bias_se": error}


def kills(loops: int, first: int, folder: Path) -> dict[str, Any]:
    """Loops that are killed at random moments and run again until they end."""
    for module in ("faiss", "sklearn.linear_model", "raystream.loop.campaign", "raystream.cluster.connection"):
        importlib.import_module(module)  # once, and not in each child
    write_digits(folder)
    given = spec(folder, "digits", control=CONTROL, evaluate=str(folder / "test.parquet"))
    chance = random.Random(first)

    def begin(store: Path) -> int:
        """Run the loop in a child; its process's number."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        try:
            state = rs.ActiveLearningLoop(rs.Loop(**given | {"store": {"uri": str(store)}})).step()
            os._exit(0 if state.state == "finished" else 1)
        finally:
            os._exit(1)

    def ended(child: int, seconds: float) -> bool:
        """Wait for a child so long; whether it ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0, "the loop fails"
                return True
            time.sleep(0.005)
        return False

    def history(store: Path) -> tuple[list[dict[str, Any]], list[str]]:
        """The history without seconds, and the rows that were asked for."""
        rows = pq.read_table(store / "loops/digits/history.parquet").to_pylist()
        batches = sorted((store / "loops/digits/rounds").glob("*/selection.parquet"))
        asked = [id_ for batch in batches for id_ in pq.read_table(batch).column("rid").to_pylist()]
        return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows], asked

    began = time.perf_counter()
    assert ended(begin(folder / "undisturbed"), 600)
    whole, expected, killed, moments = time.perf_counter() - began, history(folder / "undisturbed"), 0, set()
    assert len(expected[1]) == len(set(expected[1])) == 100
    for number in range(loops):
        store = folder / f"killed-{number}"
        while not ended(child := begin(store), chance.uniform(0.05, 0.9) * whole):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            moments.add(len(list((store / "loops").rglob("*.json"))) if store.exists() else 0)
        assert history(store) == expected, store
        shutil.rmtree(store)
    print(
        f"{loops} loops, killed {killed} times in all, between {len(moments)} different steps: every history equal to the undisturbed one, "
        "no row asked for twice"
    )
    return {"loops": loops, "first": first, "kills": killed, "steps": len(moments), "seconds_undisturbed": round(whole, 2)}


def lure_mean(draws: int, folder: Path) -> dict[str, Any]:
    """The mean of LURE's estimate over many rounds of draws, beside what it estimates."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.data / 16)[order], digits.target[order]
    model = LogisticRegression(max_iter=300).fit(x[:100], y[:100])
    p = np.sort(model.predict_proba(x[100:]), axis=1)
    losses = (model.predict(x[100:]) != y[100:]).astype(np.float64)
    weights = 1.0 - (p[:, -1] - p[:, -2])  # one minus the margin: what is least sure is drawn most
    rng, count, labelled = np.random.default_rng(1), len(losses), 60
    found = np.empty(draws)
    for draw in range(draws):
        left, said, chances = np.ones(count, dtype=bool), [], []
        for _ in range(labelled):
            q = 0.3 / left.sum() + 0.7 * weights / weights[left].sum()
            q[~left] = 0.0
            row = int(np.searchsorted(np.cumsum(q), rng.random() * q.sum()))
            said.append(losses[row])
            chances.append(q[row])
            left[row] = False
        found[draw] = lure(said, chances, count)
    truth, mean, error = float(losses.mean()), float(found.mean()), float(found.std(ddof=1) / draws**0.5)
    print(
        f"LURE: {mean:.4f} on average over {draws:,} rounds of {labelled} draws from {count:,} rows, the loss of all is {truth:.4f}: "
        f"{(mean - truth) / error:+.2f} standard errors; a round's own is {found.std(ddof=1):.4f}"
    )
    return {"draws": draws, "labelled": labelled, "rows": count, "truth": truth, "mean": mean, "errors": (mean - truth) / error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["overhead", "control", "kills", "lure"])
    parser.add_argument("--rows", type=int, nargs="*", default=[5_000, 1_000_000])
    parser.add_argument("--loops", type=int)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    parts = [args.only] if args.only else ["overhead", "control", "kills", "lure"]
    result: dict[str, Any] = {"benchmark": "loop"}
    with tempfile.TemporaryDirectory() as place:
        for part in parts:
            folder = Path(place) / part
            folder.mkdir()
            if part == "overhead":
                result[part] = [overhead(rows, folder) for rows in args.rows]
            elif part == "control":
                result[part] = control(args.loops or 100, args.first, folder)
            elif part == "kills":
                result[part] = kills(args.loops or 100, args.first, folder)
            else:
                result[part] = lure_mean(args.loops or 2000, folder)
    print(json.dumps(result | environment()))


if __name__ == "__main__":
    main()
