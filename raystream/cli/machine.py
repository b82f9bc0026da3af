"""Check what this machine offers: packages, disks, memory, processors, Ray."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Verdict = Literal["ok", "skip", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was looked at, what was found, and for a `warn` or `fail` what to do about it.

    `exit_code` is that of the command when this fails.
    """

    name: str
    verdict: Verdict
    found: str
    exit_code: int = 0


_GIB = 2**30
_LITTLE_DISK, _NO_DISK = 5 * _GIB, _GIB // 10
_LITTLE_MEMORY = 4 * _GIB
_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
_PYTHON = (3, 11)
_CONNECT_SECONDS = 3.0
_REQUIREMENT = re.compile(r"""([A-Za-z0-9._-]+)[^;]*(?:;.*?extra == ["']([^"']+)["'])?""")
_NOT_FOR_USERS = {"dev", "rivals", "demo"}


def python_and_packages() -> Iterator[Finding]:
    """Find Python's version, the packages that are required, and which extras are complete."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON:
        yield Finding("python", "fail", f"{version}, expected at least 3.11; install a newer Python", 3)
    else:
        yield Finding("python", "ok", version)
    try:
        required = metadata.requires("raystream") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "warn", "raystream is imported from a folder and not installed, so its requirements are unknown; pip install it"
        )
        return
    packages: dict[str, list[str]] = {}
    for line in required:
        match = _REQUIREMENT.match(line)
        if match is not None:
            packages.setdefault(match[2] or "", []).append(match[1])
    missing = [name for name in packages.pop("", []) if _version(name) is None]
    if missing:
        yield Finding("packages", "fail", f"{', '.join(missing)} not installed; pip install raystream", 3)
    else:
        shown = ", ".join(f"{name} {_version(name)}" for name in ("raystream", "torch", "numpy", "pyarrow", "faiss-cpu", "ray"))
        yield Finding("packages", "ok", shown)
    extras = {extra: [name for name in names if _version(name) is None] for extra, names in packages.items() if extra not in _NOT_FOR_USERS}
    have, lack = ([extra for extra, absent in sorted(extras.items()) if bool(absent) == lacking] for lacking in (False, True))
    found = f"installed: {', '.join(have) or 'none'}"
    yield Finding("extras", "ok", found + (f"; not installed: {', '.join(lack)} (pip install 'raystream[{lack[0]}]')" if lack else ""))


def disks(store: str | None) -> Iterator[Finding]:
    """Free space at the store, if it is a folder, and in the temporary folder, which Ray spills to."""
    places = {"disk, temporary": Path(tempfile.gettempdir())}
    if store is not None and ("://" not in store or store.startswith("file://")):
        path = Path(store.removeprefix("file://")).expanduser().absolute()
        places = {"disk, store": next(folder for folder in (path, *path.parents) if folder.is_dir())} | places
    for name, folder in places.items():
        free = shutil.disk_usage(folder).free
        found = f"{free / _GIB:,.1f} GiB free at {folder}"
        if free < _NO_DISK:
            yield Finding(name, "fail", f"{found}; free some", 3)
        elif free < _LITTLE_DISK:
            yield Finding(name, "warn", f"{found}; raystream plan says what a query writes")
        else:
            yield Finding(name, "ok", found)


def memory() -> Finding:
    """Check the memory that may be used: the machine's, or less where the container has a limit."""
    import psutil

    have = psutil.virtual_memory()
    limit = _first(_CGROUP / "memory.max", _CGROUP / "memory/memory.limit_in_bytes")
    found = f"{have.available / _GIB:,.1f} of {have.total / _GIB:,.1f} GiB available"
    available = have.available
    if limit is not None and limit < min(_UNLIMITED, have.total):
        used = _first(_CGROUP / "memory.current", _CGROUP / "memory/memory.usage_in_bytes") or 0
        available = min(available, limit - used)
        found += f", limited by the container to {limit / _GIB:,.1f} GiB, of which {used / _GIB:,.1f} are in use"
    if available < _LITTLE_MEMORY:
        return Finding("memory", "warn", f"{found}; lower select.memory (2 GiB if left out) and cluster.workers")
    return Finding("memory", "ok", found)


def processors() -> Finding:
    """Count the processors, and how many of them the container may use."""
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        share = int(quota) / int(period)
    except (OSError, ValueError):
        share = float(usable)
    may = min(float(usable), share)
    if may < count:
        return Finding("processors", "warn", f"{count}, of which this process may use {may:g}; set cluster.workers to {max(1, int(may))}")
    return Finding("processors", "ok", f"{count}")


def ray() -> Finding:
    """Check that Ray is there, and that the cluster that the environment names answers."""
    version = _version("ray")
    if version is None:
        return Finding("ray", "fail", "not installed; pip install 'ray[default]'", 3)
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or address in ("auto", "local"):
        return Finding("ray", "ok", f"{version}; no cluster named by RAY_ADDRESS")
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    place = f"{host}:{port}"
    if host is None or port is None:
        return Finding("ray", "fail", "RAY_ADDRESS is not of the form host:port or ray://host:port; correct or unset it", 5)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding(
            "ray", "fail", f"{version}; RAY_ADDRESS names {place}, which can't be reached: {reason}; start it or unset RAY_ADDRESS", 5
        )
    return Finding("ray", "ok", f"{version}; the cluster of RAY_ADDRESS, {place}, answers")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _first(*paths: Path) -> int | None:
    """Read the number in the first of these files that holds one."""
    for path in paths:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return None
