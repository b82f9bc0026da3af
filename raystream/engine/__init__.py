"""Turns units into stored scores and embeddings: who scores what, where, and what is kept.

The scheduler decides, an executor runs workers (in this process or as Ray actors), a worker scores a unit and commits
it to the store, and the merge joins the units into one scored pool. This room and `service` are the only ones that
import ray, and only when a query asks for it.
"""
