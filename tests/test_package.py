"""The package's face: public names, quick help, the cluster file."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

import raystream
from raystream import Query

ROOT = Path(raystream.__file__).parents[1]


def test_all_is_sorted_and_true() -> None:
    """`__all__` lists the public names, and each is there."""
    assert raystream.__all__ == sorted(raystream.__all__)
    assert all(hasattr(raystream, name) for name in raystream.__all__)
    assert callable(raystream.run)


def test_run_stays_a_function_whoever_imports_its_module() -> None:
    """`raystream.run` is both a module and a function: the name must go on meaning the function."""
    code = "import raystream.run, raystream.cli, raystream as rs; assert callable(rs.run), rs.run"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_imports_nothing_heavy() -> None:
    """`raystream --help` must answer within half a second: neither ray, torch, faiss nor pyarrow is imported for it."""
    code = (
        "import sys, raystream.cli as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'ray', 'torch', 'faiss', 'pyarrow', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("query", "plan", "score", "select", "show", "demo"):
        assert f"  {command} " in done.stdout


def test_what_a_run_takes_imports_no_ray() -> None:
    """A quarter of a second that a run in process need not wait; and a Ray of our own is given its token before it is imported."""
    code = (
        "import gc, os, sys, raystream.steps\nassert 'ray' not in sys.modules\n"
        "from raystream.cluster.own_ray import protect_own_ray\nprotect_own_ray()\n"
        "assert (os.environ['RAY_AUTH_MODE'], len(os.environ['RAY_AUTH_TOKEN'])) == ('token', 64)\n"
        "import raystream as rs\n"
        "try:\n    rs.run(None)\nexcept rs.errors.QueryError:\n    pass\n"
        "assert gc.isenabled()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_pandas_stays_out_until_somebody_imports_it() -> None:
    """pyarrow's arrays import no pandas then; frames and series are what they always are to it, once there are any."""
    pytest.importorskip("pandas")
    code = (
        "import importlib.util, sys\nfrom raystream.imports import keep_pandas_out\nkeep_pandas_out()\n"
        "import numpy as np, pyarrow as pa\nassert pa.array(np.arange(3)).to_numpy().sum() == 3\n"
        "assert importlib.util.find_spec('pandas').name == 'pandas' and 'pandas' not in sys.modules\n"
        "import pandas as pd\nassert pa.array(pd.Series([1.0, float('nan')])).null_count == 1\n"
        "assert pa.types.is_dictionary(pa.array(pd.Categorical(['a', 'b'])).type)\n"
        "assert list(pa.table({'a': [1]}).to_pandas().a) == [1]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_query_over_scored_rows_imports_no_more_than_it_needs(make_query: Callable[..., Query], workplace: Path) -> None:
    """From the shell, a report included: no model is loaded, no Ray, no pandas; and little is left to the garbage collector."""
    query = make_query()
    raystream.run(query)
    (workplace / "query.yaml").write_text(query.to_yaml())
    code = (
        "import gc, sys, raystream.cli as cli\n"
        "try:\n    cli.main(['query', 'query.yaml', '--set', 'seed=1', '--json'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'ray', 'pandas', 'matplotlib', 'scipy', 'sklearn', 'faiss', 'fastapi', 'transformers', 'user_nets'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["units_scored"], Path(said["report"]).is_file()) == (0, True)


def test_cluster_file_is_valid() -> None:
    """`cluster.yaml` fits Ray's own schema, drives from a CPU head, and works on spot GPUs with token authentication."""
    schema = json.loads((Path(inspect.getfile(ray)).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    head, [worker] = types[cluster["head_node_type"]], [t for name, t in types.items() if name != cluster["head_node_type"]]
    assert "GPU" not in head["resources"]
    assert worker["resources"]["GPU"] == 1
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_jobs_are_importable_without_running() -> None:
    """jobs/query.py does nothing on import."""
    done = subprocess.run([sys.executable, "-c", "import runpy; runpy.run_path('jobs/query.py')"], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")
