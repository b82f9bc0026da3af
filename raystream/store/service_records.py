"""What a server has noted of requests that nobody can need any more (`raystream.service.runs` says what lies where), for `raystream gc`.

A run whose query the store still has stays, with who asked for it: by that its owners see the query, and others don't. Its log, its lease
and its deaths go once it has ended. A run that ended without a query, or whose query was dropped, goes whole, and with it its places in
indices and a name that it gave. Idempotency keys go by age alone. The service's own log, who asked for what and when, stays.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from raystream.store.packs import in_threads
from raystream.store.protocol import Entry, Store

_ROOT = "service"
_LEFT_BEHIND = re.compile(r"\..+\.[0-9a-f]{32}")
_KEPT = ("order.json", "query.json", "ended.json", "stop.json")


@dataclass(frozen=True)
class Finished:
    """What may go.

    Attributes:
        names: files that say to which query a name belongs, by the name; whose runs go.
        runs: files of runs that go whole, by their ids.
        others: files each of which goes by itself.
    """

    names: dict[str, Entry]
    runs: dict[str, list[Entry]]
    others: list[Entry]

    @property
    def files(self) -> list[Entry]:
        """All of them."""
        return [*self.names.values(), *(file for files in self.runs.values() for file in files), *self.others]

    def remove(self, store: Store) -> None:
        """Remove them. What says that a run ended goes last: one that is half gone is found again, and nothing takes it for one that waits.

        Raises:
            StoreError: one of them can't be removed.
        """
        for name, file in self.names.items():
            if set(store.names(f"{_ROOT}/queries/{name}")) <= self.runs.keys():  # else it was asked for again meanwhile
                store.remove(file.name)
        for file in self.others:
            store.remove(file.name)
        for files in self.runs.values():
            for file in sorted(files, key=lambda file: file.name.endswith("/ended.json")):
                store.remove(file.name)
        for folder in sorted({file.name.rpartition("/")[0] for file in self.files}, reverse=True):
            store.discard_folder(folder)


def finished(store: Store, queries: Collection[str], limit: float) -> Finished:
    """Find what may go.

    Args:
        store: which holds it.
        queries: names of those that the store has, and goes on to have.
        limit: only what was over by then, in seconds since the epoch by the store's clock.

    Raises:
        StoreError: it can't be read.
    """
    files: dict[str, list[Entry]] = defaultdict(list)
    for file in store.walk(_ROOT):
        files[file.name.split("/")[1]].append(file)
    runs: dict[str, list[Entry]] = defaultdict(list)
    for file in files["runs"]:
        runs[file.name.split("/")[2]].append(file)
    ended = [run for run, own in runs.items() if any(file.name.endswith(f"/{run}/ended.json") and file.modified <= limit for file in own)]
    named = dict(zip(ended, in_threads(lambda run: _query_of(store, run), ended), strict=True))
    gone = {run for run in ended if named[run] not in queries}
    others = [file for run in ended if run not in gone for file in runs[run] if not _is_kept(run, file)]
    others += [file for file in files["keys"] if file.modified <= limit]
    others += [file for place in ("owners", "open", "queries") for file in files[place] if re.split("[/~]", file.name)[-1] in gone]
    digests = {run.rpartition("-")[0] for run in runs.keys() - gone}
    others += [file for file in files["numbers"] if file.modified <= limit and file.name.rpartition("/")[2] not in digests]
    taken = {file.name for file in others}
    rest = (file for place, some in files.items() if place != "runs" for file in some if file.name not in taken)
    others += [file for file in rest if file.modified <= limit and _LEFT_BEHIND.fullmatch(file.name.rpartition("/")[2])]
    staying = {file.name.split("/")[2] for file in files["queries"] if file.name.rpartition("/")[2] not in gone}
    names = {file.name.rpartition("/")[2]: file for file in files["names"] if file.modified <= limit}
    free = {name: file for name, file in names.items() if name not in staying and not _LEFT_BEHIND.fullmatch(name)}
    return Finished({name: file for name, file in free.items() if name not in queries}, {run: runs[run] for run in gone}, others)


def _is_kept(run: str, file: Entry) -> bool:
    """Tell whether a file of a run that has ended says who asked for what, and what became of it."""
    own = file.name.removeprefix(f"{_ROOT}/runs/{run}/")
    return own in _KEPT or own.startswith("owners/")


def _query_of(store: Store, run: str) -> str | None:
    """Find the query that a run gave a name, where it came so far."""
    for file in ("query.json", "ended.json"):
        try:
            found = json.loads(store.read_if_there(f"{_ROOT}/runs/{run}/{file}") or b"{}")
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("query"), str):
            return str(found["query"])
    return None
