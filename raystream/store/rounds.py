"""The batches of a loop's rounds: what a round's query chose, and with it the control rows that are asked for beside.

Round 3 of loop `digits` is query `digits-r3`. Its batch, as people are asked for it, lies in the round's folder with a record that names
it. A round may ask for control rows alone; then there is no query of that name, and what is known of the pool is the last one's.
What people are asked is what the loop asks: a round's model may know but some of the classes, or, before any training, nothing of the task.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import yaml

from raystream.errors import StoreError
from raystream.store.opening import existing_store
from raystream.store.protocol import Store
from raystream.store.queries import find_query, query_folder, read_manifest, read_parquet
from raystream.store.result import Result, read_result

_ROUND = re.compile(r"(.+)-r([1-9][0-9]{0,8})")


def query_of_round(loop: str, round_: int) -> str:
    """Name the query of a round."""
    return f"{loop}-r{round_}"


def round_folder(loop: str, round_: int) -> str:
    """Name the folder of a round in its store."""
    return f"loops/{loop}/rounds/{round_:04d}"


def as_asked(result: Result) -> Result:
    """Add to what a loop's query chose the control rows of its round, last, and the loop's task and classes; others stay as they are.

    Raises:
        StoreError: the round's records are gone or damaged.
    """
    match = _ROUND.fullmatch(result.query)
    record = None if match is None else _record(result.store, match[1], int(match[2]))
    if match is None or record is None or record["query"] != result.query:
        return result
    return _with_batch(result, match[1], int(match[2]), record)


def is_round(result: Result) -> bool:
    """Tell whether a batch is one of a loop's."""
    match = _ROUND.fullmatch(result.query)
    return match is not None and _record(result.store, match[1], int(match[2])) is not None


def find_batch(store: Store, name: str) -> Result | None:
    """Find the batch of a query or of a loop's round by its whole name; None where the store has none of it.

    Raises:
        StoreError: what belongs to it is gone or damaged.
    """
    manifest = read_manifest(store, name)
    if manifest is not None:
        return as_asked(read_result(store, manifest))
    match = _ROUND.fullmatch(name)
    record = None if match is None else _record(store, match[1], int(match[2]))
    if match is None or record is None or record["query"]:
        return None
    for before in range(int(match[2]) - 1, 0, -1):
        known = read_manifest(store, query_of_round(match[1], before))
        if known is not None:
            last = read_result(store, known)
            return _with_batch(replace(last, manifest=replace(known, query=name)), match[1], int(match[2]), record)
    return None


def load_batch(store_uri: str, name: str) -> Result:
    """Load what people are asked for by a query or a loop's round, given its name or the beginning of a query's.

    Raises:
        QueryError: there is none of this name, or several begin with it.
        StoreError: what belongs to it is gone or damaged.
    """
    store = existing_store(store_uri)
    found = find_batch(store, name) if _ROUND.fullmatch(name) else None
    if found is None:
        found = find_batch(store, find_query(store, name))
    assert found is not None
    return found


def batch_folder(store: Store, query: str) -> str:
    """Name the folder in which records about a batch stand: its query's, or that of a round without one."""
    match = _ROUND.fullmatch(query)
    record = None if match is None else _record(store, match[1], int(match[2]))
    return query_folder(query) if match is None or record is None or record["query"] else round_folder(match[1], int(match[2]))


def _record(store: Store, loop: str, round_: int) -> dict[str, Any] | None:
    """Read the record that a round was asked for."""
    if "/" in loop:
        return None
    name = f"{round_folder(loop, round_)}/asked.json"
    data = store.read_if_there(name)
    if data is None:
        return None
    try:
        found = json.loads(data)
        return {"query": str(found["query"]), "batch": str(found["batch"])}
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"store: {store.place(name)} is damaged; restore it, or begin the loop anew under another name") from None


def _with_batch(result: Result, loop: str, round_: int, record: dict[str, Any]) -> Result:
    """Return the batch as people are asked for it."""
    selection = read_parquet(result.store.read(f"{round_folder(loop, round_)}/{record['batch']}"))
    resolved = result.manifest.resolved
    model = resolved["model"] | _what_is_asked(result.store, loop)
    return replace(result, selection=selection, manifest=replace(result.manifest, resolved=resolved | {"model": model}))


def _what_is_asked(store: Store, loop: str) -> dict[str, Any]:
    """Return the task and the names of the classes, as far as the loop gives them."""
    name = f"loops/{loop}/loop.yaml"
    try:
        section = dict(yaml.safe_load(store.read(name)).get("model") or {})
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise StoreError(f"store: {store.place(name)} is damaged; restore it, or begin the loop anew under another name") from None
    return {"task": section.get("task", "classes"), "classes": section.get("classes")}
