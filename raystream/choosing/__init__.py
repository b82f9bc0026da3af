"""Outputs to a batch: the scored pool, labelled rows, candidates, columns that constraints go by, the table, the commit, verify."""
