"""A fitted temperature as `raystream calibrate` shows it: a reliability diagram beside the fit, and a summary."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from raystream.query import Query
from raystream.report.plots import reliability_svg
from raystream.scoring.calibrate import QueryCalibration
from raystream.store.calibration import Calibration, calibration_folder
from raystream.store.opening import store_at


def write_diagram(query: Query, calibration: Calibration) -> str:
    """Write `reliability.svg` beside the fit in the query's store, in place of any that is there; where it is.

    Raises:
        StoreError: the store can't be written.
    """
    store = store_at(query.store.uri, query.store_options)
    name = f"{calibration_folder(calibration.key)}/reliability.svg"
    store.put(name, reliability_svg(calibration))
    return store.place(name)


def summary(fitted: QueryCalibration, diagram: str | None) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {**asdict(fitted.calibration), "new": fitted.new, "diagram": diagram}
