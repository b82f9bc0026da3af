"""The candidates' embeddings while a batch is chosen, and what is derived from them once for all queries.

Where the candidates' embeddings are held while a batch is chosen: in this process, or with selection actors.

Processes may be lost: what each was told is kept, and told again to the one that takes its place. A round is one message to every
process and what they answer. Knows no Ray: `selection_actors` has the processes.

Keep what selection has computed from embeddings alone, clusters and neighbour graphs, in the store for the next query over them.

A result lies under `derived/<key[:2]>/<key>/`, its key a hash of the candidates' embeddings, the name of the result and its
parameters: each array is a `.npy` file, the receipt is written last. No query needs one, since whatever is missing or damaged is computed
again, so `raystream gc` removes those that are older than its grace period.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import pickle
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np

from raystream.errors import ClusterError, RaystreamError, StoreError
from raystream.query import Query
from raystream.scoring.scored_pool import ScoredPool
from raystream.selection import Factory, LocalPieces, Pieces, Rows, Shards, working_bytes
from raystream.selection.shards import DEFAULT_MEMORY
from raystream.selection.strategy import Arrays, Parameters
from raystream.store.integrity import check_file
from raystream.store.manifest import SelectionRounds
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipts import EMBEDDINGS
from raystream.store.vectors import fetch

LOSSES = 3
"""A process that is lost for the third time is not started again: it is what it is asked to do that ends it."""


@dataclass(frozen=True)
class Step:
    """One thing that a process is told.

    Attributes:
        pieces: the number of a set of pieces, of which each process holds one.
        method: to call on that piece; None makes the piece.
        common: pickled arguments that are the same for every process, as `Hosts.share` gave them; the factory comes first.
        apart: pickled further arguments for this process alone.
    """

    pieces: int
    method: str | None
    common: Any
    apart: bytes


class Host:
    """The pieces that one process holds, one of each set."""

    def __init__(self) -> None:
        self._pieces: dict[int, Any] = {}

    def run(self, steps: Sequence[Step]) -> bytes:
        """Take the steps in order; the pickled answer to the last, or the error of ours that one of them raised."""
        answer: Any = None
        try:
            for step in steps:
                answer = self._take(step)
        except RaystreamError as error:
            answer = error
        except FileNotFoundError as error:
            answer = ClusterError(f"a selection actor can't see {error.filename}; give store.uri a folder that every node shares")
        return pickle.dumps(answer, protocol=5)

    def _take(self, step: Step) -> Any:
        args: tuple[Any, ...] = pickle.loads(step.common) + pickle.loads(step.apart)
        if step.method is not None:
            return getattr(self._pieces[step.pieces], step.method)(*args)
        self._pieces[step.pieces] = args[0](*args[1:])
        return None


@dataclass(frozen=True)
class Lost:
    """A process has gone, with all it held."""

    reason: str


class Hosts(Protocol):
    """Processes with a `Host` in each."""

    def __len__(self) -> int:
        """Count the processes; their number stays the same."""

    def share(self, data: bytes) -> Any:
        """Share data with the processes; returns what stands for it in the steps of any of them."""

    def run(self, scripts: Mapping[int, Sequence[Step]]) -> dict[int, bytes | Lost]:
        """Run the steps in each process, all at the same time, and return what `Host.run` answers to them."""

    def renew(self, place: int) -> None:
        """Start an empty process in place of a lost one."""


@dataclass(frozen=True)
class _Call:
    """A step for every process."""

    pieces: int
    method: str | None
    common: Any
    common_bytes: int
    apart: tuple[bytes, ...]

    def step(self, place: int) -> Step:
        return Step(self.pieces, self.method, self.common, self.apart[place])

    def bytes(self, place: int) -> int:
        return self.common_bytes + len(self.apart[place])


class ProcessRounds:
    """Asks all processes at once, and rebuilds those that are lost, so that nobody who asks notices.

    A rebuilt piece is made by the same factory, which reads the store again, and is told once more what changed it.

    Attributes:
        processes: how many there are, and pieces in each set.
    """

    def __init__(self, places: Hosts) -> None:
        self._places = places
        self.processes = len(places)
        # invariant: after these calls, set by set, a new piece is as the one that it replaces
        self._log: list[list[_Call]] = []
        self._lost = [0] * self.processes
        self._bytes: list[int] = []

    def spread(self, factory: Factory, args: Sequence[tuple[Any, ...]]) -> Pieces:
        """Make a set of pieces, `factory(*args[i])` in process i; a `raystream.selection.Spread`."""
        number = len(self._log)
        made = self._prepare(number, None, (factory,), args)
        self._log.append([])
        self._ask(made)
        self._log[number] = [made]
        return _Set(self, number, factory)

    def call(self, number: int, factory: Factory, method: str, args: tuple[Any, ...], apart: Sequence[tuple[Any, ...]] | None) -> list[Any]:
        """Call a method of the pieces of a set, and return their answers in order.

        Raises:
            ClusterError: a process was lost three times.
            RaystreamError: what a piece raised; that of the first one, if several did.
        """
        call = self._prepare(number, method, args, apart)
        answers = self._ask(call)
        if method in getattr(factory, "fresh", ()):
            self._log[number] = [self._log[number][0], call]
        elif method not in getattr(factory, "pure", ()):
            self._log[number].append(call)
        return answers

    @property
    def record(self) -> SelectionRounds:
        """The account of the rounds that goes into the manifest."""
        return SelectionRounds(self.processes, sum(self._lost), len(self._bytes), sum(self._bytes), list(self._bytes))

    def _prepare(self, number: int, method: str | None, args: tuple[Any, ...], apart: Sequence[tuple[Any, ...]] | None) -> _Call:
        common = pickle.dumps(args, protocol=5)
        each = [()] * self.processes if apart is None else apart
        if len(each) != self.processes:
            raise ValueError(f"arguments for {len(each)} pieces, but there are {self.processes}")
        return _Call(number, method, self._places.share(common), len(common), tuple(pickle.dumps(own, protocol=5) for own in each))

    def _ask(self, call: _Call) -> list[Any]:
        waiting = {place: [call] for place in range(self.processes)}
        answers: dict[int, bytes] = {}
        travelled = 0
        while waiting:
            travelled += sum(one.bytes(place) for place, calls in waiting.items() for one in calls)
            scripts = {place: [one.step(place) for one in calls] for place, calls in waiting.items()}
            for place, answer in self._places.run(scripts).items():
                if isinstance(answer, Lost):
                    self._renew(place, answer)
                    waiting[place] = [*chain.from_iterable(self._log), call]
                else:
                    travelled += len(answer)
                    answers[place] = answer
                    del waiting[place]
        self._bytes.append(travelled)
        result = [pickle.loads(answers.pop(place)) for place in range(self.processes)]
        for answer in result:
            if isinstance(answer, RaystreamError):
                raise answer
        return result

    def _renew(self, place: int, lost: Lost) -> None:
        self._lost[place] += 1
        if self._lost[place] == LOSSES:
            raise ClusterError(
                f"selection actor {place + 1} of {self.processes} was lost {LOSSES} times, last: {lost.reason}; "
                "lower select.memory if its node ran out of memory, and run again: the scores are kept"
            )
        self._places.renew(place)


@dataclass(frozen=True)
class _Set:
    """One set of pieces."""

    rounds: ProcessRounds
    number: int
    factory: Factory

    def call(self, method: str, *args: Any, apart: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        return self.rounds.call(self.number, self.factory, method, args, apart)


class Actors(Protocol):
    """Where selection actors come from. None is started until they are asked for."""

    def selection_actors(self, most: int) -> AbstractContextManager[ProcessRounds]:
        """Bring up to so many actors, which end with the block."""


@dataclass(frozen=True)
class CandidateEmbeddings:
    """The candidates' embeddings; None when nobody asks for them. `rounds` is None unless actors hold them."""

    shards: Shards | None = None
    rounds: ProcessRounds | None = None


def memory_of(query: Query) -> int:
    """Return the bytes of embeddings that one process may hold."""
    return DEFAULT_MEMORY if query.select.memory == "auto" else query.select.memory


@contextmanager
def held_embeddings(query: Query, pool: ScoredPool, candidates: np.ndarray | None, actors: Actors) -> Iterator[CandidateEmbeddings]:
    """Hold the embeddings of these rows of the pool, ascending; of all rows for None. Actors end with the block.

    Actors are for strategies that work on stretches of rows, once the working copy is larger than a process may hold.
    There are as many as it takes, or as the cluster has room for; what they then can't hold, they stream from the store.

    Raises:
        ClusterError: there is no cluster, or it has no room for a single actor.
    """
    if not query.needs_embedding:
        yield CandidateEmbeddings()
        return
    memory = memory_of(query)
    size = working_bytes(len(pool) if candidates is None else len(candidates), pool.dimension)
    processes = math.ceil(size / memory)
    if processes <= 1 or not query.select.traits.sharded or query.cluster.address == "in_process":
        # what fits as a working copy may be held as it is stored, too
        parts, positions = pool.embeddings(candidates, memory if processes <= 1 else 0)
        fetch(parts)
        yield CandidateEmbeddings(Shards(Rows(parts, positions, query.select.metric), 1, LocalPieces, memory=memory))
        return
    rows = Rows(*pool.embeddings(candidates), query.select.metric)
    with actors.selection_actors(processes) as rounds:
        yield CandidateEmbeddings(Shards(rows, rounds.processes, rounds.spread, memory=memory), rounds)


FEWEST = 50_000
"""Candidates from which on results are kept; those of fewer take seconds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredResults:
    """Results over the embeddings that `digest` stands for, in a store."""

    store: Store
    digest: str

    def get(self, kind: str, parameters: Parameters) -> Arrays | None:
        """Map the arrays of a result; return None if it isn't there whole."""
        folder = self._folder(kind, parameters)
        try:
            receipt = self.store.read_if_there(f"{folder}/receipt.json")
            if receipt is None:
                return None
            files = {name: StoredFile(**file) for name, file in json.loads(receipt).items()}
            return {name: self._array(file) for name, file in files.items()}
        except (StoreError, ValueError, TypeError, AttributeError, OSError) as error:
            _log.warning("store: %s can't be used and is computed again: %s", self.store.place(folder), error)
            self._discard([f"{folder}/receipt.json"])  # so that it can be kept again
            return None

    def put(self, kind: str, parameters: Parameters, arrays: Arrays) -> None:
        """Keep the arrays of a result, unless somebody else has; a store that has no room for them is no reason to fail."""
        folder, attempt = self._folder(kind, parameters), secrets.token_hex(6)
        names = {name: f"{folder}/{name}-{attempt}.npy" for name in arrays}
        try:
            for name, array in arrays.items():
                with self.store.writing(names[name]) as file:
                    np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
            receipt = json.dumps({name: asdict(self.store.stored(file)) for name, file in names.items()}).encode()
            if self.store.put_if_absent(f"{folder}/receipt.json", receipt):
                return
        except StoreError as error:
            _log.warning("%s; %s is not kept for the next query", error, kind)
        self._discard(names.values())

    def _discard(self, files: Iterable[str]) -> None:
        for file in files:
            with suppress(StoreError):  # the next `gc` finds it
                self.store.discard(file)

    def _folder(self, kind: str, parameters: Parameters) -> str:
        text = json.dumps([self.digest, kind, sorted(parameters.items())])
        key = hashlib.sha256(text.encode()).hexdigest()
        return f"derived/{key[:2]}/{key}"

    def _array(self, file: StoredFile) -> np.ndarray:
        path = self.store.local(file)
        check_file(path, file)
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return found


def results_over(pool: ScoredPool, rows: np.ndarray | None, metric: str) -> StoredResults | None:
    """Find where results over these rows of a pool are kept, all of it for None; None where they aren't worth it.

    Args:
        pool: whose embeddings they are.
        rows: int64, ascending.
        metric: in whose space they are compared.
    """
    if (len(pool) if rows is None else len(rows)) < FEWEST:
        return None
    digest = hashlib.sha256(metric.encode())
    for unit in pool.units:
        receipt = unit.of(EMBEDDINGS)
        if receipt is not None and receipt.file is not None:
            digest.update(f"{receipt.file.xxh3} {unit.rows} ".encode())
            if receipt.output in unit.kept:
                digest.update(np.ascontiguousarray(unit.kept[receipt.output], dtype="<i8").tobytes())
    if rows is not None:
        digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return StoredResults(pool.store, digest.hexdigest())
