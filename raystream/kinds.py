"""What each `model.kind` is given and gives, as data: for checking a query without loading any of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raystream.errors import did_you_mean

ENTRY_POINTS = "raystream.models"
"""The entry-point group under which other packages register kinds: a name, and a function like `raystream.model.load`."""

OPTIONAL_KEYS = frozenset(
    {
        "source",
        "args",
        "weights",
        "embedding",
        "logits",
        "probabilities",
        "samples",
        "device",
        "precision",
        "preprocess",
        "version",
        "trust",
    }
)
"""The keys of `model` that only some kinds use; any other kind refuses them."""

ALL_TASKS = frozenset({"classes", "segmentation", "tokens", "multi_label", "regression"})
_CLASSES_ALONE = frozenset({"classes"})
_CLASSES_OR_LABELS = frozenset({"classes", "multi_label"})


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
        source: what `model.source` is, for messages; empty if the kind has none.
        keys: the keys of `model` that it uses beyond those of all kinds.
        texts: what columns of strings are to it.
        scores: whether it gives logits; else an embedding alone. Of columns, the query's own keys decide.
        tasks: what `model.task` may be.
        named: whether its inputs have names, so that `pool.inputs` may be a mapping.
        gives: what its scores come from, if the kind alone decides; None where `model.output` does.
        names_classes: whether the model itself may say what its classes are called.
    """

    source: str
    keys: frozenset[str]
    texts: Literal["refused", "taken", "expected"] = "refused"
    scores: bool = True
    tasks: frozenset[str] = ALL_TASKS
    named: bool = False
    gives: Literal["probabilities"] | None = None
    names_classes: bool = False


def _keys(*names: str) -> frozenset[str]:
    return frozenset(names) | {"preprocess", "version"}


KINDS: Mapping[str, Kind] = {
    "torch": Kind(
        "the import path of a factory, such as my_project.nets:resnet18",
        _keys("source", "args", "weights", "embedding", "device", "precision", "trust"),
        named=True,
    ),
    "columns": Kind("", frozenset({"logits", "probabilities", "samples", "embedding"})),
    "export": Kind("a .pt2 file that torch.export.save wrote", _keys("source", "embedding", "device"), named=True),
    "torchscript": Kind("a .pt file that torch.jit.save wrote", _keys("source", "embedding", "device"), named=True),
    "onnx": Kind("a .onnx file", _keys("source", "embedding", "device"), named=True),
    "sklearn": Kind(
        "a .skops file that skops.io.dump wrote",
        _keys("source", "embedding", "trust"),
        texts="taken",
        tasks=_CLASSES_OR_LABELS,
        gives="probabilities",
        names_classes=True,
    ),
    "transformers": Kind(
        "a folder that save_pretrained wrote",
        _keys("source", "args", "embedding", "device", "precision"),
        texts="expected",
        tasks=ALL_TASKS - {"segmentation"},
    ),
    "sentence_transformers": Kind(
        "a folder that SentenceTransformer.save wrote",
        _keys("source", "args", "device", "precision"),
        texts="expected",
        scores=False,
        tasks=_CLASSES_ALONE,
    ),
    "python": Kind(
        "the import path of a class, such as my_project.models:MyModel", _keys("source", "args", "weights"), texts="taken", named=True
    ),
}
"""What `model.kind` may be, but for kinds that other packages register."""

REGISTERED = Kind("what that kind loads", OPTIONAL_KEYS - {"logits", "probabilities", "samples"}, texts="taken")
"""A kind of another package: it is given all there is."""


def kind_of(name: str) -> Kind:
    """The kind of that name.

    Raises:
        ValueError: there is none.
    """
    if name in KINDS:
        return KINDS[name]
    entry_point(name)
    return REGISTERED


def entry_point(name: str) -> importlib.metadata.EntryPoint:
    """The entry point of a kind that another package registers; of several with one name, the first.

    Raises:
        ValueError: there is none.
    """
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name not in points.names:
        known = [*KINDS, *sorted(points.names)]
        near = did_you_mean(name, known)
        raise ValueError(f"model.kind is {name!r}, expected one of {', '.join(known)}{near if near.startswith('; did') else ''}")
    return points[name]
