"""A job server without a cluster: what Ray's client answers, in memory."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray


class FakeClient:
    """Answers as `ray.job_submission.JobSubmissionClient` does; jobs change when a test says so.

    Attributes:
        jobs: by id: status, metadata, entrypoint, message, driver_exit_code.
        packages: of each job, the names in its working directory.
        printed: of each job.
        versions, nodes: what the dashboard tells.
        sent: how many jobs were submitted.
        closing: after how many characters each connection for logs breaks; the job ends when there is none left.
        refusals: messages that the next submissions fail with.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, SimpleNamespace] = {}
        self.packages: dict[str, dict[str, bytes]] = {}
        self.runtime_envs: dict[str, dict[str, Any]] = {}
        self.resources: dict[str, dict[str, Any]] = {}
        self.printed: dict[str, str] = {}
        self.versions: dict[str, str] = {"rayVersion": ray.__version__, "pythonVersion": platform.python_version()}
        self.nodes: list[dict[str, Any]] = [{"state": "ALIVE", "resources_total": {"CPU": 4.0, "memory": 8.0 * 2**30}}]
        self.sent = 0
        self.closing: list[int] = []
        self.refusals: list[str] = []
        self.ends_as = "SUCCEEDED"

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict, metadata: dict, **resources: Any) -> str:
        if self.refusals:
            raise RuntimeError(self.refusals.pop(0))
        if submission_id in self.jobs:
            raise RuntimeError(
                f"Request failed with status code 400: Traceback\nValueError: Job with submission_id {submission_id} already exists."
            )
        self.sent += 1
        self.jobs[submission_id] = SimpleNamespace(
            submission_id=submission_id,
            status="RUNNING",
            metadata=metadata,
            entrypoint=entrypoint,
            message="",
            start_time=1_700_000_000_000,
            driver_exit_code=None,
        )
        with zipfile.ZipFile(Path(runtime_env["working_dir"])) as archive:
            self.packages[submission_id] = {name: archive.read(name) for name in archive.namelist()}
        self.runtime_envs[submission_id], self.resources[submission_id] = runtime_env, resources
        return submission_id

    def get_job_info(self, name: str) -> SimpleNamespace:
        if name not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return self.jobs[name]

    def list_jobs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(submission_id=None), *self.jobs.values()]

    def get_job_logs(self, name: str) -> str:
        return self.printed.get(name, "")

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        text = self.printed.get(name, "")
        if not self.closing:
            self.end(name, self.ends_as)
            return
        until = self.closing.pop(0)
        for start in range(0, until, 3):
            yield text[start : min(start + 3, until)]
        raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def stop_job(self, name: str) -> bool:
        self.end(name, "STOPPED")
        return True

    def end(self, name: str, status: str, message: str = "", code: int | None = None) -> None:
        """A job came to its end."""
        job = self.jobs[name]
        job.status, job.message, job.driver_exit_code = status, message, code

    def _do_request(self, method: str, path: str, **options: Any) -> SimpleNamespace:
        if path == "/api/v0/cluster_metadata":
            found: Any = self.versions
        elif path.startswith("/api/v0/nodes"):
            found = {"result": {"total": len(self.nodes), "result": self.nodes}}
        else:
            return SimpleNamespace(status_code=404)
        return SimpleNamespace(status_code=200, json=lambda: json.loads(json.dumps({"result": True, "data": found})))
