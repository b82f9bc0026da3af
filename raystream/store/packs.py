"""Packs of receipts: those of a thousand units or so in one file, so that a lookup asks for none of them alone.

A pack holds one output's receipts of a run of units that follow each other in a plan. Where a run ends, the units' keys decide, so that
files that are added to a pool move no other run; its name is the hash of its keys, so that whoever has a plan knows what to ask for. Packs
are an index: they can be made again from the units, and are removed with the first unit that is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

from raystream.store.protocol import Store
from raystream.store.receipts import Receipt, UnitOutputs, is_whole, read_receipt
from raystream.store.requests import in_threads

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
