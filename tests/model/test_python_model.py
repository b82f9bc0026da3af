import importlib
import sys

import numpy as np
import pytest
import torch

from raystream.errors import ModelError, QueryError
from raystream.model import fingerprint, load
from raystream.query import Model
from raystream.query.catalogue import ENTRY_POINTS

MODELS = """
from pathlib import Path

import numpy as np
import torch


class Lengths:
    def __init__(self, scale=1.0, weights=None):
        self.scale = scale if weights is None else float(Path(weights).read_text())
        self.seen = []

    def predict(self, inputs):
        texts, numbers = inputs
        assert type(texts) is list and all(type(text) is str for text in texts)
        long = np.array([[len(text), 1.0] for text in texts]) * self.scale
        return {"logits": long, "embedding": numbers, "samples": torch.from_numpy(long)[:, None].repeat(1, 3, 1)}


class Returns:
    def __init__(self, what):
        self.what = what

    def predict(self, inputs):
        from raystream.model import Prediction
        ones = torch.ones(len(inputs[0]), 2)
        return {
            "tensor": ones, "prediction": Prediction(ones, ones), "probabilities": {"probabilities": ones / 2},
            "unknown": {"logit": ones}, "both": {"logits": ones, "probabilities": ones}, "nothing": {"embedding": ones},
            "list": {"logits": [1, 2]}, "deep": {"logits": ones[:, :, None]}, "flat": {"logits": ones, "embedding": ones[:, 0]},
            "few": {"logits": ones, "samples": ones},
        }[self.what]


class Silent:
    pass


def load_rows(spec, *, embedding):
    from raystream.model.columns_model import ColumnsPredictor
    from raystream.query import Model
    return ColumnsPredictor(Model(kind="columns", logits=spec.source), embedding=False)
"""


@pytest.fixture
def models(write_module):
    return write_module("user_models.py", MODELS)


def spec_of(name, **keys):
    return Model(kind="python", source=f"user_models:{name}", **keys)


def test_predict_gets_texts_and_tensors(models, tmp_path):
    """Texts come as a list of str and numbers as tensors, in pieces of batch_size; what is returned becomes float32 tensors."""
    texts, numbers = np.array(["a", "abc", ""], dtype=object), torch.arange(6.0).reshape(3, 2)
    found = load(spec_of("Lengths", args={"scale": 2}, batch_size=2), embedding=True).predict((texts, numbers))
    assert found.logits.tolist() == [[2, 2], [6, 2], [0, 2]]
    assert torch.equal(found.embedding, numbers)
    assert found.samples.shape == (3, 3, 2)
    assert {found.logits.dtype, found.embedding.dtype, found.samples.dtype} == {torch.float32}
    weights = tmp_path / "w.txt"
    weights.write_text("3")
    spec = spec_of("Lengths", weights=str(weights))
    assert load(spec, embedding=False).predict((texts, numbers)).logits[1].tolist() == [9, 3]
    before = fingerprint(spec)
    weights.write_text("4")
    assert fingerprint(spec) != before


@pytest.mark.parametrize(("what", "logit"), [("tensor", 1.0), ("prediction", 1.0), ("probabilities", np.log(0.5))])
def test_what_predict_may_return(models, what, logit):
    """The logits alone, a Prediction, or probabilities."""
    found = load(spec_of("Returns", args={"what": what}), embedding=False).predict((torch.ones(4, 3),))
    np.testing.assert_allclose(found.logits, logit)
    assert found.embedding is None


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("unknown", "predict returned 'logit', which is no part of a prediction; did you mean 'logits'?"),
        ("both", "returned logits and probabilities"),
        ("nothing", "returned embedding, expected logits or probabilities"),
        ("list", "returned list as logits"),
        ("deep", r"predict returned float32 \(4, 2, 1\) for 4 rows, expected logits of shape \(4, classes\)"),
        ("flat", r"returned embedding torch.float32 \(4,\), expected floating numbers \(4, dimensions\)"),
        ("few", r"returned samples torch.float32 \(4, 2\), expected floating numbers \(4, members, 2\)"),
        ("tensor", "returned no embedding, but one is needed"),
    ],
)
def test_what_predict_may_not_return(models, what, says):
    """Each departure from the contract is one sentence with the source."""
    embedding = what in ("flat", "tensor")
    with pytest.raises(ModelError, match=f"model.source user_models:Returns: {says}|{says}"):
        load(spec_of("Returns", args={"what": what}), embedding=embedding).predict((torch.ones(4, 3),))


def test_sources_that_can_not_be_used(models):
    """No predict, arguments that don't fit, no such class."""
    with pytest.raises(ModelError, match=r"made Silent, expected an object with a method predict"):
        load(spec_of("Silent"), embedding=False)
    with pytest.raises(ModelError, match=r"model.args do not fit user_models:Lengths"):
        load(spec_of("Lengths", args={"scael": 2}), embedding=False)
    with pytest.raises(ModelError, match=r"did you mean 'Lengths'\?"):
        load(spec_of("Length"), embedding=False)


def test_the_fingerprint_follows_source_and_args(models, write_module):
    """Like that of a network: the module's text and the arguments count."""
    spec = spec_of("Lengths", args={"scale": 2})
    seen = [fingerprint(spec), fingerprint(spec_of("Lengths")), fingerprint(spec_of("Silent"))]
    write_module("user_models.py", MODELS + "\n# changed\n")
    assert len({*seen, fingerprint(spec)}) == 4


@pytest.fixture
def registered(models, tmp_path):
    """An installed package that registers the kind `rows`."""
    info = tmp_path / "code" / "user_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: user-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nrows = user_models:load_rows\ngone = no_such_module:load\n")
    importlib.invalidate_caches()
    yield models
    sys.modules.pop("user_models", None)


def test_a_kind_of_another_package(registered, write_module, tmp_path):
    """Its function loads the model; its code and whatever `source` is are the fingerprint."""
    spec = Model(kind="rows", source="z", args={"a": 1})
    logits = torch.randn(3, 2)
    assert torch.equal(load(spec, embedding=False).predict((logits,)).logits, logits)
    (tmp_path / "w.bin").write_bytes(b"1")
    by_file = Model(kind="rows", source=str(tmp_path / "w.bin"))
    seen = [fingerprint(spec), fingerprint(Model(kind="rows", source="y", args={"a": 1})), fingerprint(by_file)]
    (tmp_path / "w.bin").write_bytes(b"2")
    seen.append(fingerprint(by_file))
    write_module("user_models.py", MODELS + "\n# changed\n")
    assert len({*seen, fingerprint(spec)}) == 5
    with pytest.raises(ModelError, match=r"model.kind gone is registered as no_such_module:load, whose import raised"):
        load(Model(kind="gone"), embedding=False)
    with pytest.raises(QueryError, match=r"model.kind is 'row', expected one of torch, .*, gone, rows; did you mean 'rows'\?"):
        Model(kind="row")
