"""What Hugging Face's folders and names say of a model.

The parts that both kinds of text models share: quiet loading from a folder, without network and without code that it brings.

Texts go in batches of about equal length, so that little is padded; the embedding is a hidden state, averaged over a row's tokens.

Which of the named classes a label means that a person wrote.

Files of text lose what was text in them: a CSV column of ratings becomes numbers, one of `true` and `false` truth values. So where a name
is a numeral, numbers are matched with the names by value, never as places among them: of classes `1` to `5`, the number 1 is the first.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raystream.errors import ModelError, did_you_mean
from raystream.model.signature import find_module
from raystream.model.source import optional


def text_package(name: str, kind: str) -> Any:
    """Import transformers or sentence_transformers, with as many threads for tokenising as torch has."""
    # Read once, by the tokenisers' thread pool; a worker must not take the cores of its neighbours.
    os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optional(name, kind, "text")


@contextmanager
def loading(who: str) -> Iterator[None]:
    """Keep progress bars and log lines out of what is loaded within, and make its failures one sentence.

    Raises:
        ModelError: whatever went wrong inside.
    """
    from transformers.utils import logging as their_logging

    bars, level = their_logging.is_progress_bar_enabled(), their_logging.get_verbosity()
    their_logging.disable_progress_bar()
    their_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModelError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        first = text.partition(". ")[0][:300]
        if "trust_remote_code" in text:
            first = "it brings code of its own, which is not run"
        raise ModelError(f"{who} can't be loaded: {type(error).__name__}: {first}; save the model again with the versions here") from None
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()


def check_tokenizer(folder: Path, tokenizer: Any, who: str) -> None:
    """Refuse a folder without a vocabulary, for which transformers makes an empty tokenizer that knows no word.

    Raises:
        ModelError: none of the tokenizer's files is there.
    """
    names = {"tokenizer.json", *(str(name) for name in getattr(tokenizer, "vocab_files_names", {}).values())}
    if not any((folder / name).is_file() for name in names):
        raise ModelError(
            f"{who} holds no tokenizer ({', '.join(sorted(names))}); add it by tokenizer.save_pretrained of the one it was trained with"
        )


def check_args(args: Mapping[str, Any], who: str) -> int | None:
    """Return `model.args.max_length`, the only argument that text models have: tokens at which texts are cut off.

    Raises:
        ModelError: there is another one, or it is no number.
    """
    unknown = [name for name in args if name != "max_length"]
    if unknown:
        raise ModelError(f"model.args.{unknown[0]} is not an argument of {who}{did_you_mean(unknown[0], ['max_length'])}")
    length = args.get("max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ModelError(f"model.args.max_length is {length!r}, expected a whole number of tokens of at least 1")
    return length


def read_json(path: Path, who: str) -> Any:
    """Return the content of a file of the model's folder.

    Raises:
        ModelError: it isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{who}: {path.name} can't be read: {error}; save the model again") from None


class HiddenState:
    """A hook on a network that catches a hidden state of each batch.

    By name it is that module's output; by default the last hidden state of the part below the head.
    """

    def __init__(self, network: Any, name: str | None) -> None:
        """
        Args:
            network: of transformers.
            name: a module of it, as `named_modules` spells it; None for the default.

        Raises:
            ModelError: it has no module of that name.
        """
        self._caught: Any = None
        self._where = f"model.embedding {name}" if name is not None else "the last hidden state"
        module = find_module(network, name) if name is not None else network.base_model
        module.register_forward_hook(self._catch)

    def take(self, mask: Tensor) -> Tensor:
        """Return the embedding of the batch that just ran, float32 (rows, dimensions); forgets it.

        Args:
            mask: (rows, tokens), 1 at tokens and 0 at padding.
        """
        value, self._caught = self._caught, None
        if isinstance(value, Mapping):
            value = next(iter(value.values()), None)  # ModelOutput: the last hidden state comes first
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (2, 3) or value.shape[0] != mask.shape[0]:
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                f"{self._where} gives {got}, expected floating numbers (rows, dimensions) or (rows, tokens, dimensions); "
                "name another module in model.embedding"
            )
        if value.ndim == 2:
            return value.float()
        if value.shape[1] != mask.shape[1]:
            raise ModelError(
                f"{self._where} gives {value.shape[1]} vectors for {mask.shape[1]} tokens; name another module in model.embedding"
            )
        weight = mask.to(torch.float32).unsqueeze(2)
        return (value.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)

    def clear(self) -> None:
        """Forget what was caught, so that a batch that failed holds no memory."""
        self._caught = None

    def _catch(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self._caught = output


PADDED_TOKENS = {"cpu": 1024, "cuda": 1 << 16}
"""How many tokens, padding included, run at once: on a processor what its caches hold, on a GPU what keeps it busy.

MiniLM on one thread, 1,024 glosses, CPU seconds: 512 tokens 3.8, 1024 3.8, 2048 3.9, 4096 4.4, 8192 5.4.
"""


def by_length(lengths: Sequence[int], most_rows: int, most_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Cut rows into batches of similar length, the longest first, so that memory that runs out does so at once.

    The cut depends on the lengths alone: the same rows always share a batch, whoever runs them.

    Args:
        lengths: tokens of each row.
        most_rows: rows of a batch.
        most_tokens: rows of a batch times its longest row; one row is a batch however long it is.

    Returns:
        the positions of each batch's rows; every row stands in one of them.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = max(1, min(most_rows, most_tokens // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def text_columns(inputs: Sequence[object], most: int, who: str) -> list[list[str]]:
    """Return the inputs as lists of str.

    Raises:
        ModelError: there are more than `most`.
    """
    if len(inputs) > most:
        raise ModelError(f"{who} takes at most {most} column{'s' if most > 1 else ''} of texts, but pool.inputs gives {len(inputs)}")
    return [np.asarray(values, dtype=object).tolist() for values in inputs]


_NUMERAL = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_TRUTH = {"false": False, "true": True}


class LabelNames:
    """Finds the places of labels among the names of classes.

    Attributes:
        numerals: whether any name is a numeral, so that numbers are names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._count = len(names)
        self._places = {name: place for place, name in enumerate(names)}
        self._numbers = _once([(Decimal(name), place) for place, name in enumerate(names) if _NUMERAL.fullmatch(name)])
        self._truths = _once([(_TRUTH[name.lower()], place) for place, name in enumerate(names) if name.lower() in _TRUTH])
        self.numerals = bool(self._numbers)

    def place(self, label: Any) -> int | None:
        """Return the place of the class that a label means; None where it is no class, or may be several.

        Args:
            label: a name; a number, which is a name's value where any name is a numeral, else a place; a truth value, which is the name
                `true` or `false`, else 1 or 0.
        """
        if isinstance(label, str):
            return self._places.get(label)
        if isinstance(label, bool):
            return self._truths.get(label) if self._truths else self.place(int(label))
        if not isinstance(label, int | float | Decimal) or not math.isfinite(label):
            return None
        if self._numbers:
            same = self._places.get(str(label))
            return same if same is not None else self._numbers.get(Decimal(str(label)))
        return int(label) if label == int(label) and 0 <= label < self._count else None


def _once(pairs: Sequence[tuple[Any, int]]) -> dict[Any, int | None]:
    """Return places by what names stand for; None for what several stand for, such as `1` and `01`."""
    found: dict[Any, int | None] = {}
    for value, place in pairs:
        found[value] = None if value in found else place
    return found
