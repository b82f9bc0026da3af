"""kind: python, an object of the user's own with a `predict` method; and kinds that other packages register."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError, did_you_mean
from raystream.model.batches import BatchPredictor
from raystream.model.prediction import Prediction, Predictor
from raystream.model.promise import Promise, check_mask, named, scored_name
from raystream.model.source import build, check_imported
from raystream.query import TASKS
from raystream.query.catalogue import entry_point

_PARTS = ("logits", "probabilities", "embedding", "samples", "mask")


def load(spec: query.Model, *, embedding: bool, names: Sequence[str] = ()) -> BatchPredictor:
    """Make the object of `spec.source`: a class or factory, called with `spec.args`, and with `weights` if the query names some.

    The contract of its `predict(inputs)`:

    * `inputs` is a tuple with one value per column of `pool.inputs`: a tensor (rows, ...) on the processor, not to be kept,
      or a list of str; at most `model.batch_size` rows. Where `pool.inputs` is a mapping, it is a dict of these by their names;
    * it returns a mapping with `logits` or `probabilities` (rows, classes), `embedding` (rows, dimensions), and of a committee
      `samples`, the members' logits or log-probabilities (rows, members, classes); or a `Prediction`; or the logits alone. A dataclass
      may stand for the mapping, and `out` for `logits`. Values are tensors or arrays. An embedding may be left out if the query needs
      none. Where `model.output` is probabilities, what is called logits or returned alone is such, and the samples are, too;
    * the same rows in the same batch give the same numbers in every process.

    What it reads beside `args` and `weights` is not part of its fingerprint: `model.version` can stand for it.

    Raises:
        ModelError: the source can't be imported or called, or what it makes has no `predict`.
    """
    assert spec.source is not None  # the query checks it
    who = f"model.source {spec.source}"
    model = build(spec.source, spec.args | ({"weights": spec.weights} if spec.weights else {}))
    check_imported(spec.source)
    promise = Promise(f"{who}: predict", spec.task, spec.output)
    predict = getattr(model, "predict", None)
    if not callable(predict):
        raise ModelError(f"{who} made {type(model).__name__}, expected an object with a method predict(inputs)")

    def forward(inputs: tuple[Any, ...]) -> Prediction:
        given = tuple(values if isinstance(values, Tensor) else values.tolist() for values in inputs)
        returned = predict(dict(zip(names, given, strict=True)) if names else given)
        return _checked(returned, len(inputs[0]), who, embedding, promise)

    return BatchPredictor(forward, promise=promise, device=torch.device("cpu"), batch_size=spec.batch_size)


def load_registered(spec: query.Model, *, embedding: bool) -> Predictor:
    """Load a model of a kind that another package registers: what its function of `raystream.model.load`'s signature returns.

    Raises:
        ModelError: the package can't be imported.
    """
    point = entry_point(spec.kind)
    try:
        loader = point.load()
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"model.kind {spec.kind} is registered as {point.value}, whose import raised {told}; repair its package"
        ) from error
    predictor: Predictor = loader(spec, embedding=embedding)
    return predictor


def _checked(returned: object, rows: int, who: str, wanted: bool, promise: Promise) -> Prediction:
    parts = _parts(returned, who)
    unknown = next((name for name in parts if name not in _PARTS), None)
    if unknown is not None:
        raise ModelError(f"{who}: predict returned {unknown!r}, which is no part of a prediction{did_you_mean(unknown, _PARTS)}")
    if "logits" in parts and "probabilities" in parts:
        raise ModelError(f"{who}: predict returned logits and probabilities; return one of them")
    if "logits" not in parts and "probabilities" not in parts:
        raise ModelError(f"{who}: predict returned {', '.join(parts) or 'nothing'}, expected logits or probabilities among it")
    if wanted and "embedding" not in parts:
        raise ModelError(f"{who}: predict returned no embedding, but one is needed; return it, or choose a strategy that needs none")
    if promise.task == "regression" and "logits" not in parts:
        raise ModelError(f"{who}: predict returned probabilities, expected numbers {TASKS['regression'].output} for model.task regression")
    given = parts["logits"] if "logits" in parts else parts["probabilities"]
    # A mapping may call its probabilities so; its samples are what model.output says.
    named_so = promise if "logits" in parts else Promise(promise.who, promise.task, "probabilities")
    logits = named_so.logits(given, rows)
    embedding = parts.get("embedding") if wanted else None
    samples = parts.get("samples")
    for name, value, axes in (("embedding", embedding, 2), ("samples", samples, given.ndim + 1)):
        if value is not None and (
            value.ndim != axes
            or (name == "samples" and value.shape[2:] != given.shape[1:])
            or value.shape[0] != rows
            or not value.is_floating_point()
        ):
            expected = ", ".join([str(rows), "dimensions"] if axes == 2 else [str(rows), "members", *map(str, given.shape[1:])])
            raise ModelError(f"{who}: predict returned {name} {value.dtype} {tuple(value.shape)}, expected floating numbers ({expected})")
    members = None if samples is None else promise.members(samples)
    return Prediction(
        logits,
        None if embedding is None else embedding.float(),
        named_so.reason(logits, members),
        samples=members,
        mask=check_mask(parts.get("mask"), logits, promise.who, promise.task) if TASKS[promise.task].dense else None,
    )


def _parts(returned: object, who: str) -> dict[str, Tensor]:
    """Take apart what was returned: tensors on the processor, by name."""
    if isinstance(returned, Prediction):
        returned = {"logits": returned.logits, "embedding": returned.embedding, "samples": returned.samples, "mask": returned.mask}
    if isinstance(returned, tuple) and len(returned) == 1:
        returned = returned[0]
    found = named(returned)
    found = {"logits": returned} if found is None else found
    if scored_name(found) == "out":
        found["logits"] = found.pop("out")
    parts = {}
    for name, value in found.items():
        if not isinstance(value, Tensor | np.ndarray):
            raise ModelError(f"{who}: predict returned {type(value).__name__} as {name}, expected a tensor or an array")
        parts[str(name)] = (torch.from_numpy(value) if isinstance(value, np.ndarray) else value).detach().cpu()
    return parts
