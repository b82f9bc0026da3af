"""The kinds of outputs, and the keys under which a unit's lie.

The kinds of outputs that are kept of a unit, each declared once: what it is computed from, how it is stored, what names it.

What all kinds depend on is hashed into the unit's key (`scoring.keys`). What else one depends on are its parameters: a query over the
same model that differs in these finds the other kinds, and runs the model for this one alone.

Keys and identities: what makes a unit or a query the same as an earlier one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raystream.acquisition import member_scores
from raystream.acquisition.logits import block_score, block_scores
from raystream.acquisition.members import MemberScores, softened
from raystream.errors import ModelError
from raystream.model import code_hash
from raystream.pool import File, ReadSpec, Unit, Units
from raystream.pool.reader import READING
from raystream.query import DEFAULT_REDUCE, DEFAULT_TOP, GRADIENT_SCORES, LOGIT_SCORES, MEMBER_SCORES, TASKS, Query
from raystream.query.catalogue import PARAMETER_SCORES, formulas
from raystream.query.part import MAX_QUARANTINED
from raystream.scoring.class_labels import ClassLabel, Weights, weigh
from raystream.scoring.score_reduction import UsersScore
from raystream.store.opening import FORMAT
from raystream.store.receipt_table import KEY_BYTES, Keys
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
        only: the one score that anybody asks for; None: all of them.
    """

    logits: Tensor
    log_probs: Tensor | None
    lengths: Tensor | None
    bias: bool
    gradient_lengths: Tensor | None
    temperature: float
    only: str | None = None

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
    if block.only in LOGIT_SCORES:
        return {block.only: block_score(block.logits, block.temperature, block.only)}
    members = {} if block.members is None else block.members.scores
    if block.only is not None:
        return dict(members)
    result = block_scores(block.logits, block.temperature)
    return {**result.scores, "prediction": result.prediction, "confidence": result.confidence, **members}


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
