"""What `jobs/` ships: scripts that run our commands, a RayJob that fits the resource's fields, a cluster, examples of schedulers."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
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
from raystream.service.tokens import new_token

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


TEXT, TRUTH, ANY, MANY = {"type": "string"}, {"type": "boolean"}, {"type": "object"}, {"type": "array"}
NUMBER, POSITIVE, SHARE = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}, {"type": "number", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9.]+(m|Ki|Mi|Gi|Ti)?$"}}
# Of Kubernetes' own parts, what a job like ours may use.
CONTAINER = fields(
    "name", "image", "resources", name=TEXT, image=TEXT, env=MANY, envFrom=MANY, volumeMounts=MANY,
    ports={"type": "array", "items": fields("containerPort", containerPort=NUMBER, name=TEXT)},
    resources=fields("requests", "limits", requests=QUANTITIES, limits=QUANTITIES),
)  # fmt: skip
POD = fields("spec", metadata=ANY, spec=fields(
    "containers", containers={"type": "array", "minItems": 1, "items": CONTAINER}, nodeSelector=TEXTS, tolerations=MANY,
    terminationGracePeriodSeconds=NUMBER, serviceAccountName=TEXT, volumes=MANY,
))  # fmt: skip
# All fields of ray.io/v1 as KubeRay 1.7.0 has them: docs/reference/api.md of that release, which is generated from the resources' types.
STATUS = {"jobStatus": {"enum": ["SUCCEEDED", "FAILED"]}, "jobDeploymentStatus": {"enum": ["Failed"]}}
CONDITION = fields(ttlSeconds=NUMBER, **STATUS) | {"oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}]}
RULE = fields("policy", "condition", policy={"enum": ["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]}, condition=CONDITION)
AUTOSCALER = fields(
    resources=ANY, image=TEXT, imagePullPolicy=TEXT, securityContext=ANY, idleTimeoutSeconds=NUMBER, version={"enum": ["v1", "v2"]},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, env=MANY, envFrom=MANY, volumeMounts=MANY, command=MANY, args=MANY,
)  # fmt: skip
GROUP = {"rayStartParams": TEXTS, "template": POD, "resources": TEXTS, "labels": TEXTS}
HEAD = fields(
    "template", headService=ANY, enableIngress=TRUTH, ingressOptions=ANY, serviceType=TEXT, **GROUP,
)  # fmt: skip
WORKERS = fields(
    "groupName", "template", groupName=TEXT, suspend=TRUTH, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER,
    idleTimeoutSeconds=NUMBER, priority={"type": "integer"}, scaleStrategy=ANY, numOfHosts=NUMBER, **GROUP,
)  # fmt: skip
CLUSTER = fields(
    "headGroupSpec", upgradeStrategy=ANY, suspend=TRUTH, managedBy=TEXT, autoscalerOptions=AUTOSCALER, headServiceAnnotations=TEXTS,
    authOptions=fields(mode={"enum": ["token", "disabled"]}, secretName=TEXT, enableK8sTokenAuth=TRUTH), enableInTreeAutoscaling=TRUTH,
    gcsFaultToleranceOptions=ANY, historyServerOptions=ANY, networkPolicy=ANY, tlsOptions=fields(enabled=TRUTH), headGroupSpec=HEAD,
    rayVersion=TEXT, workerGroupSpecs={"type": "array", "items": WORKERS},
)  # fmt: skip
SPEC = fields(
    activeDeadlineSeconds=POSITIVE, backoffLimit=NUMBER, rayClusterSpec=CLUSTER, submitterPodTemplate=POD, metadata=TEXTS,
    clusterSelector=TEXTS, submitterConfig=fields(backoffLimit=NUMBER), managedBy=TEXT,
    deletionStrategy=fields(onSuccess=ANY, onFailure=ANY, deletionRules={"type": "array", "minItems": 1, "items": RULE}),
    entrypoint=TEXT, runtimeEnvYAML=TEXT, jobId=TEXT, entrypointResources=TEXT, entrypointNumCpus=SHARE, entrypointNumGpus=SHARE,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]}, ttlSecondsAfterFinished=NUMBER,
    preRunningDeadlineSeconds=POSITIVE, shutdownAfterJobFinishes=TRUTH, suspend=TRUTH,
)  # fmt: skip
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
RAY_JOB = fields(
    "apiVersion", "kind", "metadata", "spec", apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, spec=SPEC,
    metadata=fields("name", name=NAME, namespace=TEXT, labels=TEXTS),
)  # fmt: skip


def refusals(spec: dict[str, Any]) -> list[str]:
    """What the operator of KubeRay 1.7 refuses of a job whose fields are right, as far as a job like ours may run into it."""
    found, strategy, cluster = [], spec.get("deletionStrategy"), spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    rules = strategy.get("deletionRules", []) if strategy else []
    shuts = spec.get("shutdownAfterJobFinishes", False)
    ttls: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        of = ttls.setdefault(condition.get("jobStatus") or condition["jobDeploymentStatus"], {})
        if rule["policy"] in of:
            found.append("two rules of one policy and status")
        of[rule["policy"]] = condition.get("ttlSeconds", 0)
        if rule["policy"] == "DeleteWorkers" and cluster.get("enableInTreeAutoscaling"):
            found.append("DeleteWorkers with autoscaling")
    for of in ttls.values():
        order = [of[policy] for policy in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if policy in of]
        if order != sorted(order):
            found.append("a whole goes before its part")
    if rules and (shuts or len(strategy or {}) > 1):
        found.append("rules beside another way of deletion")
    if strategy is not None and not rules:
        found.append("no rules")
    if (spec.get("ttlSecondsAfterFinished", 0) or spec.get("suspend")) and not shuts:
        found.append("needs shutdownAfterJobFinishes")
    if cluster.get("authOptions") and tuple(map(int, cluster.get("rayVersion", "0.0").split(".")[:2])) < (2, 52):
        found.append("a token with a Ray before 2.52")
    if any("labels" in group["rayStartParams"] or (group.get("resources") and "num-cpus" in group["rayStartParams"]) for group in groups):
        found.append("resources or labels given twice")
    if any(group.get("minReplicas", 0) > group.get("maxReplicas", 2**31 - 1) for group in groups[1:]):
        found.append("more at least than at most")
    return found


def test_the_ray_job_fits_the_resource() -> None:
    """Every field is one, and the operator refuses nothing; the Ray is the one that is tested here."""
    job = yaml.safe_load((JOBS / "rayjob.yaml").read_text())
    jsonschema.validate(job, RAY_JOB)
    spec = job["spec"]
    assert refusals(spec) == []
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


def test_what_the_operator_refuses_is_known() -> None:
    """Rules that take workers away under the autoscaler, that delete a whole before its part, or beside another way of deletion."""
    spec = yaml.safe_load((JOBS / "rayjob.yaml").read_text())["spec"]
    rules = spec["deletionStrategy"]["deletionRules"]

    def with_rule(policy: str, **condition: Any) -> dict[str, Any]:
        return spec | {"deletionStrategy": {"deletionRules": [*rules, {"policy": policy, "condition": condition}]}}

    assert refusals(with_rule("DeleteWorkers", jobStatus="FAILED", ttlSeconds=60)) == ["DeleteWorkers with autoscaling"]
    assert refusals(with_rule("DeleteSelf", jobStatus="FAILED", ttlSeconds=60)) == ["a whole goes before its part"]
    assert refusals(with_rule("DeleteCluster", jobStatus="FAILED", ttlSeconds=60)) == ["two rules of one policy and status"]
    assert refusals(spec | {"shutdownAfterJobFinishes": True}) == ["rules beside another way of deletion"]
    assert refusals(spec | {"suspend": True}) == ["needs shutdownAfterJobFinishes"]


def test_the_service_on_ray_serve_works_where_its_command_was_given(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the replica begins, and whatever its environment; without tokens it is refused before anything is deployed."""
    from fastapi.testclient import TestClient

    serve: Any = ModuleType("ray.serve")
    serve.ingress = lambda build: lambda: build
    serve.deployment = lambda **options: lambda build: SimpleNamespace(bind=lambda: build)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    monkeypatch.delattr(ray, "serve", raising=False)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAYSTREAM_SERVE", "mine.yaml")
    Path("mine.yaml").write_text("{allow: [pool]}")
    with pytest.raises(SystemExit, match="tokens"):
        runpy.run_path(str(JOBS / "serve.py"))
    token, line = new_token("a", "read", None)
    Path("tokens.txt").write_text(line)
    Path("mine.yaml").write_text("{allow: [pool], tokens: tokens.txt}")
    build = runpy.run_path(str(JOBS / "serve.py"))["app"]
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    monkeypatch.delenv("RAYSTREAM_SERVE")
    client = TestClient(build(), base_url="http://127.0.0.1:8000")
    assert client.get("/v1/queries", headers={"authorization": f"Bearer {token}"}).json() == {"queries": [], "next": None}
    assert client.get("/v1/queries").status_code == 401
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:6379"
    assert (workplace / "runs" / "format.json").exists()


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
