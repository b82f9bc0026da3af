import sys
import textwrap

import pytest

NETS = """
import random

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs=6, hidden=5, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(hidden, classes)

    def forward(self, rows):
        return self.head(self.drop(self.body(rows)))


def random_bias(size=3):
    net = Net()
    net.head.bias = nn.Parameter(torch.tensor(np.random.rand(size) + random.random(), dtype=torch.float32))
    return net


def broken(size):
    raise OSError("no such thing")


def not_a_module():
    return 3


instance = Net()
number = 7
"""


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Writes Python files into an importable folder; what was imported from there is forgotten afterwards."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    known = set(sys.modules)

    def write(name, text):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    yield write
    for name in set(sys.modules) - known:
        path = getattr(sys.modules[name], "__file__", None) or ""
        if path.startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def nets(write_module):
    """The importable module `nets`."""
    write_module("nets.py", NETS)
    return "nets"
