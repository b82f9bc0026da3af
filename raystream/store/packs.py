"""Packs of receipts: those of a thousand units or so in one file, so that a lookup asks for none of them alone.

A pack holds one output's receipts of a run of units that follow each other in a plan. Where a run ends, the units' keys decide, so that
files that are added to a pool move no other run; its name is the hash of its keys, so that whoever has a plan knows what to ask for.
Packs are an index: they can be made again from the units, and are removed with the first unit that is.

Single receipts are asked for many at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from raystream.errors import DataError
from raystream.lake.retry import LASTING, Patience, retried
from raystream.store.protocol import Store, WriteBroken
from raystream.store.receipts import Receipt, UnitOutputs, is_whole, read_receipt

_AT_A_TIME = 64
"""Items that a thread takes before it is handed more: to hand over a small request takes as long as to make it."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(call: Callable[[_Item], _Result], items: Sequence[_Item], threads: int = 32) -> list[_Result]:
    """What a call gives for each of the items, in their order; its first error ends it."""
    size = min(_AT_A_TIME, -(-len(items) // threads)) or 1

    def some(start: int) -> list[_Result]:
        return [call(item) for item in items[start : start + size]]

    with ThreadPoolExecutor(threads) as pool:
        return list(chain.from_iterable(pool.map(some, range(0, len(items), size))))


_AGAIN_SECONDS = 1.0
"""Before broken work is begun again, at first."""


class _Again(ConnectionError):
    """What broke in the middle and is to be done from the beginning."""

    def __init__(self, cause: DataError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _is_broken(error: DataError) -> bool:
    return isinstance(error, WriteBroken)


def unbroken(
    store: Store,
    work: Callable[[], _Result],
    patience: Patience = LASTING,
    broken: Callable[[DataError], bool] = _is_broken,
    place: str | None = None,
) -> _Result:
    """What some work gives that writes files piece by piece, done again if a storage went away in the middle, and is back.

    Args:
        store: that it writes to.
        work: leaves nothing behind when it fails.
        patience: with storages that are away.
        broken: whether the work failed by an outage that it didn't wait for itself.
        place: what it needs, for people; left out, the store.

    Raises:
        DataError: of the work, in the end.
    """

    def attempt() -> _Result:
        try:
            return work()
        except DataError as error:
            if not broken(error):
                raise
            store.exists("format.json")  # which waits until the store answers
            raise _Again(error) from None

    place = place or store.place("").rstrip("/")
    try:
        return retried(attempt, patience=patience, place=place, errors=(_Again,), first_pause=_AGAIN_SECONDS)
    except _Again as again:
        raise again.cause from None


PACKS = "receipts"
FEWEST = 64
"""Units below which receipts are read one by one."""
_RUN_BITS = 10


def read_receipts(
    store: Store, keys: Sequence[str], outputs: Sequence[str], there: Collection[str] | None = None
) -> list[tuple[Receipt | None, ...]]:
    """The receipts of units, one for each of `outputs`, None for what isn't in the store whole.

    Of many units, packs are read first. In a folder, the files that they name are looked for; in a bucket, where that is a request
    each, a unit that has its folder still is taken to be as it was packed.

    Args:
        store: to look in.
        keys: of the units, in the order of their plan.
        outputs: the names of their outputs.
        there: the only keys that are looked for; None: all.
    """
    packed: list[list[Receipt | None]] = [[None] * len(keys) for _ in outputs]
    if len(keys) >= FEWEST and (there or (there is None and not store.remote)):
        packed = [_packed(store, keys, output) for output in outputs]

    def look(place: int) -> tuple[Receipt | None, ...]:
        key = keys[place]
        if there is not None and key not in there:
            return (None,) * len(outputs)
        found = []
        for output, receipts in zip(outputs, packed, strict=True):
            receipt = receipts[place]
            known = receipt is not None and (store.remote or is_whole(store, receipt))
            found.append(receipt if known else read_receipt(store, key, output))
        return tuple(found)

    return in_threads(look, range(len(keys)))


def _packed(store: Store, keys: Sequence[str], output: str) -> list[Receipt | None]:
    """The receipts of an output of these units as far as they are packed, None for the others."""

    def read(run: tuple[int, int]) -> list[Receipt | None]:
        start, stop = run
        data = store.read_if_there(pack_name(keys[start:stop], output))
        lines = [] if data is None else data.splitlines()
        if len(lines) != stop - start:
            return [None] * (stop - start)
        try:
            return [Receipt.from_json(line) for line in lines]
        except (ValueError, TypeError, KeyError):
            return [None] * (stop - start)  # cut short by a crash of the machine

    return list(chain.from_iterable(in_threads(read, list(runs(keys)))))


def write_packs(store: Store, units: Sequence[UnitOutputs | None], keys: Sequence[str], outputs: Sequence[str]) -> None:
    """Pack the receipts of these units, where a whole run of them is there and isn't packed yet.

    Args:
        store: where to.
        units: in the order of their plan.
        keys: theirs, also of those that have no outputs.
        outputs: whose receipts.
    """
    if len(keys) < FEWEST:
        return
    for start, stop in runs(keys):
        some = units[start:stop]
        for output in outputs:
            receipts = [receipt for unit in some if unit is not None for receipt in unit.receipts if receipt.output == output]
            name = pack_name(keys[start:stop], output)
            if len(receipts) == stop - start and not store.exists(name):
                store.put(name, b"\n".join(receipt.to_json() for receipt in receipts))


def pack_names(keys: Sequence[str], outputs: Sequence[str]) -> Iterator[str]:
    """The packs that a plan of these units may have."""
    yield from (pack_name(keys[start:stop], output) for start, stop in runs(keys) for output in outputs)


def runs(keys: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the units that are packed together begin and end."""
    start = 0
    for place, key in enumerate(keys, 1):
        if int(key[-8:], 16) % (1 << _RUN_BITS) == 0 or place == len(keys):
            yield start, place
            start = place


def pack_name(keys: Sequence[str], output: str) -> str:
    """The file of the store that holds the receipts of an output of a run of units."""
    digest = hashlib.sha256("\n".join([output, *keys]).encode()).hexdigest()
    return f"{PACKS}/{digest[:2]}/{digest}.jsonl"
