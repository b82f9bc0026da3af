"""Memory of a large query: the peak resident size of every process, mapped pages included.

A pool of 10M x 128 is scored with a 128-d float16 embedding and a core set of 1000 is chosen from all of it, by the
command line in a process of its own. The kernel keeps each process's peak (VmHWM); it is read until the process ends.

    python benchmarks/memory.py
    python benchmarks/memory.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment
from score import make_pool

DIMENSION = 128
LIMIT = 4 << 30


def network() -> torch.nn.Module:
    """A small net whose embedding is 128-d."""
    nn = torch.nn
    return nn.Sequential(nn.Linear(DIMENSION, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def spec(pool: Path, store: Path, picks: int) -> str:
    """The query as YAML."""
    return (
        f"pool: {{uri: {pool}, id: id, inputs: [x]}}\n"
        "model: {source: 'memory:network'}\n"
        f"select: {{strategy: core_set, budget: {picks}, candidates: all}}\n"
        f"cluster: {{workers: 2}}\nstore: {{uri: {store}}}\n"
    )


def peaks_until_done(process: subprocess.Popen[str]) -> dict[str, int]:
    """The largest VmHWM in bytes by kind of process."""
    peaks: dict[str, int] = {}
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.Error:
            break
        for member in family:
            try:
                kind = "driver" if member.pid == process.pid else member.name()
                status = Path(f"/proc/{member.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue
            line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
            if line:
                peaks[kind] = max(peaks.get(kind, 0), int(line.split()[1]) * 1024)
        time.sleep(0.2)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    pool = args.data.absolute() / f"pool-{args.rows}x{DIMENSION}"
    make_pool(pool, args.rows)
    out = args.data.absolute() / "out-memory"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / "query.yaml").write_text(spec(pool, out, args.picks))
    began = time.perf_counter()
    command = [sys.executable, "-m", "raystream.cli", "query", str(out / "query.yaml"), "--json"]
    process = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    peaks = peaks_until_done(process)
    summary = json.loads(process.communicate()[0])
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    print(f"{args.rows:,} x {DIMENSION}, {args.picks} picks from all of it: {seconds:.0f} s, {summary['passes']} passes")
    print(f"{'process':28} {'peak MiB':>9}")
    for kind, peak in sorted(peaks.items(), key=lambda item: -item[1]):
        print(f"{kind:28} {peak / 2**20:9.0f}")
    verdict = "under" if max(peaks.values()) < LIMIT else "ABOVE"
    print(f"largest: {max(peaks.values()) / 2**30:.2f} GiB, {verdict} {LIMIT / 2**30:.0f} GiB")
    result = {"benchmark": "memory", "rows": args.rows, "dimension": DIMENSION, "picks": args.picks,
              "peak_bytes": peaks, "seconds": seconds, "stages": summary["seconds"], "passes": summary["passes"],
              "rows_chosen": summary["rows"], **environment()}  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
