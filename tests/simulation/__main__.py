"""Run seeds from the command line."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from simulation.trial import tried


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description="Runs with faults, each told by its seed.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin none after so many")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what happens, step by step")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    faults: Counter[str] = Counter()
    failed, runs, refused, attempts, repeated, units, began = [], 0, 0, 0, 0, 0, time.perf_counter()
    tried_so_far = 0
    for seed in seeds:
        if time.perf_counter() - began > options.seconds:
            break
        tried_so_far += 1
        try:
            told = tried(seed, print if options.verbose else None)
        except Exception as error:
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            if options.seed is not None:
                traceback.print_exc()
            continue
        faults.update(told.faults.keys())
        runs, refused, units = runs + told.runs, refused + told.refused, units + told.units
        attempts, repeated = attempts + told.attempts, repeated + told.repeated
    seconds = time.perf_counter() - began
    for fault, count in sorted(faults.items(), key=lambda of: -of[1]):
        print(f"{count:8,}  seeds with {fault}")
    print(
        f"{tried_so_far:,} seeds, {runs:,} runs ({60 * runs / seconds:,.0f} a minute), {refused:,} refused rightly, {units:,} units, "
        f"{attempts:,} attempts of which {repeated:,} repeated; {len(failed)} seeds failed{': ' if failed else ''}"
        f"{', '.join(map(str, failed[:20]))}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
