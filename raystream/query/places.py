"""Where what is asked reads and writes, by the keys that say so."""

from __future__ import annotations

from raystream.errors import QueryError
from raystream.lake.uri import is_relative, redacted
from raystream.query import Query
from raystream.query.loop import Loop
from raystream.query.simulate import Simulation, Stream

Asked = Query | Loop | Simulation | Stream


def places(asked: Asked) -> dict[str, list[str]]:
    """List the paths and URIs of all that is read or written beside the model, by key."""
    found = {"pool.uri": asked.pool.uris, "store.uri": [asked.store.uri]}
    if isinstance(asked, Query):
        found["output"] = [asked.output] if asked.output else []
    if isinstance(asked, Loop):
        found["loop.oracle"] = asked.loop.oracle_uris
    if isinstance(asked, Simulation):
        found["loop.evaluate"] = asked.loop.evaluate_uris
    return found


def refuse_relative(key: str, uri: str) -> None:
    """Refuse a place that goes with the job: a job's current folder is its own copy of the one that was submitted.

    Args:
        key: the query's key or the option that names it.
        uri: of what is to be read or written.

    Raises:
        QueryError: it is relative.
    """
    if is_relative(uri):
        raise QueryError(
            f"{key} {redacted(uri)} is relative, but in a job of a cluster it lies in the job's own copy of its working directory, which "
            "only this node has and which goes when the job ends; give a bucket, such as s3://…, or the absolute path of a folder that "
            "all nodes share"
        )
