"""Choose again, as a job, from what is scored; nothing is scored.

ray job submit --working-dir . -- python jobs/select.py query.yaml --json --store s3://lake/raystream
"""

import sys

from raystream.cli import main

if __name__ == "__main__":
    main(["select", *sys.argv[1:]])
