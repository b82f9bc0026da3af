"""Scores and embeddings in, chosen rows out: pure algorithms, usable with arrays alone.

Nothing here reads, writes or knows a cluster. Each strategy is a function in a module of its own;
`choose` finds it by name and reports on its batch. Farthest-first talks to its rows through
`shards.Shards`, so that they may lie in this process, on its disk or with others.
"""

from raystream.selection.check import check_strategy
from raystream.selection.constraints import Constraints
from raystream.selection.hashing import draw, row_hash, uniform
from raystream.selection.lazy_bounds import Gain
from raystream.selection.limits import Cost, Quota
from raystream.selection.neighbours import Edges, Neighbours, nearest_neighbours, within
from raystream.selection.repeats import NearDuplicates
from raystream.selection.represents import Assignment, assign, represents
from raystream.selection.rows import Rows
from raystream.selection.select import Chosen, choose, select
from raystream.selection.shards import ArrayPart, EmbeddingPart, Factory, LocalPieces, LocalShards, Pieces, Shards, working_bytes
from raystream.selection.strategies.badge import badge
from raystream.selection.strategies.batch_bald import batch_bald
from raystream.selection.strategies.cluster_margin import cluster_margin
from raystream.selection.strategies.core_set import FarthestFirst, core_set, farthest_first
from raystream.selection.strategies.diverse import combine, diverse
from raystream.selection.strategies.facility_location import facility_location
from raystream.selection.strategies.k_center_two_round import TwoRounds, k_center_two_round, two_rounds
from raystream.selection.strategies.k_means import k_means
from raystream.selection.strategies.k_means_pp import k_means_pp
from raystream.selection.strategies.lcmd import LargestCluster, largest_cluster, lcmd
from raystream.selection.strategies.prob_cover import prob_cover
from raystream.selection.strategies.ranking import power, random, random_order, softmax, softrank, top_k, walk
from raystream.selection.strategies.typiclust import typiclust
from raystream.selection.strategies.u_herding import u_herding
from raystream.selection.strategy import Candidates, Picked, Request, Strategy

__all__ = [
    "ArrayPart",
    "Assignment",
    "Candidates",
    "Chosen",
    "Constraints",
    "Cost",
    "Edges",
    "EmbeddingPart",
    "Factory",
    "FarthestFirst",
    "Gain",
    "LargestCluster",
    "LocalPieces",
    "LocalShards",
    "NearDuplicates",
    "Neighbours",
    "Picked",
    "Pieces",
    "Quota",
    "Request",
    "Rows",
    "Shards",
    "Strategy",
    "TwoRounds",
    "assign",
    "badge",
    "batch_bald",
    "check_strategy",
    "choose",
    "cluster_margin",
    "combine",
    "core_set",
    "diverse",
    "draw",
    "facility_location",
    "farthest_first",
    "k_center_two_round",
    "k_means",
    "k_means_pp",
    "largest_cluster",
    "lcmd",
    "nearest_neighbours",
    "power",
    "prob_cover",
    "random",
    "random_order",
    "represents",
    "row_hash",
    "select",
    "softmax",
    "softrank",
    "top_k",
    "two_rounds",
    "typiclust",
    "u_herding",
    "uniform",
    "walk",
    "within",
    "working_bytes",
]
