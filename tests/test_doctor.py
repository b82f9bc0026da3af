"""`raystream doctor`: a line for each check, what to do where one fails, and nothing left behind."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import raystream as rs
from raystream.cli import machine
from raystream.cli.doctor import CREDENTIALS
from raystream.run import score
from raystream.store.local import LocalStore
from raystream.store.opening import open_store
from raystream.store.protocol import Entry

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*CREDENTIALS, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def doctor(cli: Cli, workplace: Path) -> Callable[..., tuple[int, dict]]:
    """`raystream doctor --json`: its exit code, and the findings by name."""

    def run(*arguments: object) -> tuple[int, dict]:
        code, out, err = cli("doctor", "--json", *arguments)
        assert err == ""
        told = json.loads(out)
        assert (told["exit_code"], told["ok"]) == (code, code == 0)
        return code, {finding["name"]: finding for finding in told["findings"]}

    return run


def spec(**changes: object) -> Path:
    query = {
        "pool": {"uri": "pool", "id": "rid", "inputs": ["x"]},
        "model": {"source": "user_nets:net"},
        "select": {"budget": 12},
        "cluster": {"address": "in_process"},
    }
    Path("query.yaml").write_text(yaml.safe_dump(query | changes))
    return Path("query.yaml")


def test_a_healthy_place_is_all_right(doctor: Callable, workplace: Path) -> None:
    """Exit 0, every check made, and neither the store nor the folder is left with anything new."""
    before = sorted(workplace.rglob("*"))
    path = spec()
    code, found = doctor(path, "--model")
    assert code == 0
    assert not [name for name, finding in found.items() if finding["verdict"] == "fail"]
    assert {"python", "packages", "query", "store", "clock", "disk, store", "memory", "processors", "ray", "pool", "model"} <= set(found)
    assert f"raystream {metadata.version('raystream')}" in found["packages"]["found"]
    assert "4 files" in found["pool"]["found"]
    assert "300 rows" in found["pool"]["found"]
    assert "loads, on cpu" in found["model"]["found"]
    assert {path for path in workplace.rglob("*") if "__pycache__" not in path.parts} - set(before) == {path.absolute()}


def test_a_store_keeps_what_it_holds(doctor: Callable, workplace: Path, cli: Cli) -> None:
    """An existing store is tried and left as it was; one that is empty stays, too."""
    open_store("runs")
    (workplace / "empty").mkdir()
    assert doctor()[1]["store"]["verdict"] == "ok"
    assert [path.name for path in (workplace / "runs").iterdir()] == ["format.json"]
    assert doctor("--store", "empty")[0] == 0
    assert (workplace / "empty").is_dir()
    code, out, _ = cli("doctor", "--store", "runs")
    assert code == 0
    assert any(line.startswith("ok    store ") for line in out.splitlines())


def test_a_store_that_breaks_its_promise(doctor: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a second writer wins, exit 3 and why that matters."""

    def put(self: LocalStore, name: str, data: bytes, *, wait: bool = True) -> bool:
        self.put(name, data)
        return True

    monkeypatch.setattr(LocalStore, "put_if_absent", put)
    code, found = doctor("--store", "runs")
    assert code == 3
    assert "lets a second writer win" in found["store"]["found"]


@pytest.mark.parametrize(
    ("ahead", "verdict", "says"), [(0.5, "ok", "agrees"), (600, "warn", "600 s ahead of"), (-90, "warn", "90 s behind")]
)
def test_clocks_are_compared(doctor: Callable, monkeypatch: pytest.MonkeyPatch, ahead: float, verdict: str, says: str) -> None:
    """By the time that the store gives to a file written just now."""
    walk = LocalStore.walk
    monkeypatch.setattr(LocalStore, "walk", lambda self, folder: (Entry(e.name, e.size, e.modified + ahead) for e in walk(self, folder)))
    code, found = doctor("--store", "runs")
    assert (code, found["clock"]["verdict"]) == (0, verdict)
    assert says in found["clock"]["found"]


def test_the_first_failure_gives_the_code(doctor: Callable, workplace: Path) -> None:
    """A wrong query is 2, a store that is a file and a missing pool are 3; what comes after is still looked at."""
    code, found = doctor(spec(select={"budgte": 3}))
    assert code == found["query"]["exit_code"] == 2
    assert "did you mean 'budget'" in found["query"]["found"]
    assert "pool" not in found
    assert "ray" in found
    code, found = doctor(spec(pool={"uri": "nowhere", "inputs": ["x"]}, store={"uri": "user_nets.py"}))
    assert code == found["store"]["exit_code"] == found["pool"]["exit_code"] == 3
    assert "nowhere does not exist" in found["pool"]["found"]
    assert doctor(spec(pool={"uri": "pool", "inputs": ["y"]}))[0] in (2, 3)
    code, found = doctor(spec(), "--set", "model.source=user_nets:no_such_net", "--model")
    assert (code, found["model"]["verdict"]) == (found["model"]["exit_code"], "fail")
    assert code in (2, 3)


def test_all_rows_and_functions_that_a_query_names_are_looked_at(doctor: Callable, workplace: Path) -> None:
    """Labels, calibration rows, targets and a function of the user's: each found, or what is wrong with it; the columns are looked for."""
    rows = pq.read_table("pool/year=2021/part.parquet", partitioning=None)
    pq.write_table(rows, "rows.parquet")
    pq.write_table(rows.select(["rid"]), "ids.parquet")
    (workplace / "doctor_functions.py").write_text("def prepare(batch):\n    return batch.column('x').to_pylist()\n")
    sections: dict[str, dict[str, object]] = {
        "pool": {"uri": "pool", "id": "rid", "inputs": ["x"], "labelled": "ids.parquet", "label": "minutes"},
        "model": {"source": "user_nets:net", "temperature": "rows.parquet", "preprocess": "doctor_functions:prepare"},
        "acquire": {"score": "epig", "mc_samples": 3, "targets": "rows.parquet"},
    }
    code, found = doctor(spec(**sections))
    assert code == 0
    for name in ("labels", "temperature", "targets"):
        assert "1 file of" in found[name]["found"]
        assert "300 rows and all columns read" in found[name]["found"]
    assert "doctor_functions:prepare can be imported" in found["preprocess"]["found"]
    sections["pool"]["labelled"] = "gone.parquet"
    sections["model"] |= {"temperature": "ids.parquet", "preprocess": "doctor_functions:repair"}
    sections["acquire"]["targets"] = "ids.parquet"
    code, found = doctor(spec(**sections))
    assert code == 3
    for name, says in {
        "labels": "gone.parquet does not exist",
        "temperature": "column x is missing in",
        "targets": "column x is missing in",
        "preprocess": "no 'repair'",
    }.items():
        assert (found[name]["verdict"], found["pool"]["verdict"]) == ("fail", "ok")
        assert says in found[name]["found"], found[name]


def test_secrets_are_named_and_never_shown(cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables' names, not what they hold, in text and in JSON."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sig=hunter2")
    for options in ([], ["--json"]):
        code, out, err = cli("doctor", *options)
        assert code == 0
        assert "AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_SAS_TOKEN" in out
        assert "hunter2" not in out + err


def test_the_cluster_of_the_environment(doctor: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that nobody listens at is exit 5, one where somebody does is fine, and one of no known form is exit 5."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{port}")
        code, found = doctor()
        assert (code, found["ray"]["verdict"]) == (0, "ok")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    code, found = doctor()
    assert code == 5
    assert f"127.0.0.1:{port}, which can't be reached: Connection refused" in found["ray"]["found"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:many")
    assert doctor()[0] == 5


def test_what_is_not_installed(doctor: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A required package that is missing fails; those of an extra are only named, with the command that installs them."""
    monkeypatch.setattr(
        machine.metadata, "requires", lambda _: ["numpy>=2.0", "no-such>=1", 'neither>=2; extra == "lake"', 'numpy; extra == "np"']
    )
    code, found = doctor()
    assert code == 3
    assert found["packages"]["found"].startswith("no-such not installed")
    assert found["extras"] == {
        "name": "extras", "verdict": "ok", "exit_code": 0,
        "found": "installed: np; not installed: lake (pip install 'raystream[lake]')",
    }  # fmt: skip


def test_limits_of_a_container(doctor: Callable, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and processors are what the container allows; too little is a warning that says which key to set."""
    group = workplace / "cgroup"
    group.mkdir()
    (group / "memory.max").write_text("3221225472\n")
    (group / "memory.current").write_text("1073741824\n")
    (group / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(machine, "_CGROUP", group)
    code, found = doctor()
    assert code == 0
    assert found["memory"]["verdict"] == found["processors"]["verdict"] == "warn"
    assert "limited by the container to 3.0 GiB, of which 1.0 are in use; lower select.memory" in found["memory"]["found"]
    assert "may use 0.5; set cluster.workers to 1" in found["processors"]["found"]


def test_a_full_disk_fails(doctor: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less than 100 MiB, exit 3 and the folder."""
    usage = type("usage", (), {"free": 50 << 20})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    code, found = doctor("--store", "runs/deep")
    assert code == 3
    assert "GiB free at" in found["disk, store"]["found"]


def test_the_probe_is_one_that_other_commands_ignore(workplace: Path, cli: Cli) -> None:
    """What a killed doctor leaves in a store is no query and no unit."""
    open_store("runs")
    LocalStore("runs").put_if_absent("probe-0/probe", b"first")
    assert cli("gc")[0] == 0
    code, _, err = cli("show", "probe-0")
    assert code == 2
    assert "it holds none" in err


@pytest.mark.slow
def test_ray_starts(doctor: Callable, workplace: Path) -> None:
    """With --ray, a Ray of the query's is started or joined, and its room for workers told."""
    code, found = doctor(spec(cluster={"address": "auto", "workers": 1}), "--ray")
    assert code == 0
    assert "room for 1 worker" in found["ray start"]["found"]


def test_queries_that_are_damaged_are_found(doctor: Callable, workplace: Path, make_query: Callable[..., rs.Query]) -> None:
    """Manifest, plan and query.yaml of every committed query are read: exit 3 and the first file that is no more what it was."""
    assert doctor("--store", "runs")[1]["queries"]["found"] == "none committed"
    for name in ("one", "two"):
        rs.run(make_query(store__query=name, select__strategy="top_k"))
    score(make_query(store__query="three"))
    (workplace / "runs/queries/notes.txt").write_text("mine")
    code, found = doctor("--store", "runs")
    assert (code, found["queries"]["verdict"]) == (0, "ok")
    assert found["queries"]["found"].startswith("2 in the store")
    for name, query in (("manifest.json", "one"), ("plan.parquet", "one"), ("query.yaml", "two"), ("plan.parquet", "three")):
        file = workplace / "runs/queries" / query / name
        whole = file.read_bytes()
        file.write_bytes(b"{")
        code, found = doctor("--store", "runs")
        assert (code, found["queries"]["verdict"], found["queries"]["exit_code"]) == (3, "fail", 3)
        assert f"{file} is damaged" in found["queries"]["found"]
        assert "1 can't be used, first: " in found["queries"]["found"]
        file.write_bytes(whole)
    (workplace / "runs/queries/two/query.yaml").unlink()
    assert doctor()[0] == 3
