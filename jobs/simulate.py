"""Compare strategies on a labelled pool, as a job; one that ended early goes on.

ray job submit --working-dir . -- python jobs/simulate.py simulation.yaml --json --store s3://lake/raystream
"""

import sys

from raystream.cli import main

if __name__ == "__main__":
    main(["simulate", *sys.argv[1:]])
