"""A selection strategy of the user's own, by import path."""

from __future__ import annotations

import importlib

from raystream.errors import QueryError, did_you_mean
from raystream.selection import Strategy


def users_strategy(source: str) -> Strategy:
    """The function `module:attribute` that `select.strategy` names.

    Raises:
        QueryError: it can't be imported, or isn't a function.
    """
    name, _, attribute = source.partition(":")
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        raise QueryError(
            f"select.strategy {source}: importing {name} raised {told}; run from the project's folder or fix the module"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        what = "is no function" if found is not None else f"is not in {name}{did_you_mean(attribute, dir(module))}"
        raise QueryError(f"select.strategy {source}: {attribute!r} {what}; expected a function (Candidates, Request) -> Picked")
    strategy: Strategy = found
    return strategy
