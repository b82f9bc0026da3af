"""What the two kinds of text models share: quiet loading from a folder, without network and without code that it brings."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from raystream.errors import ModelError, did_you_mean
from raystream.model.optional import optional


def text_package(name: str, kind: str) -> Any:
    """Import transformers or sentence_transformers, with as many threads for tokenising as torch has."""
    # Read once, by the tokenisers' thread pool; a worker must not take the cores of its neighbours.
    os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optional(name, kind, "text")


@contextmanager
def loading(who: str) -> Iterator[None]:
    """Loading without progress bars and log lines, whose failures become one sentence.

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
    """`model.args.max_length`, the only argument that text models have: tokens at which texts are cut off.

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
    """The content of a file of the model's folder.

    Raises:
        ModelError: it isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{who}: {path.name} can't be read: {error}; save the model again") from None
