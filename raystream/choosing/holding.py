"""Where the candidates' embeddings are held while a batch is chosen: in this process, or with selection actors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raystream.choosing.rounds import Rounds
from raystream.query import Query
from raystream.scoring.scored_pool import ScoredPool
from raystream.selection import LocalPieces, Rows, Shards, working_bytes
from raystream.selection.shards import DEFAULT_MEMORY
from raystream.store.vectors import fetch


class Actors(Protocol):
    """Where selection actors come from. None is started until they are asked for."""

    def selection_actors(self, most: int) -> AbstractContextManager[Rounds]:
        """Up to so many, which end with the block."""


@dataclass(frozen=True)
class Held:
    """The candidates' embeddings; None when nobody asks for them. `rounds` is None unless actors hold them."""

    shards: Shards | None = None
    rounds: Rounds | None = None


def memory_of(query: Query) -> int:
    """Bytes of embeddings that one process may hold."""
    return DEFAULT_MEMORY if query.select.memory == "auto" else query.select.memory


@contextmanager
def held_embeddings(query: Query, pool: ScoredPool, candidates: np.ndarray | None, actors: Actors) -> Iterator[Held]:
    """The embeddings of these rows of the pool, ascending; of all rows for None. Actors end with the block.

    Actors are for strategies that work on stretches of rows, once the working copy is larger than a process may hold.
    There are as many as it takes, or as the cluster has room for; what they then can't hold, they stream from the store.

    Raises:
        ClusterError: there is no cluster, or it has no room for a single actor.
    """
    if not query.needs_embedding:
        yield Held()
        return
    memory = memory_of(query)
    size = working_bytes(len(pool) if candidates is None else len(candidates), pool.dimension)
    processes = math.ceil(size / memory)
    if processes <= 1 or not query.select.traits.sharded or query.cluster.address == "in_process":
        # what fits as a working copy may be held as it is stored, too
        parts, positions = pool.embeddings(candidates, memory if processes <= 1 else 0)
        fetch(parts)
        yield Held(Shards(Rows(parts, positions, query.select.metric), 1, LocalPieces, memory=memory))
        return
    rows = Rows(*pool.embeddings(candidates), query.select.metric)
    with actors.selection_actors(processes) as rounds:
        yield Held(Shards(rows, rounds.processes, rounds.spread, memory=memory), rounds)
