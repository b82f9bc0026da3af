"""The strategies by name. A new one is a module with its algorithm, and a line here and in `raystream.strategies`."""

from __future__ import annotations

from raystream.selection.badge import badge_strategy
from raystream.selection.core_set import core_set_strategy
from raystream.selection.k_means import k_means_strategy
from raystream.selection.k_means_pp import k_means_pp_strategy
from raystream.selection.ranking import random_strategy, top_k_strategy
from raystream.selection.strategy import Strategy

STRATEGIES: dict[str, Strategy] = {
    "badge": badge_strategy,
    "core_set": core_set_strategy,
    "k_means": k_means_strategy,
    "k_means_pp": k_means_pp_strategy,
    "random": random_strategy,
    "top_k": top_k_strategy,
}
"""What `select.strategy` may be."""
