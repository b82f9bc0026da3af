import json
import socket

import numpy as np
import pytest
import torch

from raystream.errors import ModelError
from raystream.model import fingerprint, load
from raystream.query import Model

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "cat", "dog", "sat", "ran", "on", "mat", "##s"]
TEXTS = np.array(["the cat sat on the mat", "dogs", "a cat ran", "", "the dogs sat on the cats " * 9, "a mat", "cat"], dtype=object)


def save(folder, *, head=True, kind="classes", **config):
    """A tiny BERT with random weights, and its tokenizer."""
    torch.manual_seed(0)
    options = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3,
        max_position_embeddings=24, **config,
    )  # fmt: skip
    with_head = transformers.BertForTokenClassification if kind == "tokens" else transformers.BertForSequenceClassification
    network = (with_head if head else transformers.BertModel)(options).eval()
    network.save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})
    tokenizer.save_pretrained(folder)
    return network, tokenizer


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return folder, *save(folder)


def spec_of(folder, **keys):
    return Model(kind="transformers", source=str(folder), **keys)


def one_by_one(network, tokenizer, texts, length=24):
    """The reference: each text alone, so nothing is padded; logits and the mean of the last hidden state."""
    logits, hidden = [], []
    for text in texts:
        with torch.no_grad():
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=length)
            out = network(**tokens, output_hidden_states=True)
        logits.append(out.logits[0])
        hidden.append(out.hidden_states[-1][0].mean(0))
    return torch.stack(logits), torch.stack(hidden)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_padding_and_order_change_nothing(bert, batch_size):
    """Whatever the batch, each row is what it is alone: texts of all lengths, cut off at the positions that the model has."""
    folder, network, tokenizer = bert
    logits, hidden = one_by_one(network, tokenizer, TEXTS)
    model = load(spec_of(folder, batch_size=batch_size), embedding=True)
    found = model.predict((TEXTS,))
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.embedding, hidden, rtol=1e-4, atol=1e-5)
    assert load(spec_of(folder), embedding=False).predict((TEXTS,)).embedding is None
    assert len(model.state_hash) == 64


def test_few_padded_tokens_at_a_time(bert, monkeypatch):
    """Cut into steps of one to two rows by tokens, rows come back in their order."""
    from raystream.model import transformers_model

    monkeypatch.setitem(transformers_model.PADDED_TOKENS, "cpu", 12)
    folder, network, tokenizer = bert
    found = load(spec_of(folder), embedding=True).predict((TEXTS,))
    logits, hidden = one_by_one(network, tokenizer, TEXTS)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.embedding, hidden, rtol=1e-4, atol=1e-5)


def test_max_length_cuts_texts_off(bert):
    """model.args.max_length is the number of tokens that are left."""
    folder, network, tokenizer = bert
    found = load(spec_of(folder, args={"max_length": 4}), embedding=False).predict((TEXTS,))
    torch.testing.assert_close(found.logits, one_by_one(network, tokenizer, TEXTS, 4)[0], rtol=1e-4, atol=1e-5)
    for args, says in (({"max_lenght": 4}, "did you mean 'max_length'?"), ({"max_length": 0}, "is 0, expected a whole number")):
        with pytest.raises(ModelError, match=says):
            load(spec_of(folder, args=args), embedding=False)


def test_two_columns_are_pairs(bert):
    """Two columns of texts are read as the tokenizer reads pairs."""
    folder, network, tokenizer = bert
    found = load(spec_of(folder), embedding=False).predict((TEXTS[:3], TEXTS[:3][::-1]))
    with torch.no_grad():
        expected = network(**tokenizer("dogs", "dogs", return_tensors="pt")).logits[0]
    torch.testing.assert_close(found.logits[1], expected, rtol=1e-4, atol=1e-5)


def test_an_embedding_by_name(bert):
    """A module's output: one vector a row as it is, one vector a token averaged; a wrong name says which is near."""
    folder, network, tokenizer = bert
    pooled = load(spec_of(folder, embedding="bert.pooler"), embedding=True).predict((TEXTS,)).embedding
    with torch.no_grad():
        expected = [network.bert(**tokenizer(text, return_tensors="pt", truncation=True, max_length=24)).pooler_output[0] for text in TEXTS]
    torch.testing.assert_close(pooled, torch.stack(expected), rtol=1e-4, atol=1e-5)
    encoder = load(spec_of(folder, embedding="bert.encoder"), embedding=True).predict((TEXTS,)).embedding
    torch.testing.assert_close(encoder, one_by_one(network, tokenizer, TEXTS)[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"'bert.poler', which is no module of the model; did you mean 'bert.pooler'"):
        load(spec_of(folder, embedding="bert.poler"), embedding=True)


def test_nothing_goes_over_the_network(bert, monkeypatch):
    """A folder is all that is read."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(spec_of(bert[0]), embedding=False).predict((TEXTS,))


def test_a_model_without_a_trained_head(tmp_path, capfd):
    """Transformers would draw a head at random: it is refused, in one sentence and without log lines."""
    save(tmp_path, head=False)
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"no trained classifier: its weights lack classifier.bias, classifier.weight; fine-tune it"):
        load(spec_of(tmp_path), embedding=False)
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_a_tokenizer(tmp_path):
    """Transformers would make a tokenizer that knows no word: it is refused."""
    save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer \(tokenizer.json, vocab.txt\); add it by tokenizer.save_pretrained"):
        load(spec_of(tmp_path), embedding=False)


def test_several_labels_a_row(tmp_path):
    """Logits of labels that don't exclude each other are no softmax."""
    save(tmp_path, problem_type="multi_label_classification")
    with pytest.raises(ModelError, match=r"was trained for multi_label_classification, but model.task is classes; set it to multi_label"):
        load(spec_of(tmp_path), embedding=False)


def test_code_in_the_folder_is_not_run(tmp_path):
    """A config that points at code beside it is refused, and the code doesn't run."""
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Net"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(ModelError, match=r"can't be loaded: .*code of its own, which is not run"):
        load(spec_of(tmp_path), embedding=False)
    assert not (tmp_path / "ran").exists()


def test_folders_that_are_none(tmp_path, bert):
    """A hub's name, a file, an empty folder and broken weights are one sentence each."""
    for source, says in (
        ("distilbert-base-uncased", "is not there, expected a folder"),
        (str(bert[0] / "config.json"), "is a file, expected a folder"),
        (str(tmp_path), "holds no config.json"),
    ):
        with pytest.raises(ModelError, match=says):
            load(Model(kind="transformers", source=source), embedding=False)
    save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"can't be loaded: [^\n]+; save the model again"):
        load(spec_of(tmp_path), embedding=False)


def test_the_fingerprint_follows_the_folder(tmp_path, bert):
    """Weights, tokenizer and arguments count; where the folder lies doesn't."""
    save(tmp_path)
    spec = spec_of(tmp_path)
    assert fingerprint(spec) == fingerprint(spec_of(bert[0]))
    seen = [fingerprint(spec), fingerprint(spec_of(tmp_path, args={"max_length": 4}))]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes() + b" ")
        seen.append(fingerprint(spec))
    assert len(set(seen)) == 5


SAMPLES, SEED = 3, 5


def dropped_one_by_one(monkeypatch, network, tokenizer, texts):
    """The reference: every sample and text alone, in training mode, with each dropout call multiplied by its own fixed mask."""
    import torch.nn.functional as F

    from raystream.model.dropout_mode import keep_mask

    now = {"sample": None, "call": 0}

    def dropout(values, p=0.5, training=True, inplace=False):
        call, now["call"] = now["call"], now["call"] + 1
        if now["sample"] is None or p == 0:
            return values
        return values * torch.from_numpy(keep_mask(SEED, now["sample"], call, (1, *values.shape[1:]), p)) / (1 - p)

    monkeypatch.setattr(F, "dropout", dropout)
    network.set_attn_implementation("eager")
    network.train()
    found = []
    with torch.no_grad():
        for text in texts:
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)
            row = []
            for sample in (None, *range(SAMPLES)):
                now.update(sample=sample, call=0)
                row.append(network(**tokens).logits[0])
            found.append(torch.stack(row))
    monkeypatch.undo()
    network.eval()
    return found


@pytest.mark.parametrize("task", ["classes", "tokens"])
def test_mc_dropout_is_one_sub_network_for_every_text(tmp_path, monkeypatch, task):
    """Hidden and attention dropout are on, and each sample is the same network for a text alone and in a padded batch of any size."""
    network, tokenizer = save(tmp_path, kind=task, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    texts = [text for text in TEXTS if text]
    expected = dropped_one_by_one(monkeypatch, network, tokenizer, texts)
    for batch_size in (2, 100):
        model = load(spec_of(tmp_path, batch_size=batch_size, task=task), embedding=True, mc_samples=SAMPLES, seed=SEED)
        found = model.predict((np.array(texts, dtype=object),))
        for row, (logits, samples) in enumerate(zip(found.logits, found.samples, strict=True)):
            width = slice(len(expected[row][0])) if task == "tokens" else slice(None)
            torch.testing.assert_close(logits[width], expected[row][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(samples[:, width], expected[row][1:], rtol=1e-4, atol=1e-5)
        plain = load(spec_of(tmp_path, task=task), embedding=True).predict((np.array(texts, dtype=object),))
        torch.testing.assert_close(found.embedding, plain.embedding, rtol=1e-4, atol=1e-5)


def test_no_dropout_in_the_config_is_refused(tmp_path):
    """Equal samples would be a column of zeros."""
    save(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with pytest.raises(ModelError, match=r"no dropout was active"):
        load(spec_of(tmp_path), embedding=False, mc_samples=SAMPLES).predict((TEXTS,))


def test_tokens_of_a_text_are_scored_and_its_frame_is_not(tmp_path):
    """Each row's logits are those of the text alone; the mask keeps what is neither padding nor special, or all of an empty text."""
    network, tokenizer = save(tmp_path, kind="tokens")
    found = load(spec_of(tmp_path, task="tokens", batch_size=3), embedding=False).predict((TEXTS,))
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)
            logits = network(**tokens).logits[0]
        count = len(logits)
        torch.testing.assert_close(found.logits[row, :count], logits, rtol=1e-4, atol=1e-5)
        inner = [0, *[1] * (count - 2), 0] if count > 2 else [1, 1]
        assert found.mask[row].int().tolist() == inner + [0] * (found.mask.shape[1] - count)


@pytest.mark.parametrize(("problem", "task"), [("multi_label_classification", "multi_label"), ("regression", "regression")])
def test_labels_and_numbers(tmp_path, problem, task):
    """A folder for several labels or for numbers gives its outputs as they are, when the task says so."""
    network, tokenizer = save(tmp_path, problem_type=problem)
    found = load(spec_of(tmp_path, task=task), embedding=False).predict((TEXTS,))
    torch.testing.assert_close(found.logits, one_by_one(network, tokenizer, TEXTS)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_in_half_precision_runs_in_float32(tmp_path, dtype):
    """Whatever its config says it was saved in: the same numbers as of the float32 network of these weights."""
    network, tokenizer = save(tmp_path)
    network.to(dtype).save_pretrained(tmp_path)
    assert str(dtype) == f"torch.{json.loads((tmp_path / 'config.json').read_text()).get('dtype')}"
    model = load(spec_of(tmp_path), embedding=True)
    assert {values.dtype for values in model._model.network.parameters()} == {torch.float32}
    logits, hidden = one_by_one(network.float(), tokenizer, TEXTS)
    found = model.predict((TEXTS,))
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.embedding, hidden, rtol=1e-4, atol=1e-5)


def test_heads_of_another_task_are_named(tmp_path):
    """Their weights fit each other; what the head is says the config."""
    save(tmp_path / "tokens", kind="tokens")
    save(tmp_path / "texts")
    for task in ("classes", "multi_label"):
        with pytest.raises(ModelError, match=rf"classifier of tokens \(BertForTokenClassification\), .* is {task}; set it to tokens"):
            load(spec_of(tmp_path / "tokens", task=task), embedding=False)
    with pytest.raises(ModelError, match=r"of whole texts \(BertForSequenceClassification\), .* is tokens; set it to classes"):
        load(spec_of(tmp_path / "texts", task="tokens"), embedding=False)


def test_one_label_is_a_regression(tmp_path):
    """num_labels 1 is what transformers trains as a number; as one yes or no it is a task of labels."""
    network, _ = save(tmp_path)
    network.config.num_labels = 1
    network = transformers.BertForSequenceClassification(network.config)
    network.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has num_labels 1, .* set model.task to regression, or to multi_label"):
        load(spec_of(tmp_path), embedding=False)
    for task in ("regression", "multi_label"):
        assert load(spec_of(tmp_path, task=task), embedding=False).predict((TEXTS,)).logits.shape == (len(TEXTS), 1)


def test_a_head_that_is_random_is_named(bert, monkeypatch):
    """Text models are run twice like all others."""
    folder, *_ = bert
    model = load(spec_of(folder), embedding=False)
    monkeypatch.setattr(model._model.network.dropout, "forward", lambda values: torch.nn.functional.dropout(values, 0.5))
    with pytest.raises(ModelError, match=r"is random in evaluation mode: .* 7 rows .*: module dropout \(Dropout\) calls dropout"):
        model.predict((TEXTS,))
