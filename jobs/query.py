"""What `raystream submit` and `ray job submit` run: the same query as `raystream query`, on the job's own cluster.

    ray job submit --working-dir . -- python jobs/query.py query.yaml --json --store s3://lake/raystream

The working directory is importable for `model.source`; pool and store lie where all nodes see them. A job that was stopped goes
on where it was when the same command runs again.
"""

import sys

from raystream.cli import main

if __name__ == "__main__":
    main(["query", *sys.argv[1:]])
