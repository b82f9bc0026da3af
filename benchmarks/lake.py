"""Object storage beside a disk: a real S3 server on loopback, behind a proxy that adds 20 ms to each request.

Four sections, each with the limit that it must keep:

* score: seconds of scoring from S3, as a multiple of those from the disk, workers being up (1.3); both on half of the cores, since the
  server and the proxy, which a lake has elsewhere, run on the other half
* plan: seconds of planning many files, as a part of reading their footers one after another (0.1)
* filter: bytes that pass the proxy when a filter keeps 5% of the row groups, as a part of the file (0.1)
* labels: matching labelled integer ids with a pool's: seconds (2) and the memory that it takes (200 MB)

    python benchmarks/lake.py                                               all sections, full size
    python benchmarks/lake.py --only plan --files 200                       one of them, or several, smaller
    python benchmarks/lake.py --rows 100000 --files 200 --labels 1000000 --rounds 1
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
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lake"))
from environment import environment
from score import make_pool
from servers import ACCESS_KEY, SECRET_KEY, Proxy, SeaweedFS

HERE = Path(__file__).parent
DELAY = 0.02
BUCKET = "benchmark"
LIMITS = {"score": 1.3, "plan": 0.1, "filter": 0.1, "labels_seconds": 2.0, "labels_mb": 200.0}


def keep_proxy(port: int, control: Connection) -> None:
    """In a process of its own, so that it takes no turns with the client's Python."""
    proxy = Proxy(port)
    proxy.faults.delay = DELAY
    control.send(proxy.port)
    while (said := control.recv()) != "stop":
        if said == "count":
            control.send((proxy.received, proxy.requests))
        else:
            proxy.received = proxy.requests = 0
    proxy.close()


@contextmanager
def s3_server(folder: Path) -> Iterator[tuple[pafs.FileSystem, dict[str, Any], Callable[[str], Any]]]:
    """The server as a file system, `pool.storage` for its proxy, and what asks the proxy to count or to forget."""
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true"}
    server = SeaweedFS(folder)
    context = mp.get_context("spawn")
    control, far = context.Pipe()
    process = context.Process(target=keep_proxy, args=(server.port, far), daemon=True)
    process.start()
    try:
        s3 = pafs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{server.port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )  # fmt: skip
        s3.create_dir(BUCKET)

        def tell(what: str) -> Any:
            control.send(what)
            return control.recv() if what == "count" else None

        yield s3, {"endpoint_override": f"http://127.0.0.1:{control.recv()}", "region": "us-east-1"}, tell
        control.send("stop")
        process.join(10)
    finally:
        server.close()


def query(uri: str, store: Path, **pool: Any) -> Any:
    """Margin scores of a small net, in process, on half of the cores; the server and the proxy have the others."""
    from raystream import Query

    return Query(
        pool={"uri": uri, "id": "id", "inputs": ["x"], **pool},
        model={"source": "score:network", "batch_size": 1024},
        select={"budget": 100, "strategy": "top_k"},
        cluster={"address": "in_process", "cpus_per_worker": max(1, (os.cpu_count() or 2) // 2)},
        store={"uri": str(store)},
    )


def score_section(args: argparse.Namespace, work: Path, s3: pafs.FileSystem, storage: dict[str, Any], tell: Callable[[str], Any]) -> dict:
    """The same pool from both places, in turns; a store of its own each time, so that everything is scored."""
    from raystream.pool import plan_pool
    from raystream.pool.files import open_parquet
    from raystream.query import Pool
    from raystream.run import score

    local = args.data.absolute() / f"pool-{args.rows}x128"
    make_pool(local, args.rows)
    pafs.copy_files(str(local), f"{BUCKET}/score", destination_filesystem=s3)
    seconds: dict[str, list[float]] = {"local": [], "s3": []}
    for round_ in range(-1, args.rounds):  # the first round warms both sides' caches
        for side, asked in (
            ("local", query(str(local), work / f"local{round_}")),
            ("s3", query(f"s3://{BUCKET}/score", work / f"s3{round_}", storage=storage)),
        ):
            tell("forget")
            done = score(asked)
            assert done.rows == args.rows
            if round_ >= 0:
                seconds[side].append(done.seconds.score)
            shutil.rmtree(asked.store.uri)
    received, requests = tell("count")
    began = time.perf_counter()
    plan = plan_pool(Pool(uri=f"s3://{BUCKET}/score", id="id", inputs=["x"], storage=storage))
    for unit in plan.units:
        with open_parquet(unit.file) as parquet:
            assert sum(batch.num_rows for batch in parquet.iter_batches(row_groups=unit.row_groups, columns=["id", "x"]))
    link = time.perf_counter() - began
    print(f"  reading alone, one unit after another, on the cores that the server and the proxy use as well: {link:.2f} s")
    ratio = statistics.median(seconds["s3"]) / statistics.median(seconds["local"])
    print(f"score {args.rows:,} x 128: local {statistics.median(seconds['local']):.2f} s, S3 {statistics.median(seconds['s3']):.2f} s")
    return {"rows": args.rows, "seconds": seconds, "reading_alone": link, "ratio": ratio, "requests": requests, "received": received}


def plan_section(args: argparse.Namespace, work: Path, s3: pafs.FileSystem, storage: dict[str, Any], tell: Callable[[str], Any]) -> dict:
    """Many small files: the plan, and their footers one after another (of a part of them, and scaled)."""
    from raystream.lake import storage_from
    from raystream.pool import list_files, plan_pool, read_footers
    from raystream.query import Pool

    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), 8)
    sink = pa.BufferOutputStream()
    values = pa.array(np.zeros(80, np.float32))
    pq.write_table(pa.table({"id": np.arange(10), "x": pa.FixedSizeListArray.from_arrays(values, type=kind)}), sink)
    for index in range(args.files):
        with s3.open_output_stream(f"{BUCKET}/many/part-{index:05d}.parquet") as out:
            out.write(sink.getvalue())
    pool = Pool(uri=f"s3://{BUCKET}/many", id="id", inputs=["x"], storage=storage)
    seconds = []
    for _ in range(args.rounds):
        tell("forget")
        began = time.perf_counter()
        assert len(plan_pool(pool).files) == args.files
        seconds.append(time.perf_counter() - began)
    requests = tell("count")[1]
    some = list_files(pool.uris, storage=storage_from(storage))[: min(100, args.files)]
    began = time.perf_counter()
    for file in some:
        read_footers([file], ["id", "x"])
    one_by_one = (time.perf_counter() - began) * args.files / len(some)
    ratio = statistics.median(seconds) / one_by_one
    print(f"plan {args.files:,} files: {statistics.median(seconds):.2f} s, one after another {one_by_one:.1f} s, {requests} requests")
    return {"files": args.files, "seconds": seconds, "one_by_one": one_by_one, "timed_one_by_one": len(some), "ratio": ratio}


def filter_section(args: argparse.Namespace, work: Path, s3: pafs.FileSystem, storage: dict[str, Any], tell: Callable[[str], Any]) -> dict:
    """100 row groups, 5 of which the filter keeps."""
    from raystream.run import score

    rows = max(10_000, args.rows // 5)
    rng = np.random.default_rng(0)
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), 128)
    values = pa.array(rng.standard_normal(rows * 128, dtype=np.float32))
    table = pa.table(
        {"id": np.arange(rows), "x": pa.FixedSizeListArray.from_arrays(values, type=kind), "day": np.arange(rows) * 100 // rows}
    )
    name = f"{BUCKET}/days.parquet"
    pq.write_table(table, name, filesystem=s3, row_group_size=rows // 100, use_dictionary=False, compression="none")
    size = s3.get_file_info(name).size
    tell("forget")
    done = score(query(f"s3://{name}", work / "filter", storage=storage, filters=[("day", ">=", 40), ("day", "<", 45)]))
    assert done.rows == rows // 20
    received, requests = tell("count")
    print(f"filter: {received:,} of {size:,} bytes in {requests} requests")
    return {"rows": rows, "bytes": size, "received": received, "requests": requests, "ratio": received / size}


LABELS = """
import json, sys, threading, time
import numpy as np, psutil, pyarrow as pa
from raystream.pool import read_labelled
folder, pool_rows = sys.argv[1], int(sys.argv[2])
process = psutil.Process()
ids = pa.array(np.random.default_rng(1).permutation(pool_rows * 20)[:pool_rows])
read_labelled([], "id", pa.int64())
before = process.memory_info().rss
began = time.perf_counter()
labelled = read_labelled([folder], "id", pa.int64())
read = time.perf_counter() - began
pa.default_memory_pool().release_unused()
resident = process.memory_info().rss - before
peak, going = [0], True
def watch():
    while going:
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
began = time.perf_counter()
found = int(labelled.find(ids).sum())
merge = time.perf_counter() - began
going = False; thread.join()
print(json.dumps({"labels": len(labelled), "found": found, "read_seconds": read, "merge_seconds": merge,
                  "resident_mb": resident / 1e6, "merge_peak_mb": (peak[0] - before) / 1e6}))
"""


def labels_section(args: argparse.Namespace, work: Path, *_: Any) -> dict:
    """In a process of its own: read the labelled ids, then look the pool's up among them."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(args.labels * 2)[: args.labels]
    folder = work / "labels"
    folder.mkdir()
    for index, part in enumerate(np.array_split(ids, 4)):
        pq.write_table(pa.table({"id": part}), folder / f"{index}.parquet", use_dictionary=False)
    pool = max(1000, args.labels // 10)
    run = subprocess.run([sys.executable, "-c", LABELS, str(folder), str(pool)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    print(
        f"labels {found['labels']:,} against {pool:,}: merge {found['merge_seconds']:.2f} s, read {found['read_seconds']:.2f} s, "
        f"{found['resident_mb']:.0f} MB held, {found['merge_peak_mb']:.0f} MB at most while merging"
    )
    return {"pool": pool, **found}


SECTIONS = {"score": score_section, "plan": plan_section, "filter": filter_section, "labels": labels_section}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--labels", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--data", type=Path, default=HERE / "data")
    args = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "lake", "delay": DELAY, "limits": LIMITS}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "server").mkdir()
        if set(args.only) - {"labels"}:
            with s3_server(work / "server") as (s3, storage, tell):
                for name in args.only:
                    if name != "labels":
                        result[name] = SECTIONS[name](args, work, s3, storage, tell)
        if "labels" in args.only:
            result["labels"] = labels_section(args, work)
    for name in ("score", "plan", "filter"):
        if name in result:
            print(f"{name}: {result[name]['ratio']:.3f} (limit {LIMITS[name]})")
    print(json.dumps(result | environment()))


if __name__ == "__main__":
    main()
