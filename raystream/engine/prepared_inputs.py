"""The user's function that makes the model's inputs, planned by its hash and loaded where it runs."""

from __future__ import annotations

from raystream.errors import ModelError
from raystream.model import code_hash, load_preparation
from raystream.pool import ReadSpec
from raystream.pool.reader import Prepare, Prepared
from raystream.query import Query

_KEY = "model.preprocess"


def planned(query: Query) -> Prepared | None:
    """What units are keyed by, if `model.preprocess` names a function.

    Raises:
        ModelError: its module isn't there.
    """
    source = query.model.prepares
    return None if source is None else Prepared(source, code_hash(source, _KEY))


def preparation(spec: ReadSpec) -> Prepare | None:
    """The function itself, if the spec names one.

    Raises:
        ModelError: it can't be imported, or isn't the one that was planned with.
    """
    if spec.prepared is None:
        return None
    found = load_preparation(spec.prepared.source, spec.inputs, spec.names)
    if code_hash(spec.prepared.source, _KEY) != spec.prepared.code:
        raise ModelError(f"{_KEY} {spec.prepared.source} changed while the query was being started; run it again")
    return found
