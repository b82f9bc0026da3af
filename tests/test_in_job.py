"""Commands in a job of a cluster: what would go with the job is refused before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import raystream as rs
from raystream.lake.uri import is_relative

MakeQuery = Callable[..., rs.Query]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray tells the command of a job."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}, "metadata": {}}')


@pytest.fixture
def spec(workplace: Path, make_query: MakeQuery) -> Callable[..., str]:
    """A query file whose pool and store are absolute, but for what is replaced."""

    def write(**changes: object) -> str:
        absolute = {"pool__uri": str(workplace / "pool"), "store__uri": str(workplace / "runs")}
        path = workplace / "query.yaml"
        path.write_text(make_query(**(absolute | changes)).to_yaml())
        return str(path)

    return write


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize(
    ("command", "changes", "key"),
    [
        ("query", {"pool__uri": "pool"}, "pool.uri pool"),
        ("plan", {"pool__uri": ["/elsewhere", "pool/*.parquet"]}, "pool.uri pool/"),
        ("score", {"store__uri": "runs"}, "store.uri runs"),
        ("select", {"store__uri": None}, "store.uri runs"),
        ("calibrate", {"store__uri": "runs"}, "store.uri runs"),
        ("query", {"output": "batch.parquet"}, "output batch.parquet"),
        ("query", {"output": "delta+tables/batch"}, "output delta+tables/batch"),
    ],
)
def test_relative_places_are_refused(spec: Callable[..., str], cli: Cli, workplace: Path, command: str, changes: dict, key: str) -> None:
    """Exit 2, the key and what to give instead; nothing is written, and the default store is as relative as any."""
    code, out, err = cli(command, spec(**changes))
    assert (code, out) == (2, "")
    assert f"{key}" in err
    assert "is relative, but in a job of a cluster" in err
    assert "s3://…, or the absolute path of a folder that all nodes share" in err
    assert not (workplace / "runs").exists()


@pytest.mark.usefixtures("job")
def test_absolute_places_are_taken_and_the_same_job_again_scores_nothing(spec: Callable[..., str], cli: Cli, workplace: Path) -> None:
    """The model's own files may be relative: they come with the job. The options win over the file."""
    import json

    path = spec(store__uri="runs")
    first = json.loads(cli("query", path, "--json", "--no-report", "--store", workplace / "runs")[1])
    again = json.loads(cli("query", path, "--json", "--no-report", "--store", workplace / "runs")[1])
    assert (first["new"], first["units_scored"]) == (True, 4)
    assert (again["new"], again["units_scored"], again["selection"]) == (False, 0, first["selection"])


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize(
    "arguments", [["show"], ["show", "q"], ["verify", "q"], ["gc"], ["scores", "q", "--out", "/tmp/x.parquet"]]
)
def test_a_relative_store_is_refused_by_all_commands(workplace: Path, cli: Cli, arguments: list[str]) -> None:
    """Also where it is the default; so is a file to write beside it."""
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert "--store runs is relative" in err


@pytest.mark.usefixtures("job")
def test_a_relative_file_to_write_is_refused(spec: Callable[..., str], cli: Cli, workplace: Path) -> None:
    """What `raystream scores` wrote there would go with the job."""
    assert cli("query", spec(store__query="q"), "--no-report")[0] == 0
    code, _, err = cli("scores", "q", "--out", "x.parquet", "--store", workplace / "runs")
    assert (code, "--out x.parquet is relative" in err) == (2, True)


@pytest.mark.usefixtures("job")
def test_doctor_finds_it(spec: Callable[..., str], cli: Cli) -> None:
    """A finding, as all that is wrong with a query."""
    code, out, _ = cli("doctor", spec(store__uri="runs"))
    assert code == 2
    assert "store.uri runs is relative" in out


def test_outside_of_a_job_paths_may_be_relative(make_query: MakeQuery, workplace: Path, cli: Cli) -> None:
    """As ever."""
    (workplace / "query.yaml").write_text(yaml.safe_dump(yaml.safe_load(make_query().to_yaml())))
    assert cli("query", "query.yaml", "--no-report")[0] == 0


@pytest.mark.parametrize("uri", ["runs", "./runs", "../runs", "pool/*.parquet", "delta+tables/x", "a:b", ""])
def test_what_is_relative(uri: str) -> None:
    """A path that begins at the current folder, also of a table."""
    assert is_relative(uri)


@pytest.mark.parametrize("uri", ["/lake/runs", "~/runs", "file:///lake", "s3://b/p", "delta+/lake/t", "delta+s3://b/t", "iceberg://lake/ns.t"])
def test_what_is_not(uri: str) -> None:
    """Anything that is the same from everywhere."""
    assert not is_relative(uri)
