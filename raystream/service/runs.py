"""What a server knows of queries that were submitted: all of it in the store, so that a server that is killed loses none.

    service/runs/<id>/order.json            what is asked, put if absent
    service/runs/<id>/owners/<owner>.json   who asked for it, and whether they still want it
    service/runs/<id>/query.json            the name of the query in the store, once it is known
    service/runs/<id>/stop.json             nobody wants it any more
    service/runs/<id>/ended.json            what became of it, put if absent
    service/runs/<id>/lease/                held by the process that runs it
    service/runs/<id>/events…               its log
    service/open/<time>~<owner>~<id>        the queue: runs that haven't ended, by who wants them
    service/owners/<owner>/<time>~<id>      all runs of an owner, by time
    service/queries/<name>/<id>             the runs of a query
    service/names/<name>                    which query has the name, and the run that gave it
    service/keys/<owner>/<hash>.json        idempotency keys with their first answers
    service/events…                         who asked what, when, and what became of it

A run's id is a digest of what is asked and a number: as long as a run hasn't ended, the same question joins it, whoever asks.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from raystream.errors import QueryError
from raystream.service.config import Limits
from raystream.service.edge import Problem
from raystream.service.policy import Checked
from raystream.store.events import EventLog
from raystream.store.life import Lease, process_began, server_time
from raystream.store.protocol import Store

ROOT = "service"
QUEUE = f"{ROOT}/open"
DEATHS = 3
"""Processes of one run that may end without a result, before it has failed."""
_DIGITS = 16
_UNANSWERED_SECONDS = 60.0
_RETRY_SECONDS = 10
ENDED = ("committed", "failed", "stopped")


@dataclass(frozen=True)
class QueueEntry:
    """An entry of the queue.

    Attributes:
        since: when it was asked for, as text that sorts by time.
        owner: who wants it.
        run: its id.
    """

    since: str
    owner: str
    run: str

    @property
    def name(self) -> str:
        """Its file's."""
        return f"{self.since}~{self.owner}~{self.run}"

    @classmethod
    def of(cls, name: str) -> QueueEntry | None:
        """Return the entry that a file stands for."""
        parts = name.split("~")
        return cls(*parts) if len(parts) == 3 else None


@dataclass(frozen=True)
class Ended:
    """What became of a run.

    Attributes:
        state: `committed`, `failed` or `stopped`.
        query: its name in the store, where that was known by then.
        error, exit_code: why it failed, in words that whoever asked may know.
        at: when, UTC.
    """

    state: str
    query: str | None
    error: str | None
    exit_code: int
    at: str


class Runs:
    """The runs of a store.

    Args:
        store: which holds them.
        limits: of each owner.
        now: the time, UTC.
    """

    def __init__(self, store: Store, limits: Limits, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.store, self._limits, self._now = store, limits, now
        self._lock = threading.Lock()
        self._asking: set[str] = set()
        self.log = EventLog(store, ROOT)

    # asking

    def submit(self, owner: str, checked: Checked) -> str:
        """Queue a query, or join the run that does the same and hasn't ended.

        Returns:
            The run's id.

        Raises:
            Problem: 429, the owner has enough queries in the queue.
        """
        with self._lock:  # counts of one owner's entries are right at least within a server
            number = self._newest(checked.digest)
            while True:
                run = f"{checked.digest[:_DIGITS]}-{number}"
                if self.ended(run) is None and not self._stops(run):
                    mine = self.wants(run, owner)
                    if not mine:
                        self._check_room(owner)
                    if self._join(run, number, owner, checked):
                        if not mine:
                            self.log.append("queued", run=run, who=owner)
                        return run
                number += 1

    def _join(self, run: str, number: int, owner: str, checked: Checked) -> bool:
        """Note that an owner wants a run; False if it was stopped meanwhile, for all that others knew."""
        at, folder = self._time(), _folder(run)
        order = {"run": run, "digest": checked.digest, "at": at, "owner": owner, "query": checked.document}
        if self.store.put_if_absent(f"{folder}/order.json", json.dumps(order).encode()):
            self.store.put(f"{ROOT}/numbers/{checked.digest[:_DIGITS]}", str(number).encode())
            self.events(run).append("queued", who=owner)
        self.store.put(f"{folder}/owners/{owner}.json", json.dumps({"at": at, "wants": True}).encode())
        if self._stops(run):
            return False
        if not any(entry.owner == owner and entry.run == run for entry in self.queue()):
            self.store.put_if_absent(f"{ROOT}/owners/{owner}/{at}~{run}", b"{}")
            self.store.put_if_absent(f"{QUEUE}/{QueueEntry(at, owner, run).name}", b"{}")
        if (query := self.query(run)) is not None:
            self.store.put_if_absent(f"{ROOT}/queries/{query}/{run}", b"{}")
        return True

    def _check_room(self, owner: str) -> None:
        waits = [entry for entry in self.queue() if entry.owner == owner]
        if len(waits) >= self._limits.queued + self._limits.running:
            raise Problem(
                429,
                f"{len(waits)} of your queries wait or run, as many as may; come back when one has ended",
                headers={"retry-after": str(_RETRY_SECONDS)},
            )

    def _newest(self, digest: str) -> int:
        known = self.store.read_if_there(f"{ROOT}/numbers/{digest[:_DIGITS]}") or b""
        return int(known) if known.isdigit() else 1

    @contextmanager
    def once(self, owner: str, key: str, asked: str) -> Iterator[Once]:
        """Answer a request of one idempotency key once.

        Args:
            owner: whose key it is.
            key: as it was sent.
            asked: a digest of the request.

        Raises:
            Problem: 422, the key was used for something else; 409, the first request isn't answered yet.
        """
        name = f"{ROOT}/keys/{owner}/{hashlib.sha256(key.encode()).hexdigest()}.json"
        with self._lock:
            first = self._first_answer(name, asked)
            if first is None:
                self._asking.add(name)
        if first is not None:
            yield Once(first)
            return
        answer = Once(None)
        try:
            yield answer
        finally:
            if answer.run is None:
                self.store.discard(name)  # it was refused, and may be asked again
            else:
                self.store.put(name, json.dumps({"asked": asked, "run": answer.run}).encode())
            self._asking.discard(name)

    def _first_answer(self, name: str, asked: str) -> str | None:
        """Return the run that the first request of a key gave; None where this is the first, which is noted."""
        me = {"asked": asked, "host": platform.node(), "process": os.getpid(), "began": process_began(os.getpid())}
        if name in self._asking:
            raise _unanswered()
        if self.store.put_if_absent(name, json.dumps({**me, "attempt": uuid.uuid4().hex}).encode()):
            return None
        known = _json(self.store.read_if_there(name))
        if known.get("asked") != asked:
            raise Problem(422, "the Idempotency-Key was used for another request; take a new one")
        if "run" in known:
            return str(known["run"])
        if not self._is_gone(known, name):
            raise _unanswered()
        self.store.put(name, json.dumps(me).encode())
        return None

    def _is_gone(self, holder: Mapping[str, Any], name: str) -> bool:
        """Tell whether the server that was about to answer is gone."""
        if holder.get("host") == platform.node():
            here = holder.get("process") == os.getpid()
            return here or process_began(int(holder.get("process", 0))) != holder.get("began")
        written = next((entry.modified for entry in self.store.walk(name.rpartition("/")[0]) if entry.name == name), None)
        return written is None or server_time(self.store) - written > _UNANSWERED_SECONDS

    # looking

    def events(self, run: str) -> EventLog:
        """Open the log of a run."""
        return EventLog(self.store, _folder(run))

    def order(self, run: str) -> dict[str, Any] | None:
        """Read what was asked: `query`, `owner`, `at`; None if there is no such run."""
        return _json(self.store.read_if_there(f"{_folder(run)}/order.json")) or None

    def wants(self, run: str, owner: str) -> bool:
        """Tell whether an owner asked for a run and still wants it."""
        return bool(_json(self.store.read_if_there(f"{_folder(run)}/owners/{owner}.json")).get("wants"))

    def asked(self, run: str, owner: str) -> bool:
        """Tell whether an owner asked for a run."""
        return self.store.exists(f"{_folder(run)}/owners/{owner}.json")

    def query(self, run: str) -> str | None:
        """Return the name of a run's query in the store, once it is known, and as long as no other query has it."""
        found = _json(self.store.read_if_there(f"{_folder(run)}/query.json"))
        if "query" not in found or self._named(str(found["query"])).get("identity") != found.get("identity"):
            return None
        return str(found["query"])

    def identity(self, run: str) -> str | None:
        """Return a digest of all that a run's query stands for, once it is known."""
        found = _json(self.store.read_if_there(f"{_folder(run)}/query.json")).get("identity")
        return None if found is None else str(found)

    def _named(self, query: str) -> dict[str, Any]:
        """Read which query has a name: its `identity`, and the `run` that gave it."""
        return _json(self.store.read_if_there(f"{ROOT}/names/{query}"))

    def of_query(self, name: str) -> list[str]:
        """Return the runs of the query that has this name, in the order of their ids."""
        return [run for run in self.store.names(f"{ROOT}/queries/{name}") if self.query(run) == name]

    def ended(self, run: str) -> Ended | None:
        """Read what became of a run; None if it hasn't ended."""
        data = self.store.read_if_there(f"{_folder(run)}/ended.json")
        if data is None:
            return None
        known = _json(data)
        return Ended(
            str(known.get("state", "failed")), known.get("query"), known.get("error"), int(known.get("exit_code", 1)), known.get("at", "")
        )

    def is_held(self, run: str) -> bool:
        """Tell whether a process runs it at this moment."""
        return self.lease(run).held

    def state(self, run: str) -> str:
        """Return `queued`, `running`, or what became of it."""
        ended = self.ended(run)
        if ended is not None:
            return ended.state
        return "running" if self.is_held(run) else "queued"

    def of_owner(self, owner: str) -> list[tuple[str, str]]:
        """List when and which runs an owner asked for, the newest first."""
        pairs = (name.partition("~") for name in self.store.names(f"{ROOT}/owners/{owner}"))
        return [(at, run) for at, _, run in pairs][::-1]

    def owners(self) -> list[str]:
        """List all who ever asked for something."""
        return self.store.names(f"{ROOT}/owners")

    def queue(self) -> list[QueueEntry]:
        """List the runs that haven't ended, the oldest first; one that several want stands there for each."""
        return [entry for entry in map(QueueEntry.of, self.store.names(QUEUE)) if entry is not None]

    # running

    def lease(self, run: str) -> Lease:
        """Return what the process that runs it holds."""
        return Lease(self.store, f"{_folder(run)}/lease", lambda sentence: None, what="run")

    def named(self, run: str, query: str, identity: Mapping[str, str]) -> None:
        """Note the name of a run's query; whoever may see the run may see the query from then on.

        Args:
            run: its id.
            query: its name in the store.
            identity: what it stands for, by part.

        Raises:
            QueryError: somebody else gave this name to another query.
        """
        digest = digest_of(identity)
        mine = json.dumps({"identity": digest, "run": run}).encode()
        if not self.store.put_if_absent(f"{ROOT}/names/{query}", mine) and self._named(query).get("identity") != digest:
            if not self.gave(run, query):
                raise QueryError(f"store.query {query} is taken by another query; choose another name")
            self.store.put(f"{ROOT}/names/{query}", mine)
        self.store.put(f"{_folder(run)}/query.json", json.dumps({"query": query, "identity": digest}).encode())
        self.store.put_if_absent(f"{ROOT}/queries/{query}/{run}", b"{}")
        self.events(run).append("named", query=query)

    def end(self, run: str, state: str, *, query: str | None = None, error: str | None = None, exit_code: int = 0) -> bool:
        """Note what became of a run, unless that is known; whether it was not."""
        ended = {"state": state, "query": query, "error": error, "exit_code": exit_code, "at": self._time()}
        first = self.store.put_if_absent(f"{_folder(run)}/ended.json", json.dumps(ended).encode())
        if first:
            facts = {key: value for key, value in ended.items() if key in ("query", "error", "exit_code")}
            self.events(run).append(state, **facts)
            self.log.append(state, run=run, **facts)
        self.leave_queue(run)
        return first

    def gave(self, run: str, query: str) -> bool:
        """Tell whether nobody but those who asked for a run gave a query its name."""
        known = self._named(query).get("run")
        return known is not None and self._asking_for(str(known)) <= self._asking_for(run)

    def _asking_for(self, run: str) -> set[str]:
        """Find all who ever asked for a run."""
        return set(self.store.names(f"{_folder(run)}/owners"))

    def leave_queue(self, run: str) -> None:
        """Take a run that has ended out of the queue."""
        for entry in self.queue():
            if entry.run == run:
                self.store.discard(f"{QUEUE}/{entry.name}")

    def withdraw(self, run: str, owner: str) -> None:
        """Note that an owner doesn't want a run any more; it is stopped once nobody does."""
        folder = f"{_folder(run)}/owners"
        self.store.put(f"{folder}/{owner}.json", json.dumps({"at": self._time(), "wants": False}).encode())
        for entry in self.queue():
            if (entry.run, entry.owner) == (run, owner):
                self.store.discard(f"{QUEUE}/{entry.name}")
        if not any(self.wants(run, name.removesuffix(".json")) for name in self.store.names(folder)):
            self.store.put_if_absent(f"{QUEUE}/{QueueEntry(self._time(), 'nobody', run).name}", b"{}")  # until it is noted that it stopped
            self.store.put_if_absent(f"{_folder(run)}/stop.json", b"{}")
        self.log.append("withdrawn", run=run, who=owner)

    def stop(self, run: str, who: str) -> None:
        """Stop a run, whoever wants it."""
        self.store.put_if_absent(f"{_folder(run)}/stop.json", b"{}")
        self.log.append("stop", run=run, who=who)

    def stops(self, run: str) -> bool:
        """Tell whether a run is to be stopped."""
        return self._stops(run)

    def died(self, run: str, how: str) -> None:
        """Note that a process of this run ended without a result; one too many, and it has failed."""
        folder = f"{_folder(run)}/deaths"
        count = len(self.store.names(folder)) + 1
        self.store.put(f"{folder}/{count}-{time.time_ns()}", how.encode())
        self.events(run).append("died", how=how, times=count)
        if count >= DEATHS:
            error = f"its process ended {count} times without a result, the last time by {how}; it may have run out of memory"
            self.end(run, "failed", query=self.query(run), error=error, exit_code=5)

    def counts(self) -> dict[str, int]:
        """Count how many runs wait and run."""
        found: dict[str, int] = defaultdict(int)
        for run in {entry.run for entry in self.queue()}:
            found[self.state(run)] += 1
        return {state: found[state] for state in ("queued", "running")}

    def _stops(self, run: str) -> bool:
        return self.store.exists(f"{_folder(run)}/stop.json")

    def _time(self) -> str:
        return self._now().strftime("%Y%m%dT%H%M%S.%fZ")


@dataclass
class Once:
    """The answer to a request of an idempotency key: that of the first one, or, where it is None, the one that is to be given."""

    run: str | None


def _unanswered() -> Problem:
    return Problem(409, "the first request of this Idempotency-Key is not answered yet; ask again", headers={"retry-after": "1"})


def _folder(run: str) -> str:
    return f"{ROOT}/runs/{run}"


def _json(data: bytes | None) -> dict[str, Any]:
    """Read the object that a file holds; an empty one where there is none, or it is damaged."""
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def digest_of(identity: Mapping[str, str]) -> str:
    """Write what a query stands for, by part, as one text."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()


def is_name(text: str) -> bool:
    """Tell whether a text can be a run's id or a query's name: what else a caller sends never becomes a path."""
    return 0 < len(text) <= 128 and text[0].isalnum() and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)

