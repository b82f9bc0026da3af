"""A batch to label as a Dagster asset: the job's own JSON becomes the asset's metadata."""

import json
import subprocess

import dagster

HEAD = "http://ray-head:8265"
COMMAND = f"raystream submit query.yaml --address {HEAD} --store s3://lake/raystream --wait --json"


@dagster.asset(retry_policy=dagster.RetryPolicy(max_retries=3, delay=300))
def batch_to_label() -> dagster.MaterializeResult:
    """The rows to label next; run again while the job runs, it waits for the same one."""
    done = subprocess.run(COMMAND.split(), stdout=subprocess.PIPE, text=True, check=True, cwd="/opt/project")
    job = json.loads(done.stdout)
    return dagster.MaterializeResult(metadata={"job": job["job"], "query": job["result"]["query"], "selection": job["result"]["selection"]})


definitions = dagster.Definitions(assets=[batch_to_label])
