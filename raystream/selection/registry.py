"""The strategies' functions by name, as the catalogue names their code."""

from __future__ import annotations

from raystream.query.catalogue import TRAITS
from raystream.selection.strategy import Strategy

STRATEGIES: dict[str, Strategy] = {name: traits.function for name, traits in TRAITS.items()}
"""What `select.strategy` may be."""
