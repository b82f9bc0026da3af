import importlib
import random

import numpy as np
import pytest
import torch

from raystream.errors import ModelError, QueryError
from raystream.model.source import build_network
from raystream.model.weights import state_hash


def test_a_class_is_called_with_its_args(nets):
    """args are the keyword arguments of the class."""
    network = build_network(f"{nets}:Net", {"inputs": 4, "classes": 7})
    assert network(torch.zeros(2, 4)).shape == (2, 7)


@pytest.mark.parametrize("source", ["nets:Net", "nets:random_bias"])
def test_a_factory_gives_the_same_network_every_time(nets, source):
    """Whatever the state of torch's, numpy's and Python's generators, the network comes out the same."""
    hashes = set()
    for seed in range(3):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        hashes.add(state_hash(build_network(source, {})))
    assert len(hashes) == 1


def test_the_random_generators_stay_as_they_were(nets):
    """Building a network draws nothing from anybody's generators, even when it fails."""
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    build_network(f"{nets}:random_bias", {})
    with pytest.raises(ModelError):
        build_network(f"{nets}:broken", {"size": 1})
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_an_instance_is_copied(nets):
    """A module instance may be the source, and the user's own stays untouched."""
    network = build_network(f"{nets}:instance", {})
    own = importlib.import_module(nets).instance
    assert network is not own
    assert state_hash(network) == state_hash(own)


@pytest.mark.parametrize(
    ("source", "args", "message"),
    [
        ("no_such_module_here:Net", {}, "there is no module 'no_such_module_here'"),
        ("nets.deeper:Net", {}, "there is no module 'nets.deeper'"),
        ("package.gone:Net", {}, "there is no module 'package.gone'"),
        ("needs_more:Net", {}, r"importing needs_more raised ModuleNotFoundError.*'not_installed_anywhere'; install"),
        ("raises:Net", {}, "importing raises raised ZeroDivisionError: division by zero"),
        ("exits:Net", {}, "importing exits raised SystemExit"),
        ("nets:Nett", {}, "nets has no 'Nett'; did you mean 'Net'"),
        ("nets:Net.make", {}, r"nets has no 'Net\.make'"),
        ("nets:number", {}, "is int, expected a class, a factory"),
        ("nets:Net", {"hiden": 3}, r"model.args do not fit nets:Net\(inputs=6.*hiden.*did you mean 'hidden'"),
        ("nets:broken", {}, "model.args do not fit .*missing a required argument: 'size'"),
        ("nets:broken", {"size": 1}, "nets:broken raised OSError: no such thing when called with model.args {'size': 1}"),
        ("nets:not_a_module", {}, r"returned int, expected a torch\.nn\.Module"),
        ("nets:instance", {"size": 1}, "model.args has size, but .* is a module already"),
    ],
)
def test_what_cannot_be_built_is_explained(nets, write_module, source, args, message):
    """Each way in which a source fails has a message of its own, that says what failed and where."""
    write_module("needs_more.py", "import not_installed_anywhere")
    write_module("raises.py", "1 / 0")
    write_module("exits.py", "import sys; sys.exit(1)")
    write_module("package/__init__.py", "")
    with pytest.raises(ModelError, match=message):
        build_network(source, args)


@pytest.mark.parametrize("source", ["nets", "nets:", ":Net", "./nets.py:Net", "nets/Net"])
def test_what_is_no_import_path_is_a_mistake_in_the_query(source):
    """A source without the form module:callable is told the form."""
    with pytest.raises(QueryError, match=r"package\.module:callable"):
        build_network(source, {})
