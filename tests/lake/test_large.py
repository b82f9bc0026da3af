"""Pools of very many small files, and of one very large one: whole queries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from pools import logits_and_embeddings, pool_table, vectors
from scored import planned
from servers import Proxy

from raystream import Query, run

pytestmark = pytest.mark.slow
Options = dict[str, str | int | bool]
MakeQuery = Callable[..., Query]
FILES, ROWS = 2000, 3


def margins(table: pa.Table) -> dict[str, float]:
    """The reference: the difference of each row's two highest probabilities in plain torch, by id."""
    top = logits_and_embeddings(table)[0].double().softmax(-1).topk(2).values
    return dict(zip(table.column("rid").to_pylist(), (top[:, 0] - top[:, 1]).tolist(), strict=True))


@pytest.fixture
def many(workplace: Path) -> tuple[Path, pa.Table]:
    """A folder of 2,000 files of three rows each, and all of their rows."""
    table, folder = pool_table(FILES * ROWS), workplace / "many"
    folder.mkdir()
    for index in range(FILES):
        pq.write_table(table.slice(index * ROWS, ROWS), folder / f"{index:04d}.parquet")
    return folder, table


def check(query: Query, table: pa.Table) -> None:
    """The 20 smallest margins of plain torch, best first, out of 2,000 units."""
    result = run(query)
    expected = margins(table)
    assert result.manifest.units_scored == FILES
    assert result.manifest.counts.scored == FILES * ROWS
    assert len(result.manifest.files) == FILES
    assert result.selection.column("rid").to_pylist() == sorted(expected, key=expected.__getitem__)[:20]


def test_two_thousand_small_files(make_query: MakeQuery, many: tuple[Path, pa.Table]) -> None:
    """Planned and queried on a disk: what is chosen is what plain torch gives for all rows at once."""
    check(make_query(pool__uri="many", select={"strategy": "top_k", "budget": 20}), many[1])


def test_two_thousand_small_files_in_s3(
    make_query: MakeQuery,
    many: tuple[Path, pa.Table],
    s3: pafs.FileSystem,
    folder: str,
    through_proxy: Options,
    proxy: Proxy,
    s3_keys: None,
) -> None:
    """Planned with at most two requests a file and many of them at a time; what is chosen is what plain torch gives."""

    def put(path: Path) -> None:
        with s3.open_output_stream(f"{folder}/{path.name}") as out:
            out.write(path.read_bytes())

    with ThreadPoolExecutor(32) as executor:
        list(executor.map(put, sorted(many[0].iterdir())))
    query = make_query(pool__uri=f"s3://{folder}", pool__storage=through_proxy, select={"strategy": "top_k", "budget": 20})
    proxy.faults.delay = 0.01
    planned(query)
    assert proxy.requests <= 2 * FILES + 20
    assert proxy.most_at_once >= 8
    proxy.reset()
    check(query, many[1])


MEASURED = """
import json, resource, sys
from raystream import Query, run
result = run(Query.load(sys.argv[1]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "scored": result.manifest.counts.scored, "ids": result.selection.column("id").to_pylist()}))
"""
WIDTH, GROUP = 256, 4096
GROUPS = 512
"""Of 4 MiB each: 2 GiB in one file."""


def large_file(path: Path, groups: int) -> None:
    """A file of one block of rows again and again, but for one row in each group's middle that the model is least sure of."""
    block = np.random.default_rng(0).standard_normal((GROUP, WIDTH), dtype=np.float32)
    block[:, 0] = 100.0
    schema = pa.schema({"id": pa.int64(), "x": vectors(block[:1]).type})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for group in range(groups):
            block[GROUP // 2, 0] = group / groups
            ids = np.arange(group * GROUP, (group + 1) * GROUP)
            writer.write_table(pa.table({"id": ids, "x": vectors(block)}, schema), row_group_size=GROUP)


SURE = """
import torch
from torch import nn

def first():
    net = nn.Linear(256, 2, bias=False)
    with torch.no_grad():
        net.weight.zero_()
        net.weight[0, 0] = 1
    return net
"""


def test_one_file_of_two_gigabytes(make_query: MakeQuery, workplace: Path) -> None:
    """The process that scores 2 GiB needs at most 256 MiB more than one that scores a sixteenth of it; the rows are the known ones."""
    (workplace / "sure_nets.py").write_text(SURE)
    peaks = []
    for groups in (GROUPS // 16, GROUPS):
        large_file(workplace / f"{groups}.parquet", groups)
        query = make_query(
            pool={"uri": f"{groups}.parquet", "id": "id", "inputs": ["x"]},
            model={"source": "sure_nets:first", "batch_size": 4096},
            select={"strategy": "top_k", "budget": 20},
        )
        (workplace / "query.yaml").write_text(query.to_yaml())
        done = subprocess.run([sys.executable, "-c", MEASURED, "query.yaml"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["scored"] == groups * GROUP
        assert said["ids"] == [group * GROUP + GROUP // 2 for group in range(20)], "group 0 is undecided, the next ones a little surer"
        peaks.append(said["peak"])
    size = (workplace / f"{GROUPS}.parquet").stat().st_size
    (workplace / f"{GROUPS}.parquet").unlink()
    assert size > 2 << 30
    assert peaks[1] - peaks[0] < 256 << 20, peaks
