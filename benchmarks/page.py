"""How soon the page shows what it is asked for, in a headless Chromium beside the server on the same cores.

* list: a store of 1,000 committed queries, from the address to the first hundred lines; cold: the server has just started
* pictures: a batch of 1,000 photographs of 640 x 480, from the address to the first screenful, then by scrolling to the last of all
* map: 200,000 rows with 1,000 chosen, from the address to the drawn map, then a frame of moving it by the mouse

Beside the list stands a plain page of as many bytes, which is what the browser itself takes. Medians of `--runs`, each in a window of its
own; only the first has a server that has seen nothing yet, so it stands apart as cold.

    python benchmarks/page.py
"""

from __future__ import annotations

import argparse
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from environment import environment

import raystream as rs

QUERIES, PICTURES, POINTS = 1_000, 1_000, 200_000
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
    for (let at = 0; at < 120; at += 1) {
        scrollTo(0, list.offsetTop + at * 120);
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
    for (let at = 0; at < 60; at += 1) {
        send('pointermove', 200 + 4 * at);
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
    (folder / "pictures").mkdir()
    rows = 2 * PICTURES
    images = pa.array([photograph(i) for i in range(rows)], pa.binary())
    pq.write_table(
        pa.table({"name": [f"p{i}" for i in range(rows)], "image": images}), folder / "pictures" / "a.parquet", row_group_size=100
    )
    (folder / "points").mkdir()
    draw = np.random.default_rng(0)
    embedding = draw.normal(size=(40, 64))[draw.integers(0, 40, POINTS)] * 2 + draw.normal(size=(POINTS, 64))
    table = {"name": [f"r{i:06d}" for i in range(POINTS)], "embedding": vectors(embedding), "logits": vectors(embedding[:, :10])}
    pq.write_table(pa.table(table), folder / "points" / "a.parquet", row_group_size=20_000)
    here: dict[str, Any] = {"cluster": {"address": "in_process"}}
    store = {"uri": str(folder / "runs")}
    rs.run(
        rs.Query(
            pool={"uri": str(folder / "pictures"), "id": "name", "inputs": ["image"]},
            model={"source": "page_nets:net", "preprocess": {"size": [32, 32]}},
            select={"budget": PICTURES, "candidates": "all"},
            store=store | {"query": "pictures"},
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
    for number in range(QUERIES - 2):
        name = f"query-{number:04d}"
        copy = shutil.copytree(source, source.parent / name)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, "query": name}))
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

    def seconds(self, address: str, condition: str) -> float:
        """From the address to the moment in which this holds on the page."""
        began = time.perf_counter()
        self.page.goto(address, wait_until="commit")
        self.page.wait_for_function(f"() => {condition}", polling="raf")
        return time.perf_counter() - began


def measure(browser: Any, address: str) -> dict[str, float]:
    """One run of everything, each in a fresh window."""
    found: dict[str, float] = {}
    window = Window(browser)
    found["list"] = window.seconds(f"{address}#/", "document.querySelectorAll('tbody tr').length >= 100")
    found["list_bytes"] = window.bytes
    window.context.close()
    window = Window(browser)
    found["plain"] = window.seconds(f"{address}plain/{int(found['list_bytes'])}", "document.querySelector('p') !== null")
    window.context.close()
    window = Window(browser)
    cards = f"document.querySelectorAll('.gallery .card').length === {PICTURES}"
    first = "[...document.querySelectorAll('.gallery img')].slice(0, 40).filter((one) => one.complete && one.naturalWidth).length === 40"
    found["pictures"] = window.seconds(f"{address}#/query/pictures", f"{cards} && {first}")
    began = time.perf_counter()
    window.page.evaluate(
        "async () => { const list = document.querySelector('.gallery');"
        " for (let at = 0; document.querySelectorAll('.gallery img').length < "
        f"{PICTURES}; at += 800) {{ scrollTo(0, list.offsetTop + (at % list.offsetHeight)); await new Promise(requestAnimationFrame); }} }}"
    )
    found["pictures_scrolled_to_all"] = time.perf_counter() - began
    frames = window.page.evaluate(SCROLL)
    found["pictures_frame_ms"] = statistics.median(frames)
    window.context.close()
    window = Window(browser)
    drawn = "(document.getElementById('map')?.scrollIntoView(), document.querySelector('canvas')?.dataset.drawn !== undefined)"
    found["map"] = window.seconds(f"{address}#/query/points", drawn)
    frames = window.page.evaluate(MOVE)
    found["map_move_ms"] = statistics.median(frames)
    window.context.close()
    return found


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    before = environment()
    with tempfile.TemporaryDirectory() as folder:
        store = fill(Path(folder))
        with sync_playwright() as playwright, served(store) as address:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            runs = [measure(browser, address) for _ in range(given.runs + 1)]
            browser.close()
    cold, warm = runs[0], {key: statistics.median(run[key] for run in runs[1:]) for key in runs[0]}
    print(f"{'':<26}{'cold':>10}{'median':>10}")
    for key in cold:
        print(f"{key:<26}{cold[key]:>10.3f}{warm[key]:>10.3f}")
    print(json.dumps({"benchmark": "page", "cold": cold, "median": warm, "runs": given.runs, "environment": before}))


if __name__ == "__main__":
    main()
