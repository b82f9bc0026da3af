"""A pool of texts from the files to the selection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raystream as rs
from raystream.errors import PoolError
from raystream.scoring.batch_reader import BatchReader
from raystream.scoring.estimate import estimate
from raystream.scoring.plan import resolve

MODEL = """
import numpy as np

class Lengths:
    def predict(self, inputs):
        [texts] = inputs
        lengths = np.array([len(text) for text in texts], dtype=np.float32)
        return {"logits": np.stack([lengths, 8 - lengths], 1), "embedding": np.stack([lengths, -lengths], 1)}
"""


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three files of texts of different lengths; a model of these lengths; the current folder."""
    rng = np.random.default_rng(0)
    every = ["".join(rng.choice(list("ab "), rng.integers(0, 9))) for _ in range(150)]
    for file in range(3):
        rows = every[50 * file : 50 * file + 50]
        folder = tmp_path / "pool"
        folder.mkdir(exist_ok=True)
        table = pa.table({"rid": range(50 * file, 50 * file + 50), "text": pa.array(rows).dictionary_encode(), "even": [0, 1] * 25})
        pq.write_table(table, folder / f"{file}.parquet", row_group_size=20)
    (tmp_path / "text_models.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return every


def query(**changes: object) -> rs.Query:
    spec: dict[str, object] = {
        "pool": {"uri": "pool", "id": "rid", "inputs": ["text"]},
        "model": {"kind": "python", "source": "text_models:Lengths", "batch_size": 16},
        "select": {"strategy": "top_k", "budget": 10},
        "cluster": {"address": "in_process"},
    }
    return rs.Query(**(spec | changes))


@pytest.mark.parametrize("batch", [1, 7, 50, 1000])
def test_the_feed_hands_texts_on(texts: list[str], batch: int) -> None:
    """Every text once, in order, as str, in whole batches, filtered or not."""
    for filters, expected in (([], texts), ([["even", "==", 1]], texts[1::2])):
        asked = resolve(query(pool={"uri": "pool", "id": "rid", "inputs": ["text"], "filters": filters}))
        found: list[str] = []
        for unit in asked.pool.units:
            with BatchReader(unit, asked.pool.read, batch, pin=False) as reader:
                for chunk in reader:
                    for piece in chunk.batches(batch):
                        found += piece.inputs[0].tolist()
        assert found == expected


def test_the_most_uncertain_texts_are_chosen(texts: list[str]) -> None:
    """A text of four letters is a tie between the classes; those come first, then their neighbours, lower rows first."""
    distance = [abs(len(text) - 4) for text in texts]
    expected = sorted(range(150), key=lambda i: (distance[i], i))[:10]
    selection = rs.run(query()).selection
    assert selection.column("rid").to_pylist() == expected


def test_labelled_texts_outside_the_pool_count_as_covered(texts: list[str]) -> None:
    """Labelled rows of a file of their own are embedded from their texts: core_set stays away from them."""
    pq.write_table(pa.table({"rid": [900, 901], "text": ["", "aaaaaaaa"]}), "labelled.parquet")
    pool = {"uri": "pool", "id": "rid", "inputs": ["text"], "labelled": ["labelled.parquet"]}
    result = rs.run(query(pool=pool, select={"strategy": "core_set", "budget": 1, "candidates": "all"}))
    assert len(texts[result.selection.column("rid")[0].as_py()]) == 4


def test_texts_for_a_network_are_refused(texts: list[str], tmp_path: Path) -> None:
    """A network of tensors keeps its error; a model of texts refuses numbers."""
    with pytest.raises(PoolError, match=r"column text is dictionary.*; expected numbers, booleans, or lists of them"):
        resolve(query(model={"source": "text_models:Lengths"}))
    (tmp_path / "m").mkdir()
    with pytest.raises(PoolError, match=r"column even is int64; expected strings"):
        resolve(query(pool={"uri": "pool", "inputs": ["even"]}, model={"kind": "transformers", "source": "m"}))


def test_the_estimate_runs_texts(texts: list[str]) -> None:
    """The time is told by running the model on the pool's own texts."""
    found = estimate(query())
    assert found.seconds is not None
    assert found.measured_on.endswith("rows scored here")


def test_a_committee_takes_texts_if_its_members_do(texts: list[str]) -> None:
    """Members that read texts vote on them; beside one that takes tensors the column is refused."""
    member = {"kind": "python", "source": "text_models:Lengths"}
    result = rs.run(query(model={"members": [member, member]}, acquire={"score": "bald", "also": ["entropy"]}))
    lengths = np.array([len(texts[row]) for row in result.selection.column("rid").to_pylist()])
    p = 1 / (1 + np.exp(8.0 - 2 * lengths))
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    np.testing.assert_allclose(result.selection.column("entropy").to_numpy(), entropy, atol=1e-6)
    np.testing.assert_allclose(result.selection.column("score").to_numpy(), 0, atol=1e-6)
    with pytest.raises(PoolError, match=r"column text is .*string.*; expected numbers"):
        rs.run(query(model={"members": [member, {"source": "torch.nn:Linear"}]}, acquire={"score": "bald"}))
