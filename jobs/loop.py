"""Take a loop one step further as a job: it ends waiting for labels, finished or stopped; a schedule runs it again.

ray job submit --working-dir . -- python jobs/loop.py loop.yaml --json --store s3://lake/raystream
"""

import sys

from raystream.cli import main

if __name__ == "__main__":
    main(["loop", *sys.argv[1:]])
