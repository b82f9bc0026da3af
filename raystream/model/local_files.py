"""A model whose files lie in object storage, as one whose files lie here."""

from __future__ import annotations

from raystream import query
from raystream.lake import LOCAL, Storage, local_copy
from raystream.lake.retry import BRIEF, Patience
from raystream.query.catalogue import kind_of


def with_local_files(spec: query.Model, storage: Storage = LOCAL, patience: Patience = BRIEF) -> query.Model:
    """The `model` section with remote weights, sources and lists of classes replaced by copies on this machine.

    Its fingerprint is the same as that of the same files on a disk.

    Args:
        spec: the section.
        storage: how to reach them.
        patience: with a server that is away; whoever knows that it is there waits for it.

    Raises:
        ModelError: something can't be fetched.
    """
    changes: dict[str, object] = {}
    if isinstance(spec.weights, list):
        changes["weights"] = [local_copy(path, storage, "model.weights", patience) for path in spec.weights]
    elif spec.weights is not None:
        changes["weights"] = local_copy(spec.weights, storage, "model.weights", patience)
    if spec.source is not None and not kind_of(spec.kind).imported:
        changes["source"] = local_copy(spec.source, storage, "model.source", patience)
    if isinstance(spec.classes, str):
        changes["classes"] = local_copy(spec.classes, storage, "model.classes", patience)
    if spec.members is not None:
        changes["members"] = [with_local_files(member, storage, patience) for member in spec.members]
    changed = {name: value for name, value in changes.items() if value != getattr(spec, name)}
    return spec.model_copy(update=changed) if changed else spec
