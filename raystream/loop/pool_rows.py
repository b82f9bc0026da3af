"""The rows of a loop's pool: their ids, where they are, what the model would see of them, and their columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.choosing.row_hashes import block_hashes
from raystream.loop.control import control_rows, sample_rows
from raystream.loop.labels import Id
from raystream.loop.trainers.training import Array
from raystream.pool import File, PoolPlan, Unit, read_columns_at, read_unit, units_at
from raystream.pool.ids import KnownIds, comparable
from raystream.query import Query
from raystream.query.loop import Loop
from raystream.scoring.batch_reader import preparation
from raystream.scoring.plan import pool_plan

_BATCH = 1 << 16
_DECODED = 256
_KEPT_ROWS = 4_000_000
"""Of a pool whose ids are kept in memory: each round looks for some of them several times."""


@dataclass
class PoolRows:
    """A pool as a loop needs it; read anew by each call of the command, since files may be added.

    Attributes:
        plan: of all rows, whatever the filters say: labels of rows that these leave out count, too.
        units: the rows that may be chosen.
    """

    plan: PoolPlan
    units: Sequence[Unit]
    threads: int = 1
    _inputs: dict[tuple[str, int], tuple[Array, ...]] = field(default_factory=dict)
    """Decoded rows, by file and row: the labelled ones are needed in each round again."""
    _blocks: dict[int, list[tuple[File, npt.NDArray[np.int64], pa.Array]]] = field(default_factory=dict)

    @classmethod
    def of(cls, loop: Loop, query: Query) -> PoolRows:
        """List the pool and read its footers.

        Args:
            loop: says which columns are needed beside the inputs.
            query: one of its queries, which says what the model sees.
        """
        cost = [loop.select.cost.column] if loop.select.cost else []
        label = [loop.loop.column] if loop.loop.column else []
        everything = loop.pool.derived(filters=[], label=None, labelled=[])
        whole = pool_plan(query, everything, [*cost, *label, *loop.pool.keep, *loop.pool.input_columns])
        if not loop.pool.filters:
            return cls(whole, whole.units, loop.cluster.cpus_per_worker)
        chosen = pool_plan(query, loop.pool.derived(label=None, labelled=[]))
        return cls(whole, chosen.units, loop.cluster.cpus_per_worker)

    @property
    def id_name(self) -> str:
        """The column of ids in what is written."""
        return self.plan.id_name

    @property
    def id_type(self) -> pa.DataType:
        """Of the pool's ids."""
        return self.plan.id_type

    def array(self, ids: Sequence[Id]) -> pa.Array:
        """Return ids as an Arrow array of the pool's type."""
        return pa.array(list(ids), self.id_type)

    def find(self, ids: Sequence[Id]) -> dict[Id, tuple[File, int]]:
        """Find where those of some ids are that the pool holds."""
        if not ids:
            return {}
        wanted = pa.array(sorted(set(ids)), comparable(pa.array([], self.id_type)).type)
        known, names = KnownIds(wanted), wanted.to_pylist()
        found: dict[Id, tuple[File, int]] = {}
        for file, rows, block in self._ids(self.plan.units):
            where = known.index(comparable(block))
            for at in np.flatnonzero(where >= 0):
                found[names[where[at]]] = (file, int(rows[at]))
        return found

    def reserve(self, seed: int, controls: int, barred: Sequence[Id]) -> tuple[list[Id], list[Id]]:
        """Draw the first rows by hash among those that may be chosen: control rows in the order of asking, and the sample of models.

        Args:
            seed: the loop's.
            controls: how many control rows.
            barred: ids that are no control rows, such as those of the evaluation set.
        """
        keys, blocks = [], []
        for _, _, block in self._ids(self.units):
            keys.append(block_hashes(seed, block))
            blocks.append(block)
        hashes = np.concatenate([np.empty(0, np.uint64), *keys])
        ids = pa.chunked_array(blocks, self.id_type)
        excluded = set(barred)
        control: list[Id] = []
        if controls:
            drawn = ids.take(pa.array(control_rows(hashes, controls + len(excluded)))).to_pylist()
            control = [id_ for id_ in drawn if id_ not in excluded][:controls]
        return control, ids.take(pa.array(sample_rows(hashes))).to_pylist()

    def eligible(self, barred: Sequence[Id]) -> int:
        """Count how many rows may be chosen that are not among these."""
        known = KnownIds(pa.array(sorted(set(barred)), comparable(pa.array([], self.id_type)).type))
        return sum(int((known.index(comparable(block)) < 0).sum()) for _, _, block in self._ids(self.units))

    def inputs(self, places: Sequence[tuple[File, int]]) -> tuple[tuple[Array, ...], npt.NDArray[np.bool_]]:
        """Read what the model sees of rows, in their order, and which of them could be read: under `on_error: skip` bad ones can't."""
        missing: dict[str, tuple[File, list[int]]] = {}
        for file, row in places:
            if (file.path, row) not in self._inputs:
                missing.setdefault(file.path, (file, []))[1].append(row)
        footers = {footer.file.path: footer for footer in self.plan.footers}
        spec, prepare = self.plan.read, preparation(self.plan.read)
        for path, (_, rows) in missing.items():
            for unit in units_at(footers[path], sorted(set(rows)), widened=spec.widened):
                for read in read_unit(unit, spec, _DECODED, self.threads, prepare):
                    for at, row in enumerate(read.rows.tolist()):
                        self._inputs[path, row] = tuple(values[at].copy() if values.ndim > 1 else values[at] for values in read.inputs)
        sound = np.array([(file.path, row) in self._inputs for file, row in places], dtype=bool)
        kept = [self._inputs[file.path, row] for (file, row), ok in zip(places, sound, strict=True) if ok]
        return stacked(kept), sound

    def columns(self, places: Sequence[tuple[File, int]], names: Sequence[str]) -> pa.Table:
        """Read columns of rows, in their order."""
        schema = pa.schema([self.plan.keep_schema.field(name) for name in dict.fromkeys(names)])
        return read_columns_at(list(places), schema)

    def labels(self, name: str) -> Iterator[tuple[list[Id], list[Any]]]:
        """Return ids and labels of all rows that may be chosen, in a simulation."""
        for file, rows, block in self._ids(self.units):
            table = self.columns([(file, int(row)) for row in rows], [name])
            yield block.to_pylist(), table.column(0).to_pylist()

    def _ids(self, units: Sequence[Unit]) -> Iterator[tuple[File, npt.NDArray[np.int64], pa.Array]]:
        """Return the file, rows and ids of every row of units; none of their inputs is read."""
        kept = self._blocks.get(id(units))
        if kept is None and sum(unit.rows for unit in units) <= _KEPT_ROWS:
            kept = self._blocks[id(units)] = list(self._read_ids(units))
        yield from self._read_ids(units) if kept is None else kept

    def _read_ids(self, units: Sequence[Unit]) -> Iterator[tuple[File, npt.NDArray[np.int64], pa.Array]]:
        spec = replace(self.plan.read, columns=(), prepared=None, names=())
        for unit in units:
            for read in read_unit(unit, spec, _BATCH):
                yield unit.file, read.rows, read.ids


def stacked(rows: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
    """Return the inputs of rows as one array an input."""
    if not rows:
        return ()
    found = []
    for values in zip(*rows, strict=True):
        if isinstance(values[0], str):
            texts = np.empty(len(values), dtype=object)
            texts[:] = values
            found.append(texts)
        else:
            found.append(np.stack(values))
    return tuple(found)
