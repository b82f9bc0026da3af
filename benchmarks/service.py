"""What a decision over HTTP costs beside a bare endpoint, and whether a queue survives its server.

    python benchmarks/service.py                                     a few minutes
    python benchmarks/service.py --seconds 5 --rounds 1 --queries 10      a minute or so
    python benchmarks/service.py --minutes 10                        then also so long at half the rate

decide    single-row requests at --rate a second, sent when they are due, over 32 connections, to `raystream serve`, and in turn to a
          FastAPI endpoint that runs the same network on the same rows and answers its score (`bare`), and to the same one where each
          answer waits until a line of it is on disk (`durable`: an append and an fdatasync in one of 32 threads), one process each.
          Seconds from when a request was due to its answer, after two seconds of the same that don't count. At least 300 a second, the
          99th percentile at most 1.5 x that of the durable endpoint, since raystream's answers are durable, too; that of the bare one is
          beside it. Client and servers share the cores and the disk.
steady    with --minutes: at half of that; no error, and the server's memory and files before and after, which don't grow, but for a file
          of decisions each half minute.
queue     --queries queries by 5 owners at once, 2 running at a time each, the server killed (SIGKILL) after a third and two thirds of
          them and started again: all end, none twice, and how far owners are apart.

Medians of --rounds. Prints tables, then one JSON line; ends in 1 if a requirement isn't met.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import gc
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import raystream as rs
from benchmarks.environment import environment

WIDTH, CLASSES, CONNECTIONS, OWNERS = 32, 10, 32, 5
MOST_RATIO, LEAST_RATE = 1.5, 300
WARM = 2.0
"""Seconds of load before each round that don't count: some machines take memory away that nobody looks at; it comes back page by page."""
GROWTH = 32e6
"""Bytes of memory that a server may have more after the steady load: what its allocators keep."""
NETS = f"""
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear({WIDTH}, 64), nn.ReLU(), nn.Linear(64, {CLASSES}))
"""
BARE = """
import asyncio, json, os, sys
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, "")
import torch, uvicorn
from fastapi import FastAPI, Request
from user_nets import net

torch.set_num_threads(1)
app, model = FastAPI(), net().eval()
threads, log = ThreadPoolExecutor(32), os.open("durable.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def keep(line):
    os.write(log, line)
    os.fdatasync(log)

@app.post("/decide")
async def decide(request: Request):
    body = await request.json()
    with torch.inference_mode():
        p = torch.softmax(model(torch.tensor([row["x"] for row in body["rows"]])), 1).topk(2).values
        found = {"request_id": body["request_id"], "scores": (1 - (p[:, 0] - p[:, 1])).tolist()}
    if sys.argv[2] == "durable":
        await asyncio.get_running_loop().run_in_executor(threads, keep, json.dumps(found).encode())
    return found

@app.get("/healthz")
async def healthz():
    return {}

uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""


def rows(count: int, seed: int) -> pa.Table:
    values = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    x = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), WIDTH)
    return pa.table({"rid": [f"{seed}-{i}" for i in range(count)], "x": x})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """A server as a process of its own."""

    def __init__(self, command: list[str], port: int) -> None:
        self.port, self._command = port, command
        self.start()

    def start(self) -> None:
        atexit.register(self.kill)  # also where the benchmark itself fails
        with open("server.log", "ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5).close()
                return
            except (OSError, urllib.error.URLError):
                if self.process.poll() is not None:
                    raise SystemExit(Path("server.log").read_text()[-2000:]) from None
                time.sleep(0.1)

    def kill(self) -> None:
        atexit.unregister(self.kill)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


def load(port: int, path: str, rate: float, seconds: float, name: str) -> tuple[list[float], int]:
    """Seconds from due to answered of each request, and how many weren't answered with 200.

    Without this process's own garbage collection, which would stop the client for a quarter of a second now and then: all requests that
    are due in it would be late, whichever server they are for.
    """
    gc.disable()
    try:
        return asyncio.run(_load(port, path, rate, seconds, name))
    finally:
        gc.enable()


async def _load(port: int, path: str, rate: float, seconds: float, name: str) -> tuple[list[float], int]:
    data = np.random.default_rng(7).standard_normal((256, WIDTH)).astype(np.float32).tolist()
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    took: list[float] = []
    errors = 0
    began = time.perf_counter()

    async def one(number: int) -> None:
        nonlocal errors
        due = began + number / rate
        body = json.dumps({"request_id": f"{name}-{number}", "rows": [{"rid": f"{name}-{number}", "x": data[number % 256]}]}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await idle.get()
        while True:
            writer.write(head.encode() + body)
            try:
                told = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                break
            except (asyncio.IncompleteReadError, ConnectionError):  # closed after some idle seconds, as of a machine that stood still
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        length = int(told.partition("content-length:")[2].partition("\r\n")[0])
        await reader.readexactly(length)
        idle.put_nowait((reader, writer))
        errors += " 200 " not in told.partition("\r\n")[0]
        took.append(time.perf_counter() - due)

    tasks = []
    for number in range(int(rate * seconds)):
        wait = began + number / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    while not idle.empty():
        idle.get_nowait()[1].close()
    return took, errors


def percentile(took: list[float], share: float) -> float:
    return float(np.quantile(took, share)) * 1e3


def serving(port: int, **more: Any) -> Server:
    config = {"port": port, "allow": ["pool"], "imports": ["user_nets:net"], "cluster": {"address": "in_process"}, **more}
    Path("serve.yaml").write_text(json.dumps(config))
    return Server([sys.executable, "-m", "raystream.cli", "serve", "--config", "serve.yaml"], port)


def decide(rate: float, seconds: float, rounds: int, minutes: float) -> dict[str, Any]:
    Path("lake").mkdir()
    pq.write_table(rows(2000, 0), "lake/a.parquet")
    os.utime("lake/a.parquet", (1e9, 1e9))
    model = {"source": "user_nets:net", "batch_size": 512}
    pool = {"uri": "lake", "id": "rid", "inputs": ["x"]}
    rs.run_stream(rs.Stream(pool=pool, model=model, cluster={"address": "in_process"}, stream={"budget": 0.1, "name": "s"}))
    Path("bare.py").write_text(BARE)
    ports = {kind: free_port() for kind in ("bare", "durable")}
    plain = {kind: Server([sys.executable, "bare.py", str(port), kind], port) for kind, port in ports.items()}
    ours = serving(free_port(), streams=["s"])
    client = rs.Client(f"http://127.0.0.1:{ours.port}")
    client.decide("s", [{"rid": "warm", "x": [0.0] * WIDTH}])
    figures: dict[str, list[tuple[float, float, float, int]]] = {"raystream": [], "bare": [], "durable": []}
    asked = [*((name, port, "/decide") for name, port in ports.items()), ("raystream", ours.port, "/v1/streams/s/decide")]
    for number in range(rounds):
        for name, port, path in asked:
            load(port, path, rate, WARM, f"{name}{number}-warm")
            began = time.perf_counter()
            took, errors = load(port, path, rate, seconds, f"{name}{number}")
            done = len(took) / (time.perf_counter() - began)
            figures[name].append((done, percentile(took, 0.5), percentile(took, 0.99), errors))
    found: dict[str, Any] = {}
    print(f"\ndecide, {rate:g} requests a second\n{'':12} {'a second':>10} {'median ms':>10} {'99 % ms':>10} {'errors':>8}")
    for name, of in figures.items():
        done, middle, high = (statistics.median(row[i] for row in of) for i in range(3))
        errors = sum(row[3] for row in of)
        found[name] = {"rate": done, "p50_ms": middle, "p99_ms": high, "errors": errors, "p99_ms_of_rounds": [row[2] for row in of]}
        print(f"{name:12} {done:10.1f} {middle:10.2f} {high:10.2f} {errors:8}")
    for other in ports:
        ratios = [one[2] / two[2] for one, two in zip(figures["raystream"], figures[other], strict=True)]
        found[f"ratio_{other}"] = statistics.median(ratios)
        print(f"99th percentile: {found[f'ratio_{other}']:.2f} x that of the {other} endpoint")
    if minutes:
        found["steady"] = steady(ours, rate / 2, minutes)
    for server in (ours, *plain.values()):
        server.kill()
    return found


def steady(server: Server, rate: float, minutes: float) -> dict[str, Any]:
    load(server.port, "/v1/streams/s/decide", rate, 30.0, "warm")  # what grows until it is full is full then
    before, files = server.memory, files_of("runs")
    took, errors = load(server.port, "/v1/streams/s/decide", rate, 60 * minutes, "steady")
    after, there = server.memory, files_of("runs")
    print(f"steady: {len(took):,} requests, {errors} errors, median {percentile(took, 0.5):.2f} ms, 99 % {percentile(took, 0.99):.2f} ms")
    print(f"        memory {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after; files {files} before, {there} after")
    quick = {"p50_ms": percentile(took, 0.5), "p99_ms": percentile(took, 0.99)}
    return {"requests": len(took), "errors": errors, **quick, "memory": [before, after], "files": [files, there]}


def files_of(folder: str) -> dict[str, int]:
    """How many files of decisions there are, and how many others."""
    found = [path for path in Path(folder).rglob("*") if path.is_file()]
    decisions = sum(path.parent.name == "decisions" for path in found)
    return {"decisions": decisions, "others": len(found) - decisions}


def queue(queries: int) -> dict[str, Any]:
    Path("pool").mkdir()
    for file in range(4):
        pq.write_table(rows(500, file), f"pool/{file}.parquet")
    from raystream.service.tokens import new_token

    made = [new_token(f"owner{i}", "submit", None) for i in range(OWNERS)]
    Path("tokens.txt").write_text("\n".join(line for _, line in made))
    server = serving(free_port(), tokens="tokens.txt", store={"uri": "queue"}, limits={"running": 2, "processes": 4})
    clients = [rs.Client(f"http://127.0.0.1:{server.port}", token) for token, _ in made]
    asked = []
    for number in range(queries):
        owner = 0 if number < queries // 2 else number % OWNERS  # half of all by one, before the others come
        select = {"budget": 2 + number}
        body = {"pool": {"uri": "pool", "id": "rid", "inputs": ["x"]}, "model": {"source": "user_nets:net"}, "select": select}
        asked.append((owner, clients[owner].submit(body)))
    began, killed, order = time.perf_counter(), 0, list[int]()
    runs, seen = Path("queue/service/runs"), set[str]()
    of = {run: owner for owner, run in asked}
    while len(seen) < queries:
        for file in runs.glob("*/ended.json"):
            if file.parent.name not in seen:
                seen.add(file.parent.name)
                order.append(of[file.parent.name])
        if killed < 2 and len(seen) >= (killed + 1) * queries // 3:
            server.kill()
            server.start()
            killed += 1
        time.sleep(0.2)
    seconds = time.perf_counter() - began
    states = [clients[owner].state(run) for owner, run in asked]
    names = [state["query"] for state in states]
    last = {owner: max(place for place, of in enumerate(order) if of == owner) + 1 for owner in set(order)}
    found = {
        "queries": queries,
        "committed": sum(state["state"] == "committed" for state in states),
        "distinct": len(set(names)),
        "kills": killed,
        "seconds": seconds,
        "last_of_owner": last,
    }
    print(f"\nqueue: {found['committed']} of {queries} committed, {found['distinct']} distinct, {killed} kills, {seconds:.0f} s")
    print(f"place of each owner's last query, owner 0 having asked for half of all before the others: {last}")
    server.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=LEAST_RATE)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--queries", type=int, default=50)
    given = parser.parse_args()
    root = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, folder)
        Path("user_nets.py").write_text(NETS)
        found = {"decide": decide(given.rate, given.seconds, given.rounds, given.minutes)} if given.seconds else {}
        if given.queries:
            found["queue"] = queue(given.queries)
        os.chdir("/")
    missed = []
    if "decide" in found:
        ours = found["decide"]["raystream"]
        missed += ["rate"] * (ours["rate"] < 0.97 * given.rate) + ["ratio"] * (found["decide"]["ratio_durable"] > MOST_RATIO)
        missed += ["errors"] * (ours["errors"] > 0)
        if "steady" in found["decide"]:
            (before, after), (files, there) = found["decide"]["steady"]["memory"], found["decide"]["steady"]["files"]
            missed += ["steady"] * (found["decide"]["steady"]["errors"] > 0) + ["memory"] * (after > before + GROWTH)
            missed += ["files"] * (there["others"] > files["others"] + 4 or there["decisions"] > files["decisions"] + 4 * given.minutes + 2)
    if "queue" in found:
        missed += ["queue"] * (not found["queue"]["committed"] == found["queue"]["distinct"] == given.queries)
    print(json.dumps({"benchmark": "service", **environment(), **found, "missed": missed}))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
