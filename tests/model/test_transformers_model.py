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


def save(folder, *, head=True, **config):
    """A tiny BERT with random weights, and its tokenizer."""
    torch.manual_seed(0)
    options = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3,
        max_position_embeddings=24, **config,
    )  # fmt: skip
    network = (transformers.BertForSequenceClassification if head else transformers.BertModel)(options).eval()
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
    with pytest.raises(ModelError, match=r"gives several labels a row"):
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
