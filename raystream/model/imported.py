"""Whether the code that this process imported is the code that lies on disk.

A fingerprint hashes files, and Python imports a file once: in a process that lives on while its source is edited, such
as a notebook's, old code would be stored under the new code's fingerprint.
"""

from __future__ import annotations

import hashlib
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from raystream.errors import ModelError
from raystream.model.source import split_source

_seen: dict[str, tuple[ModuleSpec, str]] = {}
"""By module: the spec it was imported by, which a reload replaces, and its file's hash when a model was first loaded from it."""


def check_imported(source: str, key: str = "model.source") -> None:
    """Refuse a source whose modules were edited after this process imported them.

    Args:
        source: `module:attribute`, imported already.
        key: of the query that holds it, for messages.

    Raises:
        ModelError: a module of its top-level package is older here than on disk.
    """
    top = split_source(source)[0].partition(".")[0]
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is None or not (name == top or name.startswith(f"{top}.")) or not (spec.origin or "").endswith(".py"):
            continue
        try:
            content = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
        except OSError:
            continue
        known = _seen.get(name)
        if known is not None and known[0] is spec and known[1] != content:
            raise ModelError(
                f"{key} {source}: {spec.origin} was edited after this process imported it, so what would run is the old code; "
                "restart the process, or reload the module"
            )
        _seen[name] = (spec, content)
