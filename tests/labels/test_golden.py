"""A batch of three rows for each tool, byte for byte as in `golden/`, which were read by people beside the tools' documentation."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from label_batches import PICTURES_ONLY, batch_of

from raystream.labels.tools import TOOLS

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("tool", sorted(set(TOOLS) - {"parquet"}))
def test_files_are_the_golden_ones(tool: str) -> None:
    """Text with markup, line breaks and a formula; of tools that show pictures alone, one pixel."""
    texts = ["plain", '=1+1 <b>ünï</b> & "x"\r\n', "\u2028😀"]
    batch = batch_of([7, -8, 9], pa.int64(), texts, kind="image" if tool in PICTURES_ONLY else "text", classes=("cat", 'a "b" & <c>'))
    files = TOOLS[tool].write(batch).files
    held = {str(path.relative_to(GOLDEN / tool)): path.read_bytes() for path in (GOLDEN / tool).rglob("*") if path.is_file()}
    assert held == files
