"""Labels from a bucket into a bucket: merged there, also by several at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from label_queries import commit_query

from raystream.labels import collect_labels

Cli = Callable[..., tuple[int, str, str]]
Options = dict[str, str | int | bool]


@pytest.mark.slow
def test_labels_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, s3: pafs.FileSystem, folder: str, storage: Options, s3_keys: None
) -> None:
    """An export there is read, the table there is merged with, twice alike; six who add at once lose nothing; what isn't there says so."""
    monkeypatch.chdir(tmp_path)
    first = commit_query(tmp_path, pa.array(range(40)), budget=30)
    ids = first.selection.column("rid").to_pylist()
    options = "?" + "&".join(f"{name}={value}" for name, value in storage.items())

    def export(name: str, rows: range) -> str:
        lines = [json.dumps({"raystream_id": str(ids[row]), "label": "cat", "raystream_query": "first"}) for row in rows]
        with s3.open_output_stream(f"{folder}/{name}") as file:
            file.write("\n".join(lines).encode())
        return f"s3://{folder}/{name}{options}"

    source, out = export("export.jsonl", range(6)), f"s3://{folder}/labels/{options}"
    for _ in range(2):
        code, printed, stderr = cli("labels", source, "--from", "jsonl", "--out", out, "--json")
        assert code == 0, stderr
        assert json.loads(printed) | {"rows": 6, "labelled": 6, "out": f"s3://{folder}/labels/labels.parquet"} == json.loads(printed)
    sources = [export(f"more-{part}.jsonl", range(6 + 4 * part, 10 + 4 * part)) for part in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda part: collect_labels(part, "jsonl", out, first.store), sources))
    table = pq.read_table(f"{folder}/labels/labels.parquet", filesystem=s3)
    assert sorted(table.column("rid").to_pylist()) == sorted(ids)
    code, _, stderr = cli("labels", f"s3://{folder}/nothing.jsonl{options}", "--from", "jsonl", "--out", "l.parquet")
    assert (code, "does not exist" in stderr) == (3, True)
