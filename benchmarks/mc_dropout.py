"""BALD with MC dropout against one entropy pass and against the usual ways, on a small residual convolutional net.

    python benchmarks/mc_dropout.py                               the full run: about a minute on one core
    python benchmarks/mc_dropout.py --rows 32 --rounds 2          in seconds

What is timed: from a batch in memory to one score a row; all contenders have the same rows, threads and weights and take turns
within a round, in one process.

    entropy      one forward pass in evaluation mode
    raystream    all samples and the deterministic network at once, and BALD
    loop         one forward pass a sample, each with one mask for all rows, as the authors of BatchBALD do, but without copies
    replicated   every row copied once a sample, and dropout drawn anew for each, as baal does; in pieces of --batch

Two places of dropout: before the head, where all samples share the trunk, and in every block, where they share the stem alone.
The ceiling of the first is the trunk, of the second --samples passes. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import environment
from raystream.acquisition import entropy
from raystream.model.torch_model import TorchPredictor

PLACES = ("head", "blocks")


class Consistent(nn.Module):
    """Dropout with one mask for all rows, drawn anew after `redraw`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.mask = p, None

    def redraw(self) -> None:
        self.mask = None

    def forward(self, values: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.empty((1, *values.shape[1:])).bernoulli_(1 - self.p).div_(1 - self.p)
        return values * self.mask


class Block(nn.Module):
    """Two convolutions around which the input passes, with dropout between them or none."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(dropout, nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(values)) + self.short(values))


class Net(nn.Module):
    """Three residual blocks on (n, 3, 32, 32), and a head with 10 classes."""

    def __init__(self, place: str, dropout: Callable[[float], nn.Module]) -> None:
        super().__init__()

        def inside() -> nn.Module:
            return dropout(0.1) if place == "blocks" else nn.Identity()

        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1, inside()), Block(16, 32, 2, inside()), Block(32, 64, 2, inside()))
        self.head = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), dropout(0.5), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


def network(place: str, dropout: Callable[[float], nn.Module] = nn.Dropout) -> Net:
    """The same weights for each kind of dropout."""
    torch.manual_seed(0)
    return Net(place, dropout).eval()


def bald(logits: Tensor) -> Tensor:
    """(n, samples, classes) -> (n,): mean KL divergence of the samples from their mean."""
    each = logits.log_softmax(dim=2)
    mean = each.logsumexp(dim=1, keepdim=True) - torch.log(torch.tensor(float(logits.shape[1])))
    return (each.exp() * (each - mean)).sum(dim=2).mean(dim=1)


def entropy_pass(place: str, batch: int) -> Callable[[Tensor], Tensor]:
    model = network(place)
    return lambda images: torch.cat([entropy(model(piece)) for piece in images.split(batch)])


def raystream(place: str, batch: int, samples: int) -> Callable[[Tensor], Tensor]:
    model = TorchPredictor(network(place), source=f"net:{place}", device=torch.device("cpu"), batch_size=batch, mc_samples=samples)
    return lambda images: bald(model.predict((images,)).samples)


def loop(place: str, batch: int, samples: int) -> Callable[[Tensor], Tensor]:
    model = network(place, Consistent)

    def run(images: Tensor) -> Tensor:
        made = []
        for _ in range(samples):
            for module in model.modules():
                if isinstance(module, Consistent):
                    module.redraw()
            made.append(torch.cat([model(piece) for piece in images.split(batch)]))
        return bald(torch.stack(made, dim=1))

    return run


def replicated(place: str, batch: int, samples: int) -> Callable[[Tensor], Tensor]:
    model = network(place)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()

    def run(images: Tensor) -> Tensor:
        pieces = images.split(max(1, batch // samples))
        return bald(torch.cat([model(piece.repeat_interleave(samples, 0)).view(len(piece), samples, -1) for piece in pieces]))

    return run


def measure(place: str, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved rounds, after one that doesn't count."""
    contenders = {
        "entropy": entropy_pass(place, args.batch),
        "raystream": raystream(place, args.batch, args.samples),
        "loop": loop(place, args.batch, args.samples),
        "replicated": replicated(place, args.batch, args.samples),
    }
    images = torch.randn(args.rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    scores: dict[str, Tensor] = {}
    for number in range(args.rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            scores[name] = run(images)
            if number:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "place": place,
        "seconds": {name: [round(time, 4) for time in times] for name, times in seconds.items()},
        "median": {name: round(value, 4) for name, value in median.items()},
        "times_entropy": {name: round(value / median["entropy"], 2) for name, value in median.items()},
        "mean_score": {name: round(float(values.mean()), 5) for name, values in scores.items()},
    }


def main() -> int:
    """Run, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = environment()
    with torch.inference_mode():
        measured = [measure(place, args) for place in PLACES]
    print(f"{'dropout':<8} {'contender':<12} {'median s':>9} {'x entropy':>10} {'mean score':>11}")
    for found in measured:
        for name, value in found["median"].items():
            print(f"{found['place']:<8} {name:<12} {value:>9.3f} {found['times_entropy'][name]:>10.2f} {found['mean_score'][name]:>11.5f}")
    sizes = {name: getattr(args, name) for name in ("rows", "batch", "samples", "rounds", "threads")}
    print(json.dumps({"benchmark": "mc_dropout", "environment": before, **sizes, "measured": measured}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
