"""The first batch, while nothing is labelled: what is chosen by, before there is a trained model.

That is the embedding of the model with its given weights, or the inputs themselves; rows of texts without either are drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raystream.errors import QueryError
from raystream.model.embedding import INPUTS
from raystream.pool.columns import TEXT
from raystream.pool.reader import ReadSpec
from raystream.query.catalogue import TRAITS, kind_of
from raystream.query.catalogue.auto import AUTO, pick
from raystream.query.loop import Loop

_UNTRAINED = "raystream.loop.first_batch:Untrained"
_UNREAD = "raystream.loop.first_batch:Unread"


KNOW_NOTHING = (_UNTRAINED, _UNREAD)
"""Sources of models whose outputs are the same for every row: what they predict is no opinion."""


@dataclass(frozen=True)
class FirstBatch:
    """How the first batch is chosen: the model's section, whether it gives an embedding, the strategy, and why that one."""

    model: Mapping[str, Any]
    embedded: bool
    strategy: str
    why: str


def first_batch(loop: Loop, read: ReadSpec) -> FirstBatch:
    """Decide how the first batch of a loop is chosen.

    Args:
        loop: says what is given of the model, and which strategy.
        read: what the model's inputs are.

    Raises:
        QueryError: the strategy needs an embedding, and there is none.
    """
    wanted = loop.loop.start.strategy
    model, embedded = _model(loop, read)
    if wanted == AUTO:
        picked = pick(0, 0, task=loop.task, embedding=embedded, score=False)
        return FirstBatch(model, embedded, picked.strategy, picked.why)
    if wanted in TRAITS and TRAITS[wanted].embedding and not embedded:
        raise QueryError(
            f"loop.start.strategy is {wanted}, which needs an embedding, but the pool's inputs are texts and no model is given for them; "
            "use random, or label some rows first"
        )
    return FirstBatch(model, embedded, wanted, "")


def _model(loop: Loop, read: ReadSpec) -> tuple[Mapping[str, Any], bool]:
    """Return the model before any training, and whether it gives an embedding."""
    given = loop.model
    kind = str(given.get("kind", "torch"))
    if "source" in given and ("weights" in given or not kind_of(kind).parameters):
        return given, kind_of(kind).texts != "taken" or "embedding" in given or loop.select.needs_embedding
    shared = {key: given[key] for key in ("batch_size", "device", "preprocess", "embedding_dtype") if key in given}
    if TEXT in read.dtypes:
        own = {key: shared[key] for key in ("batch_size",) if key in shared}
        return own | {"kind": "python", "source": _UNREAD}, False
    return shared | {"kind": "torch", "source": _UNTRAINED, "embedding": INPUTS}, True


class Untrained(nn.Module):
    """Knows nothing: the same outputs for every row, of whatever numbers it sees."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Return (n, 2) zeros."""
        first = next(iter((*inputs, *named.values())))
        return torch.zeros(len(first), 2, device=first.device)


class Unread:
    """Knows nothing of texts."""

    def predict(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return `logits` (n, 2) of zeros."""
        first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]
        return {"logits": np.zeros((len(first), 2), dtype=np.float32)}
