"""Tries a store: whether it can be written, keeps the promise that commits rest on, what its clock says, and if its queries are whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from raystream.engine.finding import Finding
from raystream.engine.manifest import query_folder, read_manifest
from raystream.engine.stored_plan import read_plan
from raystream.engine.stored_query import read_query
from raystream.engine.stores import Store, store_to_read
from raystream.errors import RaystreamError, StoreError, StoreUnreachable
from raystream.lake import LOCAL, Storage, redacted

_QUERIES_AT_A_TIME = 16
SKEW = 2.0
"""Seconds by which the store's clock and ours may differ: object storage says times in whole seconds."""


def check_store(uri: str, storage: Storage = LOCAL) -> Iterator[Finding]:
    """Put a small file, twice, read it, compare clocks, and remove it again."""
    try:
        store = store_to_read(uri, storage)
        there = store.exists("")
    except RaystreamError as error:
        yield Finding("store", "fail", str(error), error.exit_code)
        return
    uri = redacted(uri)
    folder = f"probe-{uuid.uuid4().hex}"
    name = f"{folder}/probe"
    try:
        before = time.time()
        first = store.put_if_absent(name, b"first")
        after = time.time()
        second = store.put_if_absent(name, b"second")
        content = store.read(name)
        written = next((entry.modified for entry in store.walk(folder)), None)
    except RaystreamError as error:
        yield Finding("store", "fail", str(error), error.exit_code)
        return
    finally:
        _clean(store, name, folder, there)
    if not first or second or content != b"first":
        yield Finding(
            "store", "fail", f"{uri} lets a second writer win, so that two runs could both commit; use another kind of storage", 3
        )
        return
    yield Finding("store", "ok", f"{uri} can be written, and of two writers the first wins")
    if written is None:
        yield Finding("clock", "warn", f"{uri} doesn't list what was just written; raystream gc there may see too little")
    else:
        yield _clock(written, before, after)
    yield _queries(store)


def _queries(store: Store) -> Finding:
    """Whether the manifest, plan and query.yaml of each query can be read; its units are left to `raystream verify`."""
    try:
        names = store.names("queries")
        with ThreadPoolExecutor(_QUERIES_AT_A_TIME) as threads:
            looked_at = list(threads.map(lambda name: _look(store, name), names))
    except RaystreamError as error:
        return Finding("queries", "fail", str(error), error.exit_code)
    damage = [found for found in looked_at if isinstance(found, StoreError)]
    count = len(damage) + sum(found is True for found in looked_at)
    if damage:
        return Finding("queries", "fail", f"of {count} in the store, {len(damage)} can't be used, first: {damage[0]}", damage[0].exit_code)
    return Finding(
        "queries", "ok", f"{count} in the store, each with its manifest, plan and query.yaml whole" if count else "none committed"
    )


def _look(store: Store, name: str) -> bool | StoreError:
    """Whether it is a committed query, or what is wrong with it; of one that isn't, `raystream gc` needs the plan, if there is one."""
    try:
        committed = store.exists(f"{query_folder(name)}/manifest.json")
        if committed:
            read_manifest(store, name)
            read_query(store, name)
        if committed or store.exists(f"{query_folder(name)}/plan.parquet"):
            read_plan(store, name)
    except StoreUnreachable:
        raise
    except StoreError as error:
        return error
    return committed


def _clock(written: float, before: float, after: float) -> Finding:
    ahead = written - after if written > after else min(0.0, written - before)
    if abs(ahead) <= SKEW:
        return Finding("clock", "ok", f"the store's agrees with ours within {SKEW:g} s")
    which = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "clock", "warn", f"the store's is {abs(ahead):,.0f} s {which} ours; set both by NTP; ages in raystream gc go by the store's"
    )


def _clean(store: Store, name: str, folder: str, there: bool) -> None:
    """Leave the store as it was."""
    try:
        store.discard(name)
        store.discard_folder(folder)
        if not there:
            store.discard_folder("")
    except RaystreamError:
        pass  # a store that can't be written is found out above
