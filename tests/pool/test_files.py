"""One file of a pool: opened as it was listed, or not at all."""

from __future__ import annotations

import os

import pytest

from raystream.errors import PoolError
from raystream.pool import list_files
from raystream.pool.files import check_unchanged, open_parquet


def test_a_changed_or_vanished_file_is_noticed(write) -> None:
    """Reading what was listed means: the same size and time, or an error that names the file."""
    path = write("a.parquet", {"i": [1]})
    (file,) = list_files([str(path)])
    check_unchanged(file)
    os.utime(path, ns=(1, 1))
    with pytest.raises(PoolError, match=r"a\.parquet was changed"):
        check_unchanged(file)
    path.unlink()
    with pytest.raises(PoolError, match=r"a\.parquet has vanished"):
        open_parquet(file)
