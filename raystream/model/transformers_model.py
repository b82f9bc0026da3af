"""kind: transformers, a folder with a classifier of texts and its tokenizer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raystream import query
from raystream.errors import ModelError
from raystream.model.artefact import find_folder
from raystream.model.batches import BatchPredictor, join
from raystream.model.device import choose_device
from raystream.model.hidden import HiddenState
from raystream.model.huggingface import check_args, check_tokenizer, loading, text_package
from raystream.model.prediction import Prediction, check_logits
from raystream.model.texts import PADDED_TOKENS, by_length, text_columns
from raystream.model.torch_model import AUTOCAST
from raystream.model.weights import state_hash

_INSTEAD = "save the model and its tokenizer there by save_pretrained"
_PAIRS = 2


def load(spec: query.Model, *, embedding: bool) -> BatchPredictor:
    """Load the classifier and the tokenizer of the folder `spec.source`.

    Raises:
        ModelError: transformers is missing; the folder lacks weights, a trained head or a tokenizer, or brings its own code.
    """
    assert spec.source is not None  # the query checks it
    who = f"model.source {spec.source}"
    max_length = check_args(spec.args, who)
    folder = find_folder(spec.source, "config.json", _INSTEAD)
    transformers = text_package("transformers", "transformers")
    device = choose_device(spec.device)
    network, tokenizer = _read(transformers, folder, who)
    network = network.eval().to(device)
    classifier = TextClassifier(
        network,
        tokenizer,
        who=who,
        device=device,
        max_length=max_length or _longest(network, tokenizer),
        autocast=AUTOCAST[spec.precision],
        hidden=HiddenState(network, spec.embedding) if embedding else None,
    )
    return BatchPredictor(classifier.predict, who=who, device=device, batch_size=spec.batch_size, state_hash=state_hash(network))


class TextClassifier:
    """A network of transformers with its tokenizer: texts in, logits and hidden states out."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        who: str,
        device: torch.device,
        max_length: int | None,
        autocast: torch.dtype | None,
        hidden: HiddenState | None,
    ) -> None:
        """
        Args:
            network: in evaluation mode, on its device.
            tokenizer: the one that it was trained with.
            who: names the model in errors.
            device: the network's.
            max_length: tokens at which texts are cut off; None if it takes any number.
            autocast: the dtype of mixed precision; None for none.
            hidden: a hook on this network; None if embeddings aren't wanted.
        """
        self._network, self._tokenizer, self._hidden = network, tokenizer, hidden
        self._who, self._device, self._max_length, self._autocast = who, device, max_length, autocast

    def predict(self, inputs: tuple[Any, ...]) -> Prediction:
        """One column of texts, or two that are read as pairs; computed in batches of similar length, returned in order."""
        columns = text_columns(inputs, _PAIRS, self._who)
        rows = len(columns[0])
        if not rows:
            raise ModelError(f"{self._who} got no rows")
        tokens = self._tokenizer(*columns, truncation=self._max_length is not None, max_length=self._max_length)
        lengths = [len(row) for row in tokens["input_ids"]]
        cuts = by_length(lengths, rows, PADDED_TOKENS.get(self._device.type, PADDED_TOKENS["cpu"]))
        found = join([self._run({name: [values[i] for i in cut] for name, values in tokens.items()}) for cut in cuts])
        back = torch.from_numpy(np.argsort(np.concatenate(cuts))).to(self._device)
        return Prediction(
            None if found.logits is None else found.logits[back],
            None if found.embedding is None else found.embedding[back],
        )

    def _run(self, tokens: dict[str, list[Any]]) -> Prediction:
        rows = len(tokens["input_ids"])
        batch = self._tokenizer.pad(tokens, return_tensors="pt").to(self._device)
        try:
            with torch.autocast(self._device.type, self._autocast) if self._autocast else nullcontext():
                output = self._network(**batch)
            logits = check_logits(output.logits, rows, self._who)
            return Prediction(logits, None if self._hidden is None else self._hidden.take(batch["attention_mask"]))
        finally:
            if self._hidden is not None:
                self._hidden.clear()


def _read(transformers: Any, folder: Path, who: str) -> tuple[Any, Any]:
    local = {"local_files_only": True, "trust_remote_code": False}
    with loading(who):
        network, report = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True, **local)
        missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
        if missing:
            raise ModelError(
                f"{who} is no trained classifier: its weights lack {', '.join(missing[:3])}; fine-tune it first, "
                "or set model.kind to sentence_transformers to use its embedding alone"
            )
        if network.config.problem_type == "multi_label_classification":
            raise ModelError(f"{who} gives several labels a row, expected a classifier whose classes exclude each other")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    check_tokenizer(folder, tokenizer, who)
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{who}: its tokenizer has no pad_token, which batches need; set one, set the config's pad_token_id, and save both again"
        )
    return network, tokenizer


def _longest(network: Any, tokenizer: Any) -> int | None:
    """How many tokens the network takes, as its tokenizer says, or else its table of positions; None if nothing limits it."""
    positions = getattr(network.config, "max_position_embeddings", None)
    if tokenizer.model_max_length < 1 << 30:  # transformers writes 10^30 for a limit that nobody set
        return int(tokenizer.model_max_length)
    table = getattr(getattr(network.base_model, "embeddings", None), "position_embeddings", None)
    offset = getattr(table, "padding_idx", None)  # RoBERTa counts positions from behind the padding's
    return None if positions is None or positions < 1 else int(positions) - (0 if offset is None else offset + 1)
