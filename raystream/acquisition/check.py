"""The executable contract of acquisition functions: run your own through it before you trust its scores.

The model is scikit-learn's `check_estimator`. That higher means label sooner can't be checked: look at the rows it puts first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raystream.acquisition.members import log_probabilities
from raystream.errors import AcquisitionContractError, QueryError

Acquisition = Callable[[Tensor], Tensor]

_TOLERANCE = 1e-4
"""Of a score, relative to itself or to the typical size of scores: a matrix product may round otherwise in another batch."""


def check_acquisition(fn: Acquisition, given: str = "logits") -> None:
    """Try an acquisition function on rows of every awkward kind, and say which promise it breaks first.

    What is promised: one finite floating number per row, of none, one or many rows, from float64, float32, bfloat16 and float16; the
    same when asked again; the same whatever rows stand beside, and in whatever order; what is given is left as it was; no NaN from sure
    rows, ties, offsets of ten thousand and masked classes.

    Args:
        fn: from `given` to (n_rows,) scores. Bind further arguments first, with `functools.partial` or a lambda.
        given: "logits", (n_rows, n_classes), or "log_probs", (n_rows, n_members, n_classes) log-probabilities.

    Raises:
        AcquisitionContractError: the promise that is broken, and on which data.
    """
    if given not in ("logits", "log_probs"):
        raise QueryError(f"given is {given!r}, expected 'logits' or 'log_probs'")
    trial = _ScoreTrial(fn)
    for words, values in _cases(given):
        trial.check_rows(words, values)
    words, values = _ordinary(given)
    trial.check_company(words, values)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        trial.check_dtype(words, values.to(dtype))


def _logits(given: str) -> Tensor:
    """Make (24, 7), or (24, 5, 7), float32, from unsure rows to sure ones; the same at every call."""
    shape = (24, 7) if given == "logits" else (24, 5, 7)
    sharpness = torch.linspace(0.1, 6, 24).reshape(-1, *(1 for _ in shape[1:]))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * sharpness


def _as_given(logits: Tensor, given: str) -> Tensor:
    """Make a contiguous tensor, which is how most rows come."""
    return (logits if given == "logits" else log_probabilities(logits)).contiguous()


def _ordinary(given: str) -> tuple[str, Tensor]:
    return "24 ordinary rows of float32", _as_given(_logits(given), given)


def _cases(given: str) -> Iterator[tuple[str, Tensor]]:
    logits = _logits(given)
    yield _ordinary(given)
    yield "no rows", _as_given(logits[:0], given)
    yield "one row", _as_given(logits[:1], given)
    yield "rows of two classes", _as_given(logits[..., :2], given)
    yield "rows that are all equal in every class", _as_given(torch.zeros_like(logits), given)
    yield (
        "sure rows, whose top logit is 1000 above the rest",
        _as_given(logits + 1000 * (logits == logits.amax(dim=-1, keepdim=True)), given),
    )
    for offset in (1e4, -1e4):
        if given == "logits":
            yield f"logits with {offset:+g} added", logits + offset
    masked = logits.clone()
    masked[..., 2] = -math.inf
    yield "rows with a masked class, -inf", _as_given(masked, given)
    only = torch.full_like(logits, -math.inf)
    only[..., 0] = 0.0
    yield "rows with all classes but one masked, -inf", _as_given(only, given)


class _ScoreTrial:
    def __init__(self, fn: Acquisition) -> None:
        self._fn = fn
        self._name = getattr(fn, "__name__", "the function")

    def check_rows(self, words: str, values: Tensor) -> None:
        """See that there is one finite number per row, twice the same, and nothing is written."""
        once = self._scores(words, values)
        again = self._scores(words, values)
        row = _first(once != again)
        if row is not None:
            raise self._broken(f"must give the same scores when asked again, but gave row {row} {_pair(once, again, row)}", words)

    def check_company(self, words: str, values: Tensor) -> None:
        """See that a row's score is its own, whatever rows stand beside it and in whatever order."""
        whole, n = self._scores(words, values), len(values)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
        companies = {
            "in another order": self._scores(words, values[order])[order.argsort()],
            "in two halves": torch.cat([self._scores(words, part) for part in (values[: n // 2], values[n // 2 :])]),
            "alone": torch.cat([self._scores(words, values[row : row + 1]) for row in range(n)]),
        }
        for company, scores in companies.items():
            row = _first(~_close(scores, whole))
            if row is not None:
                promise = f"must score a row by itself, not by the rows beside it, but gave row {row} {_pair(whole, scores, row)} {company}"
                raise self._broken(promise, words)

    def check_dtype(self, words: str, values: Tensor) -> None:
        """See that half precision is widened first, so that scores are those of the same numbers in float32."""
        words = f"the same rows in {str(values.dtype).removeprefix('torch.')}"
        scores, wide = self._scores(words, values), self._scores(words, values.float())
        row = _first(~_close(scores, wide))
        if row is not None:
            raise self._broken(
                f"must score {values.dtype} as the same numbers in float32, but gave row {row} {_pair(wide, scores, row)}", words
            )

    def _scores(self, words: str, values: Tensor) -> Tensor:
        before = values.clone()
        try:
            scores = self._fn(values)
        except Exception as error:
            raise self._broken(f"must not fail, but raised {type(error).__name__}: {error}", words) from error
        if not torch.equal(values, before):
            raise self._broken("must leave what it is given as it was, but wrote into it", words)
        if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.shape != (len(values),):
            got = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise self._broken(f"must return a floating tensor of shape ({len(values)},), but returned {got}", words)
        row = _first(~scores.isfinite())
        if row is not None:
            raise self._broken(f"must give finite scores, but gave row {row} {float(scores[row])}", words)
        return scores.detach().double()

    def _broken(self, promise: str, words: str) -> AcquisitionContractError:
        return AcquisitionContractError(f"{self._name} {promise} (on {words})")


def _close(scores: Tensor, expected: Tensor) -> Tensor:
    typical = expected.abs().median() if len(expected) else expected.new_zeros(())
    return (scores - expected).abs() <= _TOLERANCE * torch.maximum(expected.abs(), typical)


def _first(wrong: Tensor) -> int | None:
    rows = torch.nonzero(wrong).flatten()
    return int(rows[0]) if len(rows) else None


def _pair(one: Tensor, other: Tensor, row: int) -> str:
    return f"{float(one[row]):.7g}, then {float(other[row]):.7g}"
