from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from raystream.errors import QueryError
from raystream.loop.trainers.by_name import bootstrap_rows, fit_committee
from raystream.model import load
from raystream.query import Model


def factory(seed):
    """A small network; takes (n, 4) float32."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))


@pytest.fixture
def data():
    """60 rows of two classes that a line separates."""
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


def same(one, two):
    states = [[safetensors.torch.load_file(path) for path in paths] for paths in (one, two)]
    return [all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(*states, strict=True)]


def test_it_is_reproducible(data, tmp_path):
    """Members follow from seed and number, in this process or through an executor, whatever the generator's state; threads don't mix."""
    torch.manual_seed(1)
    first = fit_committee(factory, data, 3, 5, folder=tmp_path / "a")
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    with ThreadPoolExecutor(3) as executor:
        second = fit_committee(factory, data, 3, 5, folder=tmp_path / "b", executor=executor)
    assert torch.equal(torch.rand(3), expected)
    assert same(first, second) == [True] * 3
    assert same(first, [*first[1:], first[0]]) == [False] * 3
    assert same(first[:2], fit_committee(factory, data, 2, 6, folder=tmp_path / "c")) == [False] * 2


def test_each_member_sees_its_own_rows(data, tmp_path):
    """A member is trained on as many rows as there are, drawn with replacement; x and y stay together."""
    x, y = np.arange(50.0, dtype=np.float32)[:, None], np.arange(50) * 2
    seen = []
    fit_committee(lambda seed: nn.Linear(1, 2), (x, y), 4, 7, folder=tmp_path, trainer=lambda _, x, y, seed: seen.append((x, y, seed)))
    assert all(np.array_equal(own[:, 0] * 2, labels) and len(own) == 50 for own, labels, _ in seen)
    assert len({tuple(labels) for _, labels, _ in seen}) == len({seed for *_, seed in seen}) == 4
    assert all(20 < len(set(labels)) < 45 for _, labels, _ in seen)  # 63 % of the rows, on average
    assert np.array_equal(bootstrap_rows(50, 2, 7) * 2, seen[2][1])


def test_the_weights_are_those_of_a_query(data, tmp_path, monkeypatch):
    """What it returns goes into model.weights, and the committee has learnt the task."""
    text = "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))\n"
    (tmp_path / "net_of_a_committee.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    paths = fit_committee(factory, data, 3, 5, folder=tmp_path / "members")
    found = load(Model(source="net_of_a_committee:net", weights=paths, device="cpu"), embedding=False).predict((torch.from_numpy(data[0]),))
    assert (found.logits.argmax(1).numpy() == data[1]).mean() > 0.9
    assert float(found.samples.std(1).min()) > 0


@pytest.mark.parametrize(
    ("members", "rows", "message"), [(1, (5, 5), "members is 1"), (2, (5, 4), "5 rows in x and 4"), (2, (0, 0), "0 rows")]
)
def test_what_makes_no_committee(tmp_path, members, rows, message):
    """Fewer than two members, or data that don't fit together, are errors of the arguments."""
    with pytest.raises(QueryError, match=message):
        fit_committee(factory, (np.zeros((rows[0], 4)), np.zeros(rows[1])), members, 0, folder=tmp_path)
