"""Scores and embeddings in, chosen rows out: pure algorithms, usable with arrays alone.

Nothing here reads, writes or knows a cluster. Each strategy is a function in a module of its own;
`choose` finds it by name and reports on its batch. Farthest-first talks to its rows through
`shards.Shards`, so that they may lie in this process, on its disk or with others.
"""

from raystream.selection.badge import badge
from raystream.selection.choose import Chosen, choose
from raystream.selection.constraints import Constraints, Cost, Quota
from raystream.selection.core_set import FarthestFirst, core_set, farthest_first
from raystream.selection.hashing import row_hash
from raystream.selection.k_means import k_means
from raystream.selection.k_means_pp import k_means_pp
from raystream.selection.near_duplicates import NearDuplicates
from raystream.selection.ranking import random, random_order, top_k
from raystream.selection.represents import Assignment, assign, represents
from raystream.selection.shards import ArrayPart, EmbeddingPart, LocalShards, Shards
from raystream.selection.strategy import Candidates, Picked, Request, Strategy

__all__ = [
    "ArrayPart",
    "Assignment",
    "Candidates",
    "Chosen",
    "Constraints",
    "Cost",
    "EmbeddingPart",
    "FarthestFirst",
    "LocalShards",
    "NearDuplicates",
    "Picked",
    "Quota",
    "Request",
    "Shards",
    "Strategy",
    "assign",
    "badge",
    "choose",
    "core_set",
    "farthest_first",
    "k_means",
    "k_means_pp",
    "random",
    "random_order",
    "represents",
    "row_hash",
    "top_k",
]
