"""Scoring a pool: raystream beside a hand-written loop and Ray Data, with the same outputs, threads and processes.

Each side reads the same Parquet files, runs the same net, computes margin and entropy, and writes scores and a
256-d float16 embedding, fsynced. Workers are up on all sides before the clock starts; the sides take turns. Each side does
the whole work three times in a round, and the last time counts: on a virtual machine the first touch of memory for the
page cache costs more than the writing. The ceiling is the net itself: its arithmetic on one thread a process, printed beside
the table.

    python benchmarks/score.py                  # 4M x 128, five rounds
    python benchmarks/score.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raystream import Query
from raystream.scoring.outputs import embedding_type

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

DIMENSION, CLASSES, WIDTH = 128, 10, 256
ROWS_PER_FILE, ROWS_PER_GROUP = 500_000, 50_000
BATCH = 1024
WORKERS = 2
TIMES = 3


def network() -> torch.nn.Module:
    """Linear 128-256-256-10 with dropout."""
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(DIMENSION, WIDTH), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip


def make_pool(folder: Path, rows: int) -> None:
    """Write the pool once; it is found again by its row count."""
    done = folder.with_suffix(".done")
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), DIMENSION)
    for start in range(0, rows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, rows - start)
        values = pa.array(rng.standard_normal(count * DIMENSION, dtype=np.float32))
        table = pa.table({"id": np.arange(start, start + count), "x": pa.FixedSizeListArray.from_arrays(values, type=kind)})
        path = folder / f"part-{start // ROWS_PER_FILE:03d}.parquet"
        pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, use_dictionary=False, compression="none")
    done.touch()


# --- the hand-written loop ---------------------------------------------------------------------------------------------


def margin_and_entropy(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What somebody would write: softmax, the two largest, the entropy."""
    log_p = torch.log_softmax(logits, 1)
    p = log_p.exp()
    top = p.topk(2, 1)
    entropy = -(p * log_p).sum(1)
    margin = 1 - (top.values[:, 0] - top.values[:, 1])
    return margin.numpy(), entropy.numpy(), top.indices[:, 0].int().numpy(), top.values[:, 0].numpy()


def write_outputs(folder: Path, name: str, ids: list[pa.Array], logits: list[torch.Tensor], embeddings: list[np.ndarray]) -> None:
    """The same two files, fsynced."""
    margin, entropy, prediction, confidence = margin_and_entropy(torch.cat(logits))
    table = pa.table(
        {"id": pa.chunked_array(ids), "margin": margin, "entropy": entropy, "prediction": prediction, "confidence": confidence,
         "row": np.arange(len(margin))}
    )  # fmt: skip
    with open(folder / f"{name}.parquet", "wb") as file:
        pq.write_table(table, file, use_dictionary=False, compression="none")
        os.fsync(file.fileno())
    kind = embedding_type(WIDTH, "float16")
    schema = pa.schema([pa.field("embedding", kind, nullable=False)])
    with open(folder / f"{name}.arrow", "wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for block in embeddings:
                values = pa.array(block.reshape(-1))
                writer.write_batch(pa.record_batch([pa.FixedSizeListArray.from_arrays(values, type=kind)], schema=schema))
        os.fsync(file.fileno())


def hand_written(files: list[Path], out: Path, start: mp.synchronize.Barrier, done: mp.Queue) -> None:  # type: ignore[type-arg]
    """One process of the loop; a file of outputs for each 50,000 rows, the size of a unit."""
    warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only arrays, which the loop only reads
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    torch.manual_seed(0)
    net = network().eval()
    for _ in range(TIMES):
        start.wait()
        began = time.perf_counter()
        score_files(net, files, out)
        done.put((began, time.perf_counter()))


def score_files(net: torch.nn.Sequential, files: list[Path], out: Path) -> None:
    """Reader, torch and writer."""
    with torch.inference_mode():
        for path in files:
            parquet = pq.ParquetFile(path)
            for group in range(parquet.num_row_groups):
                ids, logits, embeddings = [], [], []
                for batch in parquet.iter_batches(batch_size=16 * BATCH, row_groups=[group]):
                    x = torch.from_numpy(batch.column("x").flatten().to_numpy(zero_copy_only=True).reshape(-1, DIMENSION))
                    block = np.empty((len(x), WIDTH), np.float16)
                    for low in range(0, len(x), BATCH):
                        hidden = net[:-1](x[low : low + BATCH])
                        logits.append(net[-1](hidden))
                        torch.from_numpy(block[low : low + BATCH]).copy_(hidden)
                    ids.append(batch.column("id"))
                    embeddings.append(block)
                write_outputs(out, f"{path.stem}-{group}", ids, logits, embeddings)


def run_hand_written(pool: Path, out: Path) -> float:
    """Seconds of the loop in as many processes, from their common start to the last one's end."""
    context = mp.get_context("spawn")
    files = sorted(pool.glob("*.parquet"))
    barrier, done = context.Barrier(WORKERS + 1), context.Queue()
    processes = [context.Process(target=hand_written, args=(files[i::WORKERS], out, barrier, done)) for i in range(WORKERS)]
    for process in processes:
        process.start()
    for _ in range(TIMES):
        empty(out)
        barrier.wait()
        times = [done.get() for _ in processes]
    for process in processes:
        process.join()
    return max(end for _, end in times) - min(begin for begin, _ in times)


def empty(out: Path) -> None:
    """An empty folder, and a quiet disk."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.sync()


# --- Ray Data ----------------------------------------------------------------------------------------------------------


class DataWorker:
    """What `map_batches` runs: the same net, outputs and files, a file a block."""

    def __init__(self, out: str) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._net, self._out = network().eval(), Path(out)

    def __call__(self, batch: pa.Table) -> pa.Table:
        import uuid

        column = batch.column("x").combine_chunks()
        x = torch.from_numpy(np.array(column.flatten()).reshape(-1, DIMENSION))
        logits, embeddings = [], []
        with torch.inference_mode():
            block = np.empty((len(x), WIDTH), np.float16)
            for low in range(0, len(x), BATCH):
                hidden = self._net[:-1](x[low : low + BATCH])
                logits.append(self._net[-1](hidden))
                torch.from_numpy(block[low : low + BATCH]).copy_(hidden)
            embeddings.append(block)
        write_outputs(self._out, uuid.uuid4().hex, batch.column("id").chunks, logits, embeddings)
        return pa.table({"rows": [len(x)]})


def run_ray_data(pool: Path, out: Path) -> float:
    """Seconds from the first block that an actor takes to the last: actor start is left out."""
    import ray

    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_parquet(str(pool)).map_batches(
        DataWorker,
        fn_constructor_args=(str(out),),
        batch_size=50_000,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
        num_cpus=0.5,
    )
    warm = ray.data.range(WORKERS * 2).map_batches(_Warm, compute=ray.data.ActorPoolStrategy(size=WORKERS), num_cpus=0.5, batch_size=1)
    began = time.perf_counter()
    warm.materialize()  # Ray Data's own first start
    began = time.perf_counter()
    warm.materialize()
    overhead = time.perf_counter() - began
    for _ in range(TIMES):
        empty(out)
        began = time.perf_counter()
        dataset.materialize()
        seconds = time.perf_counter() - began - overhead
    ray.shutdown()
    return seconds


class _Warm:
    """An actor as heavy to start as `DataWorker` that does nothing: what its run takes is the start."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._net = network().eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return batch


# --- raystream ---------------------------------------------------------------------------------------------------------


def query(pool: Path, store: Path) -> Query:
    """The query whose scoring is timed."""
    return Query(
        pool={"uri": str(pool), "id": "id", "inputs": ["x"]},
        model={"source": "score:network", "embedding_dtype": "float16", "batch_size": BATCH},
        select={"budget": 1000},
        cluster={"address": "local", "workers": WORKERS},
        store={"uri": str(store)},
    )


def run_raystream(pool: Path, out: Path) -> float:
    """Seconds from the first unit assigned to the last receipt, with all workers up before."""
    from raystream.cluster.growing import Processes
    from raystream.scoring.plan import resolve
    from raystream.scoring.progress import Silent
    from raystream.scoring.session import Session

    asked = resolve(query(pool, out))
    with (
        Processes(asked.query.cluster, Silent()) as processes,
        Session(asked.job, asked.store, asked.folder, Silent(), processes) as session,
    ):
        for _ in range(TIMES):
            shutil.rmtree(out / "units", ignore_errors=True)
            os.sync()
            plan = asked.plan(asked.pool.units)
            began = time.perf_counter()
            units = session.score(plan)
            seconds = time.perf_counter() - began
    assert sum(unit.rows for unit in units if unit) == asked.pool.rows
    return seconds


class PeakMemory:
    """The kernel's peak resident size (VmHWM) of any one of this process's descendants, looked up every second."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            for process in psutil.Process().children(recursive=True):
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                except OSError:
                    continue
                line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
                self.peak = max(self.peak, int(line.split()[1]) * 1024)


def cold_start(pool: Path, store: Path) -> float:
    """Seconds from the shell to the first unit scored, by the query's own event log."""
    spec = store / "query.yaml"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(query(pool, store).to_yaml())
    began = time.time()
    command = [sys.executable, "-m", "raystream.cli", "score", str(spec)]
    subprocess.run(command, check=True, cwd=Path(__file__).parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    [log] = store.glob("queries/*/workers.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return min(event["time"] for event in events if event["event"] == "UnitEnded") - began


def net_alone(rows: int) -> float:
    """Seconds that the net's arithmetic takes on one thread for a process's share of the rows, from memory."""
    torch.set_num_threads(1)
    net, x = network().eval(), torch.randn(BATCH, DIMENSION)
    with torch.inference_mode():
        for _ in range(20):
            net(x)
        began = time.perf_counter()
        for _ in range(200):
            net(x)
        return (time.perf_counter() - began) / 200 * rows / BATCH / WORKERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--sides", default="hand_written,raystream,ray_data")
    args = parser.parse_args()
    pool = args.data / f"pool-{args.rows}x{DIMENSION}"
    make_pool(pool, args.rows)
    runners: dict[str, Callable[[Path, Path], float]] = {
        "hand_written": run_hand_written, "raystream": run_raystream, "ray_data": run_ray_data,
    }  # fmt: skip
    sides = args.sides.split(",")
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    peaks: dict[str, int] = dict.fromkeys(sides, 0)
    for round_ in range(args.rounds):
        for side in sides:
            out = args.data / "out"
            empty(out)
            with PeakMemory() as memory:
                seconds[side].append(runners[side](pool, out))
            peaks[side] = max(peaks[side], memory.peak)
            print(f"round {round_} {side:14} {seconds[side][-1]:7.2f} s", flush=True)
    shutil.rmtree(args.data / "out", ignore_errors=True)
    cold = cold_start(pool, args.data / "out") if "raystream" in sides else None
    shutil.rmtree(args.data / "out", ignore_errors=True)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    print(f"\n{args.rows:,} x {DIMENSION}, {WORKERS} workers of one thread; the net alone takes {net_alone(args.rows):.1f} s")
    print(f"{'side':14} {'median s':>9} {'rows/s':>10} {'ratio':>6} {'peak MiB':>9}")
    for side in sides:
        ratio = medians["raystream"] / medians[side] if "raystream" in medians else float("nan")
        print(f"{side:14} {medians[side]:9.2f} {args.rows / medians[side]:10,.0f} {ratio:6.2f} {peaks[side] / 2**20:9.0f}")
    if cold is not None:
        print(f"cold start, from the shell to the first unit: {cold:.1f} s")
    result = {"benchmark": "score", "rows": args.rows, "dimension": DIMENSION, "seconds": seconds, "medians": medians,
              "peak_bytes": peaks, "cold_start_seconds": cold, "net_alone_seconds": net_alone(args.rows), **environment()}  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
