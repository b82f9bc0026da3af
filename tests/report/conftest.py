import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raystream as rs


def vectors(values):
    """(n, d) floats as a fixed-size list column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), values.shape[1])


def tensors(values):
    """(n, *shape) as a fixed-shape tensor column."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), values.shape[1:])
    return pa.ExtensionArray.from_storage(
        kind, pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(values.shape[1:])))
    )


@pytest.fixture
def ask(tmp_path):
    """Writes a table as files with three row groups each, runs a query over them in this process, returns the result."""

    def run(table, *, pool=None, model, select, files=1):
        folder = tmp_path / "pool"
        folder.mkdir(exist_ok=True)
        rows = -(-len(table) // files)
        for number in range(files):
            part = table.slice(number * rows, rows)
            pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=-(-rows // 3))
        return rs.run(
            rs.Query(
                pool=rs.Pool(uri=str(folder), **(pool or {})),
                model=rs.Model(**model),
                select=rs.Select(**select),
                store=rs.Store(uri=str(tmp_path / "runs")),
                cluster=rs.Cluster(address="in_process"),
            )
        )

    return run


@pytest.fixture
def columns_pool():
    """120 rows with ids, logits of three classes, an embedding and a link."""
    draw = np.random.default_rng(0)
    return pa.table(
        {
            "name": [f"row-{i}" for i in range(120)],
            "logits": vectors(draw.normal(size=(120, 3))),
            "embedding": vectors(draw.normal(size=(120, 6))),
            "url": [f"place/{i}" for i in range(120)],
        }
    )


@pytest.fixture
def digits():
    """Random digits' images, (60, 1, 28, 28) uint8, with ids."""
    pixels = np.random.default_rng(1).integers(0, 256, (60, 1, 28, 28), dtype=np.uint8)
    return pa.table({"name": [f"digit-{i}" for i in range(60)], "pixels": tensors(pixels)}), pixels
