"""From a spec to a job, with the working directory that it needs.

From a spec to a job: what it asks is read and checked here, packed with its working directory, and run on the cluster once.

The working directory as a job gets it: a zip file, the same for the same files, without pool, store, environments and history.
"""

from __future__ import annotations

import fnmatch
import getpass
import hashlib
import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

import raystream
from raystream.cluster.jobs import Job, JobServer, Need
from raystream.errors import QueryError, did_you_mean
from raystream.figures import in_bytes
from raystream.lake.uri import is_relative, parse, redacted
from raystream.query import Query
from raystream.query.loop import Loop
from raystream.query.places import Asked, places, refuse_relative
from raystream.query.simulate import Simulation, Stream
from raystream.spec import read_spec

LARGEST = 100 << 20
"""Bytes in all: every node fetches them from the head's memory."""
_LEFT_OUT = (
    ".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", ".*_cache", ".ipynb_checkpoints", ".tox", ".nox",
    "*.egg-info", ".env", ".ssh", ".aws", ".DS_Store",
)  # fmt: skip
_DATA = ("*.parquet", "*.arrow", "*.feather", "*.lance", "*.zip", "*.tar", "*.tar.gz", "*.tgz")
"""Rows and archives travel only where the spec names them."""
_ENVIRONMENT, _STORE = "pyvenv.cfg", "format.json"
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """A working directory that has been packed.

    Attributes:
        path: of the zip file.
        digest: of what is in it, names and contents, that which was added left out.
        files: how many there are.
        bytes: of these, before they were packed.
    """

    path: Path
    digest: str
    files: int
    bytes: int


def pack(
    folder: Path, to: Path, *, named: Sequence[str], without: Sequence[Path], added: Mapping[str, bytes], exclude: Sequence[str]
) -> Package:
    """Pack a folder.

    Args:
        folder: the working directory.
        to: the zip file to write.
        named: paths below it that the spec names; they are packed whatever they are.
        without: files and folders that stay, such as the pool.
        added: further files, by their names in the package.
        exclude: shell patterns of names or paths that stay, too.

    Raises:
        QueryError: it is too large, or something can't be read.
    """
    paths = dict(_travelling(folder, named, {path.resolve() for path in without}, exclude))
    try:
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        total = sum(sizes.values())
        if total > LARGEST:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
            shown = ", ".join(f"{name} ({in_bytes(sizes[name])})" for name in largest)
            raise QueryError(
                f"--working-dir {folder} holds {in_bytes(total)} in {len(sizes):,} files, more than the {in_bytes(LARGEST)} that travel "
                f"with a job (the largest: {shown}); leave some out by --exclude, or put weights where all nodes see them"
            )
        digest = hashlib.sha256()
        with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in sorted({*paths, *added}):
                data = added[name] if name in added else paths[name].read_bytes()
                executable = name not in added and os.access(paths[name], os.X_OK)
                entry = zipfile.ZipInfo(name, _TIME)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o100755 if executable else 0o100644) << 16
                archive.writestr(entry, data)
                if name not in added:
                    digest.update(f"{name}\0{len(data)}\0{executable}\0".encode() + hashlib.sha256(data).digest())
    except OSError as error:
        raise QueryError(f"--working-dir {folder}: {error.filename or folder} can't be read: {error.strerror}") from error
    return Package(to, digest.hexdigest(), len({*paths, *added}), total)


def _travelling(folder: Path, named: Sequence[str], without: set[Path], exclude: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield the names and places of the files that are packed; links are followed, once each."""
    wanted = {os.path.normpath(name) for name in named}
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        below = os.path.relpath(root, folder)
        kept = []
        for name in sorted(folders):
            path = os.path.normpath(os.path.join(below, name))
            if _is_named(path, wanted) or (_goes(name, path, exclude, _LEFT_OUT) and not _is_own(Path(root, name), without)):
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            path, place = os.path.normpath(os.path.join(below, name)), Path(root, name)
            ours = _is_named(path, wanted) or _goes(name, path, exclude, (*_LEFT_OUT, *_DATA))
            if ours and place.is_file() and place.resolve() not in without:
                yield path, place


def _goes(name: str, path: str, exclude: Sequence[str], left_out: Sequence[str]) -> bool:
    return not any(fnmatch.fnmatch(name, pattern) for pattern in left_out) and not any(
        fnmatch.fnmatch(name, pattern.rstrip("/")) or fnmatch.fnmatch(path, pattern.rstrip("/")) for pattern in exclude
    )


def _is_named(path: str, wanted: set[str]) -> bool:
    """Tell whether the spec names a path, something below it, or a folder above it."""
    return any(path == name or name.startswith(f"{path}/") or path.startswith(f"{name}/") for name in wanted)


def _is_own(folder: Path, without: set[Path]) -> bool:
    """Tell whether a folder is an environment, a store or one of those that stay."""
    if folder.resolve() in without or (folder / _ENVIRONMENT).is_file() or (folder / "conda-meta").is_dir():
        return True
    return (folder / _STORE).is_file() and any((folder / inner).is_dir() for inner in ("units", "queries", "loops"))


Command = Literal["query", "score", "select", "loop", "simulate", "stream"]
_OF_SECTION: dict[str, Command] = {"simulate": "simulate", "stream": "stream", "loop": "loop"}
"""What a section of the spec asks for, the first of these that is there; without any it is a query."""
_KINDS: dict[Command, type[Asked]] = {"loop": Loop, "simulate": Simulation, "stream": Stream}
_FOLDER = ".raystream"
_DIGITS = 16
_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".pkl", ".joblib", ".skops", ".pt2", ".npz")


@dataclass(frozen=True)
class Submission:
    """A spec that may be sent.

    Attributes:
        command: of raystream's, that the job runs.
        file: the spec's name.
        asked: what it asks, checked.
        sections: as the job reads them.
    """

    command: Command
    file: str
    asked: Asked
    sections: dict[str, Any]

    @property
    def name(self) -> str:
        """What it is called in the store, as far as that is known before it runs."""
        return self.asked.store.query or "" if isinstance(self.asked, Query) else self.asked.name


def read_submission(spec: Path, overrides: Sequence[str], command: str | None) -> Submission:
    """Read what is to be submitted.

    Args:
        spec: the file.
        overrides: `section.key=value` strings that replace what it says.
        command: of raystream's; left out, the spec's sections tell.

    Raises:
        QueryError: it can't be read, asks for what can't be, or names places that would go with the job.
    """
    sections = {str(key): value for key, value in read_spec(spec, overrides).items()}
    if command is None:
        command = next((told for section, told in _OF_SECTION.items() if section in sections), "query")
    if command not in get_args(Command):
        raise QueryError(f"--as {command} is nothing that a job runs{did_you_mean(command, get_args(Command))}")
    known: Command = command  # type: ignore[assignment]
    asked = _KINDS.get(known, Query).load(spec, overrides)
    for key, uris in places(asked).items():
        for uri in uris:
            refuse_relative(key, uri)
    cluster = sections.get("cluster")
    if isinstance(cluster, dict) and cluster.get("address") not in (None, "in_process"):
        sections["cluster"] = {key: value for key, value in cluster.items() if key != "address"}  # it runs on the job's own
    return Submission(known, spec.name, asked, sections)


def submit(
    server: JobServer, submission: Submission, folder: Path, *, exclude: Sequence[str] = (), cpus: float = 1.0, memory: int = 0
) -> tuple[Job, bool]:
    """Send a job, unless the same one is running.

    Args:
        server: of the cluster.
        submission: what it runs.
        folder: its working directory.
        exclude: patterns of files there that stay.
        cpus: reserved for the driver; with 0, and no memory, it runs on the head.
        memory: bytes, likewise.

    Returns:
        The job, and whether it is new.

    Raises:
        QueryError: something that the spec names doesn't lie in the working directory.
        ClusterError: the cluster is gone, full, of another version, or refused it.
    """
    server.check_versions()
    driver = Need("the job's driver", cpus, memory=memory)
    server.check_room([driver, *_workers(submission.asked)])
    folder = folder.resolve()
    _check_files(submission, folder)
    spec = f"{_FOLDER}/{submission.file}"
    text = yaml.safe_dump(submission.sections, sort_keys=False, allow_unicode=True)
    stay = [Path(os.path.expanduser(uri)) for uris in places(submission.asked).values() for uri in uris if not _is_uri(uri)]
    with tempfile.TemporaryDirectory(prefix="raystream-") as temporary:
        package = pack(
            folder,
            Path(temporary) / "working_directory.zip",
            named=[text for text in _texts(submission.sections) if _lies_in(folder, text)],
            without=stay,
            added={spec: text.encode()},
            exclude=exclude,
        )
        resolved = json.dumps([submission.command, submission.asked.model_dump(mode="json")], sort_keys=True)
        digest = hashlib.sha256(f"{resolved}\0{package.digest}".encode()).hexdigest()[:_DIGITS]
        return server.submit(
            digest,
            ["python", "-m", "raystream.cli", submission.command, spec, "--json"],
            package.path,
            _about(submission),
            {"RAYSTREAM_WHO": _who()},
            driver,
        )


def _workers(asked: Asked) -> list[Need]:
    """Return what one worker needs; where the spec says how many there are, the cluster may grow for them."""
    cluster = asked.cluster
    if cluster.workers != "auto" or cluster.address == "in_process":
        return []
    gpus = 0.0 if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
    return [Need("one worker", cluster.cpus_per_worker, gpus)]


def _check_files(submission: Submission, folder: Path) -> None:
    """See that the files which the spec names by relative paths travel."""
    for key, path in _files(submission.asked):
        if not is_relative(path):
            continue
        inside = os.path.normpath(os.path.join(folder, path)).startswith(f"{folder}{os.sep}")
        if not inside or not (folder / path).exists():
            why = "there is no such file in it" if inside else "it lies outside of it"
            raise QueryError(
                f"{key} {redacted(path)} must travel with the job's working directory {folder}, but {why}; give another --working-dir, or "
                "a bucket or absolute path that all nodes see"
            )


def _files(asked: Asked) -> Iterator[tuple[str, str]]:
    """Yield what the spec reads beside pool and store, by key."""
    model = asked.model if isinstance(asked.model, dict) else asked.model.model_dump()
    weights = model.get("weights") or []
    for path in [weights] if isinstance(weights, str) else weights:
        if Path(str(path)).suffix in _WEIGHTS:
            yield "model.weights", str(path)
    source = str(model.get("source") or "")
    if source.partition(":")[0].endswith(".py"):
        yield "model.source", source.partition(":")[0]
    if isinstance(asked, Query):
        for key, uris in asked.row_uris.items():
            yield from ((key, uri) for uri in uris if key != "pool.uri" and not any(sign in uri for sign in "*?["))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _lies_in(folder: Path, text: str) -> bool:
    """Tell whether a text of the spec names a file or folder of the working directory, below it."""
    if not text or len(text) > 1000 or not is_relative(text) or "\0" in text or text.startswith("~"):
        return False
    path = os.path.normpath(text)
    return path not in (".", "..") and not path.startswith("../") and (folder / path).exists()


def _is_uri(place: str) -> bool:
    return "://" in place or place.startswith("delta+")


def _about(submission: Submission) -> dict[str, str]:
    """Return what the cluster keeps of a job beside its command: text, and none of it a secret, which URIs and options refuse."""
    asked = submission.asked
    options = asked.store_options if isinstance(asked, Query) else asked.store.options
    parse(asked.store.uri, "store.uri")
    return {
        "raystream": raystream.__version__,
        "command": submission.command,
        "name": submission.name,
        "spec": submission.file,
        "store": asked.store.uri,
        "storage": json.dumps({key: value for key, value in asdict(options).items() if value}),
        "who": _who(),
    }


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"user {os.getuid()}"
    return f"{user}@{platform.node()}"
