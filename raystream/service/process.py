"""`python -m raystream.service.process`: one run of the service's, in a process of its own; what it is told comes by stdin.

It holds the run's lease, so that there is one at a time; it is confined to what the server allows; and it notes itself what became of the
run, so that a server that died meanwhile loses nothing. It ends early when nobody wants the run any more, or it took too long.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raystream.cli.terminal import Interruption
from raystream.errors import PoolError, QueryError, RaystreamError
from raystream.lake.reach import confine
from raystream.query import Query
from raystream.service.config import Config
from raystream.service.policy import Policy
from raystream.service.runs import Runs
from raystream.store.opening import open_store

_LOOK_SECONDS = 1.0
_ENDING_SECONDS = 60.0
DEFECT = "the service failed to run this; its operator finds why in the store"


@dataclass(frozen=True)
class ProcessTask:
    """What a process is told.

    Attributes:
        kind: `run` a submitted query, or `plan` one.
        config: the server's, as it was given.
        run: the run's id; of a plan, none.
        query: of a plan, the document.
    """

    kind: str
    config: dict[str, Any]
    run: str = ""
    query: dict[str, Any] | None = None

    @property
    def json(self) -> bytes:
        """As the process reads it."""
        return json.dumps({"kind": self.kind, "config": self.config, "run": self.run, "query": self.query}).encode()


def whole_query(document: Mapping[str, Any], config: Config) -> Query:
    """Return a query from outside, with where it runs and what is kept where from the server's configuration.

    Raises:
        QueryError: it is none.
    """
    name = (document.get("store") or {}).get("query")
    store = {**config.store.model_dump(exclude={"query"}), **({"query": name} if name else {})}
    return Query(**{**document, "cluster": config.cluster.model_dump(), "store": store})


def main() -> None:
    """Do what stdin says; the exit code is a command's."""
    interruption = Interruption()
    interruption.heed()
    sys.path.insert(0, os.getcwd())
    task = ProcessTask(**json.load(sys.stdin.buffer))
    config = Config(**task.config)
    policy = Policy(config)
    if task.kind == "plan":
        confine(policy.reach())
        sys.exit(_plan(task, config, policy))
    runs = Runs(open_store(config.store.uri, config.store.options), config.limits)
    with runs.lease(task.run):
        code = _Run(task.run, config, policy, runs, interruption).go()
    sys.stdout.flush()
    os._exit(code)  # threads in foreign code hold nobody up


def _plan(task: ProcessTask, config: Config, policy: Policy) -> int:
    from raystream.run import plan

    code = 0
    answer: dict[str, Any] = {}
    try:
        query = whole_query(task.query or {}, config)
        policy.check_files(query)
        answer = {"plan": plan(query).summary()}
    except RaystreamError as error:
        code, answer = error.exit_code, {"error": for_callers(error, config)}
    except Exception:
        traceback.print_exc()
        code, answer = 1, {"error": DEFECT}
    print(json.dumps(answer), flush=True)
    return code


class _Run:
    """One run, from its order to its end."""

    def __init__(self, run: str, config: Config, policy: Policy, runs: Runs, interruption: Interruption) -> None:
        self._run, self._config, self._policy, self._runs, self._interruption = run, config, policy, runs, interruption
        self._why: str | None = None
        self._done = threading.Event()

    def go(self) -> int:
        """Run it and note what became of it, unless that is known; the exit code."""
        runs, run = self._runs, self._run
        order = runs.order(run)
        if order is None or runs.ended(run) is not None:
            runs.leave_queue(run)
            return 0
        if runs.stops(run):
            runs.end(run, "stopped", query=runs.query(run))
            return 0
        runs.events(run).append("started", process=os.getpid())
        threading.Thread(target=self._watch, name="raystream-watch", daemon=True).start()
        try:
            name = self._choose(whole_query(order["query"], self._config))
            runs.end(run, "committed", query=name)
            return 0
        except RaystreamError as error:
            return self._interrupted() or self._failed(for_callers(error, self._config), error.exit_code)
        except BaseException:
            return self._interrupted() or self._defect()
        finally:
            self._done.set()

    def _choose(self, query: Query) -> str:
        from raystream import steps
        from raystream.report.page import write_report
        from raystream.scoring.progress import Silent

        confine(self._policy.reach())
        self._policy.check_files(query)
        result = steps.run(query, Silent(), may_score=True, resolved=self._resolved)
        if not result.store.exists(f"queries/{result.query}/report.html"):
            try:
                write_report(result)
            except Exception:
                self._note_traceback()  # the batch is committed all the same
        return result.query

    def _resolved(self, asked: Any) -> None:
        """Note what the query is called, before anything of it is scored; refuse one over too many rows."""
        limit = self._config.limits.rows
        rows = int(asked.pool.units.rows.sum())
        if limit is not None and rows > limit:
            raise PoolError(f"pool.uri holds {rows} rows, above the {limit} that this server takes; name fewer files, or filter by them")
        try:
            asked.committed  # noqa: B018 - it is refused where another query has its name
        except QueryError:
            if self._runs.gave(self._run, asked.name):
                raise
            raise QueryError(f"store.query {asked.name} is taken by another query; choose another name") from None
        self._runs.named(self._run, asked.name, asked.identity)

    def _watch(self) -> None:
        """End the run when nobody wants it any more, or it took too long."""
        waited = 0.0
        while not self._done.wait(_LOOK_SECONDS):
            waited += _LOOK_SECONDS
            if self._runs.stops(self._run):
                self._why = "stopped"
            elif waited >= self._config.limits.seconds:
                self._why = "late"
            if self._why is not None:
                os.kill(os.getpid(), signal.SIGTERM)
                if not self._done.wait(_ENDING_SECONDS):
                    self._interrupted()
                    os._exit(143)
                return

    def _interrupted(self) -> int | None:
        """Return the exit code where a signal ended it, noted if it was ours; after another's the run goes on once a server starts it."""
        if self._interruption.number is None:
            return None
        if self._why == "stopped":
            self._runs.end(self._run, "stopped", query=self._runs.query(self._run))
        elif self._why == "late":
            limit = self._config.limits.seconds
            self._failed(f"it ran for more than {limit} seconds, which is what this server gives a query; ask again to go on", 5)
        return self._interruption.exit_code

    def _failed(self, error: str, exit_code: int) -> int:
        self._runs.end(self._run, "failed", query=self._runs.query(self._run), error=error, exit_code=exit_code)
        return exit_code

    def _defect(self) -> int:
        self._note_traceback()
        return self._failed(DEFECT, 1)

    def _note_traceback(self) -> None:
        self._runs.store.put(f"service/runs/{self._run}/traceback.txt", traceback.format_exc().encode())


def for_callers(error: RaystreamError | str, config: Config) -> str:
    """Say what is wrong, without places that whoever asked did not name."""
    text = " ".join(str(error).split())
    store = config.store.uri
    for place, instead in ((os.path.realpath(store), "STORE"), (os.path.abspath(store), "STORE"), (store, "STORE"), (os.getcwd(), ".")):
        if len(place) > 1:
            text = text.replace(place, instead) if "/" in place else text
    return text


if __name__ == "__main__":
    main()
