"""Trainers: a table of labelled rows to a model. What they share is in `training`, their names are in `by_name`."""
