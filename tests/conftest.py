"""Pools and models that the tests share."""

from __future__ import annotations

import os
import sys

os.environ["RAY_AUTH_MODE"] = "disabled"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from pools import NETS, pool_table

from raystream import Query
from raystream.cli import main
from raystream.query import Cluster

# A busy machine is no defect: nothing here is judged by the clock.
settings.register_profile("raystream", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raystream")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with importable nets and a hive-partitioned pool of 4 files with several row groups; the current folder."""
    (tmp_path / "user_nets.py").write_text(NETS)
    for file in range(4):
        folder = tmp_path / "pool" / f"year={2020 + file}"
        folder.mkdir(parents=True)
        pq.write_table(pool_table(300, 300 * file), folder / "part.parquet", row_group_size=64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "user_nets", raising=False)
    return tmp_path


@pytest.fixture
def make_query(workplace: Path) -> Callable[..., Query]:
    """A query over that pool, in process; `section__key=value` replaces a key, None removes it."""

    def make(**changes: Any) -> Query:
        spec: dict[str, Any] = {
            "pool": {"uri": "pool", "id": "rid", "inputs": ["x"]},
            "model": {"source": "user_nets:net", "batch_size": 32},
            "select": {"budget": 12},
            "cluster": {"address": "in_process"},
            "store": {"uri": "runs"},
        }
        for key, value in changes.items():
            section, _, name = key.partition("__")
            target = spec.setdefault(section, {}) if name else spec
            if value is None:
                target.pop(name or section)
            else:
                target[name or section] = value
        return Query(**spec)

    return make


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An Iceberg catalog named `lake`, in SQLite, configured by the environment; it holds the namespace `ns`."""
    import pyiceberg.catalog
    from pyiceberg.utils.config import Config

    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__WAREHOUSE", f"file://{tmp_path}/warehouse")
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())
    opened = pyiceberg.catalog.load_catalog("lake")
    opened.create_namespace("ns")
    yield opened
    opened.engine.dispose()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line with these arguments: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        assert "Traceback" not in output.err
        return code, output.out, output.err

    return run


@pytest.fixture(scope="session")
def own_ray() -> Iterator[None]:
    """A Ray of this machine's own, started once and ended with its own connection."""
    from raystream.cluster.connection import connect, disconnect

    assert connect(Cluster(workers=3))
    yield
    disconnect()
