"""What a benchmark ran on: printed with every result, since figures of different machines don't compare."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Date, commit, processor and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), platform.processor())
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "processor": model,
        "cores": os.cpu_count(),
        "bfloat16_units": "amx_bf16" in info or "avx512_bf16" in info,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("raystream", "torch", "numpy", "pyarrow", "faiss-cpu", "ray")},
    }
