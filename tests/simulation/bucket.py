"""A bucket's server, and the network on the way to it: what obstore would say of them, to the store that is tested."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

from obstore.exceptions import AlreadyExistsError, GenericError

from simulation.world import Killed, World, drawn

_COMMITTED = re.compile(r"\.receipt\.json$|/manifest\.json$|/events/\d+\.json$")


@dataclass
class Weather:
    """How requests fare.

    Attributes:
        rates: of each thing that may befall a request, of 1.
        seconds: that a request takes, about.
        away: when the server answers nobody, from and until.
        full: when it takes nothing that is written.
    """

    rates: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.02
    away: list[tuple[float, float]] = field(default_factory=list)
    full: list[tuple[float, float]] = field(default_factory=list)


class Broken(AssertionError):
    """A promise that the store makes was broken."""


class Bucket:
    """What the server holds, and how it answers; stands where the module `obstore` does.

    Attributes:
        first: by name, when a file that may never change was first there.
        met: how often each fault met a request.
        dropping: whether somebody may forget a query.
    """

    def __init__(self, world: World, weather: Weather, skew: float) -> None:
        self._world, self.weather, self._skew = world, weather, skew
        self.files: dict[str, tuple[bytes, float]] = {}
        self.first: dict[str, float] = {}
        self.met: dict[str, int] = {}
        self.dropping = False

    # obstore's functions

    def head(self, bucket: Any, name: str) -> dict[str, Any]:
        data, modified = self._ask("head", name, lambda: self._there(name))
        return {"path": name, "size": len(data), "last_modified": datetime.fromtimestamp(modified, UTC)}

    def get(self, bucket: Any, name: str, options: Any = None) -> Any:
        data, _ = self._ask("get", name, lambda: self._there(name))
        first, end = (options or {}).get("range", (0, len(data)))
        cut = self._befalls("a body cut short")

        def body() -> Any:
            if cut:
                raise GenericError("HTTP error: error decoding response body")
            return SimpleNamespace(to_bytes=lambda: data[first:end])

        return SimpleNamespace(bytes=body, meta={"size": len(data)})

    def get_range(self, bucket: Any, name: str, *, start: int, length: int) -> Any:
        data, _ = self._ask("get_range", name, lambda: self._there(name))
        return SimpleNamespace(to_bytes=lambda: data[start : start + length])

    def put(self, bucket: Any, name: str, data: bytes, mode: str = "overwrite", use_multipart: bool = False) -> None:
        content = bytes(data)
        self._ask("put", name, lambda: self._create(name, content) if mode == "create" else self._store(name, content), writes=True)

    def delete(self, bucket: Any, name: str) -> None:
        self._ask("delete", name, lambda: self._remove(name))

    def list(self, bucket: Any, prefix: str, offset: str | None = None) -> Iterator[list[dict[str, Any]]]:
        found = self._ask("list", prefix, lambda: self._listed(prefix, offset or ""))
        return iter([found[start : start + 100] for start in range(0, len(found), 100)])

    def list_with_delimiter(self, bucket: Any, prefix: str) -> dict[str, Any]:
        found = self._ask("list", prefix, lambda: self._listed(prefix, ""))
        inside = [entry for entry in found if "/" not in entry["path"][len(prefix) :]]
        below = {prefix + entry["path"][len(prefix) :].split("/")[0] for entry in found if entry not in inside}
        return {"common_prefixes": sorted(below), "objects": inside}

    def open_writer(self, bucket: Any, name: str, **options: Any) -> Any:
        parts: list[bytes] = []
        # Under a name that nobody else has: there is nobody to be in conflict with.
        end = partial(self._ask, "upload", name, lambda: self._store(name, b"".join(parts)), writes=True, conflicts=False)
        return SimpleNamespace(write=parts.append, close=end)

    # what befalls a request

    def _ask(self, what: str, name: str, act: Callable[[], Any], *, writes: bool = False, conflicts: bool = True) -> Any:
        world, process = self._world, self._world.me
        process.requests += 1
        dying = process.dies_at == process.requests
        if dying and not process.dies_after:
            world.log("dies before", what, name)
            process.kill()
        if not process.alive:
            raise Killed
        world.sleep(world.random.expovariate(1 / self.weather.seconds))
        if any(start <= world.now < end for start, end in self.weather.away):
            self._note("the store away")
            world.sleep(1.0)
            raise _failed(503, "Service Unavailable")
        if writes and any(start <= world.now < end for start, end in self.weather.full):
            self._note("the disk full")
            raise _failed(507, "Insufficient Storage")
        self._fail_before(name, writes, conflicts, act)
        world.log(what, name)
        found = act()
        if dying:
            world.log("dies after", what, name)
            process.kill()
        if (writes or what == "delete") and self._befalls("the reply lost"):
            world.sleep(5.0)
            if writes and world.random.random() < 0.3:
                self._again(world.random.uniform(0.0, 30.0), act)
            raise GenericError("HTTP error: connection closed before message completed")
        world.sleep(world.random.expovariate(1 / self.weather.seconds))
        return found

    def _fail_before(self, name: str, writes: bool, conflicts: bool, act: Callable[[], Any]) -> None:
        """The server may not do what it is asked, or later, when nobody waits for it any more."""
        if self._befalls("slow"):
            self._world.sleep(self._world.random.uniform(5.0, 60.0))
        if self._befalls("5xx"):
            raise _failed(*self._world.random.choice([(500, "Internal Server Error"), (502, "Bad Gateway"), (503, "Slow Down")]))
        if self._befalls("429"):
            raise _failed(429, "Too Many Requests")
        if writes and conflicts and name not in self.files and self._befalls("409"):
            raise AlreadyExistsError("409 Conflict: a conflicting conditional operation is under way")
        if writes and self._befalls("a write that comes late"):
            self._again(self._world.random.uniform(0.0, 60.0), act)
            self._world.sleep(5.0)
            raise GenericError("HTTP error: operation timed out")

    def _again(self, seconds: float, act: Callable[[], Any]) -> None:
        def late() -> None:
            try:
                act()
            except AlreadyExistsError:
                self._world.log("a late write was refused")

        self._world.at(seconds, late)

    def _befalls(self, fault: str) -> bool:
        rate = self.weather.rates.get(fault, 0.0)
        if not rate or self._world.random.random() >= rate:
            return False
        self._note(fault)
        return True

    def _note(self, fault: str) -> None:
        self.met[fault] = self.met.get(fault, 0) + 1

    # what the server holds

    @property
    def clock(self) -> float:
        """The server's own."""
        return self._world.now + self._skew

    def _there(self, name: str) -> tuple[bytes, float]:
        try:
            return self.files[name]
        except KeyError:
            raise FileNotFoundError(f"Object at location {name} not found") from None

    def _create(self, name: str, data: bytes) -> None:
        if name in self.files:
            raise AlreadyExistsError(f"Object at location {name} already exists: 412 Precondition Failed")
        self._store(name, data)

    def _store(self, name: str, data: bytes) -> None:
        before = self.files.get(name)
        if _COMMITTED.search(name):
            if before is not None and before[0] != data and self.names_whole(before[0]):
                raise Broken(f"{name} was committed, and is replaced")
            self.first.setdefault(name, self._world.now)
        self.files[name] = data, self.clock

    def _remove(self, name: str) -> None:
        if name.endswith("manifest.json") and not self.dropping:
            raise Broken(f"{name} was committed, and is removed")
        self.files.pop(name, None)
        self.first.pop(name, None)

    def names_whole(self, data: bytes) -> bool:
        """Whether all files that a receipt or a manifest names are there."""
        named = re.findall(rb'"name":\s*"([^"]+)",\s*"size":\s*(\d+)', data)
        return all(len(self.files.get(name.decode(), (b"", 0.0))[0]) == int(size) for name, size in named)

    def _listed(self, prefix: str, offset: str) -> list[dict[str, Any]]:
        return [
            {"path": name, "size": len(data), "last_modified": datetime.fromtimestamp(modified, UTC)}
            for name, (data, modified) in sorted(self.files.items())
            if name.startswith(prefix) and name > offset
        ]


def _failed(status: int, reason: str) -> GenericError:
    return GenericError(f"Server returned non-2xx status code: {status} {reason}")


def weather_of(world: World, calm: bool) -> Weather:
    """How bad it is, drawn: mostly a little of some, now and then much of one."""
    weather = Weather(seconds=world.random.choice([0.002, 0.02, 0.3]))
    if calm:
        return weather
    kinds = ["the reply lost", "a write that comes late", "5xx", "429", "409", "slow", "a body cut short"]
    how = drawn(world, (3, "some"), (1, "one"), (1, "none"))
    for kind in world.random.sample(kinds, 4) if how == "some" else [world.random.choice(kinds)] if how == "one" else []:
        weather.rates[kind] = world.random.choice([0.01, 0.05]) if how == "some" else 0.25
    start = world.now + world.random.uniform(0.0, 120.0)
    if world.random.random() < 0.2:
        weather.away.append((start, start + world.random.choice([10.0, 120.0, 900.0])))
    if world.random.random() < 0.1:
        weather.full.append((start, start + 60.0))
    return weather
