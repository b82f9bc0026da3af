"""The page in a browser: every view loads without an error, by keyboard alone, narrow and wide, and axe finds nothing serious.

Screenshots of each view lie in the test's folder, for people to look at.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from campaigns import make_loop, simulated, write_pool
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from PIL import Image
from streams import arrive, make_stream
from streams import run as run_stream

import raystream as rs
from raystream.loop.simulation.run import simulate
from raystream.service.page_routes import page_router, static_page
from raystream.store.events import EventLog
from raystream.store.opening import existing_store

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium")
AXE = os.environ.get("RAYSTREAM_AXE")
"""axe.min.js of npm's axe-core, where there is one."""
EVIL = "<img src=x onerror=\"document.title='owned'\">"
WIDE = "a-long-name-" + 60 * "x"
NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3))
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]


def picture(number: int) -> bytes:
    draw = np.random.default_rng(number)
    image = Image.fromarray(draw.integers(0, 255, (3, 4, 3), dtype=np.uint8)).resize((40, 400) if number % 3 == 0 else (160, 120))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store that holds a bit of everything."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        _fill(folder)
        yield folder


def _fill(folder: Path) -> None:
    rows = 600
    (folder / "page_nets.py").write_text(NETS)
    (folder / "images").mkdir()
    named = [f"img-{i:04d}" for i in range(rows - 1)] + [EVIL]
    table = pa.table(
        {"name": named, "image": pa.array([picture(i) for i in range(rows)], pa.binary()), "country": ["DE", EVIL] * (rows // 2)}
    )
    pq.write_table(table, folder / "images" / "a.parquet", row_group_size=100)
    pq.write_table(pa.table({"name": named[::50]}), folder / "labelled.parquet")
    query: dict[str, Any] = {
        "pool": {"uri": "images", "id": "name", "inputs": ["image"], "keep": ["country"], "labelled": ["labelled.parquet"]},
        "model": {"source": "page_nets:net", "preprocess": {"size": [32, 32]}, "classes": ["cat", EVIL, "dog"]},
        "select": {"budget": 250, "must_include": [EVIL]},
        "cluster": {"address": "in_process"},
    }
    rs.run(rs.Query(**query, store={"uri": "runs", "query": "pictures"}))
    rs.run(rs.Query(**query | {"select": {"budget": 40, "strategy": "core_set"}}, store={"uri": "runs", "query": "core"}))
    _fill_wide(folder)
    store = existing_store("runs")
    spec = store.read("queries/core/query.yaml")
    for name in ("broken", "going"):
        store.put(f"queries/{name}/query.yaml", spec)
        log = EventLog(store, f"queries/{name}")
        run = log.append("started", host="elsewhere", process=1, who=EVIL)
        log.append("planned", run=run, rows=1000, units=10, rows_todo=1000, units_todo=10)
        if name == "broken":
            log.append("failed", run=run, error=f"pool a.parquet: {EVIL}", exit_code=3)
    write_pool(folder, cost=[1.0 + i % 5 for i in range(120)])
    rs.ActiveLearningLoop(simulated(folder, select__cost={"column": "cost", "budget": 15})).step()
    rs.ActiveLearningLoop(make_loop(folder, loop__name="waiting")).step()
    simulate(
        rs.Simulation(
            pool={"uri": str(folder / "pool"), "id": "rid", "inputs": ["x"], "label": "y"},
            model={},
            select={"budget": 8},
            cluster={"address": "in_process", "workers": 1},
            store={"uri": "runs"},
            loop={
                "trainer": "sklearn",
                "train": {"estimator": "sklearn.linear_model:LogisticRegression"},
                "evaluate": "test.parquet",
                "rounds": 3,
            },
            simulate={"name": "sim", "strategies": ["top_k"], "seeds": 2},
        )
    )
    from pools import NETS as STREAM_NETS
    from pools import pool_table

    (folder / "user_nets.py").write_text(STREAM_NETS)
    arrive("a.parquet", pool_table(600))
    run_stream(make_stream())


def _fill_wide(folder: Path) -> None:
    """Rows of 66 columns, which the model sees as neither pictures nor texts, under a name as long as names may be."""
    rows, draw = 60, np.random.default_rng(0)
    (folder / "wide").mkdir()
    kept: dict[str, Any] = {f"column_{i:02d}_with_a_name": draw.normal(size=rows) for i in range(60)}
    kept |= {
        "text": ["many words " * 200] * rows,
        "nested": [{"a": [1, None], "b": EVIL}] * rows,
        "bytes": [b"\x00\xff" * 100] * rows,
        "null": pa.nulls(rows, pa.string()),
        "time": pa.array([10**15] * rows, pa.timestamp("us", "Europe/Berlin")),
        "hebrew": ["שלום עולם"] * rows,
    }
    logits = pa.FixedSizeListArray.from_arrays(pa.array(draw.normal(size=3 * rows).astype(np.float32)), 3)
    pq.write_table(pa.table({"key": [2**60 + i for i in range(rows)], "logits": logits, **kept}), folder / "wide" / "a.parquet")
    rs.run(
        rs.Query(
            pool={"uri": "wide", "id": "key", "keep": list(kept)},
            model={"kind": "columns", "logits": "logits"},
            select={"budget": 40, "strategy": "top_k"},
            cluster={"address": "in_process"},
            store={"uri": "runs", "query": WIDE},
        )
    )


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A server of the page, which also takes queries and keeps them."""
    app = FastAPI()
    store = existing_store(str(place / "runs"))
    app.include_router(page_router(lambda: store, lambda: None))
    app.state.asked = []

    @app.post("/v1/queries", status_code=202)
    async def take(request: Request) -> JSONResponse:
        app.state.asked.append((await request.json(), dict(request.headers)))
        return JSONResponse({"id": "next-one", "state": "queued"}, 202)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    address_ = f"http://127.0.0.1:{port}/"
    ASKED[address_] = app.state.asked
    yield address_
    server.should_exit = True
    thread.join()


ASKED: dict[str, list[tuple[dict[str, Any], dict[str, str]]]] = {}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a window of its own; whatever the page complains of fails the test."""
    told: list[str] = []
    contexts = []

    def go(url: str, *, width: int = 1280, scheme: str = "light", **more: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(url)
        page.wait_for_selector("h1")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not told


VIEWS = {
    "queries": "#/",
    "query": "#/query/pictures",
    "row": "#/query/pictures/1",
    "failed": "#/query/broken",
    "wide": f"#/query/{WIDE}",
    "compare": f"#/compare/pictures/core/{WIDE}",
    "loop": "#/loop/small",
    "waiting": "#/loop/waiting",
    "simulation": "#/simulation/sim",
    "stream": "#/stream/s",
    "streams": "#/streams",
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_loads_wide_and_narrow_and_axe_finds_nothing_serious(
    view: str, address: str, visit: Callable[..., Any], tmp_path: Path
) -> None:
    """In both colours; at 400 pixels nothing is cut off; no value of the pool becomes markup."""
    for width, scheme in ((1280, "light"), (400, "dark")):
        page = visit(address + VIEWS[view], width=width, scheme=scheme)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=str(tmp_path / f"{view}-{scheme}-{width}.png"), full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert "owned" not in page.title()
        assert page.locator("img[src=x]").count() == 0
        if AXE is not None:
            page.evaluate(Path(AXE).read_text())
            found = page.evaluate("async () => (await axe.run()).violations.filter((one) => ['serious', 'critical'].includes(one.impact))")
            assert not [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in found]


def test_the_list_is_filtered_sorted_and_follows_the_store(address: str, visit: Callable[..., Any], place: Path) -> None:
    """By keyboard: / filters, a heading sorts; a query that begins appears by itself, and its progress with it."""
    page = visit(address)
    assert page.locator("tbody tr").count() >= 4
    page.keyboard.press("/")
    page.keyboard.type("core_set broken")
    page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 1")
    assert page.locator("tbody th").inner_text() == "broken"
    page.locator("input[type=search]").fill("")
    page.get_by_role("button", name="rows").press("Enter")
    assert page.locator("tbody th").first.inner_text() == "pictures"
    store = existing_store(str(place / "runs"))
    store.put("queries/late/query.yaml", store.read("queries/core/query.yaml"))
    store.put("queries/late/token-0", b"the driver is here")
    log = EventLog(store, "queries/late")
    run = log.append("started", host="elsewhere", process=1, who="mira")
    log.append("planned", run=run, rows=1000, units=10, rows_todo=1000, units_todo=10)
    line = page.locator("tbody tr", has_text="late")
    line.wait_for()
    log.append("progress", run=run, rows=1000, rows_done=400, units=10, units_done=4, rate=50.0, seconds_left=12.0, workers=1)
    page.wait_for_function(
        "() => [...document.querySelectorAll('tbody tr')].some((row) => row.innerText.includes('late') && row.innerText.includes('40%'))"
    )
    assert "mira" in line.inner_text()
    assert "12 s left" in line.inner_text()


def test_two_queries_are_ticked_and_compared(address: str, visit: Callable[..., Any]) -> None:
    """The keys that differ, and the rows that both chose."""
    page = visit(address)
    for name in ("pictures", "core"):
        page.get_by_role("checkbox", name=f"Compare {name}").press("Space")
    assert page.get_by_role("link", name="Compare", exact=True).is_visible()
    page.keyboard.press("Enter")  # the link stands behind all queries, where the Tab key takes long to come
    page.wait_for_selector("#overlap")
    text = page.locator("main").inner_text()
    assert "select.strategy" in text
    assert "core_set" in text
    batches = [set(pq.read_table(f"runs/queries/{name}/selection.parquet").column("name").to_pylist()) for name in ("pictures", "core")]
    assert f"({len(batches[0] & batches[1])})" in text


def test_a_row_is_found_opened_and_left_by_keyboard(address: str, visit: Callable[..., Any]) -> None:
    """Arrow keys move among the cards, Enter opens one, which says why it was chosen and what it stands for, Escape closes it."""
    page = visit(address + "#/query/pictures")
    page.wait_for_selector(".gallery .card img")
    page.locator(".gallery .card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    place = page.evaluate("[...document.querySelectorAll('.gallery .card')].indexOf(document.activeElement)")
    assert place > 1
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    dialog.get_by_text(f"{place + 1} of 250", exact=True).wait_for()
    assert f"number {place + 1} of 250 by k_means" in dialog.inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"() => location.hash.endsWith('/{place + 1}')")
    dialog = page.locator("dialog[open]")
    dialog.get_by_role("button", name=re.compile("Show the rows")).press("Enter")
    dialog.locator(".near .note").first.wait_for()
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('dialog') === null")
    page.locator("#find").fill(EVIL)
    page.keyboard.press("Enter")
    page.locator("dialog[open] h2", has_text=EVIL).wait_for()
    assert "must_include" in page.locator("dialog[open]").inner_text()


def test_all_pictures_come_as_they_come_near(address: str, visit: Callable[..., Any]) -> None:
    """Fifty at a time; until then each card has its place, so that nothing moves."""
    page = visit(address + "#/query/pictures")
    page.wait_for_selector(".gallery .card img")
    height = page.evaluate("document.querySelector('.gallery').offsetHeight")
    for rank in (*range(25, 250, 50), 249):
        page.locator(".gallery li").nth(rank).scroll_into_view_if_needed()
        page.wait_for_function(f"() => document.querySelectorAll('.gallery li')[{rank}].querySelector('img') !== null")
    page.wait_for_function("() => document.querySelectorAll('.gallery img').length === 250")
    assert abs(page.evaluate("document.querySelector('.gallery').offsetHeight") - height) < 0.2 * height


def test_pictures_of_any_shape_keep_within_their_cards(address: str, visit: Callable[..., Any]) -> None:
    """Some are ten times as high as wide: all frames are square, and none is wider than another."""
    page = visit(address + "#/query/pictures")
    page.wait_for_selector(".gallery .card img")
    sizes = "[...document.querySelectorAll('.gallery .frame')].slice(0, 20).map((one) => [one.offsetWidth, one.offsetHeight])"
    page.wait_for_function("() => [...document.querySelectorAll('.gallery img')].slice(0, 20).every((one) => one.naturalWidth)")
    found = np.array(page.evaluate(sizes))
    assert np.abs(found - found[0, 0]).max() <= 1


def test_rows_of_many_columns_are_a_low_table(address: str, visit: Callable[..., Any]) -> None:
    """Four lines at most, whatever they hold; nobody is offered cards, nor told that arrow keys move; the list shows all of its columns."""
    page = visit(address + f"#/query/{WIDE}")
    page.wait_for_selector("table.rows tbody tr")
    page.get_by_role("button", name="Cards").wait_for(state="detached")
    assert max(page.evaluate("[...document.querySelectorAll('table.rows tbody tr')].map((one) => one.offsetHeight)")) < 110
    assert "Arrow keys" not in page.locator("main").inner_text()
    assert '{"a": [1, null], "b": "<img' in page.locator("table.rows tbody tr").first.inner_text()
    page = visit(address)
    page.wait_for_selector("table.list tbody tr")
    assert page.evaluate("(document.querySelector('.scroll').scrollWidth - document.querySelector('.scroll').clientWidth)") == 0


def test_a_loop_shows_what_its_labels_cost(address: str, visit: Callable[..., Any]) -> None:
    """Its metrics over labels and over costs, and the sum of these."""
    page = visit(address + "#/loop/small")
    page.locator("section[aria-labelledby=costly] svg.lines").wait_for()
    assert "cost of the labels" in page.locator("main").inner_text()


def test_a_lasso_makes_the_next_query(address: str, visit: Callable[..., Any]) -> None:
    """All rows of the pool lie in a lasso around the whole map; those to exclude stand in the file, and are sent to the server."""
    page = visit(address + "#/query/core")
    page.evaluate("document.getElementById('map').scrollIntoView()")
    canvas = page.locator("canvas[data-drawn='600']")
    canvas.wait_for()
    page.get_by_role("button", name="Lasso").click()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    corners = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.02)]
    for number, (x, y) in enumerate(corners):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if not number:
            page.mouse.down()
    page.mouse.up()
    selected = page.locator(".selected")
    selected.get_by_text("600 rows").wait_for()
    assert "40 chosen, 12 labelled" in selected.inner_text()
    # by keyboard: what is in view is selected, and Escape lets go of it
    canvas.press("Escape")
    selected.wait_for(state="detached")
    for _ in range(6):
        canvas.press("+")
    canvas.press("Enter")
    selected.wait_for()
    count = int(re.search(r"([\d,]+) rows? selected", page.locator(".said").inner_text())[1])  # type: ignore[index]
    assert 0 < count < 600
    exclude = selected.get_by_role("button", name="Exclude from the next query")
    exclude.click()
    text = page.locator("pre[aria-label='next.yaml']").inner_text()
    asked = rs.Query(**__import__("yaml").safe_load(text))
    assert len(asked.select.exclude) == count
    assert asked.select.strategy == "core_set"
    assert asked.store.query is None
    page.get_by_role("button", name="Ask the server").click()
    page.get_by_text("it appears among").wait_for()
    body, headers = ASKED[address][-1]
    assert sorted(body["select"]["exclude"]) == sorted(asked.select.exclude)
    assert not {"store", "cluster"} & set(body)
    assert headers["idempotency-key"]


def test_without_a_token_the_page_asks_for_one(place: Path, visit: Callable[..., Any], browser: Any) -> None:
    """A wrong one is refused; the right one is kept in this tab alone. Refused requests are errors on the console, and no other."""
    app = FastAPI()
    store = existing_store(str(place / "runs"))

    def caller(request: Request) -> None:
        from fastapi import HTTPException

        if request.headers.get("authorization") != "Bearer right":
            raise HTTPException(401, "give a valid token")

    app.include_router(page_router(lambda: store, caller))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("doesn't know this token").wait_for()
        page.get_by_label("Token").fill("right")
        page.keyboard.press("Enter")
        page.wait_for_selector("tbody tr")
        assert page.evaluate("sessionStorage.length") == 1
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Token").wait_for()
        page.close()
    finally:
        server.should_exit = True
        thread.join()


def test_the_same_as_one_file(place: Path, visit: Callable[..., Any], tmp_path: Path) -> None:
    """From the disk, without a server: rows, pictures, map and lasso; nothing is loaded, and no value of the pool runs."""
    file = tmp_path / "q.html"
    file.write_bytes(static_page(existing_store(str(place / "runs")), "pictures"))
    page = visit(file.as_uri())
    page.wait_for_selector(".gallery .card img")
    page.evaluate("document.getElementById('map').scrollIntoView()")
    canvas = page.locator("canvas[data-drawn='600']")
    canvas.wait_for()
    canvas.press("Enter")
    page.locator(".selected").wait_for()
    page.locator(".gallery .card").first.click()
    page.locator("dialog[open] img").wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert "owned" not in page.title()
    page.screenshot(path=str(tmp_path / "file.png"))
