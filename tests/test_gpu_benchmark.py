"""The benchmark for machines with CUDA runs where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GPU = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(GPU), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_on_the_processor_everything_agrees_with_itself() -> None:
    """Every part runs; the processor against itself differs by nothing in float32, and by what rounding costs in bfloat16."""
    out = run("--device", "cpu", "--rows", "16", "--pool", "500", "--picks", "10", "--rounds", "1")
    results = json.loads(out.splitlines()[-1])["results"]
    assert all(part["equal"] for part in results.values())
    assert max(results["samples"]["float32"]["apart"].values()) == 0
    assert 1e-4 < max(results["forward"]["bfloat16"]["apart"].values()) < 0.05


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so() -> None:
    """It ends well, and in words."""
    assert "no CUDA device is visible" in run()
