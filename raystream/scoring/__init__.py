"""Units to outputs: what a unit's key is, which units are scored already, who scores the others, and how they do it.

The scheduler decides, an executor runs workers (here in this process, in `cluster` as Ray actors), a worker scores a unit and commits
its receipt to the store.
"""
