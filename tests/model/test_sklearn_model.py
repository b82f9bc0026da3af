import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from raystream.errors import ModelError
from raystream.model import bad_output_rows, fingerprint, load
from raystream.query import Model

skops_io = pytest.importorskip("skops.io")


class Doubled(TransformerMixin, BaseEstimator):
    """A transformer of the user's own."""

    def fit(self, values, labels=None):
        return self

    def transform(self, values):
        return 2 * values


@pytest.fixture(scope="module")
def data():
    """(120, 4) float32 rows and labels of three classes that depend on them; 50 further rows."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((170, 4)).astype(np.float32)
    return rows[:120], (rows[:120, 0] > 0).astype(int) + (rows[:120, 1] > 0.5), rows[120:]


def saved(model, tmp_path, **keys):
    path = tmp_path / f"{type(model).__name__}.skops"
    skops_io.dump(model, path)
    return Model(kind="sklearn", source=str(path), **keys)


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        HistGradientBoostingClassifier(max_iter=5),
        KNeighborsClassifier(),
        MLPClassifier((4,), max_iter=1000, tol=1e-2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_logits_are_the_logarithms_of_the_probabilities(model, data, tmp_path):
    """softmax(logits) is predict_proba, also where a probability is 0; a single model has no samples."""
    rows, labels, others = data
    found = load(saved(model.fit(rows, labels), tmp_path, batch_size=16), embedding=False).predict((torch.from_numpy(others),))
    np.testing.assert_allclose(found.logits.softmax(1).numpy(), model.predict_proba(others), atol=1e-6)
    assert bad_output_rows(found) is None
    assert found.samples is None


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(7, max_depth=4, random_state=0, n_jobs=-1),
        ExtraTreesClassifier(5, max_depth=3, random_state=0),
        BaggingClassifier(LogisticRegression(), 6, max_features=0.5, max_samples=0.3, random_state=1),
        VotingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(3, random_state=0))], voting="soft"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_members_are_samples(model, data, tmp_path):
    """A committee's samples are the probabilities of its own members, whose mean is the committee's."""
    rows, labels, others = data
    pipeline = make_pipeline(StandardScaler(), model).fit(rows, labels)
    found = load(saved(pipeline, tmp_path, batch_size=16), embedding=False).predict((torch.from_numpy(others),))
    members = len(model.estimators_)
    assert found.samples.shape == (50, members, 3)
    np.testing.assert_allclose(found.samples.exp().mean(1).numpy(), pipeline.predict_proba(others), atol=1e-6)
    np.testing.assert_allclose(found.logits.exp().numpy(), pipeline.predict_proba(others), atol=1e-6)
    scaled = pipeline[0].transform(others)
    columns = model.estimators_features_[1] if hasattr(model, "estimators_features_") else slice(None)
    np.testing.assert_allclose(found.samples[:, 1].exp().numpy(), model.estimators_[1].predict_proba(scaled[:, columns]), atol=1e-6)


def test_a_member_that_never_saw_a_class(data, tmp_path):
    """Bagged on a few rows, a member may lack a class: its probability there is 0, and columns stay aligned."""
    rows, _, others = data
    labels = np.zeros(len(rows), int)
    labels[:60], labels[0] = 2, 1
    model = BaggingClassifier(KNeighborsClassifier(3), 8, max_samples=0.1, random_state=0).fit(rows, labels)
    assert any(len(member.classes_) == 2 for member in model.estimators_)
    found = load(saved(model, tmp_path), embedding=False).predict((torch.from_numpy(others),))
    np.testing.assert_allclose(found.samples.exp().mean(1).numpy(), model.predict_proba(others), atol=1e-6)


def test_texts_and_the_steps_embedding(tmp_path):
    """A pipeline takes texts; the embedding is what its last step before the classifier gives, or the one that is named."""
    texts = np.array(["red apple pie", "blue sky day", "green tree leaf", "red sky pie"] * 10, dtype=object)
    model = make_pipeline(TfidfVectorizer(), TruncatedSVD(3, random_state=0), StandardScaler(), LogisticRegression())
    model.fit(texts, np.arange(40) % 3)
    spec = saved(model, tmp_path, batch_size=16)
    found = load(spec, embedding=True).predict((texts,))
    np.testing.assert_allclose(found.logits.exp().numpy(), model.predict_proba(texts), atol=1e-6)
    np.testing.assert_allclose(found.embedding.numpy(), model[:-1].transform(texts), atol=1e-5)
    named = load(spec.model_copy(update={"embedding": "truncatedsvd"}), embedding=True).predict((texts,))
    np.testing.assert_allclose(named.embedding.numpy(), model[:2].transform(texts), atol=1e-5)
    with pytest.raises(ModelError, match=r"step tfidfvectorizer gives csr_.*, expected a dense array"):
        load(spec.model_copy(update={"embedding": "tfidfvectorizer"}), embedding=True).predict((texts,))
    with pytest.raises(ModelError, match=r"'truncatedsv', which is no step .*; did you mean 'truncatedsvd'\?"):
        load(spec.model_copy(update={"embedding": "truncatedsv"}), embedding=True)


def test_what_has_no_probabilities(data, tmp_path):
    """Margins are none; the error says what to do."""
    rows, labels, _ = data
    with pytest.raises(ModelError, match=r"is LinearSVC without predict_proba.*CalibratedClassifierCV"):
        load(saved(LinearSVC().fit(rows, labels), tmp_path), embedding=False)


def test_inputs_that_do_not_fit(data, tmp_path):
    """The number of features and of columns are checked before the model sees them."""
    rows, labels, _ = data
    model = load(saved(LogisticRegression().fit(rows, labels), tmp_path), embedding=False)
    with pytest.raises(ModelError, match=r"LogisticRegression.skops takes 4 features, but pool.inputs gives 5"):
        model.predict((torch.ones(2, 5),))
    with pytest.raises(ModelError, match=r"takes one input, but pool.inputs gives 2"):
        model.predict((torch.ones(2, 4), torch.ones(2, 4)))


def test_pickles_are_refused_unless_trusted(data, tmp_path):
    """Pickles and joblib files, whatever they are called, are loaded only if the query says so."""
    rows, labels, others = data
    model = LogisticRegression().fit(rows, labels)
    joblib.dump(model, tmp_path / "a.joblib", compress=3)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(model))
    (tmp_path / "c.skops").write_bytes(pickle.dumps(model))
    for path in sorted(tmp_path.iterdir()):
        spec = Model(kind="sklearn", source=str(path))
        with pytest.raises(ModelError, match=r"is a pickle, which can run code.*skops.io.dump, or set model.trust to pickle"):
            load(spec, embedding=False)
        trusted = load(spec.model_copy(update={"trust": "pickle"}), embedding=False)
        found = trusted.predict((torch.from_numpy(others),))
        np.testing.assert_allclose(found.logits.exp().numpy(), model.predict_proba(others), atol=1e-6)
    (tmp_path / "d.pkl").write_bytes(b"\x80\x05nothing")
    with pytest.raises(ModelError, match=r"is a pickle that can't be loaded here"):
        load(Model(kind="sklearn", source=str(tmp_path / "d.pkl"), trust="pickle"), embedding=False)


def test_code_of_ones_own_is_refused_unless_trusted(data, tmp_path):
    """A skops file with types of other packages is named with them, and loaded if the query insists."""
    rows, labels, others = data
    model = make_pipeline(Doubled(), LogisticRegression()).fit(rows, labels)
    spec = saved(model, tmp_path)
    with pytest.raises(ModelError, match=r"types that may run code: .*Doubled"):
        load(spec, embedding=False)
    found = load(spec.model_copy(update={"trust": "pickle"}), embedding=True).predict((torch.from_numpy(others),))
    np.testing.assert_allclose(found.embedding.numpy(), 2 * others)


def test_files_of_another_kind(tmp_path):
    """What isn't a skops file is called what it is."""
    torch.save({}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"a\.pt is a torch checkpoint, expected a skops file"):
        load(Model(kind="sklearn", source=str(tmp_path / "a.pt")), embedding=False)
    skops_io.dump({"a": 1}, tmp_path / "a.skops")
    with pytest.raises(ModelError, match=r"is dict without predict_proba"):
        load(Model(kind="sklearn", source=str(tmp_path / "a.skops")), embedding=False)


def test_the_fingerprint_follows_the_weights(data, tmp_path):
    """Fitted on other labels it is another model; loaded and saved twice from one fit, its file's content decides."""
    rows, labels, _ = data
    one = fingerprint(saved(LogisticRegression().fit(rows, labels), tmp_path))
    assert one == fingerprint(Model(kind="sklearn", source=str(tmp_path / "LogisticRegression.skops"), trust="pickle"))
    assert one != fingerprint(saved(LogisticRegression().fit(rows, 1 - (labels > 0)), tmp_path))


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(6, max_depth=3, random_state=0),
        ExtraTreesClassifier(5, random_state=0),
        KNeighborsClassifier(3),
        MultiOutputClassifier(LogisticRegression()),
        ClassifierChain(LogisticRegression(), random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_labels_are_taken_one_by_one(model, data, tmp_path):
    """Whether predict_proba gives an array or a list of pairs; a label never seen has a probability of 0, and members stay samples."""
    rows, _, others = data
    y = np.stack([rows[:, 0] > 0, np.zeros(len(rows)), rows[:, 1] + rows[:, 2] > 0], 1).astype(int)
    if isinstance(model, MultiOutputClassifier | ClassifierChain):
        y[0, 1] = 1  # a linear model needs both
    model.fit(rows, y)
    spec = saved(model, tmp_path, task="multi_label", trust="pickle", batch_size=16)
    found = load(spec, embedding=True).predict((torch.from_numpy(others),))

    def probabilities(model):
        given = model.predict_proba(others)
        if not isinstance(given, list):
            return given
        pairs = zip(given, model.classes_, strict=True)
        return np.stack([one[:, 1] if one.shape[1] == 2 else one[:, 0] * classes[0] for one, classes in pairs], 1)

    np.testing.assert_allclose(found.logits.double().sigmoid().numpy(), probabilities(model), atol=1e-6)
    assert bool(torch.isfinite(found.logits).all())
    np.testing.assert_array_equal(found.embedding.numpy(), others)
    if hasattr(model, "estimators_") and hasattr(model, "n_outputs_"):
        each = np.stack([probabilities(tree) for tree in model.estimators_], 1)
        np.testing.assert_allclose(found.samples.double().sigmoid().numpy(), each, atol=1e-6)
    with pytest.raises(ModelError, match=r"fitted on several labels|don't sum to 1"):
        load(saved(model, tmp_path, trust="pickle"), embedding=False).predict((torch.from_numpy(others),))


def test_outputs_of_several_classes_each_are_refused(data, tmp_path):
    """A label is a yes or a no."""
    rows, labels, others = data
    model = RandomForestClassifier(3, random_state=0).fit(rows, np.stack([labels, labels], 1))
    with pytest.raises(ModelError, match=r"output 0 is one of the classes 0, 1, 2, expected labels that are 0 or 1"):
        load(saved(model, tmp_path, task="multi_label"), embedding=False).predict((torch.from_numpy(others),))


def test_one_distribution_is_no_set_of_labels(data, tmp_path):
    """A classifier of classes run with task multi_label, and one that knows a single class, are refused."""
    rows, labels, others = data
    model = LogisticRegression().fit(rows, labels)
    with pytest.raises(ModelError, match=r"sum to 1 in each .* set it to classes"):
        load(saved(model, tmp_path, task="multi_label"), embedding=False).predict((torch.from_numpy(others),))
    model = RandomForestClassifier(2).fit(rows, np.full(len(rows), "cat"))
    with pytest.raises(ModelError, match=r"fitted on rows of one class alone, 'cat'; fit it on two or more"):
        load(saved(model, tmp_path), embedding=False)


def test_an_embedding_by_default_and_by_name(data, tmp_path):
    """A bare estimator's is its inputs; a pipeline's is its last step's, and its inputs where they are named."""
    rows, labels, others = data
    bare = load(saved(RandomForestClassifier(3, random_state=0).fit(rows, labels), tmp_path), embedding=True)
    np.testing.assert_array_equal(bare.predict((torch.from_numpy(others),)).embedding.numpy(), others)
    spec = saved(make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels), tmp_path, embedding="inputs")
    np.testing.assert_array_equal(load(spec, embedding=True).predict((torch.from_numpy(others),)).embedding.numpy(), others)


@pytest.mark.parametrize("names", [["cat", "ant", "bee"], [1, 3, 7], [0.0, 1.0, 2.0], [False, True]])
def test_classes_are_the_models_own(data, tmp_path, names):
    """In the order of the outputs, as plain values."""
    rows, labels, _ = data
    model = LogisticRegression().fit(rows, np.array(names)[labels % len(names)])
    assert load(saved(model, tmp_path), embedding=False).class_labels == tuple(sorted(names))


def test_members_must_mean_the_same_classes(data, tmp_path):
    """Fitted on other labels, the same column is another class: refused with both, when the committee is loaded."""
    rows, labels, _ = data
    first = saved(LogisticRegression().fit(rows, labels), tmp_path)
    other = saved(RandomForestClassifier(2).fit(rows, labels + 1), tmp_path)
    with pytest.raises(ModelError, match=r"has the classes 0, 1, 2 and model.members 1 .* has the classes 1, 2, 3; a committee needs"):
        load(Model(members=[dict(kind="sklearn", source=one.source) for one in (first, other)]), embedding=False)
