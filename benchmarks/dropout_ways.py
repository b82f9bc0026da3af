"""Ways to take MC dropout samples, raystream's and the usual ones, of a small residual convolutional net; and the net.

    entropy      one forward pass in evaluation mode, and entropy
    raystream    all samples and the deterministic network at once, and BALD
    loop         one forward pass a sample, each with one mask for all rows
    replicated   every row copied once a sample, and dropout drawn anew for each, in pieces of the batch size
    baal         baal's own ModelWrapper, which does the same, and BALD; where installed
    batchbald    the BatchBALD authors' consistent dropout (batchbald_redux), the trunk computed once where they can; where installed

Two places of dropout: before the head, where all samples share the trunk, and in every block, where they share the stem alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raystream.acquisition import entropy
from raystream.model.torch_model import TorchPredictor

PLACES = ("head", "blocks")


class Consistent(nn.Module):
    """Dropout with one mask for all rows, drawn anew after `redraw`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.mask = p, None

    def redraw(self) -> None:
        self.mask = None

    def forward(self, values: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.empty((1, *values.shape[1:])).bernoulli_(1 - self.p).div_(1 - self.p)
        return values * self.mask


class Block(nn.Module):
    """Two convolutions around which the input passes, with dropout between them or none."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(dropout, nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(values)) + self.short(values))


class Net(nn.Module):
    """Three residual blocks on (n, 3, 32, 32), and a head with 10 classes."""

    def __init__(self, place: str, dropout: Callable[[float], nn.Module]) -> None:
        super().__init__()

        def inside() -> nn.Module:
            return dropout(0.1) if place == "blocks" else nn.Identity()

        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1, inside()), Block(16, 32, 2, inside()), Block(32, 64, 2, inside()))
        self.head = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), dropout(0.5), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))

    def trunk(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images)).mean((2, 3))


def network(place: str, dropout: Callable[[float], nn.Module] = nn.Dropout) -> Net:
    """The same weights for each kind of dropout."""
    torch.manual_seed(0)
    return Net(place, dropout).eval()


def plain(seed: int = 0) -> Net:
    """A net for a query, without dropout that anybody switches on."""
    torch.manual_seed(seed)
    return Net("none", nn.Dropout).eval()


def bald(logits: Tensor) -> Tensor:
    """(n, samples, classes) -> (n,): mean KL divergence of the samples from their mean."""
    each = logits.log_softmax(dim=2)
    mean = each.logsumexp(dim=1, keepdim=True) - torch.log(torch.tensor(float(logits.shape[1])))
    return (each.exp() * (each - mean)).sum(dim=2).mean(dim=1)


def entropy_pass(place: str, batch: int) -> Callable[[Tensor], Tensor]:
    model = network(place)
    return lambda images: torch.cat([entropy(model(piece)) for piece in images.split(batch)])


def raystream(place: str, batch: int, samples: int) -> Callable[[Tensor], Tensor]:
    model = TorchPredictor(network(place), source=f"net:{place}", device=torch.device("cpu"), batch_size=batch, mc_samples=samples)
    return lambda images: bald(model.predict((images,)).samples)


def loop(place: str, batch: int, samples: int) -> Callable[[Tensor], Tensor]:
    model = network(place, Consistent)

    def run(images: Tensor) -> Tensor:
        made = []
        for _ in range(samples):
            for module in model.modules():
                if isinstance(module, Consistent):
                    module.redraw()
            made.append(torch.cat([model(piece) for piece in images.split(batch)]))
        return bald(torch.stack(made, dim=1))

    return run


def replicated(place: str, batch: int, samples: int) -> Callable[[Tensor], Tensor]:
    model = network(place)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()

    def run(images: Tensor) -> Tensor:
        pieces = images.split(max(1, batch // samples))
        return bald(torch.cat([model(piece.repeat_interleave(samples, 0)).view(len(piece), samples, -1) for piece in pieces]))

    return run


def baal(place: str, batch: int, samples: int) -> Callable[[Tensor], Tensor] | None:
    try:
        from baal.bayesian.dropout import patch_module
        from baal.modelwrapper import ModelWrapper, TrainingArgs
    except ImportError:
        return None
    size = max(1, batch // samples)
    wrapper = ModelWrapper(patch_module(network(place)), TrainingArgs(batch_size=size, use_cuda=False, replicate_in_memory=True))
    wrapper.eval()

    def run(images: Tensor) -> Tensor:
        made = [wrapper.predict_on_batch(piece, iterations=samples) for piece in images.split(size)]
        return bald(torch.cat(made).transpose(1, 2))  # it puts the samples last

    return run


def batchbald(place: str, batch: int, samples: int) -> Callable[[Tensor], Tensor] | None:
    try:
        from batchbald_redux.consistent_mc_dropout import BayesianModule, ConsistentMCDropout
    except ImportError:
        return None
    net = network(place, ConsistentMCDropout)

    class Sampled(BayesianModule):
        def __init__(self) -> None:
            super().__init__()
            self.sampled = net.head if place == "head" else net

        def mc_forward_impl(self, values: Tensor) -> Tensor:
            return self.sampled(values)

    model = Sampled().eval()
    size = batch if place == "head" else max(1, batch // samples)

    def run(images: Tensor) -> Tensor:
        given = (net.trunk(piece) if place == "head" else piece for piece in images.split(size))
        return bald(torch.cat([model(piece, samples) for piece in given]))

    return run
