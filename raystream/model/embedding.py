"""The embedding: a tensor caught inside the network while it runs.

With `model.embedding: inputs` it is the model's own inputs, for models of any kind that takes tensors.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raystream.errors import ModelError, QueryError
from raystream.model.promise import Promise, class_axis, pooled

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
