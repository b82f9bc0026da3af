"""How soon the page shows what it is asked for, in a headless Chromium beside the server on the same cores.

* list: a store of 1,000 committed queries, from the address to the first hundred lines. Under 1 s
* pictures: a batch of 1,000 photographs of 640 x 480, from the address to all cards with the first screenful of pictures. Under 2 s; then a
  frame of scrolling on to the last of all. The pool's row groups hold 100 photographs; `one_group` and `many_groups` are the same with all
  2,000 in one and with ten in each
* map: 200,000 rows with 1,000 chosen, from the address to the drawn map. Under 2 s; then a frame of moving it by the mouse

Each run has a server that has seen nothing yet, and each figure a window of its own: these are first views. `again` is the same once more
from that server. Beside each stands a plain page of as many bytes from the same server, which is what the browser itself takes, and the
processor time of server and browser, which says on a busy machine what a quiet one would take. Medians of `--runs`. Ends in 1 if a first
view takes longer than it may.

    python benchmarks/page.py                      a minute or two; most of it makes the store
    python benchmarks/page.py --folder /tmp/page   keeps the store there for the next time
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

import raystream as rs
from raystream.store.opening import existing_store
from raystream.store.queries import read_manifest

QUERIES, PICTURES, POINTS = 1_000, 1_000, 200_000
GROUPS = {"pictures": 100, "one_group": 2_000, "many_groups": 10}
"""Photographs of a row group."""
MOST = {"list": 1.0, **dict.fromkeys(GROUPS, 2.0), "map": 2.0}
"""Seconds that a first view may take."""
NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3))
"""
SERVER = """
import sys
import uvicorn
from fastapi import FastAPI, Response
from raystream.service.page_routes import page_router
from raystream.store.opening import existing_store

app, store = FastAPI(), existing_store(sys.argv[1])
app.include_router(page_router(lambda: store, lambda: None))

@app.get("/plain/{size}")
def plain(size: int) -> Response:
    words = "a b c d e f g h i j " * (size // 20)
    return Response(f"<!doctype html><html><body><h1>plain</h1><p>{words}</p></body></html>", media_type="text/html")

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


SCROLL = """async () => {
    const list = document.querySelector('.gallery');
    const times = [];
    let before = performance.now();
    for (let at = 0; at < 40; at += 1) {
        scrollTo({ top: list.offsetTop + at * 360, behavior: 'instant' });
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        times.push(now - before);
        before = now;
    }
    return times;
}"""
MOVE = """async () => {
    const canvas = document.querySelector('canvas');
    const box = canvas.getBoundingClientRect();
    canvas.setPointerCapture = () => {};
    const send = (kind, x) => canvas.dispatchEvent(
        new PointerEvent(kind, { bubbles: true, pointerId: 1, clientX: box.left + x, clientY: box.top + 200 }));
    const times = [];
    send('pointerdown', 200);
    let before = performance.now();
    for (let at = 0; at < 20; at += 1) {
        send('pointermove', 200 + 12 * at);
        await new Promise(requestAnimationFrame); // the page draws in this one
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        times.push(now - before);
        before = now;
    }
    send('pointerup', 440);
    return times;
}"""


def vectors(values: np.ndarray) -> pa.Array:
    """(n, d) as a fixed-size list column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), values.shape[1])


def photograph(number: int) -> bytes:
    """A JPEG of about 40 KB."""
    from PIL import Image

    draw = np.random.default_rng(number)
    image = Image.fromarray(draw.integers(0, 255, (15, 20, 3), dtype=np.uint8)).resize((640, 480))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def fill(folder: Path) -> Path:
    """A store with a batch of pictures, a large map, and a thousand queries."""
    sys.path.insert(0, str(folder))
    (folder / "page_nets.py").write_text(NETS)
    rows = 2 * PICTURES
    images = pa.array([photograph(i) for i in range(rows)], pa.binary())
    for name, group in GROUPS.items():
        (folder / name).mkdir()
        table = pa.table({"name": [f"p{i}" for i in range(rows)], "image": images})
        pq.write_table(table, folder / name / "a.parquet", row_group_size=group)
    (folder / "points").mkdir()
    draw = np.random.default_rng(0)
    embedding = draw.normal(size=(40, 64))[draw.integers(0, 40, POINTS)] * 2 + draw.normal(size=(POINTS, 64))
    points = {"name": [f"r{i:06d}" for i in range(POINTS)], "embedding": vectors(embedding), "logits": vectors(embedding[:, :10])}
    pq.write_table(pa.table(points), folder / "points" / "a.parquet", row_group_size=20_000)
    here: dict[str, Any] = {"cluster": {"address": "in_process"}}
    store = {"uri": str(folder / "runs")}
    for name in GROUPS:
        rs.run(
            rs.Query(
                pool={"uri": str(folder / name), "id": "name", "inputs": ["image"]},
                model={"source": "page_nets:net", "preprocess": {"size": [32, 32]}},
                select={"budget": PICTURES, "candidates": "all"},
                store=store | {"query": name},
                **here,
            )
        )
    rs.run(
        rs.Query(
            pool={"uri": str(folder / "points"), "id": "name"},
            model={"kind": "columns", "logits": "logits", "embedding": "embedding"},
            select={"budget": 1000, "strategy": "core_set"},
            store=store | {"query": "points"},
            **here,
        )
    )
    source = folder / "runs" / "queries" / "points"
    manifest = read_manifest(existing_store(str(folder / "runs")), "points")
    assert manifest is not None
    for number in range(QUERIES - 1 - len(GROUPS)):
        name = f"query-{number:04d}"
        copy = shutil.copytree(source, source.parent / name)
        (copy / "manifest.json").write_bytes(dataclasses.replace(manifest, query=name).to_json())
    return folder / "runs"


@contextmanager
def served(store: Path) -> Iterator[str]:
    """A server in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(store), str(port)])
    address = f"http://127.0.0.1:{port}/"
    try:
        while True:
            try:
                urllib.request.urlopen(address).read()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


class Window:
    """A browser's window of its own, which counts the bytes that come."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.bytes = 0
        self.page.on("response", self._count)

    def _count(self, response: Any) -> None:
        self.bytes += int(response.headers.get("content-length", 0))

    def seconds(self, address: str, condition: str) -> tuple[float, float]:
        """From the address to the moment in which this holds on the page; and of all processors in all processes meanwhile."""
        before, began = processor_seconds(), time.perf_counter()
        self.page.goto(address, wait_until="commit")
        self.page.wait_for_function(f"() => {condition}", polling="raf")
        took, after = time.perf_counter() - began, processor_seconds()
        return took, sum(seconds - before.get(process, 0.0) for process, seconds in after.items())


def processor_seconds() -> dict[int, float]:
    """What the server and the browser have taken so far, by process."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


CARDS = f"document.querySelectorAll('.gallery .card').length === {PICTURES}"
SCREENFUL = "[...document.querySelectorAll('.gallery img')].slice(0, 40).filter((one) => one.complete && one.naturalWidth).length === 40"
VIEWS = {
    "list": ("#/", "document.querySelectorAll('tbody tr').length >= 100"),
    **{name: (f"#/query/{name}", f"{CARDS} && {SCREENFUL}") for name in GROUPS},
    "map": (
        "#/query/points",
        "(document.getElementById('map')?.scrollIntoView({ behavior: 'instant' }), "
        "document.querySelector('canvas')?.dataset.drawn) !== undefined",
    ),
}
MOVES = {"pictures": ("pictures_frame_ms", SCROLL), "map": ("map_frame_ms", MOVE)}


def measure(browser: Any, address: str) -> dict[str, float]:
    """Each view from one server, for the first time, once more, and a plain page of as many bytes."""
    found: dict[str, float] = {}
    for name, (where, condition) in VIEWS.items():
        for key in (name, f"{name}_again"):
            window = Window(browser)
            found[key], found[f"{key}_processor"] = window.seconds(f"{address}{where}", condition)
            found[f"{name}_bytes"] = window.bytes
            if key == name and name in MOVES:
                frame, script = MOVES[name]
                found[frame] = statistics.median(window.page.evaluate(script))
            window.context.close()
        window = Window(browser)
        found[f"{name}_plain"], _ = window.seconds(f"{address}plain/{int(found[f'{name}_bytes'])}", "document.querySelector('p') !== null")
        window.context.close()
    return found


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the store is made, and kept; left out, it goes with the run")
    given = parser.parse_args()
    before = environment()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = given.folder or Path(temporary)
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            fill(folder)
            (folder / "whole").touch()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        runs = []
        for _ in range(given.runs):
            with served(folder / "runs") as address:
                runs.append(measure(browser, address))
            print(" ".join(f"{name} {runs[-1][name]:.2f}" for name in VIEWS), file=sys.stderr, flush=True)
        browser.close()
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{'seconds':<12}{'first':>8}{'again':>8}{'plain':>8}{'most':>8}{'processor':>11}")
    for name, most in MOST.items():
        print(f"{name:<12}{medians[name]:>8.2f}{medians[f'{name}_again']:>8.2f}{medians[f'{name}_plain']:>8.2f}{most:>8.1f}{medians[f'{name}_processor']:>11.2f}")
    for key in ("pictures_frame_ms", "map_frame_ms"):
        print(f"{key:<18}{medians[key]:>8.1f}")
    missed = [name for name, most in MOST.items() if medians[name] > most]
    figures = {"median": medians, "each": {name: [run[name] for run in runs] for name in VIEWS}, "runs": given.runs, "missed": missed}
    print(json.dumps({"benchmark": "page", **figures, "environment": before}))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
