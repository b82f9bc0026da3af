"""Packages that only some kinds of model need."""

from __future__ import annotations

import importlib
from typing import Any

from raystream.errors import ModelError


def optional(module: str, kind: str, extra: str) -> Any:
    """Import a module of an extra.

    Args:
        module: its full name.
        kind: of the model that needs it.
        extra: of raystream that installs it.

    Raises:
        ModelError: it isn't installed, or its import fails.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == package:
            raise ModelError(f"model.kind {kind} needs {package}, which is not installed; pip install 'raystream[{extra}]'") from None
        reason = str(error)
    except ImportError as error:
        reason = str(error)
    first = reason.strip().partition("\n")[0]
    raise ModelError(f"model.kind {kind} needs {package}, whose import failed: {first}; reinstall it: pip install 'raystream[{extra}]'")
