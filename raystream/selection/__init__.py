"""Scores and embeddings in, chosen rows out: pure algorithms, usable with arrays alone.

Nothing here reads, writes or knows a cluster. Each strategy is a function in a module of its own;
`choose` finds it by name and reports on its batch. Farthest-first talks to its rows through
`shards.Shards`, so that they may lie in this process, on its disk or with others.
"""

from raystream.selection.batch_bald import batch_bald
from raystream.selection.check import check_strategy
from raystream.selection.choose import Chosen, choose
from raystream.selection.constraints import Constraints, Cost, Quota
from raystream.selection.core_set import FarthestFirst, core_set, farthest_first
from raystream.selection.facility_location import facility_location
from raystream.selection.hashing import draw, row_hash, uniform
from raystream.selection.k_means import k_means
from raystream.selection.near_duplicates import NearDuplicates
from raystream.selection.ranking import random, random_order, top_k, walk
from raystream.selection.represents import Assignment, assign, represents
from raystream.selection.rows import Rows
from raystream.selection.shards import ArrayPart, EmbeddingPart, LocalShards, Shards
from raystream.selection.stochastic import power, softmax, softrank
from raystream.selection.strategy import Candidates, Picked, Request, Strategy
from raystream.selection.u_herding import u_herding

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
    "Rows",
    "Shards",
    "Strategy",
    "assign",
    "batch_bald",
    "check_strategy",
    "choose",
    "core_set",
    "draw",
    "facility_location",
    "farthest_first",
    "k_means",
    "power",
    "random",
    "random_order",
    "represents",
    "row_hash",
    "softmax",
    "softrank",
    "top_k",
    "u_herding",
    "uniform",
    "walk",
]
