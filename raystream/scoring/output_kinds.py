"""The kinds of outputs that are kept of a unit, each declared once: what it is computed from, how it is stored, what names it.

What all kinds depend on is hashed into the unit's key (`scoring.keys`). What else one depends on are its parameters: a query over the
same model that differs in these finds the other kinds, and runs the model for this one alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from raystream.acquisition import member_scores
from raystream.acquisition.logits import block_scores
from raystream.acquisition.members import MemberScores, softened
from raystream.errors import ModelError
from raystream.model import code_hash
from raystream.query import DEFAULT_REDUCE, DEFAULT_TOP, GRADIENT_SCORES, LOGIT_SCORES, MEMBER_SCORES, TASKS, Query
from raystream.query.catalogue import PARAMETER_SCORES, formulas
from raystream.scoring.class_labels import ClassLabel, Weights, weigh
from raystream.scoring.users_scores import UsersScore
from raystream.store.receipts import EMBEDDINGS, PROBABILITIES, SAMPLES, SCORES

LOGITS, FUNCTION, GRADIENTS, PARAMETER_GRADIENTS, EPIG = "logits", "function", "gradients", "parameter_gradients", "epig"

_DIGITS = 12


@dataclass(frozen=True)
class Output:
    """A kind of output with the parameters that name it."""

    kind: str
    parameters: tuple[tuple[str, Any], ...]

    @cached_property
    def name(self) -> str:
        """The kind and a digest of the parameters: what its files are called."""
        text = json.dumps(self.parameters, separators=(",", ":"), default=str)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"

    def __getitem__(self, parameter: str) -> Any:
        return dict(self.parameters)[parameter]


@dataclass(frozen=True)
class OutputBlock:
    """The tensors that some rows' outputs are computed from, on the model's device.

    Attributes:
        logits: (n, c), before temperature.
        log_probs: (n, k, c) log-probabilities of several opinions, after temperature; None for one.
        lengths: (n, 1) of the input of the last layer; None unless asked for.
        bias: whether that layer has one.
        gradient_lengths: (n,) over all parameters; None unless asked for.
        temperature: of the softmax.
    """

    logits: Tensor
    log_probs: Tensor | None
    lengths: Tensor | None
    bias: bool
    gradient_lengths: Tensor | None
    temperature: float

    @cached_property
    def members(self) -> MemberScores | None:
        """The scores that follow from comparing the opinions; None where there is one alone."""
        return None if self.log_probs is None else member_scores(self.log_probs, MEMBER_SCORES)


@dataclass(frozen=True)
class OutputKind:
    """One kind.

    Attributes:
        stored: as columns of a table, or as a file of vectors.
        parameters: what names it.
        made: from a block of rows, the columns (n,) or vectors (n, d), or nothing where the model doesn't give what it takes; None for
            what comes as it is, or from other stored outputs.
    """

    stored: Literal["table", "vectors"]
    parameters: tuple[str, ...]
    made: Callable[[OutputBlock, Output, UsersScore | None], dict[str, Tensor] | Tensor | None] | None = None


def _scores(block: OutputBlock, output: Output, function: UsersScore | None) -> dict[str, Tensor]:
    result = block_scores(block.logits, block.temperature)
    columns = {**result.scores, "prediction": result.prediction, "confidence": result.confidence}
    return columns if block.members is None else columns | block.members.scores


def _function(block: OutputBlock, output: Output, function: UsersScore | None) -> dict[str, Tensor]:
    assert function is not None  # the worker has loaded it
    return {function.column: function(block.logits / block.temperature, block.log_probs)}


def _gradients(block: OutputBlock, output: Output, function: UsersScore | None) -> dict[str, Tensor]:
    assert block.lengths is not None  # the model was loaded for it
    if not bool(block.lengths.sum().isfinite()):
        raise ModelError("the input of the last layer is too large for its length to be a float32; scale it, or take entropy")
    bias = block.bias if output["bias"] is None else output["bias"]
    given = (block.logits, block.lengths, bias, block.temperature)
    return {name: formula(*given) for name, formula in formulas("last_layer").items()}


def _parameter_gradients(block: OutputBlock, output: Output, function: UsersScore | None) -> dict[str, Tensor]:
    assert block.gradient_lengths is not None  # the model was loaded for it
    return dict.fromkeys(PARAMETER_SCORES, block.gradient_lengths)


def _probabilities(block: OutputBlock, output: Output, function: UsersScore | None) -> Tensor:
    return torch.softmax(block.logits.float() / block.temperature, dim=1)


def _samples(block: OutputBlock, output: Output, function: UsersScore | None) -> Tensor | None:
    return None if block.log_probs is None else block.log_probs.flatten(1)


def _logits(block: OutputBlock, output: Output, function: UsersScore | None) -> Tensor:
    return softened(block.logits.unsqueeze(1), block.temperature).flatten(1)


_COLUMNS: Mapping[str, tuple[str, ...]] = {SCORES: (*LOGIT_SCORES, *MEMBER_SCORES), GRADIENTS: GRADIENT_SCORES}
"""The scores of a kind that the catalogue decides: with a further one, rows are scored anew."""

KINDS: Mapping[str, OutputKind] = {
    SCORES: OutputKind("table", ("columns", "temperature", "mc_dropout", "task", "class_weights"), _scores),
    EMBEDDINGS: OutputKind("vectors", ("embedding", "dtype")),
    PROBABILITIES: OutputKind("vectors", ("temperature", "dtype"), _probabilities),
    SAMPLES: OutputKind("vectors", ("temperature", "mc_dropout"), _samples),
    LOGITS: OutputKind("vectors", ("temperature",), _logits),
    FUNCTION: OutputKind("table", ("temperature", "mc_dropout", "class_weights", "function", "code"), _function),
    GRADIENTS: OutputKind("table", ("columns", "temperature", "class_weights", "bias"), _gradients),
    PARAMETER_GRADIENTS: OutputKind("table", ("temperature", "class_weights", "classes"), _parameter_gradients),
    EPIG: OutputKind("table", ("temperature", "mc_dropout", "class_weights", "targets")),
}
"""Tables hold a column a score; that of `scores` the ids and the rows' places, too. `samples` are log-probabilities of all opinions of
a row, `logits` those of the one that confidence follows from, both float32: rounded, they are no distribution any more."""


class QueryOutputs:
    """The outputs that a query's parameters name.

    Args:
        query: as resolved, its temperature a number.
        weights: the resolved `acquire.class_weights`.
    """

    def __init__(self, query: Query, weights: Weights | None) -> None:
        self._query = query
        acquire, model = query.acquire, query.model
        self._settings: dict[str, Any] = {
            "temperature": model.temperature,
            "mc_dropout": (acquire.mc_samples, query.seed) if acquire.mc_samples else None,
            "task": _task(query),
            "class_weights": weights,
            "embedding": model.embedding,
            "dtype": model.embedding_dtype,
        }

    def of(self, kind: str, **own: Any) -> Output:
        """Build the output of a kind.

        Args:
            kind: one of `KINDS`.
            own: those of its parameters that the query's sections don't give.
        """
        settings = self._settings | {"columns": _COLUMNS.get(kind)} | own
        return Output(kind, tuple((name, settings[name]) for name in KINDS[kind].parameters))

    def needed(self) -> tuple[Output, ...]:
        """List all that the model is run for: the scores, always, and what else the choice or `acquire` asks for.

        Raises:
            ModelError: the module of a function of the user's isn't there.
        """
        query, acquire, asked = self._query, self._query.acquire, self._query.acquire.asked
        found = [self.of(SCORES)]
        if query.needs_embedding:
            found.append(self.of(EMBEDDINGS))
        if query.select.traits.probabilities:
            found.append(self.of(PROBABILITIES))
        if query.needs_samples:
            found.append(self.of(SAMPLES))
        if query.needs_gradients:
            found.append(self.of(GRADIENTS, bias=acquire.arg("bias")))
        if set(PARAMETER_SCORES) & set(asked):
            found.append(self.of(PARAMETER_GRADIENTS, classes=acquire.arg("egl_classes")))
        found += [self.of(FUNCTION, function=path, code=code_hash(path, "acquire")) for path in sorted(asked) if ":" in path]
        return tuple(found)


def _task(query: Query) -> tuple[str, str | None, float | None] | None:
    """Return how the scores of a row's many outputs become one; None for one class a row."""
    name, acquire = query.model.task, query.acquire
    if name == "classes":
        return None
    top = (acquire.top or DEFAULT_TOP) if acquire.reduce == "top_mean" else None
    return name, (acquire.reduce or DEFAULT_REDUCE) if TASKS[name].reductions else None, top


def computed(
    output: Output, block: OutputBlock, labels: Sequence[ClassLabel] | None, functions: Mapping[str, UsersScore]
) -> dict[str, Tensor] | Tensor | None:
    """Compute an output of a block of rows, its scores weighted by class where asked; None where the model doesn't give it.

    Args:
        output: of a kind that is made from blocks.
        block: the rows.
        labels: what the model itself calls its classes, if it does.
        functions: the user's own, by import path.

    Raises:
        ModelError, QueryError: scores can't be used, or can't be weighted.
    """
    function = functions[output["function"]] if output.kind == FUNCTION else None
    made = KINDS[output.kind].made
    assert made is not None
    found = made(block, output, function)
    weights = dict(output.parameters).get("class_weights")
    if weights is None or not isinstance(found, dict):
        return found
    by_members = output.kind == SCORES or (function is not None and function.given != "logits")
    together = block.members.log_mean if by_members and block.members is not None else None
    return weigh(found, weights, block.logits, together, block.temperature, labels)
