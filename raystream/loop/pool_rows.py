"""The rows of a loop's pool: all of them, those set apart, and how the first batch sees them.

The rows of a loop's pool: their ids, where they are, what the model would see of them, and their columns.

The first batch, while nothing is labelled: what is chosen by, before there is a trained model.

That is the embedding of the model with its given weights, or the inputs themselves; rows of texts without either are drawn at random.

Rows that are set apart by hash to judge models by, and how far a share of them is to be trusted.

Control rows are reserved before round 1, labelled with the batches, and never trained on while they serve. A model trained without them is
judged by them as by any sample drawn at random: a plain mean with Wilson's interval. No other estimate from the labels of a loop
was found to be unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from raystream.choosing.candidates import block_hashes
from raystream.errors import QueryError
from raystream.loop.labels import Id
from raystream.loop.trainers.training import Array
from raystream.model.signature import INPUTS
from raystream.pool import File, PoolPlan, Unit, read_columns_at, read_unit, units_at
from raystream.pool.columns import TEXT
from raystream.pool.ids import KnownIds, comparable
from raystream.pool.reader import ReadSpec
from raystream.query import Query
from raystream.query.catalogue import TRAITS, kind_of
from raystream.query.catalogue.strategies import AUTO, pick
from raystream.query.loop import Loop
from raystream.scoring.batch_reader import preparation
from raystream.scoring.plan import pool_plan
from raystream.selection.hashing import draw
from raystream.selection.strategies.ranking import lowest

_UNTRAINED = "raystream.loop.pool_rows:Untrained"
_UNREAD = "raystream.loop.pool_rows:Unread"


KNOW_NOTHING = (_UNTRAINED, _UNREAD)
"""Sources of models whose outputs are the same for every row: what they predict is no opinion."""


@dataclass(frozen=True)
class FirstBatch:
    """How the first batch is chosen: the model's section, whether it gives an embedding, the strategy, and why that one."""

    model: Mapping[str, Any]
    embedded: bool
    strategy: str
    why: str


def first_batch(loop: Loop, read: ReadSpec) -> FirstBatch:
    """Decide how the first batch of a loop is chosen.

    Args:
        loop: says what is given of the model, and which strategy.
        read: what the model's inputs are.

    Raises:
        QueryError: the strategy needs an embedding, and there is none.
    """
    wanted = loop.loop.start.strategy
    model, embedded = _model(loop, read)
    if wanted == AUTO:
        picked = pick(0, 0, task=loop.task, embedding=embedded, score=False)
        return FirstBatch(model, embedded, picked.strategy, picked.why)
    if wanted in TRAITS and TRAITS[wanted].embedding and not embedded:
        raise QueryError(
            f"loop.start.strategy is {wanted}, which needs an embedding, but the pool's inputs are texts and no model is given for them; "
            "use random, or label some rows first"
        )
    return FirstBatch(model, embedded, wanted, "")


def _model(loop: Loop, read: ReadSpec) -> tuple[Mapping[str, Any], bool]:
    """Return the model before any training, and whether it gives an embedding."""
    given = loop.model
    kind = str(given.get("kind", "torch"))
    if "source" in given and ("weights" in given or not kind_of(kind).parameters):
        return given, kind_of(kind).texts != "taken" or "embedding" in given or loop.select.needs_embedding
    shared = {key: given[key] for key in ("batch_size", "device", "preprocess", "embedding_dtype") if key in given}
    if TEXT in read.dtypes:
        own = {key: shared[key] for key in ("batch_size",) if key in shared}
        return own | {"kind": "python", "source": _UNREAD}, False
    return shared | {"kind": "torch", "source": _UNTRAINED, "embedding": INPUTS}, True


class Untrained(nn.Module):
    """Knows nothing: the same outputs for every row, of whatever numbers it sees."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """Return (n, 2) zeros."""
        first = next(iter((*inputs, *named.values())))
        return torch.zeros(len(first), 2, device=first.device)


class Unread:
    """Knows nothing of texts."""

    def predict(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return `logits` (n, 2) of zeros."""
        first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]
        return {"logits": np.zeros((len(first), 2), dtype=np.float32)}


Rows = npt.NDArray[np.int64]

SAMPLE_ROWS = 1000
"""Of the pool, on which successive models are compared."""


@dataclass(frozen=True)
class Share:
    """So many rows of so many, such as those that a model gets right."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """As a number from 0 to 1; nan of no rows."""
        return self.right / self.of if self.of else math.nan

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Compute the interval of `wilson`."""
        return wilson(self.right, self.of, z)

    def __add__(self, other: Share) -> Share:
        return Share(self.right + other.right, self.of + other.of)


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Compute Wilson's score interval (1927) of a share: (low, high), from 0 to 1 where there are no rows.

    Args:
        right: rows that count.
        of: rows in all.
        z: the normal quantile; 1.96 covers 95%.
    """
    if not of:
        return 0.0, 1.0
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    # the ends are 0 and 1 exactly where no row counts, or all do; rounding must not say otherwise
    return (0.0 if right == 0 else max(0.0, middle - half)), (1.0 if right == of else min(1.0, middle + half))


def control_rows(keys: npt.NDArray[np.uint64], count: int) -> Rows:
    """Return the control rows of a pool in the order in which they are asked for: its first by hash.

    Args:
        keys: (n,) of `raystream.selection.row_hash`, of the whole pool: what is labelled, chosen or filtered makes no difference.
        count: how many; all n when there are fewer. More of them begin with the same rows.
    """
    return lowest(draw(keys, "control"), count)


def sample_rows(keys: npt.NDArray[np.uint64], count: int = SAMPLE_ROWS) -> Rows:
    """Return the rows of a pool on which successive models are compared, the same ones always, in row order."""
    return np.sort(lowest(draw(keys, "stopping"), count))


def controls_in(batch: int, control: float) -> int:
    """Count how many rows of a batch are control rows, given the share that they are of it."""
    return round(control * batch)


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
