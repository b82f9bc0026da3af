"""The forward pass, MC dropout, scores and a core set on a CUDA device against the processor: the same numbers, and how quick.

    python benchmarks/gpu.py                       on a machine with CUDA; Ray isn't needed. Without CUDA it says so and ends
    python benchmarks/gpu.py --device cpu --rows 64 --pool 2000 --picks 20 --rounds 1     that it runs, anywhere

forward     logits and embedding of a small residual convolutional net on (n, 3, 32, 32), rows a second in each precision
samples     the same net with dropout in every block, `--samples` MC dropout samples at once
scores      every score from (n, 1000) logits
core_set    raystream's exact farthest-first, which runs on the processor, against plain greedy in float64 on the device:
            the same rows, and the seconds of both; the second says what moving the selection to the device would gain

Equality is judged in float32 with TensorFloat-32 off, since PyTorch lets convolutions round to 10 bits otherwise: logits, samples and
embeddings agree within 1e-4 of their largest value, scores within 1e-5, the core set exactly. What mixed precision costs is
reported, not judged. Exits with 1 when something disagrees. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.dropout_ways import network
from benchmarks.environment import environment
from raystream.acquisition import logit_scores
from raystream.model.signature import EmbeddingTap
from raystream.model.torch_model import AUTOCAST, TorchPredictor
from raystream.selection import core_set

MODEL_TOLERANCE, SCORE_TOLERANCE = 1e-4, 1e-5


@contextmanager
def full_float32() -> Iterator[None]:
    """No TensorFloat-32 in matrix products and convolutions."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of `work`, the device idle before and after, once it is warm."""
    times = []
    for number in range(rounds + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        if number:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def predictor(device: torch.device, precision: str, batch: int, samples: int) -> TorchPredictor:
    """The net with its weights, dropout in every block."""
    net = network("blocks")
    return TorchPredictor(
        net,
        source="net:blocks",
        device=device,
        batch_size=batch,
        autocast=AUTOCAST[precision],
        embedding=EmbeddingTap(net, None),
        mc_samples=samples,
    )


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest expected value."""
    return float((found.float().cpu() - expected.float()).abs().max() / expected.float().abs().max())


def model(device: torch.device, args: argparse.Namespace, samples: int) -> dict[str, Any]:
    """The forward pass, with MC dropout where `samples` is above 0."""
    images = torch.randn(args.rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    small = images[: min(args.rows, 256)]
    expected = predictor(torch.device("cpu"), "float32", args.batch, samples).predict((small,))
    found: dict[str, Any] = {}
    on_device = images.pin_memory() if device.type == "cuda" else images
    for precision in AUTOCAST:
        run = predictor(device, precision, args.batch, samples)
        with full_float32():
            got = run.predict((small,))
        pairs = {"logits": (got.logits, expected.logits), "embedding": (got.embedding, expected.embedding)}
        if samples:
            pairs["samples"] = (got.samples, expected.samples)
        took = seconds(lambda run=run: run.predict((on_device,)), device, args.rounds)
        found[precision] = {
            "rows_a_second": round(args.rows / took),
            "apart": {name: apart(a, b) for name, (a, b) in pairs.items() if a is not None and b is not None},
            "batch_size": run.batch_size,
        }
    found["equal"] = max(found["float32"]["apart"].values()) <= MODEL_TOLERANCE
    return found


def scores(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Every score from the logits of `--pool` / 10 rows and 1000 classes."""
    logits = 3 * torch.randn(max(args.pool // 10, 10), 1000, generator=torch.Generator().manual_seed(2))
    expected, there = logit_scores(logits), logits.to(device)
    got = logit_scores(there)
    far = {name: apart(got.scores[name], values) for name, values in expected.scores.items()}
    same = torch.equal(got.prediction.cpu(), expected.prediction)
    took = seconds(lambda: logit_scores(there), device, args.rounds)
    return {"rows_a_second": round(len(logits) / took), "apart": far, "equal": same and max(far.values()) <= SCORE_TOLERANCE}


def greedy(x: Tensor, k: int) -> list[int]:
    """Farthest-first in float64, one pick at a time: (n, d) -> k rows, ties to the lower row."""
    squared = (x - x.mean(0)).square().sum(1)
    picks: list[int] = []
    for _ in range(k):
        row = int(torch.argmax(squared))
        distance = (x - x[row]).square_().sum(1)
        squared = distance if not picks else torch.minimum(squared, distance)
        picks.append(row)
    return picks


def selection(device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """A core set of `--picks` among `--pool` rows of width 128."""
    x = np.random.default_rng(3).standard_normal((args.pool, 128), dtype=np.float32)
    ours = core_set(x, args.picks)
    there = torch.from_numpy(x).to(device).double()
    plain = greedy(there, args.picks)
    return {
        "raystream_seconds": seconds(lambda: core_set(x, args.picks), torch.device("cpu"), args.rounds),
        "plain_seconds_on_device": seconds(lambda: greedy(there, args.picks), device, args.rounds),
        "equal": ours.tolist() == plain,
    }


def main() -> int:
    """Run, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--pool", type=int, default=1_000_000)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("benchmarks/gpu.py: no CUDA device is visible here, so nothing was measured; --device cpu shows that it runs")
        return 0
    device, before = torch.device(args.device), environment()
    found = {
        "forward": model(device, args, 0),
        "samples": model(device, args, args.samples),
        "scores": scores(device, args),
        "core_set": selection(device, args),
    }
    for part in ("forward", "samples"):
        for precision in AUTOCAST:
            line = found[part][precision]
            print(f"{part:9} {precision:9} {line['rows_a_second']:>12,} rows/s   apart {max(line['apart'].values()):.1e}")
    print(f"{'scores':9} {'float32':9} {found['scores']['rows_a_second']:>12,} rows/s   apart {max(found['scores']['apart'].values()):.1e}")
    timed = found["core_set"]
    ours, plain = timed["raystream_seconds"], timed["plain_seconds_on_device"]
    print(f"core_set  {ours:.2f} s on the processor, plain greedy {plain:.2f} s on the device")
    wrong = [part for part, values in found.items() if not values["equal"]]
    print(f"disagree: {', '.join(wrong)}" if wrong else "all agree")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"benchmark": "gpu", "device": name, **vars(args), "results": found, **before}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
