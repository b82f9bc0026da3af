"""kind: transformers, a folder with a classifier of texts and its tokenizer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raystream import query
from raystream.errors import ModelError
from raystream.model.batches import AUTOCAST, BatchPredictor, choose_device, in_float32, join
from raystream.model.huggingface import (
    PADDED_TOKENS,
    HiddenState,
    by_length,
    check_args,
    check_tokenizer,
    loading,
    read_json,
    text_columns,
    text_package,
)
from raystream.model.mc_dropout import SampledForward
from raystream.model.prediction import Prediction
from raystream.model.promise import Promise
from raystream.model.weights import find_folder, state_hash

_INSTEAD = "save the model and its tokenizer there by save_pretrained"
_PAIRS = 2


def load(spec: query.Model, *, embedding: bool, mc_samples: int = 0, seed: int = 0) -> BatchPredictor:
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
    network, tokenizer = _read(transformers, folder, who, spec.task)
    in_float32(network)  # a folder may say that it is loaded in the precision it was saved in
    network = network.eval().to(device)
    promise = Promise(who, spec.task, spec.output)
    classifier = TextClassifier(
        network,
        tokenizer,
        promise=promise,
        device=device,
        max_length=max_length or _longest(network, tokenizer),
        autocast=AUTOCAST[spec.precision],
        hidden=HiddenState(network, spec.embedding) if embedding else None,
        mc_samples=mc_samples,
        seed=seed,
    )
    return BatchPredictor(
        classifier.predict, promise=promise, device=device, batch_size=spec.batch_size, state_hash=state_hash(network), network=network
    )


class TextClassifier:
    """A network of transformers with its tokenizer: texts in, logits and hidden states out."""

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        promise: Promise,
        device: torch.device,
        max_length: int | None,
        autocast: torch.dtype | None,
        hidden: HiddenState | None,
        mc_samples: int = 0,
        seed: int = 0,
    ) -> None:
        """
        Args:
            network: in evaluation mode, on its device.
            tokenizer: the one that it was trained with.
            promise: what its logits are to be; names the model in errors.
            device: the network's.
            max_length: tokens at which texts are cut off; None if it takes any number.
            autocast: the dtype of mixed precision; None for none.
            hidden: a hook on this network; None if embeddings aren't wanted.
            mc_samples: how many MC dropout samples each prediction holds; 0: none.
            seed: of their masks.
        """
        self._network, self._tokenizer, self._hidden = network, tokenizer, hidden
        self._promise, self._device, self._max_length, self._autocast = promise, device, max_length, autocast
        self._who, self._task, self._samples, self._seed = promise.who, promise.task, mc_samples, seed
        self._sampled: SampledForward | None = None
        self._names: list[str] = []

    def predict(self, inputs: tuple[Any, ...]) -> Prediction:
        """Predict one column of texts, or two that are read as pairs; computed in batches of similar length, returned in order."""
        columns = text_columns(inputs, _PAIRS, self._who)
        rows = len(columns[0])
        if not rows:
            raise ModelError(f"{self._who} got no rows")
        tokens = self._tokenizer(
            *columns,
            return_special_tokens_mask=self._task == "tokens",
            truncation=self._max_length is not None,
            max_length=self._max_length,
        )
        lengths = [len(row) for row in tokens["input_ids"]]
        cuts = by_length(lengths, rows, PADDED_TOKENS.get(self._device.type, PADDED_TOKENS["cpu"]))
        found = join([self._run({name: [values[i] for i in cut] for name, values in tokens.items()}) for cut in cuts])
        back = torch.from_numpy(np.argsort(np.concatenate(cuts))).to(self._device)
        logits, embedding, samples, mask = (
            None if values is None else values[back] for values in (found.logits, found.embedding, found.samples, found.mask)
        )
        return Prediction(logits, embedding, samples=samples, mask=mask)

    def _run(self, tokens: dict[str, list[Any]]) -> Prediction:
        batch = self._tokenizer.pad(tokens, return_tensors="pt").to(self._device)
        self._names = list(batch)
        given = tuple(batch.values())
        try:
            return self._forward(given) if not self._samples else self._dropout()(given)
        finally:
            if self._hidden is not None:
                self._hidden.clear()

    def _forward(self, given: tuple[Tensor, ...]) -> Prediction:
        """Run one pass over tensors of the tokenizer, (rows, tokens) each, in the order of `_names`."""
        batch = dict(zip(self._names, given, strict=True))
        special = batch.pop("special_tokens_mask", None)
        with torch.autocast(self._device.type, self._autocast) if self._autocast else nullcontext():
            output = self._network(**batch)
        logits = self._promise.logits(output.logits, len(given[0]))
        embedding = None if self._hidden is None else self._hidden.take(batch["attention_mask"])
        return Prediction(logits, embedding, mask=None if special is None else _words(batch["attention_mask"], special))

    def _dropout(self) -> SampledForward:
        if self._sampled is None:
            self._sampled = SampledForward(
                self._network,
                self._forward,
                samples=self._samples,
                seed=self._seed,
                who=self._who,
                device=self._device,
                embedding=self._hidden is not None,
                task=self._task,
                autocast=self._autocast is not None,
            )
        return self._sampled


def _words(attention: Tensor, special: Tensor) -> Tensor:
    """Return the tokens that are scored, bool (rows, tokens): those of the text; of an empty text, those that frame it."""
    kept = attention.bool() & ~special.bool()
    return kept | (attention.bool() & ~kept.any(dim=1, keepdim=True))


def _read(transformers: Any, folder: Path, who: str, task: str) -> tuple[Any, Any]:
    local = {"local_files_only": True, "trust_remote_code": False}
    _check_head(folder, task, who)
    with loading(who):
        auto = transformers.AutoModelForTokenClassification if task == "tokens" else transformers.AutoModelForSequenceClassification
        network, report = auto.from_pretrained(folder, output_loading_info=True, **local)
        missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
        if missing:
            raise ModelError(
                f"{who} is no trained classifier: its weights lack {', '.join(missing[:3])}; fine-tune it first, "
                "or set model.kind to sentence_transformers to use its embedding alone"
            )
        _check_problem(network.config, task, who)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    check_tokenizer(folder, tokenizer, who)
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{who}: its tokenizer has no pad_token, which batches need; set one, set the config's pad_token_id, and save both again"
        )
    return network, tokenizer


_PROBLEMS = {"single_label_classification": "classes", "multi_label_classification": "multi_label", "regression": "regression"}
"""What a config's `problem_type` is as `model.task`; a config may leave it open."""


def _check_head(folder: Path, task: str, who: str) -> None:
    """Refuse a head of the other sort: their weights often have the same names and shapes."""
    for name in read_json(folder / "config.json", who).get("architectures") or []:
        if str(name).endswith("ForTokenClassification") and task != "tokens":
            raise ModelError(f"{who} is a classifier of tokens ({name}), but model.task is {task}; set it to tokens")
        if str(name).endswith("ForSequenceClassification") and task == "tokens":
            raise ModelError(f"{who} is a classifier of whole texts ({name}), but model.task is tokens; set it to classes")


def _check_problem(config: Any, task: str, who: str) -> None:
    problem = config.problem_type
    meant = _PROBLEMS.get(problem or "", task)
    if task != "tokens" and meant != task:
        raise ModelError(f"{who} was trained for {problem}, but model.task is {task}; set it to {meant}")
    if task == "classes" and config.num_labels == 1:
        raise ModelError(
            f"{who} has num_labels 1, which transformers trains as a regression, but model.task is classes, which needs 2 or more; "
            "set model.task to regression, or to multi_label if it is one yes or no"
        )


def _longest(network: Any, tokenizer: Any) -> int | None:
    """Find how many tokens the network takes, as its tokenizer says, or else its table of positions; None if nothing limits it."""
    positions = getattr(network.config, "max_position_embeddings", None)
    if tokenizer.model_max_length < 1 << 30:  # transformers writes 10^30 for a limit that nobody set
        return int(tokenizer.model_max_length)
    table = getattr(getattr(network.base_model, "embeddings", None), "position_embeddings", None)
    offset = getattr(table, "padding_idx", None)  # RoBERTa counts positions from behind the padding's
    return None if positions is None or positions < 1 else int(positions) - (0 if offset is None else offset + 1)
