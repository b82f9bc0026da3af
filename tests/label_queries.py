"""Committed queries over small pools that carry probabilities, texts and pictures, for tests of labelling tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from label_batches import PNG
from pools import vectors

import raystream as rs
from raystream.store.result import Result

CLASSES = ("cat", "dog", "a <b> & c")


def commit_query(
    folder: Path,
    ids: pa.Array,
    budget: int = 8,
    texts: Sequence[str] | None = None,
    pictures: Sequence[bytes] | None = None,
    **changes: Any,
) -> Result:
    """Query `first` over `pool/a.parquet` in a folder, with ids named `rid`; `changes` replace sections."""
    rng = np.random.default_rng(5)
    count = len(ids)
    table = pa.table(
        {
            "rid": ids,
            "text": list(texts) if texts is not None else [f"row {i} =1+1 <b>ü</b>\n\u2028end" for i in range(count)],
            "image": list(pictures) if pictures is not None else [PNG] * count,
            "url": [f"s3://bucket/pictures/{i}.jpg" for i in range(count)],
            "shared": [f"s3://bucket/{i // 2}/{i % 2}.jpg" for i in range(count)],
            "p": vectors(rng.dirichlet(np.ones(3), count)),
            "e": vectors(rng.standard_normal((count, 4))),
        }
    )
    (folder / "pool").mkdir(exist_ok=True)
    pq.write_table(table, folder / "pool" / "a.parquet", row_group_size=16)
    spec: dict[str, Any] = {
        "pool": {"uri": str(folder / "pool"), "id": "rid", "keep": ["url"]},
        "model": {"kind": "columns", "probabilities": "p", "embedding": "e", "classes": list(CLASSES)},
        "select": {"strategy": "top_k", "budget": budget},
        "cluster": {"address": "in_process"},
        "store": {"uri": str(folder / "runs"), "query": "first"},
    }
    for section, keys in changes.items():
        spec[section] = spec[section] | keys
    return rs.run(rs.Query(**spec))
