import numpy as np

from raystream.report import stored
from raystream.report.stored import chosen_embeddings, pool_scores, sampled_embeddings, stored_pool

MODEL = {"kind": "columns", "logits": "logits", "embedding": "embedding"}


def embeddings_of(table):
    return np.stack(table.column("embedding").to_pylist()).astype(np.float16).astype(np.float32)


def test_the_whole_of_a_small_pool_is_read(ask, columns_pool):
    """Scores and embeddings of every row, in row order."""
    result = ask(columns_pool, pool={"id": "name"}, model=MODEL, select={"budget": 9}, files=3)
    pool = stored_pool(result)
    assert (sampled_embeddings(pool) == embeddings_of(columns_pool)).all()
    scores = pool_scores(pool, "margin")
    assert len(scores) == 120
    assert np.isin(result.selection.column("score").to_numpy(), scores).all()
    assert not pool.is_sample
    assert pool.total == 3


def test_chosen_rows_are_found_in_their_units(ask, columns_pool):
    """The embedding beside each rank is that of the pool's row."""
    result = ask(columns_pool, pool={"id": "name"}, model=MODEL, select={"budget": 9}, files=3)
    rows = [int(name.removeprefix("row-")) for name in result.selection.column("name").to_pylist()]
    ranks, values = chosen_embeddings(stored_pool(result), result.selection)
    assert ranks.tolist() == list(range(9))
    assert (values == embeddings_of(columns_pool)[rows]).all()


def test_a_large_pool_is_sampled_evenly(ask, columns_pool, monkeypatch):
    """The sample's rows are spaced evenly over the pool, first and last included."""
    monkeypatch.setattr(stored, "_SAMPLE_ROWS", 12)
    pool = stored_pool(ask(columns_pool, pool={"id": "name"}, model=MODEL, select={"budget": 9}, files=3))
    wanted = np.linspace(0, 119, 12).round().astype(int)
    assert (sampled_embeddings(pool) == embeddings_of(columns_pool)[wanted]).all()


def test_many_units_are_sampled_evenly(ask, columns_pool, monkeypatch):
    """Beyond a number of units, evenly spaced ones stand for all, and rows that lie in too many are left out."""
    monkeypatch.setattr(stored, "_UNITS", 2)
    result = ask(columns_pool, pool={"id": "name"}, model=MODEL, select={"budget": 60}, files=4)
    pool = stored_pool(result)
    assert pool.is_sample
    assert (sampled_embeddings(pool) == embeddings_of(columns_pool)[[*range(30), *range(90, 120)]]).all()
    ranks, values = chosen_embeddings(pool, result.selection)
    assert 0 < len(ranks) < 60
    assert 0 in ranks
    rows = [int(name.removeprefix("row-")) for name in result.selection.column("name").to_pylist()]
    assert (values == embeddings_of(columns_pool)[np.array(rows)[ranks]]).all()
