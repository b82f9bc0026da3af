"""BatchBALD: the batch whose labels, taken together, tell most about which member of a committee is right.

Kirsch, van Amersfoort and Gal, *BatchBALD: efficient and diverse batch acquisition for deep Bayesian active
learning*, 2019. Greedy on the mutual information of the members and the batch's labels,

    I(S) = H(E_k prod_j p_kj) - sum_j mean_k H(p_kj)

What a row adds to it is the BALD score of the row under the members' posterior, averaged over the configurations
of labels that the rows before it may get. All of these are listed while they are few, then as many are drawn.
The posterior is kept, not the joint probability, so that no batch is long enough to underflow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from raystream.arrays import numbers
from raystream.errors import DataError, QueryError
from raystream.selection.arguments import checked_seed, count
from raystream.selection.hashing import row_hash, uniform
from raystream.selection.rows import Array
from raystream.selection.strategy import Candidates, Picked, Request
from raystream.threads import each

MOST_ROWS = 50
MOST_CANDIDATES = 10_000
_PROBABILITIES = 100_000
_FEWEST, _MOST = 1000, 10_000
_BLOCK = 1 << 18
"""Numbers that are computed at once."""
_AT_ONCE = 1 << 24
"""The same where blocks are added up, which rounds otherwise for each size: above all that were whole so far."""
_SLACK = 0.05
"""How far probabilities may be from summing to 1: bfloat16 is some thousandths off."""
_NOTHING = 1e-12
"""Information, in nats, that can't be told from rounding."""


@dataclass(frozen=True)
class _Configurations:
    """Labels that the batch so far may get.

    Attributes:
        weight: (s,) how likely each is; they add up to 1.
        log_posterior: (s, k) log-probabilities of the members given the labels.
        member: (s,) the member that each was drawn from; None while all configurations are listed.
    """

    weight: Array
    log_posterior: Array
    member: Array | None = None


def batch_bald(log_probs: ArrayLike, k: int, *, seed: int = 0, configurations: int | None = None) -> Array:
    """Choose rows greedily by the mutual information of the members and the labels of all chosen rows.

    The first row is the one of the highest BALD score. Ties go to the lower row.

    Args:
        log_probs: (n, k, c) log-probabilities of c classes by k members or dropout samples, n at most 10,000.
        k: how many rows, at most 50; all n when there are fewer.
        seed: of the drawn configurations.
        configurations: how many are listed, or drawn once there are more; left out, 100,000 / c, but from 1,000 to 10,000.

    Returns:
        (min(k, n),) int64 row numbers in order of choice.

    Raises:
        QueryError: too large a k, or too many rows.
        DataError: log-probabilities of another shape, or that are none.
    """
    k = count(k)
    batch = JointBatch(numbers(log_probs, "log_probs"), k, seed=checked_seed(seed), configurations=configurations)
    rows: list[int] = []
    alive = np.ones(len(batch), dtype=bool)
    while len(rows) < min(k, len(batch)):
        row, _ = batch.best(np.flatnonzero(alive))
        batch.add(row)
        rows.append(row)
        alive[row] = False
    return np.asarray(rows, dtype=np.int64)


class JointBatch:
    """The rows chosen so far, as the configurations of their labels.

    Args:
        log_probs: see `batch_bald`.
        rows: how many rows the batch will have.
        seed: of the drawn configurations.
        configurations: how many to keep.
    """

    def __init__(self, log_probs: Array, rows: int, *, seed: int = 0, configurations: int | None = None) -> None:
        self._log_p = _checked(log_probs)
        if rows > MOST_ROWS:
            raise QueryError(f"`k` is {rows}, but batch_bald chooses at most {MOST_ROWS} rows; lower it, or choose by bald")
        n, members, classes = self._log_p.shape
        if n > MOST_CANDIDATES:
            raise QueryError(f"batch_bald has {n} candidates, but compares at most {MOST_CANDIDATES}; give fewer `candidates`")
        self._most = min(max(_PROBABILITIES // classes, _FEWEST), _MOST) if configurations is None else configurations
        self._entropy = np.empty((n, members))
        for begin in range(0, n, _block(members * classes)):
            log_p = self._wide(slice(begin, begin + _block(members * classes)))
            p = np.exp(log_p)
            self._entropy[begin : begin + len(p)] = -(p * np.where(p > 0, log_p, 0.0)).sum(axis=2)
        self._keys = row_hash(seed, np.arange(self._most))
        self._rows: list[int] = []
        self._now = _Configurations(np.ones(1), np.full((1, members), -np.log(members)))

    def __len__(self) -> int:
        return len(self._log_p)

    def _wide(self, rows: Array | slice | int) -> Array:
        """Return log-probabilities of some rows in float64; all rows' would take more memory than what is given."""
        return np.asarray(self._log_p[rows], dtype=np.float64)

    def best(self, rows: Array) -> tuple[int, float]:
        """Find (row, gain): which of `rows` (int64, ascending, not empty) adds most information, in nats, and how much."""
        rough = self._gains(rows)
        if rough.max() < _NOTHING:
            return int(rows[0]), 0.0
        # the last bits of a product depend on where a row stands in it: those that may tie are computed one by one
        near = rows[rough >= rough.max() - _NOTHING]
        known: dict[bytes, float] = {}
        gain = np.empty(len(near))
        for i, row in enumerate(map(int, near)):
            same = self._log_p[row].tobytes()
            if same not in known:
                known[same] = self.gain(row)
            gain[i] = known[same]
        at = int(np.argmax(gain))
        return int(near[at]), float(gain[at])

    def gain(self, row: int) -> float:
        """Compute by how many nats the labels of the batch tell more about the members with `row` than without."""
        posterior, p = np.exp(self._now.log_posterior), np.exp(self._wide(row))
        entropy = np.zeros(len(posterior))
        step = _block(len(posterior), most=_AT_ONCE)
        for begin in range(0, p.shape[1], step):
            mixture = np.zeros((len(posterior), min(step, p.shape[1] - begin)))
            for member in range(posterior.shape[1]):
                mixture += posterior[:, member, None] * p[member, begin : begin + step]
            entropy -= (mixture * np.log(np.where(mixture > 0, mixture, 1.0))).sum(axis=1)
        return max(float((self._now.weight * (entropy - (posterior * self._entropy[row]).sum(axis=1))).sum()), 0.0)

    def add(self, row: int) -> None:
        """Add `row` to the batch."""
        self._rows.append(row)
        now = self._now
        if now.member is None:
            members, classes = self._log_p.shape[1:]
            joint = now.log_posterior[:, None, :] + self._wide(row).T[None]
            listed = _listed(now.weight, joint.reshape(-1, members), classes)
            if len(listed.weight) <= self._most:
                self._now = listed
                return
            # each member draws as many, but for one
            member = np.arange(self._most) * members // self._most
            share = np.bincount(member, minlength=members)
            weight = 1.0 / (np.count_nonzero(share) * share[member])
            self._now = _Configurations(weight, np.full((self._most, members), -np.log(members)), member)
            for place, earlier in enumerate(self._rows):
                self._draw(place, earlier)
        else:
            self._draw(len(self._rows) - 1, row)

    def _draw(self, place: int, row: int) -> None:
        """Draw a label of `row`, the one at `place` of the batch, for each configuration from its member."""
        now = self._now
        assert now.member is not None
        log_p = self._wide(row)
        steps = np.cumsum(np.exp(log_p), axis=1)
        chance = uniform(self._keys, f"batch_bald {place}") * steps[now.member, -1]
        label = np.minimum((chance[:, None] >= steps[now.member]).sum(axis=1), steps.shape[1] - 1)
        joint = now.log_posterior + log_p[:, label].T
        self._now = _Configurations(now.weight, joint - np.logaddexp.reduce(joint, axis=1, keepdims=True), now.member)

    def _gains(self, rows: Array) -> Array:
        """Compute (r,) float64 gains but for the last bits."""
        now = self._now
        posterior = torch.from_numpy(np.exp(now.log_posterior))
        weight = torch.from_numpy(now.weight)
        members, classes = self._log_p.shape[1:]
        expected = self._entropy[rows] @ (weight @ posterior).numpy()
        step = min(_block(len(posterior) * classes), _block(members * classes))
        columns = _block(len(posterior))

        def start() -> Callable[[int], Array]:
            def work(begin: int) -> Array:
                which = rows[begin : begin + step]
                # (k, rows x classes), the right-hand side of a product with posteriors
                p = torch.from_numpy(np.exp(self._wide(which).transpose(1, 0, 2)).reshape(members, -1))
                entropy = []
                for some in torch.split(p, columns, dim=1):
                    mixture = torch.mm(posterior, some)
                    entropy.append(-(weight @ mixture.clamp(min=2.0**-1000).log_().mul_(mixture)))
                result: Array = torch.cat(entropy).view(-1, classes).sum(1).numpy()
                return result

            return work

        entropy = np.concatenate(each(range(0, len(rows), step), start))
        result: Array = entropy - expected
        return result


def _block(numbers: int, most: int = _BLOCK) -> int:
    """Choose how many things of so many numbers each are computed at once."""
    return max(most // max(numbers, 1), 1)


def _listed(weight: Array, joint: Array, classes: int) -> _Configurations:
    """List all configurations one label longer, without those that can't be; `joint` (s * c, k) log-probabilities, s of `weight`."""
    likely = np.logaddexp.reduce(joint, axis=1)
    longer = np.repeat(weight, classes) * np.exp(likely)
    kept = longer > 0
    return _Configurations(longer[kept], joint[kept] - likely[kept, None])


def _checked(log_probs: Array) -> Array:
    """Check (n, k, c) log-probabilities, float32 or float64."""
    log_p = np.asarray(log_probs)
    if log_p.ndim != 3 or not log_p.shape[1] or not log_p.shape[2]:
        raise DataError(f"samples have shape {log_p.shape}; expected log-probabilities (rows, members, classes)")
    bad: list[int] = []
    step = _block(log_p.shape[1] * log_p.shape[2])
    for begin in range(0, len(log_p), step):
        total = np.exp(log_p[begin : begin + step], dtype=np.float64).sum(axis=2)
        bad += (begin + np.flatnonzero(~(np.abs(total - 1) <= _SLACK).all(axis=1))).tolist()
    if bad:
        raise DataError(
            f"the samples of {len(bad)} candidates are not log-probabilities, first at row {bad[0]}: expected numbers whose exponentials "
            "add up to 1 over the classes"
        )
    return log_p


def batch_bald_strategy(candidates: Candidates, request: Request) -> Picked:
    """Run `batch_bald` in a query; rows that had to be in the batch are part of it from the start."""
    if candidates.samples is None:
        raise QueryError("batch_bald needs the log-probabilities of several members, but the candidates have none; give `log_probs`")
    constraints, shards = request.constraints, candidates.shards
    taken = constraints.taken
    batch = JointBatch(candidates.samples, request.budget + len(taken), seed=request.seed, **request.args)
    for row in taken:
        batch.add(int(row))
    left = np.setdiff1d(np.arange(len(batch)), taken)
    rows: list[int] = []
    gains: list[float] = []
    while len(rows) < request.budget:
        x = shards.gather(left) if constraints.vectors and shards is not None else None
        left = left[~constraints.blocked(left, x)]
        if not len(left):
            break
        row, gain = batch.best(left)
        batch.add(row)
        constraints.take(row, shards.gather(np.asarray([row]))[0] if constraints.vectors and shards is not None else None)
        rows.append(row)
        gains.append(gain)
    return Picked(np.asarray(rows, dtype=np.int64), np.asarray(gains, dtype=np.float64))
