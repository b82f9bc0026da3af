"""kind: sentence_transformers, a folder with a model that turns texts into embeddings, and gives nothing else."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raystream import query
from raystream.errors import ModelError
from raystream.model.batches import AUTOCAST, BatchPredictor, choose_device, in_float32
from raystream.model.huggingface import (
    PADDED_TOKENS,
    by_length,
    check_args,
    check_tokenizer,
    loading,
    read_json,
    text_columns,
    text_package,
)
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise
from raystream.model.weights import find_folder, state_hash

_INSTEAD = "save the model there by SentenceTransformer.save"
_THEIR_MODULES = "sentence_transformers."


def load(spec: query.Model, *, embedding: bool) -> BatchPredictor:
    """Load the model of the folder `spec.source`. The embedding is what its `encode` gives.

    Raises:
        ModelError: sentence-transformers is missing; the folder lacks weights or a tokenizer, or brings its own code.
    """
    assert spec.source is not None  # the query checks it
    who = f"model.source {spec.source}"
    max_length = check_args(spec.args, who)
    folder = find_folder(spec.source, "config.json" if not (Path(spec.source) / "modules.json").is_file() else "modules.json", _INSTEAD)
    package = text_package("sentence_transformers", "sentence_transformers")
    device = choose_device(spec.device)
    model = _read(package, folder, device, who)
    in_float32(model)
    if max_length is not None:
        model.max_seq_length = max_length
    autocast = AUTOCAST[spec.precision]
    most_tokens = PADDED_TOKENS.get(device.type, PADDED_TOKENS["cpu"])

    def forward(inputs: tuple[Any, ...]) -> Prediction:
        [texts] = text_columns(inputs, 1, who)
        cuts = by_length(_lengths(model, texts), len(texts), most_tokens)
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            found = torch.cat([_encode(model, [texts[i] for i in cut], who) for cut in cuts])
        back = torch.from_numpy(np.argsort(np.concatenate(cuts))).to(found.device)
        return Prediction(None, found[back].float())

    return BatchPredictor(
        forward, promise=Promise(who), device=device, batch_size=spec.batch_size, state_hash=state_hash(model), network=model
    )


def _lengths(model: Any, texts: list[str]) -> list[int]:
    """Count the tokens of each text; `encode` goes by characters, and with glosses of a dictionary pads a third more."""
    tokenizer: Any = getattr(model, "tokenizer", None)
    if not hasattr(tokenizer, "vocab_files_names"):
        return [len(text) for text in texts]
    limit = model.max_seq_length
    tokens: list[list[int]] = tokenizer(texts, truncation=limit is not None, max_length=limit)["input_ids"]
    return [len(row) for row in tokens]


def _encode(model: Any, texts: list[str], who: str) -> torch.Tensor:
    found = model.encode(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or found.shape[0] != len(texts) or not found.is_floating_point():
        got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ModelError(f"{who} gives {got} for {len(texts)} texts, expected one embedding for each")
    return found


def _read(package: Any, folder: Path, device: torch.device, who: str) -> Any:
    _check_modules(folder, who)
    with loading(who):
        model = package.SentenceTransformer(str(folder), device=str(device), trust_remote_code=False, local_files_only=True).eval()
    tokenizer = getattr(model, "tokenizer", None)
    if hasattr(tokenizer, "vocab_files_names"):
        check_tokenizer(folder, tokenizer, who)
    return model


def _check_modules(folder: Path, who: str) -> None:
    """Refuse code that the folder brings: before its release 6 the library runs it from folders, whatever it is told."""
    file = folder / "modules.json"
    if not file.is_file():
        return
    for module in read_json(file, who):
        if not str(module.get("type", "")).startswith(_THEIR_MODULES):
            raise ModelError(
                f"{who} can't be loaded: its module {module.get('type')} is code of its own, which is not run; use kind: python"
            )
