"""What `jobs/` ships: scripts that run our commands, a RayJob that fits the resource's fields, a cluster, examples of schedulers."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from typer.main import get_command

import raystream
from raystream import cli

ROOT = Path(raystream.__file__).parents[1]
JOBS = ROOT / "jobs"


def check_command(line: str) -> None:
    """The command line knows a command and its options."""
    program, command, *arguments = shlex.split(line)
    assert program == "raystream"
    known = get_command(cli.app).commands  # type: ignore[attr-defined]
    known[command].make_context(command, arguments)


@pytest.mark.parametrize("name", ["query", "score", "select", "loop", "simulate"])
def test_each_script_runs_the_command_of_its_name(name: str) -> None:
    """With the arguments that it is given; it does nothing on import."""
    text = (JOBS / f"{name}.py").read_text()
    assert f'main(["{name}", *sys.argv[1:]])' in text
    assert name in get_command(cli.app).commands  # type: ignore[attr-defined]
    assert len(text.splitlines()) < 16


def test_a_script_does_nothing_on_import() -> None:
    code = "import runpy; [runpy.run_path(f'jobs/{name}.py') for name in ('score', 'select', 'loop', 'simulate')]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")


def fields(*required: str, **known: Any) -> dict[str, Any]:
    """An object of these fields and no others."""
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


TEXT, NUMBER, TRUTH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9.]+(m|Ki|Mi|Gi|Ti)?$"}}
CONTAINER = fields(
    "name", "image", "resources", name=TEXT, image=TEXT, env={"type": "array"}, envFrom={"type": "array"}, volumeMounts={"type": "array"},
    ports={"type": "array", "items": fields("containerPort", containerPort=NUMBER, name=TEXT)},
    resources=fields("requests", "limits", requests=QUANTITIES, limits=QUANTITIES),
)  # fmt: skip
POD = fields("spec", metadata={"type": "object"}, spec=fields(
    "containers", containers={"type": "array", "minItems": 1, "items": CONTAINER}, nodeSelector=TEXTS, tolerations={"type": "array"},
    terminationGracePeriodSeconds=NUMBER, serviceAccountName=TEXT, volumes={"type": "array"},
))  # fmt: skip
STATUS = {"jobStatus": {"enum": ["SUCCEEDED", "FAILED"]}, "jobDeploymentStatus": {"enum": ["Failed"]}}
CONDITION = fields(ttlSeconds=NUMBER, **STATUS) | {"oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}]}
RULE = fields("policy", "condition", policy={"enum": ["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]}, condition=CONDITION)
WORKERS = fields(
    "groupName", "template", groupName=TEXT, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, idleTimeoutSeconds=NUMBER,
    rayStartParams=TEXTS, template=POD, numOfHosts=NUMBER,
)  # fmt: skip
CLUSTER = fields(
    "headGroupSpec", "rayVersion", rayVersion=TEXT, enableInTreeAutoscaling=TRUTH, autoscalerOptions={"type": "object"},
    authOptions=fields("mode", mode={"enum": ["token", "disabled"]}, secretName=TEXT),
    headGroupSpec=fields("template", rayStartParams=TEXTS, template=POD, serviceType=TEXT, enableIngress=TRUTH),
    workerGroupSpecs={"type": "array", "items": WORKERS},
)  # fmt: skip
SPEC = fields(
    "entrypoint", "rayClusterSpec", entrypoint=TEXT, runtimeEnvYAML=TEXT, submissionMode={"enum": ["K8sJobMode", "HTTPMode"]},
    backoffLimit=NUMBER, activeDeadlineSeconds=NUMBER, preRunningDeadlineSeconds=NUMBER, shutdownAfterJobFinishes=TRUTH,
    ttlSecondsAfterFinished=NUMBER, suspend=TRUTH, metadata=TEXTS, entrypointNumCpus={"type": "number"}, entrypointResources=TEXT,
    deletionStrategy=fields("deletionRules", deletionRules={"type": "array", "minItems": 1, "items": RULE}), rayClusterSpec=CLUSTER,
)  # fmt: skip
RAY_JOB = fields(
    "apiVersion", "kind", "metadata", "spec", apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"},
    metadata=fields("name", name=TEXT, namespace=TEXT, labels=TEXTS), spec=SPEC,
)  # fmt: skip
"""The resource's fields, as far as a job like ours may use them; values as its validation has them."""


def test_the_ray_job_fits_the_resource() -> None:
    """Every field is one; rules of deletion exclude `shutdownAfterJobFinishes`; the Ray is the one that is tested here."""
    job = yaml.safe_load((JOBS / "rayjob.yaml").read_text())
    jsonschema.validate(job, RAY_JOB)
    spec = job["spec"]
    assert not spec.get("shutdownAfterJobFinishes")
    assert spec["backoffLimit"] > 0
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [gpu] = [group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu"]
    container = gpu["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])) <= {"working_dir", "env_vars", "pip"}
    check_command(spec["entrypoint"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job | {"spec": spec | {"backofLimit": 3}}, RAY_JOB)


def test_the_local_cluster_is_valid() -> None:
    """It fits Ray's own schema, works with token authentication, and its workers are machines that it names."""
    schema = json.loads((Path(inspect.getfile(ray)).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((JOBS / "cluster-local.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["provider"]["type"] == "local"
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


def commands_in(text: str) -> list[str]:
    return [re.split(r" >+ | 2>", line.strip())[0] for line in re.findall(r"raystream (?:submit|fetch) [^\n]*", text)]


def test_the_airflow_example_runs_our_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file runs, with what it needs of Airflow as stand-ins; tasks follow one another."""
    made: list[dict[str, Any]] = []

    class Operator:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def __rshift__(self, other: Operator) -> Operator:
            return other

    class Dag:
        def __init__(self, name: str, **options: Any) -> None: ...

        def __enter__(self) -> Dag:
            return self

        def __exit__(self, *error: object) -> None: ...

    modules: dict[str, Any] = {"airflow": ModuleType("airflow"), "airflow.providers.standard.operators.bash": ModuleType("bash")}
    modules["airflow"].DAG = Dag
    modules["airflow.providers.standard.operators.bash"].BashOperator = Operator
    for name in ("airflow.providers", "airflow.providers.standard", "airflow.providers.standard.operators"):
        modules[name] = ModuleType(name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile((JOBS / "examples/airflow_dag.py").read_text(), "airflow_dag.py", "exec"), {"__name__": "dag"})
    assert [task["task_id"] for task in made] == ["score", "choose"]
    for task in made:
        check_command(task["bash_command"])


def test_the_dagster_example_makes_an_asset_of_the_jobs_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command is ours, and what it reads of the JSON is in it."""
    dagster: Any = ModuleType("dagster")
    dagster.asset = lambda **options: lambda function: function
    dagster.RetryPolicy = dagster.Definitions = dagster.MaterializeResult = lambda **options: SimpleNamespace(**options)
    monkeypatch.setitem(sys.modules, "dagster", dagster)
    scope: dict[str, Any] = {"__name__": "assets"}
    exec(compile((JOBS / "examples/dagster_assets.py").read_text(), "dagster_assets.py", "exec"), scope)
    check_command(scope["COMMAND"])
    printed = json.dumps({"job": "rs-0-0", "result": {"query": "q", "selection": "/lake/s"}})
    monkeypatch.setattr(scope["subprocess"], "run", lambda *arguments, **options: SimpleNamespace(stdout=printed))
    assert scope["batch_to_label"]().metadata == {"job": "rs-0-0", "query": "q", "selection": "/lake/s"}


@pytest.mark.parametrize(("name", "count"), [("github_actions.yaml", 2), ("crontab", 1)])
def test_schedules_run_our_commands(name: str, count: int) -> None:
    """As the shell is given them."""
    found = commands_in((JOBS / "examples" / name).read_text())
    assert len(found) == count
    for line in found:
        check_command(line)


def test_the_github_example_is_a_workflow() -> None:
    """YAML with what a workflow needs; `on` is a key, not a truth value."""
    text = (JOBS / "examples/github_actions.yaml").read_text()
    workflow = yaml.load(text, Loader=yaml.BaseLoader)
    assert {"name", "on", "jobs"} <= set(workflow)
    assert all("uses" in step or "run" in step for step in workflow["jobs"]["choose"]["steps"])
