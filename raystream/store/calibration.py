"""A fitted temperature: what it did to the labelled rows that it was fitted on, and where the store keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from raystream.store.protocol import Store


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: rows by confidence, in bins of equal width from 0 to 1; None where a bin is empty."""

    count: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, with the rows it comes from and what it did to them; "before" is at temperature 1.

    `relative_error` is its standard error as a part of it, None at a bound. NLL is in nats. `columns`, `shapes` and `dtypes` are what
    the model was given, `state_hash` that of its tensors, `files` the calibration set as it was.
    """

    key: str
    temperature: float
    relative_error: float | None
    at_bound: bool
    rows: int
    classes: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    before: Reliability
    after: Reliability
    label: str
    files: list[tuple[str, int, str]]
    columns: list[str]
    shapes: list[list[int]]
    dtypes: list[str]
    state_hash: str
    seconds: float
    warnings: list[str]

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Calibration:
        """Make a calibration of what `dataclasses.asdict` and JSON made of it."""
        before, after = (Reliability(**fields.pop(name)) for name in ("before", "after"))
        files = [(path, size, version) for path, size, version in fields.pop("files")]
        return cls(before=before, after=after, files=files, **fields)


def calibration_folder(key: str) -> str:
    """Name the folder of the store in which a fit is kept, with the diagram and the events of its scoring."""
    return f"calibrations/{key}"


def read_calibration(store: Store, key: str) -> Calibration | None:
    """Read the fit of that key, if there is one."""
    data = store.read_if_there(f"{calibration_folder(key)}/fit.json")
    if data is None:
        return None
    try:
        return Calibration.from_fields(json.loads(data))
    except (ValueError, TypeError, KeyError):
        return None  # cut short, or of another layout: fitted again


def write_calibration(store: Store, calibration: Calibration) -> Calibration:
    """Keep a fit unless there is one of its key; the one that is kept."""
    name = f"{calibration_folder(calibration.key)}/fit.json"
    data = json.dumps(asdict(calibration), indent=1).encode()
    if not store.put_if_absent(name, data):
        found = read_calibration(store, calibration.key)
        if found is not None:
            return found
        store.put(name, data)
    return calibration
