"""Keep what selection has computed from embeddings alone, clusters and neighbour graphs, in the store for the next query over them.

A result lies under `derived/<key[:2]>/<key>/`, its key a hash of the candidates' embeddings, the name of the result and its
parameters: each array is a `.npy` file, the receipt is written last. No query needs one, since whatever is missing or damaged is computed
again, so `raystream gc` removes those that are older than its grace period.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np

from raystream.errors import StoreError
from raystream.scoring.scored_pool import ScoredPool
from raystream.selection.strategy import Arrays, Parameters
from raystream.store.integrity import check_file
from raystream.store.protocol import Store, StoredFile
from raystream.store.receipts import EMBEDDINGS

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
