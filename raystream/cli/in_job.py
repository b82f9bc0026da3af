"""Refuse relative places in commands that run in a job of a Ray cluster, as `ray job submit` starts them."""

from __future__ import annotations

import os

from raystream.errors import QueryError
from raystream.lake.uri import is_relative, redacted
from raystream.query import Query

_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray gives it to a job's command, and to nothing else."""


def check_places(query: Query) -> Query:
    """The query, unless it runs in a job and what it reads or writes would go with that.

    Raises:
        QueryError: pool, store or output is a relative path.
    """
    named = {"pool.uri": query.pool.uris, "store.uri": [query.store.uri], "output": [query.output] if query.output else []}
    for key, uris in named.items():
        for uri in uris:
            check_place(key, uri)
    return query


def check_place(key: str, uri: str) -> str:
    """The path or URI, unless this is a job and it is relative: the current folder is the job's own copy of the one that was submitted.

    Args:
        key: the query's key or the option that names it.
        uri: of what is to be read or written.

    Raises:
        QueryError: it is relative.
    """
    if _VARIABLE in os.environ and is_relative(uri):
        raise QueryError(
            f"{key} {redacted(uri)} is relative, but in a job of a cluster it lies in the job's own copy of its working directory, which "
            "only this node has and which goes when the job ends; give a bucket, such as s3://…, or the absolute path of a folder that "
            "all nodes share"
        )
    return uri
