"""What a query takes at 100M, 1B and 10B rows on 1 to 64 workers: bytes, requests, rounds and seconds of each stage, as a model.

Every term is a figure that stands in `results/`, or is counted from the code, or is an assumption that is marked as one; `TERMS`, `ASSUMED`
and `MACHINES` are the places to change them. The tables of docs/scaling.md are what this prints.

    python benchmarks/scaling.py                # the tables
    python benchmarks/scaling.py --rate 2000    # of a model that scores so many rows a second a worker
    python benchmarks/scaling.py --measure      # takes the terms of results/scaling.jsonl anew: ends in one JSON line
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROWS = (100_000_000, 1_000_000_000, 10_000_000_000)
WORKERS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Term:
    """A figure that was measured.

    Attributes:
        value: as the model takes it.
        means: what it is, with its unit.
        file: of `results/`, without `.jsonl`.
        date: of the line there that it comes from.
        take: from that line.
    """

    value: float
    means: str
    file: str
    date: str
    take: Callable[[Mapping[str, Any]], float]

    def recorded(self) -> float:
        """The figure as it stands in the results."""
        lines = [json.loads(line) for line in (RESULTS / f"{self.file}.jsonl").read_text().splitlines()]
        [line] = [line for line in lines if (line.get("date") or line["environment"]["date"]) == self.date]
        return self.take(line)


_UNITS, _BUCKET = "2026-11-29T02:44:12+00:00", "2026-11-29T02:40:18+00:00"
_LAKE, _SCORE, _DRIVER = "2026-11-26T06:08:21+00:00", "2026-11-22T17:27:38+00:00", "2026-11-28T20:29:19+00:00"
_MERGE = "2026-11-29T11:52:00+00:00"
_POOLS = "2026-11-29T03:54:17+00:00"
_WHOLE = "2026-11-29T04:18:49+00:00"
_KEPT = ("integers", "k_means")


def _unit(name: str, part: str = "us") -> Callable[[Mapping[str, Any]], float]:
    return lambda line: float(line["results"][-1][part][name])


def _requests(*methods: str) -> Callable[[Mapping[str, Any]], float]:
    """Requests a unit of all bookkeeping but `gc`."""
    return lambda line: (
        sum(count for stage, of in line["bucket"]["requests"].items() if stage != "gc" for name, count in of.items() if name in methods)
        / line["bucket"]["units"]
    )


def _strategy(name: str, key: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda line: float(next(row[key] for row in line["table"] if row["strategy"] == name and row["pool"] == "clustered"))


TERMS: dict[str, Term] = {
    "rate": Term(200_422, "rows a second that a worker of one thread reads, runs a small net over and writes", "score", _SCORE,
                 lambda line: line["rows"] / line["medians"]["raystream"] / 2),
    "from_bucket": Term(1.211, "times as long from a bucket with 20 ms a request as from the disk", "lake", _LAKE,
                        lambda line: line["score"]["ratio"]),
    "read_bytes": Term(4_269_056, "bytes a request that reads the pool", "lake", _LAKE,
                       lambda line: line["score"]["received"] / line["score"]["requests"]),
    "plan_us": Term(13.21, "microseconds of planning a unit", "units", _UNITS, _unit("plan")),
    "lookup_us": Term(16.94, "of looking it up", "units", _UNITS, _unit("lookup")),
    "write_us": Term(5.651, "of writing it into the plan", "units", _UNITS, _unit("write")),
    "schedule_us": Term(84.12, "of handing it out and packing its receipts", "units", _UNITS, _unit("scheduling")),
    "unit_bytes": Term(464.0, "bytes of the driver's memory a unit", "units", _UNITS, _unit("all", "bytes")),
    "listings": Term(0.01587, "listings a unit of the driver's bookkeeping in a bucket", "units", _BUCKET, _requests("list")),
    "gets": Term(0.0065, "reads a unit of it", "units", _BUCKET, _requests("get", "head")),
    "puts": Term(0.00216, "writes a unit of it", "units", _BUCKET, _requests("put")),
    "row_bytes": Term(15.82, "bytes of the driver's memory a row, ids aside", "driver_memory", _DRIVER,
                      lambda line: next(run["beyond"] for run in line["results"] if (run["ids"], run["strategy"]) == _KEPT)),
    "core_set": Term(2.152, "microseconds a row of a core set of 1,000 at 256 numbers, two threads, all passes", "whole_pool", _POOLS,
                     _strategy("core_set", "fresh_seconds")),
    "k_means": Term(14.04, "of k_means, likewise", "whole_pool", _WHOLE, _strategy("k_means", "fresh_seconds")),
    "cluster_margin": Term(15.91, "of cluster_margin", "whole_pool", _WHOLE, _strategy("cluster_margin", "fresh_seconds")),
    "typiclust": Term(12.53, "of typiclust", "whole_pool", _WHOLE, _strategy("typiclust", "fresh_seconds")),
    "merge_us": Term(0.4597, "microseconds a row of the merge, two threads: of strategies of chance over all rows, others take a sixth",
                     "hundred_million", _MERGE, lambda line: float(line["us_a_row"]["power"])),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A machine of a cloud, with a price an hour that is an assumption: look up yours."""

    name: str
    cores: int
    memory_gib: int
    gbit: float
    dollars: float


MACHINES = (
    Machine("AWS c7i.4xlarge", 16, 32, 12.5, 0.714),
    Machine("AWS m7i.8xlarge", 32, 128, 12.5, 1.613),
    Machine("Google n2-standard-16", 16, 64, 32.0, 0.777),
    Machine("Azure D16s v5", 16, 64, 12.5, 0.768),
)
"""On demand, as such machines were listed in 2025; spot ones cost about a third."""

ASSUMED: dict[str, float] = {
    "row": 512,  # bytes of a row in the pool: 128 float32
    "width": 256,  # numbers of an embedding, float16
    "score": 40,  # bytes of a row's scores, as `raystream plan` counts them
    "unit": 32 << 20,  # bytes of the pool a unit, the planner's target
    "budget": 1000,
    "round_trip": 0.01,  # seconds that a round with all actors takes beside its work and bytes
    "driver_bits": 12.5e9,  # a second between the driver and all actors
    "dollars_put": 5e-6,  # a write or a listing
    "dollars_get": 4e-7,  # a read
    "dollars_gib_month": 0.023,
    "actor_gib": 2,  # select.memory
}
"""The workload, and what nobody here can measure."""


@dataclass(frozen=True)
class Stage:
    """One stage: `serial` seconds are the driver's alone, `work` those of one worker that all share out."""

    name: str
    serial: float
    work: float
    read: float = 0.0
    written: float = 0.0
    gets: float = 0.0
    puts: float = 0.0
    rounds: int = 0
    moved: float = 0.0

    @property
    def talk(self) -> float:
        """Seconds that the driver and selection actors talk."""
        return self.rounds * ASSUMED["round_trip"] + 8 * self.moved / ASSUMED["driver_bits"]

    def seconds(self, workers: int) -> float:
        return self.serial + self.work / workers + self.talk


def measured() -> dict[str, Any]:
    """The last line of `results/scaling.jsonl`."""
    found: dict[str, Any] = json.loads((RESULTS / "scaling.jsonl").read_text().splitlines()[-1])
    return found


def stages(rows: int, rate: float | None = None, line: Mapping[str, Any] | None = None) -> list[Stage]:
    """The stages of a query over so many rows in a bucket, in order; those of choosing are alternatives.

    Args:
        rows: of the pool.
        rate: rows a second that a worker scores; left out, what a small net was measured at.
        line: of `results/scaling.jsonl`; left out, the last one.
    """
    line = measured() if line is None else line
    t = {name: term.value for name, term in TERMS.items()}
    a = ASSUMED
    units = math.ceil(rows * a["row"] / a["unit"])
    read, out = rows * a["row"], rows * (a["score"] + 2 * a["width"])
    parts = math.ceil(rows / units * 2 * a["width"] / (16 << 20))
    uploads = 1 + (1 if parts == 1 else parts + 2)  # scores whole, embeddings in parts of 16 MiB between two requests
    books = {"gets": units * t["gets"], "puts": units * (t["listings"] + t["puts"])}
    scored = rows / (rate or t["rate"]) * t["from_bucket"]
    vectors = rows * 2 * a["width"]
    found = [
        Stage("plan", units * (t["plan_us"] + t["lookup_us"] + t["write_us"]) / 1e6, 0, **books),
        Stage("score", units * t["schedule_us"] / 1e6, scored, read, out, read / t["read_bytes"], units * (uploads + 2)),
        Stage("merge, at most", rows * t["merge_us"] / 1e6, 0, rows * a["score"], gets=units),
    ]
    for name, share in SERIAL.items():
        run = _counted(line, name)
        serial = share * t[name] + (_DENSITY * t[name] * rows / 1e6 if name == "typiclust" else 0.0)
        work = 2 * (1 - share - (_DENSITY if name == "typiclust" else 0.0)) * t[name] * rows / 1e6
        passes, moved = run["passes"], _moved(line, name, rows)
        stage = f"choose: {name} of all"
        found.append(Stage(stage, serial, work, passes * vectors, gets=passes * units, rounds=run["rounds"], moved=moved))
    return found


SERIAL = {"core_set": 0.0, "k_means": 0.18, "cluster_margin": 0.56, "typiclust": 0.24}
"""Of the seconds at a million rows, what the driver does on samples: row-centre products counted from the code. k_means had 13 iterations
over 131,072 rows, 7 over all and one more look; cluster_margin 5 over 256,000 and one look; typiclust 20 over 131,072 and one look. Since
then they end where no more is gained, and cluster_margin makes 3 at most."""
_DENSITY = 0.61
"""Of typiclust's, what the driver does within clusters: pairs of 2,000 rows each, beside 500 centres."""


def _counted(line: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = [run for run in line["runs"] if run["strategy"] == name][-1]
    return found


def _moved(line: Mapping[str, Any], name: str, rows: int) -> float:
    """Bytes between the driver and all actors: those that were counted, a row where it goes with rows; sums of parts by their size."""
    from raystream.selection.lloyd import part_rows

    if name == "core_set":
        return float(_counted(line, name)["bytes"])
    few, many = (run for run in line["runs"] if run["strategy"] == name)
    found = (many["bytes"] - few["bytes"]) / (many["rows"] - few["rows"]) * rows
    if name == "k_means":
        size = int(ASSUMED["budget"] * ASSUMED["width"] * 4)
        found += 7 * size * math.ceil(rows / part_rows(rows, size))
    return float(found)


# --- tables


def tables(rate: float | None = None, line: Mapping[str, Any] | None = None) -> str:
    """All tables, as Markdown."""
    line = measured() if line is None else line
    parts = [_terms()]
    for rows in ROWS:
        parts.append(f"### {_rows(rows)} rows\n\n{_stages(rows, rate, line)}")
    parts += [f"### What breaks first\n\n{_limits(rate)}", f"### What it costs\n\n{_costs(rate, line)}"]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _terms() -> str:
    rows = []
    for name, term in TERMS.items():
        value = f"{term.value:,.4g}" if term.value < 1e4 else f"{term.value:,.0f}"
        rows.append([f"`{name}`", value, term.means, f"`{term.file}.jsonl`, {term.date[:10]}"])
    return _table(["term", "value", "what it is", "from"], rows)


def _stages(rows: int, rate: float | None, line: Mapping[str, Any]) -> str:
    seconds = [f"{workers} worker{'s' if workers > 1 else ''}" for workers in WORKERS]
    head = ["stage", "read", "written", "reads", "writes", "rounds", "actors' bytes", *seconds]
    cells = []
    for stage in stages(rows, rate, line):
        cells.append(
            [stage.name, _bytes(stage.read), _bytes(stage.written), _count(stage.gets), _count(stage.puts), _count(stage.rounds),
             _bytes(stage.moved), *(_time(stage.seconds(workers)) for workers in WORKERS)]
        )  # fmt: skip
    return _table(head, cells)


def limits(rate: float | None = None) -> dict[str, float]:
    """Where each thing ends: rows, or workers."""
    driver = max(machine.memory_gib for machine in MACHINES) * 2**30
    machine = MACHINES[0]
    speed = (rate or TERMS["rate"].value) / TERMS["from_bucket"].value
    through = machine.gbit * 1e9 / 8
    units_a_second = speed * ASSUMED["row"] / ASSUMED["unit"]
    return {
        "rows of the driver": driver / TERMS["row_bytes"].value,
        "rows chosen from whole by k-means": driver / (TERMS["row_bytes"].value + _CLUSTERED_BYTES),
        "workers until the merge takes as long": 1e6 / (TERMS["merge_us"].value * speed),
        "workers a machine that its network feeds": through / (speed * (ASSUMED["row"] + ASSUMED["score"] + 2 * ASSUMED["width"])),
        "workers of one prefix's writes": 3500 / (units_a_second * 8),
        "rows that actors of a core each hold": 64 * ASSUMED["actor_gib"] * 2**30 / (2 * ASSUMED["width"] + 16),
    }


_CLUSTERED_BYTES = 44
"""Of the driver a candidate, while k-means has them in stretches: a weight, labels twice, squared distances and the order by them."""


def _limits(rate: float | None) -> str:
    found = limits(rate)
    driver = max(MACHINES, key=lambda machine: machine.memory_gib)
    words = {
        "rows of the driver": f"the driver's memory, {driver.memory_gib} GiB, at {TERMS['row_bytes'].value:.3g} bytes a row",
        "rows chosen from whole by k-means": f"the same and {_CLUSTERED_BYTES} bytes more a candidate, `k_means` and its like over all",
        "workers until the merge takes as long": "the merge, one process, takes as long as scoring by so many workers",
        "workers a machine that its network feeds": f"the network of one {MACHINES[0].name}, with rows read and outputs written",
        "workers of one prefix's writes": "at 3,500 writes a second to one prefix of a bucket, before it is split",
        "rows that actors of a core each hold": "64 selection actors of 2 GiB hold so many rows encoded; beyond it, each pass reads the "
        "store again, or `select.memory` is raised",
    }  # fmt: skip
    rows = sorted(found.items(), key=lambda one: (not one[0].startswith("workers"), one[1]))
    return _table(["what", "ends at"], [[words[name], f"{_rows(int(value))} {name.partition(' ')[0]}"] for name, value in rows])


def _costs(rate: float | None, line: Mapping[str, Any]) -> str:
    workers = WORKERS[-1]
    head = ["machine", "how many", "assumed $ an hour", *(f"{_rows(rows)} rows" for rows in ROWS)]
    cells = []
    for machine in MACHINES:
        count = math.ceil(workers / machine.cores)
        paid = (f"${cost(rows, machine, workers, rate, line):,.2f}" for rows in ROWS)
        cells.append([machine.name, str(count), f"{machine.dollars:g}", *paid])
    queries = [_asked(rows, rate, line) for rows in ROWS]
    put, get = ASSUMED["dollars_put"], ASSUMED["dollars_get"]
    requests = [sum(stage.puts * put + stage.gets * get for stage in query) for query in queries]
    kept = [sum(stage.written for stage in query) / 2**30 * ASSUMED["dollars_gib_month"] for query in queries]
    cells.append(["requests to the bucket", "", "", *(f"${one:,.2f}" for one in requests)])
    cells.append(["outputs kept for a month", "", "", *(f"${one:,.2f}" for one in kept)])
    return _table(head, cells)


def _asked(rows: int, rate: float | None, line: Mapping[str, Any]) -> list[Stage]:
    """The stages of the default query."""
    return [stage for stage in stages(rows, rate, line) if not stage.name.endswith("of all")]


def cost(rows: int, machine: Machine, workers: int, rate: float | None = None, line: Mapping[str, Any] | None = None) -> float:
    """Dollars of machines for the default query, all of them up from the first stage to the last."""
    seconds = sum(stage.seconds(workers) for stage in _asked(rows, rate, measured() if line is None else line))
    return seconds / 3600 * math.ceil(workers / machine.cores) * machine.dollars


def _rows(count: int) -> str:
    for size, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:,}"


def _count(number: float) -> str:
    return "" if not number else f"{number:,.0f}" if number < 1e5 else _rows(int(number))


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if number else ""
        number /= 1000
    return f"{number:.3g} PB"


def _time(seconds: float) -> str:
    for below, of, unit in ((10, 1, ".2g"), (120, 1, ".0f")):
        if seconds < below:
            return f"{seconds / of:{unit}} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# --- measuring


class _Hosts:
    """Processes of selection actors, all in this one, so that what would travel is pickled and counted."""

    def __init__(self, count: int) -> None:
        from raystream.choosing.holding import Host

        self._hosts = [Host() for _ in range(count)]

    def __len__(self) -> int:
        return len(self._hosts)

    def share(self, data: bytes) -> bytes:
        return data

    def run(self, scripts: Mapping[int, Any]) -> dict[int, Any]:
        return {place: self._hosts[place].run(steps) for place, steps in scripts.items()}

    def renew(self, place: int) -> None:
        raise AssertionError("nothing is lost here")


def sharded(strategy: str, rows: int, width: int, budget: int, shards: int) -> dict[str, Any]:
    """Choose over so many simulated shards: passes, rounds and bytes, which no load changes. Rows are clustered, as whole_pool.py's."""
    import numpy as np

    from raystream.choosing.holding import ProcessRounds
    from raystream.selection import Candidates, Rows, Shards, choose
    from raystream.store.vectors import MappedEmbeddings, block_rows

    draw = np.random.default_rng(0)
    centres = draw.standard_normal((1000, width), np.float32)
    x = (centres[draw.integers(0, 1000, rows)] + 0.5 * draw.standard_normal((rows, width), np.float32)).astype(np.float16)
    score, size = draw.random(rows), block_rows(width, 2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "embeddings"
        x.tofile(file)
        del x
        parts = [
            MappedEmbeddings(file, 2 * width * start, min(size, rows - start), width, "float16") for start in range(0, rows, size)
        ]
        rounds = ProcessRounds(_Hosts(shards))
        held = Shards(Rows(parts), shards, rounds.spread, memory=1 << 31)
        chosen = choose(  # a byte less than all rows take: they are left in their shards
            Candidates(score=score, shards=held), strategy=strategy, budget=budget, memory=4 * rows * width - 1, near_duplicates=False
        )
    assert len(chosen.rows) == budget
    record = rounds.record
    return {
        "strategy": strategy, "rows": rows, "width": width, "budget": budget, "shards": shards,
        "rounds": record.rounds, "bytes": record.bytes, "passes": chosen.passes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, help="rows a second that a worker scores")
    parser.add_argument("--measure", action="store_true", help="take the terms of results/scaling.jsonl anew")
    args = parser.parse_args()
    if not args.measure:
        print(tables(args.rate))
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from environment import environment

    runs = [sharded("core_set", 20_000, 256, 1000, shards) for shards in (1, 4, 16, 64)]
    runs += [sharded(name, rows, 4, 20, 16) for name in ("k_means", "cluster_margin", "typiclust") for rows in (140_000, 150_000)]
    for run in runs:
        print(f"{run['strategy']:<15} {run['rows']:>9,} x {run['width']}, {run['shards']:>2} shards: {run['passes']:>3} passes, "
              f"{run['rounds']:>3} rounds, {run['bytes']:>12,} bytes")  # fmt: skip
    print(json.dumps({"benchmark": "scaling", "runs": runs, **environment()}))


if __name__ == "__main__":
    main()
