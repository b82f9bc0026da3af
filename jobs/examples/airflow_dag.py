"""A batch to label every Monday, from Airflow: no provider, one command a task. A retry finds the running job, or goes on from there."""

from datetime import datetime, timedelta

from airflow import DAG
from airflow.providers.standard.operators.bash import BashOperator

HEAD = "http://ray-head:8265"
STORE = "s3://lake/raystream"

with DAG(
    "raystream",
    schedule="0 6 * * 1",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5), "cwd": "/opt/project"},
):
    score = BashOperator(
        task_id="score",
        bash_command=f"raystream submit query.yaml --as score --address {HEAD} --store {STORE} --wait --json",
    )
    choose = BashOperator(
        task_id="choose",
        bash_command=f"raystream submit query.yaml --address {HEAD} --store {STORE} --wait --json",
    )
    score >> choose
