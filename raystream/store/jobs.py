"""What a store knows of a cluster's jobs: which query each one runs, so that its progress is found after the cluster is gone."""

from __future__ import annotations

import json

from raystream.store.protocol import Store

_FOLDER = "jobs"


def note_job(store: Store, job: str, query: str) -> None:
    """Keep that a job runs this query; of several, one after the other, the last counts.

    Raises:
        StoreError: it can't be written.
    """
    store.put(f"{_FOLDER}/{job}.json", json.dumps({"query": query}).encode())


def query_of_job(store: Store, job: str) -> str | None:
    """The whole name of the query that a job runs or ran; None if it got to none, or ran elsewhere.

    Raises:
        StoreError: the store can't be read.
    """
    try:
        found = json.loads(store.read_if_there(f"{_FOLDER}/{job}.json") or b"{}")
    except ValueError:
        return None
    name = found.get("query") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None
