"""What a store knows of a cluster's jobs: which queries each one runs, so that its progress is found after the cluster is gone.

It stands in the names of empty files, `jobs/<job>/<query>`, so that to look it up is to list them.
"""

from __future__ import annotations

from raystream.store.protocol import Store

JOBS = "jobs"


def note_job(store: Store, job: str, query: str) -> None:
    """Keep that a job runs this query.

    Raises:
        StoreError: it can't be written.
    """
    store.put(f"{JOBS}/{job}/{query}", b"")


def query_of_job(store: Store, job: str) -> str | None:
    """Return the whole name of the query that a job runs or ran; of several, the last. None if it got to none, or ran elsewhere.

    Raises:
        StoreError: the store can't be read.
    """
    noted = [file for file in store.walk(f"{JOBS}/{job}") if not file.name.rpartition("/")[2].startswith(".")]
    return max(noted, key=lambda file: file.modified).name.rpartition("/")[2] if noted else None
