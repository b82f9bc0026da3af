"""Columns of the scores of units, read one unit after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raystream.store.integrity import check_file, reading
from raystream.store.local import LocalStore
from raystream.store.protocol import Store
from raystream.store.receipts import Receipt

if TYPE_CHECKING:
    pass

_REQUESTS = 16
"""At a time, to an object store."""



def read_all(store: Store, receipts: Sequence[Receipt], columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of the units' scores, one table after the other; read ahead where each request takes its time."""
    if not store.remote:
        yield from (_read(store, receipt, columns) for receipt in receipts)
        return
    with ThreadPoolExecutor(_REQUESTS) as threads:
        ahead: deque[Future[pa.Table]] = deque()
        for receipt in receipts:
            if len(ahead) == _REQUESTS:  # what nobody has taken yet is in memory
                yield ahead.popleft().result()
            ahead.append(threads.submit(_read, store, receipt, columns))
        while ahead:
            yield ahead.popleft().result()



def _read(store: Store, receipt: Receipt, columns: Sequence[str]) -> pa.Table:
    if isinstance(store, LocalStore):
        check_file(store.path(receipt.scores.name), receipt.scores)
    with reading(store, receipt.scores):
        # `read_table` would import pandas, where that is installed: a quarter of a second of every query.
        return pq.ParquetFile(store.source(receipt.scores), pre_buffer=False).read(list(columns)).select(list(columns))
