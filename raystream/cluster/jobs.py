"""Jobs on a Ray cluster, by its job server: submit one once, look at it, follow what it prints, stop it.

The server is asked over HTTP, from anywhere; nothing here connects to Ray itself. What a job is about lies in its metadata, and how
far it is in its store: the server's own memory ends with the head.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shlex
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import ray

from raystream.cluster.connection import first_line
from raystream.errors import ClusterError, QueryError
from raystream.figures import in_bytes

_ANSWER_SECONDS = 10.0
_LOOK_SECONDS = 2.0
_TRIES = 10
_STOP_LOOKS = 30
_STATES = {"PENDING": "queued", "RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}
_OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_NOBODY_YET = "No available agent"
_pause = time.sleep


@dataclass(frozen=True)
class Job:
    """A job as its cluster knows it.

    Attributes:
        id: its submission id.
        state: `queued`, `running`, `done`, `failed` or `stopped`.
        message: what Ray says of it, in a line; of a failed one, raystream's own sentence where there is one.
        exit_code: of its command; None before the end, and where it never ran.
        submitted: UTC, ISO 8601.
        about: what `submit` was told of it.
    """

    id: str
    state: str
    message: str = ""
    exit_code: int | None = None
    submitted: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "stopped")


class Need(NamedTuple):
    """What one process asks of one node, and who it is in words."""

    what: str
    cpus: float
    gpus: float = 0.0
    memory: int = 0


class JobServer:
    """The job server of a cluster, that its dashboard's port answers for.

    Args:
        address: such as `http://head:8265`.
        client: `ray.job_submission.JobSubmissionClient`; left out, one is made, once it is known that somebody answers.
        wait: waits so many seconds.

    Raises:
        QueryError: the address is of another kind.
        ClusterError: nobody answers there, or not us.
    """

    def __init__(self, address: str, client: Any = None, wait: Callable[[float], object] | None = None) -> None:
        self.address = _url(address)
        self._wait = wait or _pause
        self._client = client if client is not None else _client(self.address)

    def check_versions(self) -> None:
        """See that the cluster runs the Ray and the Python that this machine does, as far as a job can tell.

        Raises:
            ClusterError: it doesn't.
        """
        found = self._get("/api/v0/cluster_metadata")
        for what, key, ours in (("Ray", "rayVersion", ray.__version__), ("Python", "pythonVersion", platform.python_version())):
            version = found.get(key)
            if isinstance(version, str) and _minor(version) != _minor(ours):
                raise ClusterError(
                    f"the cluster at {self.address} runs {what} {version}, this machine {what} {ours}; nothing was sent, use the same "
                    f"{what} {_minor(version)} here, or a cluster with {_minor(ours)}"
                )

    def check_room(self, needs: Sequence[Need]) -> None:
        """See that some node, busy or not, is large enough for each of these.

        Raises:
            ClusterError: none is for one of them.
        """
        found = self._get("/api/v0/nodes?detail=1&limit=10000").get("result", {})
        nodes = [node.get("resources_total") or {} for node in found.get("result", []) if node.get("state") == "ALIVE"]
        if not nodes:
            return  # a server that tells nothing of its nodes refuses nothing
        for need in needs:
            if not any(_fits(node, need) for node in nodes):
                largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
                raise ClusterError(
                    f"no node of the cluster at {self.address} has room for {need.what}, which needs {_in_words(need)}; there are "
                    f"{len(nodes)} nodes, the largest with {largest.get('CPU', 0):g} CPUs, {largest.get('GPU', 0):g} GPUs and "
                    f"{in_bytes(int(largest.get('memory', 0)))} of memory; ask for less, or set cluster.workers if the cluster adds nodes "
                    "by itself"
                )

    def submit(
        self, digest: str, command: Sequence[str], package: Path, about: Mapping[str, str], env: Mapping[str, str], need: Need
    ) -> tuple[Job, bool]:
        """Run a command in a package's folder, unless a job of this digest runs already.

        Args:
            digest: of all that the job depends on.
            command: its words.
            package: a zip file, which becomes the job's working directory.
            about: what `Job.about` gives back.
            env: variables of its environment.
            need: what is reserved for its driver.

        Returns:
            The job, and whether it is new.

        Raises:
            ClusterError: the server refused it.
        """
        resources: dict[str, Any] = {"entrypoint_num_cpus": need.cpus}
        resources |= {"entrypoint_memory": need.memory} if need.memory else {}
        ended, refused = -1, ""
        for _ in range(_TRIES):
            of_this = self._of(digest)
            running = next((job for job in of_this if not job.ended), None)
            if running is not None:
                return running, False
            ended = max(len(of_this), ended + 1)  # an id that was deleted isn't given again
            name = f"rs-{digest}-{ended}"
            try:
                with self._explained("could not take the job"):
                    self._client.submit_job(
                        entrypoint=shlex.join(command),
                        submission_id=name,
                        runtime_env={"working_dir": str(package), "env_vars": dict(env)},
                        metadata=dict(about),
                        **resources,
                    )
                return self.job(name), True
            except ClusterError as error:
                refused = str(error.__cause__)
                if "already exists" in refused:
                    continue  # somebody else submitted it this moment, or it is one of those that were deleted
                if _NOBODY_YET not in refused:
                    raise
                ended -= 1
                self._wait(_LOOK_SECONDS)  # a head that has just started
        raise ClusterError(f"the cluster at {self.address} took no job in {_TRIES} tries: {refused.splitlines()[0]}; look at its dashboard")

    def job(self, name: str) -> Job:
        """Return a job by its id.

        Raises:
            QueryError: the cluster knows none of that name.
            ClusterError: it doesn't answer.
        """
        try:
            with self._explained(f"doesn't tell of job {name}"):
                return _job(self._client.get_job_info(name))
        except ClusterError as error:
            if "does not exist" in str(error.__cause__):
                raise self._unknown(name) from None
            raise

    def logs(self, name: str) -> str:
        """Return all that a job printed so far.

        Raises:
            QueryError: the cluster knows none of that name.
            ClusterError: it doesn't answer, or the logs are gone with the node that the job ran on.
        """
        self.job(name)
        with self._explained(f"has no logs of job {name}"):
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, say: Callable[[str], None]) -> Job:
        """Say what a job prints, as it comes, until it ends.

        A connection that closes tells nothing of the job: its state is looked at, and following goes on from what was said.
        """
        said = 0

        def told(text: str) -> None:
            nonlocal said
            said += len(text)
            say(text)

        while not (job := self.job(name)).ended:
            try:
                asyncio.run(self._tail(name, said, told))
            except Exception:  # of several libraries, of which none says what became of the job
                self._wait(_LOOK_SECONDS)
            else:
                self._wait(0.1)
        try:
            told(self.logs(name)[said:])
        except ClusterError:
            say("")  # they are gone with their node; how the job ended is known
        return job

    async def _tail(self, name: str, said: int, say: Callable[[str], None]) -> None:
        """Say what comes behind what was said: logs are told from their beginning each time."""
        skipped = 0
        async for text in self._client.tail_job_logs(name):
            fresh = text[max(0, said - skipped) :] if skipped < said else text
            skipped += len(text)
            if fresh:
                say(fresh)

    def stop(self, name: str) -> Job:
        """Ask a job to end, and wait until it has; one that has ended is left as it is.

        Raises:
            QueryError: the cluster knows none of that name.
            ClusterError: it doesn't end, or the cluster doesn't answer.
        """
        job = self.job(name)
        if job.ended:
            return job
        with self._explained(f"can't stop job {name}"):
            self._client.stop_job(name)
        for _ in range(_STOP_LOOKS):
            if (job := self.job(name)).ended:
                return job
            self._wait(_LOOK_SECONDS / 2)
        raise ClusterError(f"job {name} at {self.address} was asked to stop and is still {job.state}; see raystream status {name}")

    def _of(self, digest: str) -> list[Job]:
        with self._explained("doesn't list its jobs"):
            listed = self._client.list_jobs()
        return [_job(found) for found in listed if (found.submission_id or "").startswith(f"rs-{digest}-")]

    def _unknown(self, name: str) -> QueryError:
        with self._explained("doesn't list its jobs"):
            ours = sorted(found.submission_id for found in self._client.list_jobs() if (found.submission_id or "").startswith("rs-"))
        some = ", ".join(ours[-3:]) or "none"
        return QueryError(
            f"the cluster at {self.address} knows no job {name} (of raystream's it has {some}); a head that was started anew has forgotten "
            "its jobs, but a store has not: raystream status QUERY --store URI"
        )

    def _get(self, path: str) -> dict[str, Any]:
        """Return what the dashboard tells; nothing where it has no answer, as servers before it have none."""
        with self._explained(f"doesn't answer {path.partition('?')[0]}"):
            # The client's own requests carry the token; of its public calls none tells versions and nodes.
            reply = self._client._do_request("GET", path, timeout=_ANSWER_SECONDS)
            if reply.status_code != 200:
                return {}
            found = reply.json().get("data")
        return found if isinstance(found, dict) else {}

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # requests', Ray's, and those of JSON that is none
            raise _refusal(self.address, what, error) from error


def _refusal(address: str, what: str, error: Exception) -> ClusterError:
    text = str(error)
    if type(error).__name__ == "AuthenticationError" or "status code 401" in text or "status code 403" in text:
        return ClusterError(
            f"the cluster at {address} asks for a token, and ours is missing or another one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH to the cluster's (ray get-auth-token)"
        )
    lines = [line for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    reason = lines[-1].strip() if "Traceback" in text and lines else first_line(error)
    return ClusterError(f"the cluster at {address} {what}: {reason[:400].rstrip('.')}; see that it runs, and look at its dashboard")


def _url(address: str) -> str:
    """Return the address of a job server, with its scheme and without a slash behind it.

    Raises:
        QueryError: it is none.
    """
    given = address if "://" in address else f"http://{address}"
    parts = urlsplit(given)
    try:
        whole = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        whole = False
    if not whole or address in ("auto", "local", "in_process"):
        raise QueryError(f"--address {address} is no job server's, expected that of the cluster's dashboard, such as http://head:8265")
    return given.rstrip("/")


def _client(url: str) -> Any:
    """Make Ray's client, once somebody answers: it would itself wait for minutes where nobody does."""
    parts = urlsplit(url)
    place = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    remedy = "see that the cluster runs, that its dashboard listens there and lets this machine in"
    try:
        socket.create_connection(place, timeout=_ANSWER_SECONDS).close()
        with urllib.request.urlopen(f"{url}/api/version", timeout=_ANSWER_SECONDS) as reply:
            known = "ray_version" in json.loads(reply.read())
    except urllib.error.HTTPError as error:
        known = error.code in (401, 403)  # the client has a token, or says what to do
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        reason = f"nothing within {_ANSWER_SECONDS:.0f} s" if isinstance(why, TimeoutError) else getattr(why, "strerror", None) or str(why)
        raise ClusterError(f"no job server answers at {url}: {reason}; {remedy}") from error
    if not known:
        raise ClusterError(f"what answers at {url} is no job server of Ray's; {remedy}")
    from ray.job_submission import JobSubmissionClient

    # Ray prefers what the environment says to what it is told.
    kept = {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
    try:
        return JobSubmissionClient(url)
    except Exception as error:  # requests', Ray's
        raise _refusal(url, "doesn't let us in", error) from error
    finally:
        os.environ.update(kept)


def _job(found: Any) -> Job:
    state = _STATES.get(str(getattr(found.status, "value", found.status)), "running")
    message = found.message or ""
    ours = [line.strip() for line in message.replace("\\n", "\n").splitlines() if line.strip().startswith("raystream: ")]
    if state == "failed" and ours:
        message = ours[-1].removeprefix("raystream: ")
    started = found.start_time
    return Job(
        id=found.submission_id or "",
        state=state,
        message=next((line.strip() for line in message.splitlines() if line.strip()), ""),
        exit_code=getattr(found, "driver_exit_code", None),
        submitted=datetime.fromtimestamp(started / 1000, UTC).isoformat(timespec="seconds") if started else None,
        about={key: str(value) for key, value in (found.metadata or {}).items()},
    )


def _fits(node: Mapping[str, float], need: Need) -> bool:
    return node.get("CPU", 0) >= need.cpus and node.get("GPU", 0) >= need.gpus and node.get("memory", 0) >= need.memory


def _in_words(need: Need) -> str:
    words = [f"{need.cpus:g} CPUs"]
    words += [f"{need.gpus:g} GPUs"] if need.gpus else []
    return " and ".join([*words, f"{in_bytes(need.memory)} of memory"] if need.memory else words)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
