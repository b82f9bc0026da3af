"""Rounds of one query under faults, each told by its seed: the batch must be that of an undisturbed run, byte by byte.

A round draws a fault, runs the query while that happens, and runs it again until it is committed, as whoever is told "run again to
resume" does. It counts what was scored more than once, and holds it against what was in flight. Rounds in process are processes of
their own, forked from one that has torch imported, and really killed; rounds on Ray share one cluster of this machine (`chaos_ray.py`).

    python benchmarks/chaos.py --rounds 200               # in process
    python benchmarks/chaos.py --rounds 60 --ray          # on Ray
    python benchmarks/chaos.py --rounds 15 --first 15 --ray --keep     # a chunk of them; its line goes to benchmarks/results/
    python benchmarks/chaos.py --table                    # the tally of all lines that are kept, as docs/durability.md has it

Prints a line a round that went wrong, a table by fault, and one JSON document as its last line. Exit code 1: a round went wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import chaos_rounds
from chaos_rounds import Round
from environment import environment

RESULTS = Path(__file__).parent / "results" / "chaos.jsonl"


@dataclass
class Line:
    """All rounds of one fault.

    Attributes:
        rounds: that were run.
        identical: of them, those whose batch is the undisturbed one's.
        refused: runs that ended in an error which the fault explains, and said so by their exit code.
        repeated: units that were scored more than once.
        most: of them in one round.
        seeds: of the rounds.
        wrong: seeds of rounds that went wrong.
    """

    fault: str
    where: str
    rounds: int = 0
    identical: int = 0
    refused: int = 0
    repeated: int = 0
    most: int = 0
    seeds: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()

    def take(self, told: Round) -> None:
        """Count a round."""
        self.rounds += 1
        self.identical += told.identical
        self.refused += told.refused
        self.repeated += told.repeated
        self.most = max(self.most, told.repeated)
        self.seeds += (told.seed,)
        self.wrong += (told.seed,) * bool(told.wrong)


def tally(rounds: Iterable[Round], where: str) -> list[Line]:
    """The rounds by their faults."""
    lines: dict[str, Line] = {}
    for told in rounds:
        lines.setdefault(told.fault, Line(told.fault, where)).take(told)
    return [lines[fault] for fault in sorted(lines)]


def merged(documents: Iterable[dict[str, Any]]) -> list[Line]:
    """The tallies of several calls together; a seed that was run again counts again."""
    lines: dict[tuple[str, str], Line] = {}
    for document in documents:
        for found in document["lines"]:
            line = lines.setdefault((found["where"], found["fault"]), Line(found["fault"], found["where"]))
            for name in ("rounds", "identical", "refused", "repeated"):
                setattr(line, name, getattr(line, name) + found[name])
            line.most = max(line.most, found["most"])
            line.seeds += tuple(found["seeds"])
            line.wrong += tuple(found["wrong"])
    return [lines[key] for key in sorted(lines)]


def table(lines: Sequence[Line]) -> str:
    """As Markdown."""
    rows = ["| where | fault | rounds | identical | rightly refused | repeated units | most in a round | seeds |", "|" + " --- |" * 8]
    for line in lines:
        numbers = (line.rounds, line.identical, line.refused, line.repeated, line.most)
        rows.append(f"| {line.where} | {line.fault} | {' | '.join(f'{n:,}' for n in numbers)} | {_ranges(line.seeds)} |")
    return "\n".join(rows)


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers in few words: 0-3, 7."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in found)


def run(seeds: range, seconds: float, on_ray: bool) -> list[Round]:
    """As many of these rounds as begin within so many seconds."""
    until, rounds = time.monotonic() + seconds, []
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        with _place(folder, on_ray) as play:
            for seed in seeds:
                if time.monotonic() > until:
                    break
                told = play(seed)
                rounds.append(told)
                if told.wrong:
                    print(f"seed {seed}, {told.fault}: {told.wrong}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rounds


def _place(folder: Path, on_ray: bool) -> Any:
    if not on_ray:
        return chaos_rounds.in_process(folder)
    import chaos_ray

    return chaos_ray.on_ray(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no round after so many")
    parser.add_argument("--ray", action="store_true", help="on a Ray of this machine, with nodes that come and go")
    parser.add_argument("--keep", action="store_true", help=f"add the last line to {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the tally of all lines that are kept, and run nothing")
    options = parser.parse_args()
    if options.table:
        print(table(merged(map(json.loads, RESULTS.read_text().splitlines()))))
        return 0
    began = time.monotonic()
    rounds = run(range(options.first, options.first + options.rounds), options.seconds, options.ray)
    lines = tally(rounds, "Ray" if options.ray else "in process")
    print(table(lines))
    document = {
        "benchmark": "chaos",
        "rounds": len(rounds),
        "seconds": round(time.monotonic() - began, 1),
        "lines": [asdict(line) for line in lines],
        "environment": environment(),
    }
    text = json.dumps(document)
    if options.keep:
        with RESULTS.open("a") as file:
            file.write(f"{text}\n")
    print(text)
    return 1 if any(line.wrong for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
