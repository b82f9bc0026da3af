"""A second query over a scored pool, from the shell: it scores nothing, reads no input column, and should take 3 s at most.

The pool of 1M x 128 is scored once; then queries with other seeds, by the default strategy and by a core set over all
rows, each in a new process. The clock runs from the shell's call to the process's end, the report included.

    python benchmarks/second_query.py
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment
from score import make_pool, query

LIMIT_SECONDS = 3.0


def ask(spec: Path, *changes: str) -> tuple[float, dict[str, object]]:
    """Seconds of the whole command, and its summary."""
    options = [word for change in changes for word in ("--set", change)]
    began = time.perf_counter()
    command = [sys.executable, "-m", "raystream.cli", "query", str(spec), "--json", *options]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    pool, store = args.data.absolute() / f"pool-{args.rows}x128", args.data.absolute() / "out-second"
    make_pool(pool, args.rows)
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    spec = store / "query.yaml"
    spec.write_text(query(pool, store).to_yaml())
    first, summary = ask(spec)
    print(f"first query, all {args.rows:,} rows scored: {first:.1f} s")
    kinds = {"k_means of 10,000 candidates": [], "core_set of all rows": ["select.strategy=core_set", "select.candidates=all"]}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(args.rounds):
        for kind, changes in kinds.items():
            taken, summary = ask(spec, f"seed={round_ + 1}", *changes)
            assert summary["units_scored"] == 0, summary
            assert summary["bytes_read"] == 0, summary
            seconds[kind].append(taken)
    shutil.rmtree(store)
    for kind, values in seconds.items():
        print(f"second query, {kind}: median {statistics.median(values):.2f} s, largest {max(values):.2f} s (limit {LIMIT_SECONDS:.0f} s)")
    result = {"benchmark": "second_query", "rows": args.rows, "first_seconds": first, "seconds": seconds, **environment()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
