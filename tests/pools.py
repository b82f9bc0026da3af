"""Pools and models that tests write and use."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from raystream.model.source import build_network

DIMENSION, CLASSES = 8, 4

NETS = """
import torch
from torch import nn

def net(d=8, c=4, hidden=16):
    torch.manual_seed(0)  # the same parameters whatever the seed, as if they were trained
    return layers(d, c, hidden)

def layers(d=8, c=4, hidden=16):
    return nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, c))

class Nan(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)
    def forward(self, x):
        return torch.where(x[:, :1] > 2.5, torch.nan, self.head(x))

def drifting():
    import secrets
    torch.manual_seed(secrets.randbits(40))
    return layers()
"""


def vectors(values: np.ndarray, nullable: bool = False) -> pa.Array:
    """(n, d) float32 as a fixed-size list column."""
    kind = pa.list_(pa.field("item", pa.float32(), nullable=nullable), values.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).astype(np.float32)), type=kind)


def pool_table(rows: int, start: int = 0, seed: int = 0) -> pa.Table:
    """Ids `r000000` on, an input column x, and columns to filter by and to keep."""
    rng = np.random.default_rng([seed, start])
    return pa.table(
        {
            "rid": [f"r{start + i:06d}" for i in range(rows)],
            "x": vectors(rng.standard_normal((rows, DIMENSION))),
            "country": rng.choice(["DE", "FR", "US"], rows),
            "url": [f"https://example.org/{start + i}" for i in range(rows)],
            "minutes": rng.integers(1, 9, rows).astype(np.float32),
        }
    )


def logits_and_embeddings(table: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference: the tests' net on all rows at once in plain torch; logits, and the input of the last Linear."""
    net = build_network("user_nets:net", {}).eval()
    x = torch.from_numpy(np.stack(table.column("x").to_pylist()).astype(np.float32))
    with torch.inference_mode():
        hidden = net[:-1](x)
        return net[-1](hidden), hidden
