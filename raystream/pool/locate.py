"""Finding labelled rows that the pool's filters exclude: they aren't candidates, but they count as covered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from raystream.pool.files import open_parquet, threads_for
from raystream.pool.filters import Filters, filter_columns, matching_rows, residual
from raystream.pool.footers import Footer
from raystream.pool.ids import derived_ids
from raystream.pool.labelled import Labelled
from raystream.pool.plan import PoolPlan
from raystream.pool.scan import scan
from raystream.pool.units import Unit, units_at


def locate_labelled(plan: PoolPlan, labelled: Labelled, threads: int = 8) -> tuple[list[Unit], Labelled]:
    """Units of the labelled rows that no unit of the plan yields, reading only the id and filter columns.

    Args:
        plan: the pool's.
        labelled: the labelled ids.
        threads: files read at a time.

    Returns:
        Units with `positions`, sorted by (path, first row), and the labelled ids that they don't hold.

    Raises:
        PoolError: a file is gone, changed or damaged.
    """
    if not plan.filters or not len(labelled):
        return [], labelled
    left = [residual(plan.filters, footer.file, plan.partition_types) for footer in plan.footers]
    # Where every row passes, the plan's own units yield the labelled rows.
    todo = [(footer, filters) for footer, filters in zip(plan.footers, left, strict=True) if filters != () and footer.rows]
    rest = np.ones(len(labelled), dtype=bool)
    with ThreadPoolExecutor(max_workers=threads_for([footer.file for footer, _ in todo], threads)) as executor:
        results = list(executor.map(lambda item: _excluded(item[0], item[1], plan.read.id, labelled), todo))
    units: list[Unit] = []
    for (footer, _), (positions, indices) in zip(todo, results, strict=True):
        units += units_at(footer, positions.tolist(), widened=plan.read.widened)
        rest[indices] = False
    return units, labelled.only(rest)


def _excluded(
    footer: Footer, filters: Filters | None, id_name: str | None, labelled: Labelled
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A file's labelled rows that don't pass, and their indices among the labelled ids; None: nothing passes."""
    columns = list(dict.fromkeys([*([id_name] if id_name else []), *filter_columns(filters or ())]))
    positions: list[npt.NDArray[np.int64]] = []
    indices: list[npt.NDArray[np.int64]] = []
    with open_parquet(footer.file) as parquet:
        for first, batch in scan(footer.file, parquet, columns):
            rows = np.arange(first, first + batch.num_rows)
            ids = batch.column(id_name) if id_name else derived_ids(footer.file.path, rows)
            index = labelled.index(ids)
            if filters and (index >= 0).any():
                index[matching_rows(filters, batch, footer.file.path)] = -1
            if footer.file.deletes is not None:
                gone = np.ones(len(rows), dtype=bool)
                gone[footer.file.deletes.kept(first, len(rows))] = False
                index[gone] = -1
            positions.append(rows[index >= 0])
            indices.append(index[index >= 0])
    return np.concatenate(positions), np.concatenate(indices)
