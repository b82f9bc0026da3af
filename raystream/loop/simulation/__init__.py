"""Strategies compared before money is spent: rounds in memory on a labelled pool, what they are worth, and how sure that is."""
