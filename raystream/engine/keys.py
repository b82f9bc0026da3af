"""What makes a unit or a query the same as an earlier one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from raystream.engine.store import FORMAT
from raystream.pool import File, ReadSpec, Unit
from raystream.query import Query


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


class Wanted(NamedTuple):
    """What a unit's outputs hold beside scores."""

    embedding: bool
    probabilities: bool
    samples: bool


def unit_key(unit: Unit, query: Query, spec: ReadSpec, fingerprint: str, outputs: Wanted) -> str:
    """The key under which a unit's outputs are kept: equal exactly when the outputs would be.

    Args:
        unit: what is read.
        query: says how it is scored.
        spec: how its columns become the model's tensors.
        fingerprint: the model's.
        outputs: what is written beside the scores.
    """
    model = query.model
    return _digest(
        {
            "format": FORMAT,
            "file": unit.file.identity,
            "row_groups": unit.row_groups,
            "positions": unit.positions,
            "unit_id": unit.id,
            "filters": unit.filters,
            "id": query.pool.id,
            "columns": [spec.inputs, spec.shapes, spec.dtypes],
            "unit_columns": unit.columns,
            "model": fingerprint,
            "embedding": [model.embedding, model.embedding_dtype] if outputs.embedding else None,
            "probabilities": model.embedding_dtype if outputs.probabilities else None,
            "samples": outputs.samples,
            "mc_dropout": [query.acquire.mc_samples, query.seed] if query.acquire.mc_samples else None,
            "precision": model.precision,
            "batch_size": model.batch_size,
            "temperature": model.temperature,
        }
    )


def query_identity(
    query: Query, files: Sequence[File], labelled: Sequence[object], classes: Sequence[str] | None, fingerprint: str
) -> dict[str, str]:
    """What a query's name stands for, by part; the identity is the digest of all parts together.

    The cluster and the store have no influence on what is chosen and are left out.

    Args:
        query: as resolved.
        files: the pool's.
        labelled: the digest of the labelled ids, and the identities of labelled files that may be scored.
        classes: the names, wherever they were read.
        fingerprint: the model's.
    """
    # What the options of storage decide of the bytes read stands in the files' identities.
    resolved = query.model_dump(mode="json", exclude={"cluster": True, "store": True, "pool": {"storage"}})
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


def identity_digest(parts: dict[str, str]) -> str:
    """The identity as one string; its first 12 digits are the query's default name."""
    return _digest(parts)


def differences(before: dict[str, str], now: dict[str, str]) -> str:
    """What differs between two identities, in words."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    words = []
    for name in changed:
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        short = name.startswith("the ") or len(old) + len(new) > 80
        words.append(name if short else f"{name} ({old} then, {new} now)")
    return ", ".join(words)
