"""Keys and identities: what makes a unit or a query the same as an earlier one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from raystream.pool import File, ReadSpec, Unit, Units
from raystream.pool.reader import READING
from raystream.query import Query
from raystream.query.part import MAX_QUARANTINED
from raystream.store.opening import FORMAT
from raystream.store.unit_keys import KEY_BYTES, Keys

_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode

_OUTPUTS = 1
"""Of what is made of a model's outputs: raised when the same model comes to give other numbers for the same rows."""


def _digest(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()


class UnitKeys:
    """The keys under which units' outputs are kept: equal exactly when all that every kind of output depends on is.

    A key hashes canonical JSON. What the units of a query share is written out once, not once a unit.

    Args:
        query: says what runs.
        spec: how the units' columns become the model's tensors.
        fingerprint: the model's.
    """

    def __init__(self, query: Query, spec: ReadSpec, fingerprint: str) -> None:
        model = query.model
        # An entry that is new for all queries makes all stores score anew; one that only some need stays out of the others' keys, as in
        # `_inputs` and `_unit_parts`. What one kind of output alone depends on belongs to `output_kinds`.
        shared: dict[str, Any] = {
            "format": FORMAT,
            "reading": READING,
            "id": query.pool.id,
            "columns": [spec.inputs, spec.shapes, spec.dtypes],
            "model": fingerprint,
            "precision": model.precision,
            "outputs": [_OUTPUTS, *(member.output for member in model.members or [model])],
            "batch_size": model.batch_size,
            **_inputs(spec),
        }
        self._shared = {name: _text(value) for name, value in shared.items()}

    def of(self, units: Units) -> Keys:
        """Compute the units' keys."""
        digests = np.empty((len(units), KEY_BYTES), np.uint8)
        pieces: tuple[str, str, str] | None = None
        common: int | None = None
        for first, end in units.alike():
            if pieces is None or common is None or units.common(first) != common:
                pieces, common = self._around(units[first]), units.common(first)
            begun = hashlib.sha256(f"{pieces[0]}{_text(units.files[units.file_of[first]].identity)}{pieces[1]}".encode())
            after, found = pieces[2].encode(), []
            for group, groups in units.row_groups(first, end):
                digest = begun.copy()
                digest.update(_listed(group, groups).encode() + after)
                found.append(digest.digest())
            digests[first:end] = np.frombuffer(b"".join(found), np.uint8).reshape(-1, KEY_BYTES)
        return Keys(digests)

    def text(self, unit: Unit) -> str:
        """Build the text that the key is the hash of."""
        before, between, after = self._around(unit)
        return f"{before}{_text(unit.file.identity)}{between}{_listed(unit.row_groups[0], len(unit.row_groups))}{after}"

    def _around(self, unit: Unit) -> tuple[str, str, str]:
        """Split that text before the file, between it and the row groups, and behind these; by the two alone most units differ."""
        texts = self._shared | {name: _text(value) for name, value in _unit_parts(unit).items()} | {"file": "\0", "row_groups": "\0"}
        # JSON has no such character, whatever the values are.
        before, between, after = f"{{{','.join(f'{_text(name)}:{texts[name]}' for name in sorted(texts))}}}".split("\0")
        return before, between, after


def _listed(group: int, groups: int) -> str:
    """Write row groups as JSON."""
    return f"[{','.join(map(str, range(group, group + groups)))}]"


def _unit_parts(unit: Unit) -> dict[str, Any]:
    """List what a unit's key holds of the unit itself, beside its file and row groups."""
    later: dict[str, Any] = {"casts": [[name, str(type_)] for name, type_ in unit.casts]} if unit.casts else {}
    if unit.span is not None:
        later["span"] = unit.span
    return later | {
        "positions": unit.positions,
        "unit_id": unit.id,
        "filters": unit.filters,
        "unit_columns": unit.columns,
    }


def _inputs(spec: ReadSpec) -> dict[str, Any]:
    """Collect what else the model's tensors depend on; nothing for columns of numbers and texts that come by position."""
    found: dict[str, Any] = {}
    if spec.names:
        found["names"] = spec.names
    if spec.prepared is not None:
        found["prepared"] = [spec.prepared.source, spec.prepared.code]
    if spec.decodes_images:
        found["images"] = [
            [column.image.settings.model_dump(mode="json"), column.image.jpeg] if column.image else None for column in spec.columns
        ]
    return found


def query_identity(
    query: Query, files: Sequence[File], labelled: Sequence[object], classes: Sequence[str] | None, fingerprint: str
) -> dict[str, str]:
    """Describe what a query's name stands for, by part; the identity is the digest of all parts together.

    The cluster, the store and the output have no influence on what is chosen and are left out.

    Args:
        query: as resolved.
        files: the pool's.
        labelled: the digest of the labelled ids, and the identities of labelled files that may be scored.
        classes: the names, wherever they were read.
        fingerprint: the model's.
    """
    # Keys that are left out say nothing, so that one that is new in a later version changes no name. What the options of storage
    # decide of the bytes read stands in the files' identities.
    left_out: Any = {"cluster": True, "store": True, "output": True, "pool": {"storage"}}
    resolved = _as_before(query.model_dump(mode="json", exclude=left_out, exclude_none=True))
    parts = {
        f"{section}.{key}": json.dumps(value)
        for section in resolved
        if isinstance(resolved[section], dict)
        for key, value in resolved[section].items()
    }
    parts |= {key: json.dumps(value) for key, value in resolved.items() if not isinstance(value, dict)}
    parts["the pool's files"] = _digest([file.identity for file in files])
    parts["the labelled rows"] = _digest(labelled) if labelled else ""
    parts["the names of the classes"] = json.dumps(classes)
    parts["the model's weights, arguments or source"] = fingerprint
    return parts


_LATER: dict[str, dict[str, Any]] = {
    "model": {"task": "classes", "output": "logits"},
    "acquire": {"class_weights": {}, "targets": [], "args": {}},
}
"""Keys of the query's sections that came after the first queries were committed, and their defaults."""
_LATER_ITSELF: dict[str, Any] = {"max_quarantined": MAX_QUARANTINED}
"""The same of the query."""


def _as_before(resolved: dict[str, Any]) -> dict[str, Any]:
    """Dump a query without later keys that are at their defaults, so that queries that don't use them keep their names."""
    found = {name: _without(part, _LATER[name]) if name in _LATER else part for name, part in _without(resolved, _LATER_ITSELF).items()}
    if found["model"].get("members"):
        found["model"]["members"] = [_without(member, _LATER["model"]) for member in found["model"]["members"]]
    return found


def _without(part: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in defaults or value != defaults[key]}


def identity_digest(parts: dict[str, str]) -> str:
    """Hash the identity to one string; its first 12 digits are the query's default name."""
    return _digest(parts)


def differences(before: dict[str, str], now: dict[str, str]) -> str:
    """Say what differs between two identities, in words."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    words = []
    for name in changed:
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        short = name.startswith("the ") or len(old) + len(new) > 80
        words.append(name if short else f"{name} ({old} then, {new} now)")
    return ", ".join(words)
