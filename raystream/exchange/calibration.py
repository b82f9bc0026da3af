"""A fitted temperature as `raystream calibrate` shows it: a reliability diagram beside the fit, and a summary."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from raystream.engine.calibration import Calibration, calibration_folder
from raystream.engine.fitting import Fitted
from raystream.engine.store import LocalStore
from raystream.exchange.plots import reliability_png


def write_diagram(store_uri: str, calibration: Calibration) -> Path:
    """Write `reliability.png` beside the fit in the store, in place of any that is there.

    Raises:
        StoreError: the store can't be written.
    """
    store = LocalStore(store_uri)
    name = f"{calibration_folder(calibration.key)}/reliability.png"
    store.put(name, reliability_png(calibration))
    return store.path(name)


def summary(fitted: Fitted, diagram: Path | None) -> dict[str, Any]:
    """What `--json` prints."""
    return {**asdict(fitted.calibration), "new": fitted.new, "diagram": str(diagram) if diagram is not None else None}
