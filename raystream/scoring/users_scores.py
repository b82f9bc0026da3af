"""Acquisition functions of the user's own, by import path, run on blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raystream.errors import ModelError, QueryError
from raystream.imports import find
from raystream.model import is_device_failure
from raystream.model.source import check_imported
from raystream.query.acquire import column_of

_GIVEN = ("logits", "log_probs")


@dataclass(frozen=True)
class UsersScore:
    """A function that scores rows, as `raystream.acquisition.check_acquisition` describes it.

    Attributes:
        path: where it is, for messages.
        given: "logits", (n_rows, n_classes), or "log_probs", (n_rows, n_members, n_classes); None: the latter where a row has
            several opinions, else the former. A function says it by an attribute of that name.
    """

    path: str
    function: Callable[[Tensor], object]
    given: str | None

    @property
    def column(self) -> str:
        """Under which name its scores are stored."""
        return column_of(self.path)

    def __call__(self, logits: Tensor, log_probs: Tensor | None) -> Tensor:
        """Score a block of rows, (n,) on the processor, finite.

        Args:
            logits: (n, c), after temperature.
            log_probs: (n, k, c) of the members or dropout samples; None for one opinion.

        Raises:
            QueryError: it takes the opinions of several members, and there is one.
            ModelError: it failed, or its scores can't be used.
        """
        if self.given == "log_probs" and log_probs is None:
            raise QueryError(
                f"acquisition function {self.path} takes several opinions of a row, but the model has one; "
                "set acquire.mc_samples for MC dropout, or give a committee"
            )
        given = log_probs if log_probs is not None and self.given != "logits" else logits
        shape = tuple(given.shape)
        try:
            with torch.no_grad():
                scores = self.function(given.clone())  # it may write into what it is given
        except Exception as error:
            if is_device_failure(error):
                raise
            raise ModelError(
                f"acquisition function {self.path} raised {type(error).__name__}: {error} on {self._what(given)} {shape}; "
                "raystream.acquisition.check_acquisition tries it out"
            ) from error
        if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.shape != (len(given),):
            got = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise ModelError(
                f"acquisition function {self.path} returned {got} for {self._what(given)} {shape}, expected floating scores ({len(given)},)"
            )
        scores = scores.float().cpu()
        bad = torch.nonzero(~scores.isfinite()).flatten()
        if len(bad):
            raise ModelError(
                f"acquisition function {self.path} gave {len(bad)} of {len(scores)} rows no finite score, first {float(scores[bad[0]])}; "
                "expected finite numbers, higher for rows to label sooner"
            )
        return scores

    @staticmethod
    def _what(given: Tensor) -> str:
        return "logits (rows, classes)" if given.ndim == 2 else "log-probabilities (rows, members, classes)"


def users_score(path: str) -> UsersScore:
    """Import the function that a query names in `acquire.score` or `also`.

    Raises:
        QueryError: it can't be imported, or isn't a function.
        ModelError: its source was edited after this process imported it.
    """
    found = find(path, "acquire asks for")
    if not callable(found):
        raise QueryError(f"acquire asks for {path}, which is no function; expected one from (n, c) or (n, k, c) to (n,)")
    given = getattr(found, "given", None)
    if given not in (None, *_GIVEN):
        raise QueryError(f"acquisition function {path} has given = {given!r}, expected 'logits' or 'log_probs'")
    check_imported(path, "acquisition function")
    return UsersScore(path, found, given)
