"""A cluster, its store and its clock in one deterministic simulation: thousands of runs with faults a minute, each told by its seed.

What decides is raystream's own: the scheduler, `Scoring`, `Session`, the lookup and the packs, a worker's retries and its commit, the
commit of a query, the store in a bucket with its one retry policy, `raystream gc`. What is simulated is what surrounds it: processes,
which may be killed at any of their steps, a network, a bucket's server, and time.

    PYTHONPATH=tests python -m simulation --seeds 2000        # which seeds fail, and a tally by fault
    PYTHONPATH=tests python -m simulation --seed 1234 -v      # one run, step by step
"""
