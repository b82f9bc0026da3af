"""Score a pool as a job, and choose nothing: queries over it later score nothing.

ray job submit --working-dir . -- python jobs/score.py query.yaml --json --store s3://lake/raystream
"""

import sys

from raystream.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
