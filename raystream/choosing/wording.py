"""Errors and notes of `selection`, which speak of arguments (`k`), in the words of a query (select.budget)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from raystream.errors import RaystreamError
from raystream.query import Select
from raystream.query.catalogue import TRAITS

_KEYS = {
    **{name: f"select.args.{name}" for traits in TRAITS.values() for name in traits.args},
    **{name: f"select.{name}" for name in Select.model_fields},
    "k": "select.budget",
    "score": "acquire.score",
    "x": "model.embedding",
    "probabilities": "probabilities",
    "labelled": "pool.labelled",
    "labelled_probabilities": "class probabilities of labelled rows",
    "log_probs": "acquire.mc_samples, or several model.weights",
}
"""What each argument is in a query."""


def in_query(text: str) -> str:
    """The text with the names of arguments, which stand between backticks, replaced by the keys of a query."""
    return re.sub(r"`([a-z_]+)((?:\.[a-z_]+)*)`", lambda match: _KEYS[match[1]] + match[2] if match[1] in _KEYS else match[0], text)


@contextmanager
def words_of_query() -> Iterator[None]:
    """Errors raised within speak of the query's keys."""
    try:
        yield
    except RaystreamError as error:
        raise type(error)(in_query(str(error))) from error
