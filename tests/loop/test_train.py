import numpy as np
import pytest
import torch

from raystream.loop.demos.mnist import accuracy, network, train


@pytest.fixture
def stripes():
    """40 images that a network can tell apart: a bright row at one of two heights."""
    labels = np.arange(40) % 2
    pixels = np.random.default_rng(0).integers(0, 60, (40, 1, 28, 28), dtype=np.uint8)
    pixels[np.arange(40), 0, 6 + 12 * labels] = 255
    return pixels, labels


def trained(images, labels, seed):
    made = network(4)
    train(made, images, labels, seed=seed, epochs=3)
    return made


def test_the_same_seed_gives_the_same_weights(stripes):
    """Whatever the network's weights and the global generator were before."""
    torch.manual_seed(1)
    first = trained(*stripes, seed=5).state_dict()
    torch.manual_seed(2)
    second = trained(*stripes, seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = trained(*stripes, seed=6).state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_process_is_left_as_it_was(stripes):
    """The global generator and the number of threads are somebody else's."""
    threads = torch.get_num_threads()
    made = network(4)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(made, *stripes, seed=5, epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_it_learns(stripes):
    """A task that can be learnt is learnt."""
    made = network(4)
    train(made, *stripes, seed=0, epochs=20)
    assert accuracy(made, *stripes) == 1.0
    assert accuracy(made, stripes[0], 1 - stripes[1]) == 0.0
