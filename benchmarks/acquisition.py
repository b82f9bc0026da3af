"""What acquisition functions cost beside the forward pass that they need, in sections: a small net over 200k x 128 rows.

    python benchmarks/acquisition.py                                        all sections
    python benchmarks/acquisition.py --only egl                             one of them, or several
    python benchmarks/acquisition.py --only egl --rows 20000 --rounds 2     in seconds

egl: expected gradient length of the last layer, closed form, and entropy, each with the net's forward pass over rows in memory and
scored in blocks of 2^20 logits, as workers do, beside one backward pass per class (`torch.func`, vectorised over rows and classes,
from the last layer's inputs, which is the least that backward passes can cost), on `--rival-rows` rows, extrapolated linearly. The
closed form must stay within 1.05 x the entropy pass, and its scores within 1e-4 of the backward passes'.

Contenders take turns within a round, after one turn that doesn't count. The ceiling is the forward pass itself, measured alone. Prints
a table a section, then one JSON line; ends in 1 if a requirement isn't met.
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
from raystream.acquisition import egl, egl_parameters, entropy

DIMENSION, WIDTH, CLASSES = 128, 256, 10
SCORE_BLOCK = 1 << 20


def network() -> tuple[nn.Module, nn.Linear]:
    """Linear 128-256-256-10: everything before the last layer, and the last layer."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(DIMENSION, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return body.eval(), nn.Linear(WIDTH, CLASSES).eval()


def take_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; another one begins each round, since what runs before leaves its traces."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_egl(args: argparse.Namespace) -> dict[str, Any]:
    """Closed form beside entropy and backward passes."""
    body, head = network()
    x = torch.randn(args.rows, DIMENSION, generator=torch.Generator().manual_seed(1))
    rival_rows = min(args.rival_rows, args.rows)

    def forward(score: Callable[[Tensor, Tensor], Tensor], kept: Callable[[Tensor], Tensor], rows: int = args.rows) -> Tensor:
        """Scores of rows, from their logits and what is kept of the last layer's inputs."""
        scores = []
        with torch.inference_mode():
            for block in x[:rows].split(SCORE_BLOCK // CLASSES):
                logits, inputs = [], []
                for batch in block.split(args.batch):
                    h = body(batch)
                    logits.append(head(h))
                    inputs.append(kept(h))
                scores.append(score(torch.cat(logits), torch.cat(inputs)))
            return torch.cat(scores)

    def closed_form(rows: int = args.rows) -> Tensor:
        return forward(egl, lambda h: torch.linalg.vector_norm(h, dim=1, keepdim=True), rows)

    def backward() -> Tensor:
        return forward(lambda logits, h: egl_parameters(head, h, classes=CLASSES), lambda h: h, rival_rows)

    def nothing(h: Tensor) -> Tensor:
        return h[:0]

    seconds = take_turns(
        {
            "forward": lambda: forward(lambda logits, h: logits, nothing),
            "entropy": lambda: forward(lambda logits, h: entropy(logits), nothing),
            "egl": closed_form,
            "backward passes": backward,
        },
        args.rounds,
    )
    seconds["backward passes"] = [value * args.rows / rival_rows for value in seconds["backward passes"]]
    expected, found = backward(), closed_form(rival_rows)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    apart = float(((found - expected).abs() / expected).max())
    ratio = statistics.median(own / base for own, base in zip(seconds["egl"], seconds["entropy"], strict=True))
    print(f"{'egl':<18} {'median s':>9} {'x entropy':>10}")
    for name, value in medians.items():
        print(f"{name:<18} {value:>9.3f} {value / medians['entropy']:>10.3f}")
    print(f"median of the rounds' ratios {ratio:.3f}; largest relative difference of scores {apart:.1e}")
    return {
        "rows": args.rows,
        "batch": args.batch,
        "net": [DIMENSION, WIDTH, WIDTH, CLASSES],
        "rival_rows": rival_rows,
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "median": {name: round(value, 4) for name, value in medians.items()},
        "egl_over_entropy": round(ratio, 4),
        "backward_over_egl": round(medians["backward passes"] / medians["egl"], 1),
        "largest_difference": apart,
        "met": ratio <= 1.05 and apart <= 1e-4,
    }


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"egl": measure_egl}


def main() -> int:
    """Run the sections, print their tables and the JSON line; 1 if a requirement isn't met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rival-rows", type=int, default=10_000, help="rows of rivals that take long, extrapolated linearly")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = environment()
    measured = {name: SECTIONS[name](args) for name in args.only}
    print(json.dumps({"benchmark": "acquisition", "environment": before, **measured}))
    return 0 if all(section["met"] for section in measured.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
