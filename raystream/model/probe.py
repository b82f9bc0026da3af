"""Runs a model on a few rows, and holds it to what only running it can tell.

The rows are the first ones of the pool, the same for every worker, before any of them scores a unit: what is decided by them is
decided alike for the whole query, however its units are spread, and nothing of it depends on which worker is first. They are few, each
worker reads them itself, and the passes over them are the model's first, which are slow in any case. The driver doesn't do it: it may
have no room for the model, nor the device that it runs on.

* Two passes over the same rows must give the same numbers, and batch norm must not look at the batch.
* What is called logits must not be probabilities: a softmax would be taken twice, which changes the order of rows. They are if in none
  of the rows a number is negative and all rows sum to 1. A pool whose rows are one-hot is refused, too: a softmax that is sure gives
  such rows, and of logits that are so by chance the same can be said in other numbers, a constant higher.
* What is called probabilities must be some: those of most rows a distribution, those of labels not one by chance.

Every later batch is held to the shapes of the first, which costs nothing.

Where a network's output depends on chance, or on the other rows of the batch, the module that makes it so is named if it can be found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raystream import query
from raystream.errors import ModelError
from raystream.model.batches import is_device_failure, is_out_of_memory
from raystream.model.dropout_calls import running_modules
from raystream.model.prediction import Prediction, Predictor
from raystream.model.promise import Promise, class_axis, tolerance
from raystream.model.signature import inputs_embedding
from raystream.query import TASKS
from raystream.query.catalogue import kind_of

_BATCH_NORMS = (F.batch_norm, torch.batch_norm, torch.native_batch_norm)
_TRAINING = 5
"""The place of the flag among their arguments, and those of the operation that they all become."""


def batch_statistics(network: nn.Module, run: Callable[[], object]) -> str:
    """Say where batch norm takes the statistics of the batch, as words for a message; empty if nowhere.

    Args:
        network: in evaluation mode.
        run: runs it on some rows.
    """
    if isinstance(network, torch.jit.ScriptModule):
        graph: Any = network.inlined_graph
        flags = [list(node.inputs())[_TRAINING] for node in graph.findAllNodes("aten::batch_norm")]
        return "its graph calls batch_norm" if any(flag.toIValue() for flag in flags if flag.node().kind() == "prim::Constant") else ""
    if isinstance(network, torch.fx.GraphModule):
        return _exported_place(network, torch.ops.aten.batch_norm.default)
    with running_modules(network) as running:
        mode = _Norms(network, running)
        try:
            with mode:
                run()
        except Exception as error:  # of code that can't be watched
            if is_device_failure(error) or is_out_of_memory(error):
                raise
        return mode.place


def draws(network: nn.Module, run: Callable[[], object]) -> str:
    """Say where a random number is drawn, as words for a message; empty if torch draws none, or it can't be told.

    Whoever calls it is seen, scripted and exported code too, where it reaches torch's dispatcher. To watch that imports torch's
    compiler, for seconds, so it isn't for networks of which nothing is wrong.
    """
    scripted = isinstance(network, torch.jit.ScriptModule)  # its modules have no hooks
    with running_modules(nn.Module() if scripted else network) as running:
        mode = _FirstDraw(network, running)
        try:
            with mode:
                run()
        except Exception as error:
            if is_device_failure(error) or is_out_of_memory(error):
                raise
        return mode.place


class _Norms(TorchFunctionMode):
    """Notes the first batch norm that looks at its batch."""

    def __init__(self, network: nn.Module, running: list[nn.Module]) -> None:
        super().__init__()
        self._network, self._running = network, running
        self.place = ""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.place and func in _BATCH_NORMS and (args[_TRAINING] if len(args) > _TRAINING else kwargs.get("training")):
            self.place = _place(self._network, self._running, "batch_norm")
        return func(*args, **kwargs)


class _FirstDraw(TorchDispatchMode):
    """Notes the first operation that draws a random number."""

    def __init__(self, network: nn.Module, running: list[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._network, self._running = network, running
        self.place = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.place and torch.Tag.nondeterministic_seeded in func.tags and _is_on(func, args, kwargs):
            exported = isinstance(self._network, torch.fx.GraphModule) and _exported_place(self._network, func)
            self.place = exported or _place(self._network, self._running, _name(func))
        return func(*args, **kwargs)


def _place(network: nn.Module, running: list[nn.Module], operation: str) -> str:
    """Return the innermost module that is running, and the operation."""
    module = running[-1] if running else network
    name = next((name for name, known in network.named_modules() if known is module), "")
    return f"module {name} ({type(module).__name__}) calls {operation}" if name else f"its forward calls {operation}"


def _exported_place(network: torch.fx.GraphModule, func: Any) -> str:
    """Return the module that the first such call of an operation was in, as torch.export wrote it down; empty if there is none."""
    for node in network.graph.nodes:
        if node.op == "call_function" and node.target is func and _is_on(func, node.args, node.kwargs):
            path, kind = [("", ""), *(node.meta.get("nn_module_stack") or {}).values()][-1]
            kind = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
            return f"module {path} ({kind}) calls {_name(func)}" if path else f"its forward calls {_name(func)}"
    return ""


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _is_on(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a call does what is looked for: its flags of training are set, and its p isn't 0."""
    values = {of.name: of.default_value for of in func._schema.arguments if of.has_default_value()}
    values |= dict(zip((of.name for of in func._schema.arguments), args, strict=False)) | kwargs
    flags = [values[flag] for flag in ("train", "training") if flag in values]
    return all(flag is not False for flag in flags) and all(values.get(p) != 0 for p in ("p", "dropout_p"))


PROBE_ROWS = 16
_TOLERANCE = {"cpu": 1e-5}
_GPU_TOLERANCE, _AUTOCAST_TOLERANCE = 1e-4, 1e-2
"""Of a difference between two passes, relative to the largest number: sums may be taken in another order."""
_BY_CHANCE = "logits that look so by chance say the same with a constant added to all of them"
_PARTS = ("logits", "embedding", "samples", "gradient_lengths")


class Promised:
    """A predictor of any kind that keeps the promise of `raystream.model.promise`, or says which part of it is broken.

    Args:
        model: ready to predict.
        spec: the `model` section of the query.
        watched: whether its network may be watched, as it can't under dropout samples and gradients.
        inputs_embedded: whether the embedding is to be the inputs, and the model gives none.
        members: names and predictors, of a committee.
    """

    def __init__(
        self,
        model: Predictor,
        spec: query.Model,
        *,
        watched: bool = True,
        inputs_embedded: bool = False,
        members: Sequence[tuple[str, Promised]] = (),
    ) -> None:
        self._model, self._spec, self._members, self._inputs_embedded = model, spec, tuple(members), inputs_embedded
        self._who = _called(spec)
        self._network: nn.Module | None = getattr(model, "network", None) if watched else None
        self._seen: dict[str, int] = {}
        self._probed = False
        for _, member in members:
            member._probed = True  # with this one
        self._found: list[str] = []

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._model.device

    @property
    def state_hash(self) -> str:
        """The model's."""
        return self._model.state_hash

    @property
    def batch_size(self) -> int:
        """The most rows that run at once."""
        return self._model.batch_size

    @property
    def class_labels(self) -> tuple[Any, ...] | None:
        """The model's own names of its classes, in the order of its outputs: numbers, strings or booleans; None if it doesn't say."""
        return getattr(self._model, "class_labels", None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that the user should know about the model, found while it was loaded and probed."""
        return tuple(dict.fromkeys((*getattr(self._model, "notes", ()), *self._found, *(n for _, m in self._members for n in m.notes))))

    def predict(self, inputs: tuple[Any, ...]) -> Prediction:
        """See `Predictor.predict`. It is probed with the first rows that it is given, unless it was with others."""
        rows = len(inputs[0])
        first = _copied(tuple(values[:PROBE_ROWS] for values in inputs)) if rows and not self._probed else None
        prediction = self._run(inputs)
        self._check(prediction, rows)
        if first is not None:
            self.probe(first)
        return prediction

    def _run(self, inputs: tuple[Any, ...]) -> Prediction:
        prediction = self._model.predict(inputs)
        if not self._inputs_embedded:
            return prediction
        return replace(prediction, embedding=inputs_embedding(inputs, self._who).to(self.device))

    def probe(self, inputs: tuple[Any, ...], *, lenient: bool = False) -> None:
        """Run the model on a few rows.

        Args:
            inputs: as of `predict`, at least one row; they are left as they are.
            lenient: whether a model that can't run on these rows is left alone, to be probed with the next ones that it is given: what is
                wrong is said where it is run in earnest.

        Raises:
            ModelError: it doesn't keep the promise, or can't run on them.
        """
        try:
            first = self._run(_copied(inputs))
            self._check(first, len(inputs[0]))
        except (Exception, SystemExit) as error:
            if lenient and not is_device_failure(error) and not is_out_of_memory(error):
                return
            raise
        for name, member in self._members:
            try:
                member.probe(inputs)
            except ModelError as error:
                raise ModelError(f"{name}: {error}") from error
        if not self._members:  # what holds of each of them holds of their mean
            self._probe_outputs(first, inputs)
        self._probed = True

    def _probe_outputs(self, first: Prediction, inputs: tuple[Any, ...]) -> None:
        self._same(first, self._run(_copied(inputs)), inputs)
        place = batch_statistics(self._network, lambda: self._run(_copied(inputs))) if self._network is not None else ""
        if place:
            raise ModelError(
                f"{self._who} takes the statistics of the batch in evaluation mode, so that a row's output depends on the rows beside it: "
                f"{place}; leave batch norm in evaluation mode, with the statistics of training{self._saved}"
            )
        for values in (first.logits, *(() if first.samples is None else first.samples.unbind(1))):
            if values is not None:
                self._logits_or_probabilities(values.cpu(), None if first.mask is None else first.mask.cpu())

    def _same(self, first: Prediction, again: Prediction, inputs: tuple[Any, ...]) -> None:
        """Raise ModelError if two passes over the same rows gave different numbers."""
        allowed = _TOLERANCE.get(self.device.type, _GPU_TOLERANCE) if self._spec.precision == "float32" else _AUTOCAST_TOLERANCE
        for part in _PARTS:
            one, other = getattr(first, part), getattr(again, part)
            if one is None or other is None or _close(one, other, allowed):
                continue
            place = draws(self._network, lambda: self._run(_copied(inputs))) if self._network is not None else ""
            raise ModelError(
                f"{self._who} is random in evaluation mode: two passes over {len(one)} rows gave different {part.replace('_', ' ')}"
                f"{': ' if place else ''}{place}; pass training=self.training to dropout and leave out noise in evaluation{self._saved}"
            )

    @property
    def _saved(self) -> str:
        """Advice on what else to do about a model that is a file; empty for others."""
        return ", and save the model after model.eval()" if kind_of(self._spec.kind).saved else ""

    def _logits_or_probabilities(self, values: Tensor, mask: Tensor | None) -> None:
        """Raise ModelError if what was given isn't what it is called."""
        task = self._spec.task
        if task == "regression":
            return
        rows = _elements(values, mask, task)
        if not len(rows):
            return
        if task == "multi_label":
            self._labels(rows)
        elif bool((rows == torch.inf).all(dim=1).float().mean() > 0.5):
            raise ModelError(
                f"{self._who} gives probabilities that are negative or don't sum to 1 in most of its first rows, expected one distribution "
                f"over the classes; if each is that of a label of its own, set model.task to multi_label{self._or_logits()}"
            )
        if task != "multi_label" and rows.shape[1] == 2 and bool((rows[:, 0] == 0).all()):  # of one logit z, (0, z)
            if _between(rows[:, 1]):
                self._found.append(self._perhaps("its one output"))
        elif rows.shape[1] > 1 and len(rows) > 1 and _sum_to_one(rows):
            raise ModelError(self._second_softmax())

    def _labels(self, rows: Tensor) -> None:
        """Check the same of labels, which needn't sum to 1."""
        if not self._declared:
            if _between(rows):
                self._found.append(self._perhaps("every output"))
            return
        if bool(rows.isnan().any(dim=1).float().mean() > 0.5):
            raise ModelError(f"{self._who} gives numbers beyond 0 and 1, expected a probability of each label{self._or_logits()}")
        if rows.shape[1] > 1 and len(rows) > 1 and _sum_to_one(rows.double().sigmoid()):
            raise ModelError(
                f"{self._who} gives probabilities that sum to 1 in each of its first rows, so that they are those of one class each, but "
                "model.task is multi_label; set it to classes"
            )

    @property
    def _declared(self) -> bool:
        """True if the outputs are said to be probabilities."""
        promise = getattr(self._model, "promise", None)
        return promise.probabilities if isinstance(promise, Promise) else self._spec.output == "probabilities"

    def _or_logits(self) -> str:
        if kind_of(self._spec.kind).gives == "probabilities":
            return ""
        return ", and if they are logits, name the column in model.logits" if self._spec.carried else (
            ", and if they are logits, model.output to logits"
        )

    def _second_softmax(self) -> str:
        if self._spec.carried:
            return (
                f"{self._who} holds probabilities, since each row's numbers lie between 0 and 1 and sum to 1; "
                f"name it in model.probabilities instead ({_BY_CHANCE})"
            )
        return (
            f"{self._who} gives probabilities where logits are expected: in each of its first rows none is negative and they sum to 1, so "
            f"that a second softmax would change the order of rows; set model.output to probabilities ({_BY_CHANCE})"
        )

    def _perhaps(self, what: str) -> str:
        return (
            f"{self._who}: {what} of the first rows lies between 0 and 1, as probabilities do; if the model ends in a sigmoid, "
            "set model.output to probabilities, or it is taken twice"
        )

    def _check(self, prediction: Prediction, rows: int) -> None:
        """Check that a batch's outputs are like those of the batch before."""
        axis = class_axis(self._spec.task)
        for part, place in (("logits", axis), ("embedding", 1), ("samples", 1)):
            values = getattr(prediction, part)
            if values is None:
                continue
            if not isinstance(values, Tensor) or values.dtype != torch.float32 or values.shape[0] != rows or values.ndim < 2:
                got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
                raise ModelError(f"{self._who} gives {part} {got} for {rows} rows, expected float32 ({rows}, ...)")
            size = values.shape[place]
            if self._seen.setdefault(part, size) != size:
                raise ModelError(
                    f"{self._who} gives {part} {tuple(values.shape)}, but for others {self._seen[part]} in place of {size}; expected one "
                    "number of classes, dimensions and members for all rows"
                )


def _called(spec: query.Model) -> str:
    if spec.carried:
        column = spec.logits or spec.probabilities or spec.samples or spec.embedding
        key = "logits" if spec.logits else "probabilities" if spec.probabilities else "samples" if spec.samples else "embedding"
        return f"column {column} (model.{key})"
    return f"model.source {spec.source}" if spec.source else f"model.kind {spec.kind}"


def _copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy inputs: a model may write into its own."""
    return tuple(values.clone() if isinstance(values, Tensor) else values.copy() for values in inputs)


def _close(one: Tensor, other: Tensor, allowed: float) -> bool:
    if one.shape != other.shape:
        return False
    finite = one[torch.isfinite(one)]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    return torch.allclose(one, other, rtol=0, atol=allowed * scale, equal_nan=True)


def _elements(values: Tensor, mask: Tensor | None, task: str) -> Tensor:
    """Return (elements, classes) of the elements that count and hold no NaN; of labels (rows, labels), as they are."""
    elements = values.movedim(class_axis(task), -1)
    if TASKS[task].dense and mask is not None:
        elements = elements[mask]
    elements = elements.reshape(-1, elements.shape[-1])
    return elements if task == "multi_label" else elements[~elements.isnan().any(dim=1)]


def _sum_to_one(rows: Tensor) -> bool:
    """Tell whether none is negative and each row sums to 1, as rounding of any dtype leaves it: so many rows do that by no chance."""
    return bool((rows >= 0).all()) and bool(((rows.double().sum(dim=1) - 1).abs() <= tolerance(torch.bfloat16)).all())


def _between(values: Tensor) -> bool:
    """Tell whether enough numbers all lie between 0 and 1, not all of them at its ends."""
    return len(values) >= PROBE_ROWS // 2 and bool(((values >= 0) & (values <= 1)).all()) and bool((values != values.round()).any())
