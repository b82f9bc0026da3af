"""What a model takes, and the embedding that it gives.

Find what a compiled model takes, and which of its outputs are the logits and the embedding.

The embedding: a tensor caught inside the network while it runs.

With `model.embedding: inputs` it is the model's own inputs, for models of any kind that takes tensors.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raystream.errors import ModelError, QueryError, did_you_mean
from raystream.model.prediction import Prediction
from raystream.model.promise import PROBABILITIES, Promise, check_mask, class_axis, named, pooled, scored_name
from raystream.query import TASKS

_BATCH_AXIS = "export it again with a first axis of any length"


@dataclass(frozen=True)
class Input:
    """One input of a model: its name, its dtype, None if it says none, and its shape, in which None or a name is any length."""

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        shape = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name} {str(self.dtype).removeprefix('torch.')} ({shape})"


class Signature:
    """The inputs of a model, in order.

    Raises:
        ModelError: an input takes batches of one size only.
    """

    def __init__(self, inputs: Sequence[Input], who: str) -> None:
        self._inputs = tuple(inputs)
        self._who = who
        for of in inputs:
            if of.shape and isinstance(of.shape[0], int):
                raise ModelError(f"{who}: input {of} takes batches of exactly {of.shape[0]} rows, expected of any number; {_BATCH_AXIS}")

    @property
    def names(self) -> list[str]:
        """The names of the inputs, in order."""
        return [of.name for of in self._inputs]

    def fit(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the pool's tensors in the dtypes that the model takes.

        Floating numbers become other floating numbers, and integers other integers; nothing else is converted.

        Raises:
            ModelError: their number, their shapes or their kinds differ from the model's.
        """
        if len(values) != len(self._inputs):
            takes = "; ".join(map(str, self._inputs))
            raise ModelError(
                f"{self._who} takes {len(self._inputs)} inputs ({takes}), but pool.inputs gives {len(values)}; name one for each"
            )
        return tuple(self._fitted(of, value) for of, value in zip(self._inputs, values, strict=True))

    def _fitted(self, of: Input, value: Tensor) -> Tensor:
        shape = tuple(value.shape)
        fits = len(shape) == len(of.shape) and all(not isinstance(b, int) or a == b for a, b in zip(shape, of.shape, strict=True))
        same_kind = of.dtype is None or (value.is_floating_point(), value.dtype == torch.bool) == (
            of.dtype.is_floating_point,
            of.dtype == torch.bool,
        )
        if not (fits and same_kind):
            got = f"{str(value.dtype).removeprefix('torch.')} {shape}"
            raise ModelError(f"{self._who}: input {of} got {got}; check that pool.inputs are what the model takes, in its order")
        return value if of.dtype is None else value.to(of.dtype)


Order = Callable[[tuple[Any, ...]], tuple[Any, ...]]
"""Puts the pool's tensors into the order in which a model takes them."""


def in_order(names: Sequence[str], takes: Sequence[str], who: str) -> Order:
    """Return the order of a model that takes all of its inputs, by position.

    Args:
        names: the pool's names of its tensors, as they come; empty if they come in the model's order.
        takes: the model's names of its inputs.
        who: names the model in errors.

    Raises:
        ModelError: the two don't hold the same names.
    """
    if not names:
        return lambda values: values
    _check_names(names, takes, takes, who, ", ".join(takes))
    places = [list(names).index(name) for name in takes]
    return lambda values: tuple(values[place] for place in places)


def check_forward(forward: Callable[..., Any], names: Sequence[str], who: str) -> None:
    """See that a function takes these keyword arguments, and that no others are missing.

    Raises:
        ModelError: it doesn't.
    """
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return  # written in C: the call itself will tell
    given = signature.parameters.values()
    by_name = [of for of in given if of.kind in (of.POSITIONAL_OR_KEYWORD, of.KEYWORD_ONLY)]
    needed = [of.name for of in given if of.default is of.empty and of.kind not in (of.VAR_POSITIONAL, of.VAR_KEYWORD)]
    takes = list(names) if any(of.kind is of.VAR_KEYWORD for of in given) else [of.name for of in by_name]
    _check_names(names, takes, needed, who, str(signature).strip("()"))


def _check_names(names: Sequence[str], takes: Sequence[str], needed: Sequence[str], who: str, signature: str) -> None:
    unknown = next((name for name in names if name not in takes), None)
    if unknown is not None:
        raise ModelError(
            f"pool.inputs names {unknown!r}, which {who} doesn't take{did_you_mean(unknown, list(takes))}; it takes {signature}"
        )
    missing = next((name for name in needed if name not in names), None)
    if missing is not None:
        raise ModelError(f"pool.inputs gives {who} nothing for {missing!r}; it takes {signature}, so name a column for that, too")


class Outputs:
    """Chooses among the outputs of a model.

    The logits are the output named `logits`, `probabilities` or `out`, or else the first one. The embedding, if wanted, is the output
    that `model.embedding` names, or else the one named `embedding`, or else the second one. Outputs without names are called 0, 1, ...
    The mask of a dense task is the output named `mask`, or else the one of booleans or integers.
    """

    def __init__(self, wanted: bool, name: str | None, promise: Promise, how: str) -> None:
        """
        Args:
            wanted: whether the embedding is.
            name: `model.embedding`.
            promise: what the scored output is to be.
            how: the way to a model that gives an embedding, for messages.
        """
        self._wanted, self._name, self._promise, self._how = wanted, name, promise, how
        self._who, self._task = promise.who, promise.task

    def scored(self, names: Sequence[str]) -> str:
        """Find which of the outputs is scored."""
        found = scored_name(names) or next(iter(names), "")
        self._promise.probabilities = self._promise.probabilities or found == PROBABILITIES
        return found

    def prediction(self, output: object, rows: int) -> Prediction:
        """Return the logits and the embedding of what the model returned: a tensor, a list or tuple of them, or a mapping.

        Raises:
            ModelError: there is no embedding, or one of the two can't be one.
        """
        outputs = _named(output)
        logits_name = self.scored(list(outputs))
        logits = self._promise.logits(outputs.get(logits_name, output), rows)
        mask_name = _mask_name(outputs) if TASKS[self._task].dense else None
        mask = check_mask(outputs[mask_name], logits, self._who, self._task) if mask_name is not None else None
        if not self._wanted:
            return Prediction(logits, None, mask=mask)
        name = self.embedding_name([other for other in outputs if other != mask_name], logits_name)
        value = outputs[name]
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != rows or not value.is_floating_point():
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(f"{self._who}: output {name} is {got}, expected floating numbers ({rows}, ...) to be an embedding")
        return Prediction(logits, pooled(value, mask, self._task, f"output {name}"), mask=mask)

    def embedding_name(self, names: Sequence[str], logits_name: str) -> str:
        """Find which of the outputs is the embedding.

        Raises:
            ModelError: none is.
        """
        if self._name is not None:
            if self._name in names:
                return self._name
            near = difflib.get_close_matches(self._name, names, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(names)}"
            raise ModelError(f"model.embedding is {self._name!r}, which is no output of {self._who}; {hint}")
        others = [name for name in names if name != logits_name]
        if not others:
            raise ModelError(f"{self._who} gives logits alone, but an embedding is needed; {self._how}")
        return "embedding" if "embedding" in others else others[0]


def _mask_name(outputs: Mapping[str, object]) -> str | None:
    whole = (name for name, value in outputs.items() if isinstance(value, Tensor) and not value.is_floating_point())
    return "mask" if "mask" in outputs else next(whole, None)


def _named(output: object) -> dict[str, object]:
    parts = named(output)
    if parts is not None:
        return parts
    if isinstance(output, list | tuple):
        return {str(i): value for i, value in enumerate(output)}
    return {"0": output}


_PROBE_ROWS = 2
_NAMES_SHOWN = 5
_ALIKE = 1e-2
"""How near probabilities are to the softmax of the layer they come from, in whatever precision."""


class EmbeddingTap:
    """Hooks on a network that catch the embedding of each batch.

    By name it is the output of that module, of its last call if there are several. By default it is the input of the last Linear that
    ran and whose output is the logits, or a view of it, or of a model that gives probabilities what they are the softmax or sigmoid of.
    Which one that is, a few rows of the first batch tell, with all Linear layers hooked; that run is thrown away, since torch's
    transformer layers leave their fused path, and may round differently, under hooks, and a worker's first batch must not differ from
    its later ones.
    """

    def __init__(self, network: nn.Module, name: str | None, task: str = "classes", *, last_layer: bool = False) -> None:
        """
        Args:
            network: where the hooks go.
            name: a module of it, as `named_modules` spells it; None for the default.
            task: `model.task`; of a dense one, embeddings are means over positions, see `pooled`.
            last_layer: whether nothing but the default will do, since scores from gradients are wanted.

        Raises:
            ModelError: it has no module of that name.
        """
        self._network = network
        self._task = task
        self._heads = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if task == "segmentation" else (nn.Linear,)
        self._caught: list[tuple[nn.Module, object, object]] = []  # (module, input, output) of this batch's calls
        self._where, self._last_layer = name, last_layer
        self.bias = True  # of the layer whose input is the embedding
        self._ready = name is not None
        self._itself = True  # whether that layer's output is the very tensor that the network returns
        if name is not None:
            find_module(network, name).register_forward_hook(self._catch_output)

    def prepare(self, run: Callable[[tuple[Tensor, ...]], object], inputs: tuple[Tensor, ...], promise: Promise | None = None) -> None:
        """Find the default place on the first batch; afterwards and for a named module, nothing.

        Args:
            run: the network's forward pass, to the tensor that is scored.
            inputs: the first batch; `run` sees its first rows.
            promise: says whether that tensor holds probabilities; None: logits.
        """
        if self._ready:
            return
        handles: list[RemovableHandle] = []
        try:
            for module in self._network.modules():
                if isinstance(module, self._heads):
                    handles.append(module.register_forward_hook(self._catch_input, with_kwargs=True))
            logits = run(tuple(values[:_PROBE_ROWS] for values in inputs))
            layer = next((module for module, _, output in reversed(self._caught) if output is logits), None)
            self._itself = layer is not None
            if layer is None and isinstance(logits, Tensor):
                squashed = promise is not None and promise.probabilities
                layer = next((module for module, _, made in reversed(self._caught) if _stems(logits, made, self._task, squashed)), None)
        finally:
            for handle in handles:
                handle.remove()
            self.clear()
        if layer is None and self._last_layer:
            raise QueryError(
                "acquire asks for egl or badge_norm, which need the input of the last Linear layer, but the logits are not the output of "
                "a Linear layer of the model; take another score, such as entropy, or egl_parameters"
            )
        if layer is None:
            layers = "Linear or convolution" if len(self._heads) > 1 else "Linear"
            raise ModelError(
                f"the logits are not the output of a {layers} layer of the model, so there is no embedding by default; "
                f"name a module in model.embedding, such as {_last_names(self._network)}"
            )
        layer.register_forward_hook(self._catch_input, with_kwargs=True)
        self.bias = getattr(layer, "bias", None) is not None
        self._ready = True

    def take(self, logits: object, rows: int, mask: Tensor | None = None) -> Tensor:
        """Return the embedding of the batch that just ran, float32 (rows, dimensions); forgets it.

        Args:
            logits: what the network returned, the same object.
            rows: how many rows it was given.
            mask: bool (rows, ...), which elements of a dense output count; None: all.
        """
        caught, where = self._caught, f"model.embedding {self._where}"
        self.clear()
        if self._where is None:
            caught = [call for call in caught if call[2] is logits or not self._itself]
            where = "the input of the last Linear layer"
        if not caught:
            raise ModelError(f"{where} did not run in the forward pass that gave the logits; name another module in model.embedding")
        _, given, made = caught[-1]
        value = given if self._where is None else made
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Tensor):
            raise ModelError(f"{where} gives {type(value).__name__}, expected a tensor of shape (rows, ...); name another module")
        if value.ndim < 2 or value.shape[0] != rows or not value.is_floating_point():
            got = f"{value.dtype} of shape {tuple(value.shape)}"
            raise ModelError(f"{where} gives {got} for {rows} rows, expected a floating tensor of shape ({rows}, ...); name another module")
        return pooled(value, mask, self._task, where)

    def clear(self) -> None:
        """Forget what was caught, so that a batch that failed holds no memory."""
        self._caught = []

    def _catch_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        self._caught.append((module, args[0] if args else kwargs.get("input"), output))

    def _catch_output(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if isinstance(output, Tensor):
            output = output.clone()  # an in-place activation may follow
        self._caught = [(module, None, output)]


def _stems(values: Tensor, made: object, task: str, squashed: bool) -> bool:
    """Tell whether what is scored is a view of a layer's output, or, where it is probabilities, the softmax or sigmoid of that."""
    if not isinstance(made, Tensor) or made.numel() != values.numel():
        return False
    if made.data_ptr() == values.data_ptr():
        return True
    if not squashed or made.shape != values.shape or values.ndim < 2:
        return False
    axis = class_axis(task)
    each = task == "multi_label" or values.shape[axis] == 1
    expected = made.float().sigmoid() if each else made.float().softmax(dim=axis)
    return torch.allclose(expected, values.float(), rtol=_ALIKE, atol=_ALIKE)


def find_module(network: nn.Module, name: str) -> nn.Module:
    """Return the module of that name.

    Raises:
        ModelError: the network has none.
    """
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if name and name in modules:
        return modules[name]
    near = difflib.get_close_matches(name, [known for known in modules if known], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_last_names(network)}"
    raise ModelError(f"model.embedding is {name!r}, which is no module of the model; {hint}")


def _last_names(network: nn.Module) -> str:
    """Return the modules nearest to the output, innermost ones only, as examples."""
    names = [name for name, module in network.named_modules() if name and next(module.children(), None) is None]
    return ", ".join(names[-_NAMES_SHOWN:]) or "none: it is a single module, so wrap it in one that has parts"


INPUTS = "inputs"


def inputs_embedding(inputs: tuple[Any, ...], who: str) -> Tensor:
    """Return all numbers of a row's inputs, float32 (rows, dimensions).

    Raises:
        ModelError: there are texts among them.
    """
    if not all(isinstance(values, Tensor) for values in inputs):
        raise ModelError(f"{who} takes texts, which are no embedding; name a step or module in model.embedding, or leave it out")
    each = [values.float().flatten(1) if values.ndim > 1 else values.float().unsqueeze(1) for values in inputs]
    return each[0] if len(each) == 1 else torch.cat(each, dim=1)
