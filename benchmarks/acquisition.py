"""What acquisition functions cost beside the passes that they need, and whether they are right.

    python benchmarks/acquisition.py                                      all sections: some minutes on two cores
    python benchmarks/acquisition.py --only egl                           one of them, or several
    python benchmarks/acquisition.py --images 64 --rows 20000 --rounds 2  in seconds

bald       MC dropout with --samples samples on a small residual convolutional net, from images in memory to one score a row, beside one
           entropy pass and the other ways of `dropout_ways`. Dropout before the head must cost at most 1.3 x the entropy pass; in every
           block it must be no slower than the plain loop, and faster than baal's and the BatchBALD authors' way, where installed.
egl        expected gradient length of the last layer, closed form, with the forward pass of a small net, scored in blocks of 2^20 logits
           as workers do, at most 1.05 x the same for entropy; beside one backward pass per class (`torch.func`, vectorised over rows and
           classes, from the last layer's inputs, the least that backward passes can cost) on --rival-rows rows, extrapolated linearly.
committee  five of the nets on the same batches, at most 5.1 x one of them; and as a whole query over a Parquet pool: the bytes read.
agreement  every score beside plain formulas in float64: on the same float32 outputs within 1e-6 (of the score, or of 1); on the outputs of
           the same nets in float64, so that the forward pass's own rounding counts, within --float32-bound; the forward pass in
           bfloat16 within --bfloat16-bound.

Contenders take turns within a round, after one that doesn't count; another begins each round. Medians of --rounds. Prints a table a
section, then one JSON line; ends in 1 if a requirement isn't met.
"""

from __future__ import annotations

import argparse
import json
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
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import raystream as rs
from benchmarks import dropout_ways
from benchmarks.environment import environment
from raystream.acquisition import badge_norm, egl, egl_parameters, entropy, log_probabilities, logit_scores, member_scores
from raystream.model import load
from raystream.query import MEMBER_SCORES

DIMENSION, WIDTH, CLASSES = 128, 256, 10
SCORE_BLOCK = 1 << 20
MEMBERS = 5
SHARPNESS = 100.0
VOTES = {"vote_entropy", "variation_ratio"}
"""A vote turns at a tie and these jump: compared for the same outputs alone."""
SOURCE = "benchmarks.dropout_ways:plain"
Ways = dict[str, Callable[[], object]]


def take_turns(contenders: Ways, rounds: int) -> dict[str, list[float]]:
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


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 4)


def report(title: str, seconds: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Print a table; the figures for the JSON line."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{title:<22} {'median s':>9} {'x ' + base:>14}")
    for name, value in medians.items():
        print(f"{name:<22} {value:>9.4f} {value / medians[base]:>14.3f}")
    return {
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "median": {name: round(value, 4) for name, value in medians.items()},
    }


def images(rows: int) -> Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def measure_bald(args: argparse.Namespace) -> dict[str, Any]:
    """Both places of dropout."""
    found: dict[str, Any] = {"images": args.images, "batch": args.image_batch, "samples": args.samples, "met": True}
    given = images(args.images)
    for place in dropout_ways.PLACES:
        ways: dict[str, Callable[[Tensor], Tensor] | None] = {"entropy": dropout_ways.entropy_pass(place, args.image_batch)}
        for name in ("raystream", "loop", "replicated", "baal", "batchbald"):
            ways[name] = getattr(dropout_ways, name)(place, args.image_batch, args.samples)
        skipped = [name for name, way in ways.items() if way is None]
        with torch.inference_mode():
            seconds = take_turns({name: lambda way=way: way(given) for name, way in ways.items() if way is not None}, args.rounds)
        part = report(f"bald, dropout in {place}", seconds, "entropy")
        if skipped:
            print(f"skipped, since not installed: {', '.join(skipped)}")
        ratios = {f"raystream_over_{name}": ratio(seconds, "raystream", name) for name in seconds if name != "raystream"}
        rivals = [ratios[f"raystream_over_{name}"] < 1 for name in ("baal", "batchbald") if name in seconds]
        own = ratios["raystream_over_entropy"] <= 1.3 if place == "head" else ratios["raystream_over_loop"] <= 1 and all(rivals)
        found[place] = part | ratios | {"skipped": skipped, "met": own}
        found["met"] = found["met"] and own
    return found


def network() -> tuple[nn.Module, nn.Linear]:
    """Linear 128-256-256-10: everything before the last layer, and the last layer."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(DIMENSION, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return body.eval(), nn.Linear(WIDTH, CLASSES).eval()


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

    ways: Ways = {
        "forward": lambda: forward(lambda logits, h: logits, nothing),
        "entropy": lambda: forward(lambda logits, h: entropy(logits), nothing),
        "egl": closed_form,
        "backward passes": backward,
    }
    seconds = take_turns(ways, args.rounds)
    seconds["backward passes"] = [value * args.rows / rival_rows for value in seconds["backward passes"]]
    expected = backward()
    apart = float(((closed_form(rival_rows) - expected).abs() / expected).max())
    part = report("egl", seconds, "entropy")
    over = ratio(seconds, "egl", "entropy")
    print(f"egl over entropy {over:.3f}; largest relative difference from backward passes {apart:.1e}")
    return part | {
        "rows": args.rows,
        "batch": args.batch,
        "net": [DIMENSION, WIDTH, WIDTH, CLASSES],
        "rival_rows": rival_rows,
        "egl_over_entropy": over,
        "backward_over_egl": ratio(seconds, "backward passes", "egl"),
        "largest_difference": apart,
        "met": over <= 1.05 and apart <= 1e-4,
    }


def net(member: int) -> Any:
    """A member of the committee, sure of some images and not of others: untrained nets are sure of none, which is easy."""
    made = dropout_ways.plain(member)
    with torch.no_grad():
        made.head[-1].weight *= SHARPNESS
    return made


def weights(folder: Path) -> list[str]:
    """Files of weights of the committee's nets."""
    paths = [str(folder / f"member-{member}.safetensors") for member in range(MEMBERS)]
    for member, path in enumerate(paths):
        save_file(net(member).state_dict(), path)
    return paths


def model_of(paths: list[str], args: argparse.Namespace, **keys: Any) -> rs.Model:
    """Those nets as the model of a query."""
    source = {"source": SOURCE, "weights": paths if len(paths) > 1 else paths[0]}
    return rs.Model(**source, batch_size=args.image_batch, device="cpu", **keys)


def measure_committee(args: argparse.Namespace) -> dict[str, Any]:
    """Five nets beside one, by their predictions, and as queries."""
    given = images(args.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = weights(folder)
        one, five = (load(model_of(some, args), embedding=False) for some in (paths[:1], paths))
        seconds = take_turns({"one": lambda: one.predict((given,)), "committee": lambda: five.predict((given,))}, args.rounds)
        part = report("committee", seconds, "one")
        column = pa.FixedSizeListArray.from_arrays(pa.array(given.flatten().numpy()), given[0].numel())
        whole = column.cast(pa.list_(pa.float32(), given[0].numel()))
        pq.write_table(pa.table({"id": np.arange(len(given)), "image": whole}), folder / "pool.parquet")
        read = {}
        for who, some, acquire in (("one", paths[:1], {"score": "entropy"}), ("committee", paths, {"score": "bald"})):
            query = rs.Query(
                pool={"uri": str(folder / "pool.parquet"), "id": "id", "inputs": ["image"]},
                model=model_of(some, args).model_copy(update={"source": "benchmarks.acquisition:flat"}),
                acquire=acquire,
                select={"budget": 10, "strategy": "top_k"},
                cluster={"address": "in_process", "cpus_per_worker": args.threads},
                store={"uri": str(folder / f"store-{who}")},
            )
            manifest = rs.run(query).manifest
            read[who] = {"bytes": manifest.bytes_read, "score_seconds": round(manifest.seconds.score, 3)}
    over = ratio(seconds, "committee", "one")
    print(f"committee over one {over:.3f}; bytes read by a query: {read['one']['bytes']:,} and {read['committee']['bytes']:,}")
    met = over <= 5.1 and read["one"]["bytes"] == read["committee"]["bytes"]
    return part | {"images": args.images, "members": MEMBERS, "committee_over_one": over, "query": read, "met": met}


class Flat(nn.Module):
    """The net on images that come as rows of numbers."""

    def __init__(self) -> None:
        super().__init__()
        net = dropout_ways.plain()
        self.stem, self.blocks, self.head = net.stem, net.blocks, net.head

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(values.view(-1, 3, 32, 32))).mean((2, 3)))


def flat() -> nn.Module:
    return Flat().eval()


def references(logits: Tensor, samples: Tensor, h: Tensor) -> dict[str, Tensor]:
    """Every score from the definitions, in float64: of one net's logits and its last layer's inputs, and of the members' logits."""
    logits, samples, h = logits.double(), samples.double(), h.double()
    each = samples.softmax(2)
    p, mean = logits.softmax(1), each.mean(1)
    top = p.sort(dim=1, descending=True).values
    votes = nn.functional.one_hot(each.argmax(2), CLASSES).double().mean(1)
    length = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1).norm(dim=1)
    apart = (p.unsqueeze(1) - torch.eye(CLASSES, dtype=p.dtype)).norm(dim=2)  # by label

    def entropy_of(q: Tensor) -> Tensor:
        return torch.special.entr(q).sum(-1)

    return {
        "entropy": entropy_of(p),
        "least_confidence": 1 - top[:, 0],
        "margin": 1 - top[:, 0] + top[:, 1],
        "ratio": top[:, 1] / top[:, 0],
        "energy": -logits.logsumexp(1),
        "egl": (p * apart).sum(1) * length,
        "badge_norm": apart.gather(1, p.argmax(1, keepdim=True)).squeeze(1) * length,
        "bald": entropy_of(mean) - entropy_of(each).mean(1),
        "consensus_entropy": entropy_of(mean),
        "vote_entropy": entropy_of(votes),
        "variation_ratio": 1 - votes.amax(1),
        "mean_std": each.std(dim=1, correction=0).mean(1),
        "variance": each.var(dim=1, correction=0).sum(1),
    }


def measure_agreement(args: argparse.Namespace) -> dict[str, Any]:
    """The largest difference of each score: from formulas on the same float32 outputs, and from nets and formulas in float64."""
    given = images(min(args.images, 256))
    nets = [net(member).double() for member in range(MEMBERS)]
    with torch.inference_mode():
        z = torch.stack([one(given.double()) for one in nets], 1)
        through = references(z[:, 0], z, nets[0].head[:-1](nets[0].trunk(given.double())))
    differences: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        paths = weights(Path(name))
        for precision in ("float32", "bfloat16"):
            one = load(model_of(paths[:1], args, precision=precision), embedding=True).predict((given,))
            samples = load(model_of(paths, args, precision=precision), embedding=False).predict((given,)).samples
            found = {
                **logit_scores(one.logits).scores,
                "egl": egl(one.logits, one.embedding),
                "badge_norm": badge_norm(one.logits, one.embedding),
                **member_scores(log_probabilities(samples), MEMBER_SCORES).scores,
            }
            if precision == "float32":
                differences["scores"] = _differences(found, references(one.logits, samples, one.embedding))
            differences[precision] = _differences(found, {key: through[key] for key in through.keys() - VOTES})
    largest = {which: max(values.values()) for which, values in differences.items()}
    print(f"{'agreement':<22} {'scores':>9} {'float32 nets':>14} {'bfloat16 nets':>14}")
    for key in found:
        print(f"{key:<22} " + " ".join(f"{values.get(key, float('nan')):>14.1e}" for values in differences.values()))
    bounds = {"scores": 1e-6, "float32": args.float32_bound, "bfloat16": args.bfloat16_bound}
    met = all(largest[which] <= bound for which, bound in bounds.items())
    return {"images": len(given), "bounds": bounds, "largest": largest, "differences": differences, "met": met}


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """By score, the largest difference: of a score above 1 relative to it."""
    return {key: float(((found[key].double() - values).abs() / values.abs().clamp(min=1)).max()) for key, values in expected.items()}


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "bald": measure_bald,
    "egl": measure_egl,
    "committee": measure_committee,
    "agreement": measure_agreement,
}


def main() -> int:
    """Run the sections, print their tables and the JSON line; 1 if a requirement isn't met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rival-rows", type=int, default=10_000, help="rows of rivals that take long, extrapolated linearly")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--image-batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32-bound", type=float, default=1e-5, help="of scores whose forward pass ran in float32, too")
    parser.add_argument("--bfloat16-bound", type=float, default=0.1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = environment()
    measured = {name: SECTIONS[name](args) for name in args.only}
    unmet = [name for name, section in measured.items() if not section["met"]]
    print(f"not met: {', '.join(unmet)}" if unmet else "all requirements met")
    print(json.dumps({"benchmark": "acquisition", "environment": before, "rounds": args.rounds, **measured}))
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())
