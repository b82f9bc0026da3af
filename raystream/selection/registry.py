"""The strategies by name. A new one is a module with its algorithm, and a line here and in `raystream.strategies`."""

from __future__ import annotations

from raystream.selection.badge import badge_strategy
from raystream.selection.batch_bald import batch_bald_strategy
from raystream.selection.cluster_margin import cluster_margin_strategy
from raystream.selection.combine import combine_strategy
from raystream.selection.core_set import core_set_strategy
from raystream.selection.diverse import diverse_strategy
from raystream.selection.facility_location import facility_location_strategy
from raystream.selection.k_center_two_round import k_center_two_round_strategy
from raystream.selection.k_means import k_means_strategy
from raystream.selection.k_means_pp import k_means_pp_strategy
from raystream.selection.lcmd import lcmd_strategy
from raystream.selection.prob_cover import prob_cover_strategy
from raystream.selection.ranking import random_strategy, top_k_strategy
from raystream.selection.stochastic import power_strategy, softmax_strategy, softrank_strategy
from raystream.selection.strategy import Strategy
from raystream.selection.typiclust import typiclust_strategy
from raystream.selection.u_herding import u_herding_strategy

STRATEGIES: dict[str, Strategy] = {
    "badge": badge_strategy,
    "batch_bald": batch_bald_strategy,
    "cluster_margin": cluster_margin_strategy,
    "combine": combine_strategy,
    "core_set": core_set_strategy,
    "diverse": diverse_strategy,
    "facility_location": facility_location_strategy,
    "k_center_two_round": k_center_two_round_strategy,
    "k_means": k_means_strategy,
    "k_means_pp": k_means_pp_strategy,
    "lcmd": lcmd_strategy,
    "power": power_strategy,
    "prob_cover": prob_cover_strategy,
    "random": random_strategy,
    "softmax": softmax_strategy,
    "softrank": softrank_strategy,
    "top_k": top_k_strategy,
    "typiclust": typiclust_strategy,
    "u_herding": u_herding_strategy,
}
"""What `select.strategy` may be."""
