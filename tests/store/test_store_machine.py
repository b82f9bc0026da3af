"""A store against a dictionary: whatever is asked of it in whatever order, on a disk and in a bucket."""

from __future__ import annotations

import tempfile
from typing import Any
from unittest.mock import patch

import pytest
import xxhash
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from obstore.store import MemoryStore

from raystream.store.bucket import ObjectStore
from raystream.store.local import LocalStore
from raystream.store.protocol import Store, StoredFile

NAMES = st.sampled_from(["format.json", "queries/q/manifest.json", "queries/q/plan.parquet", "units/ab/abc/x.receipt.json", "units/ab/y"])
FOLDERS = st.sampled_from(["queries", "queries/q", "units", "units/ab", "nothing"])
DATA = st.binary(max_size=8)


class StoreMachine(RuleBasedStateMachine):
    """What the store should hold is in `files`, what was appended and not flushed in `held`."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.held: dict[str, bytes] = {}
        self.written = 0

    @rule(name=NAMES, data=DATA)
    def put(self, name: str, data: bytes) -> None:
        self.store.put(name, data)
        self.files[name] = data

    @rule(name=NAMES, data=DATA, wait=st.booleans())
    def put_if_absent(self, name: str, data: bytes, wait: bool) -> None:
        """Of two writers one wins; a writer of the same bytes has won as well."""
        assert self.store.put_if_absent(name, data, wait=wait) == (self.files.setdefault(name, data) == data)

    @rule(data=DATA)
    def append(self, data: bytes) -> None:
        name = "queries/q/workers.jsonl"
        self.store.append(name, data)
        self.held[name] = self.held.get(name, self.files.get(name, b"")) + data

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self.files |= self.held
        self.held.clear()

    @rule(data=DATA, fails=st.booleans())
    def write(self, data: bytes, fails: bool) -> None:
        """Whole, or not there at all."""
        self.written += 1
        name = f"units/ab/abc/{self.written}.parquet"
        try:
            with self.store.writing(name) as file:
                file.write(data)
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert not self.store.exists(name)
            return
        self.files[name] = data
        told = self.store.stored(name)
        assert told == StoredFile(name, len(data), xxhash.xxh3_128_hexdigest(data))
        assert self.store.head(told, 3) == data[:3]
        assert self.store.range(told, 1, max(0, len(data) - 1)) == data[1:]

    @rule(name=NAMES, strictly=st.booleans())
    def remove(self, name: str, strictly: bool) -> None:
        (self.store.remove if strictly else self.store.discard)(name)
        self.files.pop(name, None)

    @rule(folder=FOLDERS)
    def look_into(self, folder: str) -> None:
        """A folder's entries, and all files below it, but for what was appended, which a disk may show before it is flushed.

        A folder that became empty may still be seen on a disk.
        """
        below = {name: data for name, data in self.files.items() if name.startswith(f"{folder}/")}
        entries = {name[len(folder) + 1 :].split("/")[0] for name in below}
        found = {name for name in self.store.names(folder) if "workers" not in name}
        assert entries - {"workers.jsonl"} <= found
        assert all("workers" in entry.name for name in found - entries for entry in self.store.walk(f"{folder}/{name}"))
        walked = {entry.name: entry.size for entry in self.store.walk(folder) if "workers" not in entry.name}
        assert walked == {name: len(data) for name, data in below.items() if "workers" not in name}

    @rule(name=NAMES)
    def read(self, name: str) -> None:
        there = self.files.get(name)
        assert self.store.read_if_there(name) == there
        assert self.store.exists(name) == (there is not None)
        assert self.store.sizes([name, "nothing"]) == [None if there is None else len(there), None]

    @invariant()
    def holds_what_was_flushed(self) -> None:
        name = "queries/q/workers.jsonl"
        if name in self.files and name not in self.held:
            assert self.store.read(name) == self.files[name]


class OnADisk(StoreMachine):
    @initialize()
    def begin(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.store = LocalStore(self._folder.name)

    def teardown(self) -> None:
        self._folder.cleanup()


class InABucket(StoreMachine):
    @initialize()
    def begin(self) -> None:
        bucket: Any = MemoryStore()
        with patch("raystream.store.bucket.bucket_of", lambda uri, storage: bucket):
            self.store = ObjectStore("s3://bucket/runs")


@pytest.mark.parametrize("machine", [OnADisk, InABucket])
def test_a_store_keeps_its_promises(machine: type[StoreMachine]) -> None:
    """Any calls in any order give what a dictionary gives."""
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=20, deadline=None))
