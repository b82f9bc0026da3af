"""Asks a server what `raystream.run` does here: `Client(url, token).run(query)` gives a `Result`.

Nothing but Python's own library is needed. What breaks off is asked again, queries under idempotency keys of their own, so that none is
asked twice.
"""

from __future__ import annotations

import http.client
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urlsplit

from raystream.errors import ClusterError, DataError, QueryError, RaystreamError, StoreError, UnitsFailed
from raystream.query import Query

if TYPE_CHECKING:
    import pyarrow as pa

    from raystream.store.result import Result

_TRIES = 6
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_SECONDS = 60.0
_LATER = (408, 409, 429, 502, 503, 504)
_PARQUET = "application/vnd.apache.parquet"


class ServiceError(RaystreamError):
    """The server refused a request, or doesn't answer.

    Attributes:
        status: of its answer; 0 without one.
        problem: what it said.
    """

    exit_code = 5

    def __init__(self, message: str, status: int = 0, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.problem = status, dict(problem or {})

    def __reduce__(self) -> tuple[type[ServiceError], tuple[object, ...]]:
        return type(self), (str(self), self.status, self.problem)


class ServedFiles:
    """The files of a server's store, as far as a `Result` names them."""

    remote = True

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def uri(self) -> str:
        """The server's address."""
        return self._client.url

    def place(self, name: str) -> str:
        """Return the address of a query's file: `queries/<name>/selection.parquet` is its selection."""
        _, query, file = name.split("/", 2)
        return f"{self._client.url}/v1/queries/{query}/{file.partition('.')[0]}"

    def __getattr__(self, name: str) -> Any:
        raise StoreError(f"{name} asks for files of the store of {self.uri}, which lie with the server; ask for what its API gives")


class Client:
    """A server.

    Args:
        url: where it listens, such as `http://127.0.0.1:8700`.
        token: as `raystream token` printed it; a server on the loopback address may need none.
        wait: waits so many seconds; left out, it does.
    """

    def __init__(self, url: str, token: str | None = None, *, wait: Callable[[float], object] = time.sleep) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise QueryError(f"url is {url!r}, expected the address of a server such as http://127.0.0.1:8700")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._base, self.url, self._wait = parts.path.rstrip("/"), url.rstrip("/"), wait
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def run(self, query: Query | Mapping[str, Any] | str | PathLike[str]) -> Result:
        """Ask for a batch, and wait until it is there.

        Args:
            query: what to choose; its `cluster` and `store.uri` are the server's affair and stay here. Or the YAML file that holds it.

        Raises:
            QueryError, DataError, UnitsFailed, ClusterError: it failed there as it would have here.
            ServiceError: the server refuses it, or doesn't answer.
        """
        return self.result(self.submit(query))

    def submit(self, query: Query | Mapping[str, Any] | str | PathLike[str]) -> str:
        """Ask for a batch; the id by which it is known from then on."""
        key = {"idempotency-key": uuid.uuid4().hex}
        state: dict[str, Any] = self._json("POST", "/v1/queries", document(query), key)
        return str(state["id"])

    def result(self, asked: str) -> Result:
        """Return the batch of a query, once it is committed; see `run`."""
        for _ in self.events(asked):
            pass
        state = self.state(asked)
        if state["state"] == "committed":
            return self._result(asked, state)
        if state["state"] == "stopped":
            raise ServiceError(f"query {asked} was stopped on the server; ask again to go on with it", 0, state)
        raise _as_here(int(state.get("exit_code") or 1), str(state.get("error")))

    def _result(self, asked: str, state: Mapping[str, Any]) -> Result:
        from raystream.store.manifest import Manifest
        from raystream.store.result import Result

        _, _, data = self._asked("GET", f"/v1/queries/{quote(asked, safe='')}/manifest", None, {})
        manifest = Manifest.from_json(data)
        asked_at = datetime.strptime(state["at"], "%Y%m%dT%H%M%S.%fZ") if state.get("at") else datetime.max
        new = datetime.strptime(manifest.committed, "%Y-%m-%d %H:%M:%S UTC") >= asked_at.replace(microsecond=0)
        return Result(cast(Any, ServedFiles(self)), self.selection(asked), manifest, new)

    def state(self, asked: str) -> dict[str, Any]:
        """Return how far a query is, by its id or name."""
        found: dict[str, Any] = self._json("GET", f"/v1/queries/{quote(asked, safe='')}")
        return found

    def queries(self) -> Iterator[dict[str, Any]]:
        """Yield all of the caller's queries, the newest first."""
        cursor: str | None = None
        while True:
            page = self._json("GET", "/v1/queries" + (f"?{urlencode({'cursor': cursor})}" if cursor else ""))
            yield from page["queries"]
            cursor = page["next"]
            if cursor is None:
                return

    def selection(self, asked: str) -> pa.Table:
        """Return the chosen rows of a committed query."""
        import pyarrow.parquet as pq

        _, _, data = self._asked("GET", f"/v1/queries/{quote(asked, safe='')}/selection", None, {"accept": _PARQUET})
        return pq.read_table(io.BytesIO(data))

    def plan(self, query: Query | Mapping[str, Any] | str | PathLike[str]) -> dict[str, Any]:
        """Return what a query would read and write there."""
        found: dict[str, Any] = self._json("POST", "/v1/plan", document(query), seconds=600.0)
        return found

    def stop(self, asked: str) -> None:
        """Stop a query that hasn't ended; one that has is dropped, by admins."""
        self._asked("DELETE", f"/v1/queries/{quote(asked, safe='')}", None, {})

    def decide(self, stream: str, rows: list[dict[str, Any]], request_id: str | None = None) -> list[dict[str, Any]]:
        """Return the decisions on rows of a stream, made once for each request.

        Args:
            stream: its name.
            rows: their columns by name.
            request_id: the same one again gets the same decisions; left out, a new one.
        """
        body = {"request_id": request_id or uuid.uuid4().hex, "rows": rows}
        found: list[dict[str, Any]] = self._json("POST", f"/v1/streams/{quote(stream, safe='')}/decide", body)["decisions"]
        return found

    def events(self, asked: str) -> Iterator[dict[str, Any]]:
        """Yield what happens to a query, each event once, until it ends; a stream that breaks off is taken up where it was."""
        last, failures = "", 0
        while True:
            try:
                for number, event in self._stream(asked, last):
                    last, failures = number, 0
                    yield event
                return
            except (OSError, http.client.HTTPException) as error:
                failures += 1
                if failures >= _TRIES:
                    raise ServiceError(f"{self.url} doesn't answer ({type(error).__name__}: {error}); ask again later") from None
                self._wait(min(_FIRST_PAUSE * 2**failures, _LONGEST_PAUSE))

    def _stream(self, asked: str, last: str) -> Iterator[tuple[str, dict[str, Any]]]:
        headers = {"accept": "text/event-stream", **({"last-event-id": last} if last else {})}
        connection = self._connection(_SECONDS)
        try:
            connection.request("GET", f"{self._base}/v1/queries/{quote(asked, safe='')}/events", headers={**self._headers, **headers})
            answer = connection.getresponse()
            if answer.status == 204:
                return
            if answer.status in _LATER:
                raise ConnectionError(f"status {answer.status}")
            if answer.status != 200:
                raise _refused(answer.status, answer.read())
            number, ended = last, False
            for raw in answer:
                line = raw.decode().rstrip("\n")
                if line.startswith("id: "):
                    number = line[4:]
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    ended = event["kind"] in ("committed", "failed", "stopped") and "query" in event and "run" not in event
                    yield number, event
            if not ended and self.state(asked)["state"] in ("queued", "running"):
                raise ConnectionError("the stream broke off")
        finally:
            connection.close()

    def _json(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, seconds: float = _SECONDS
    ) -> Any:
        _, _, data = self._asked(method, path, body, headers or {}, seconds)
        return json.loads(data)

    def _asked(
        self, method: str, path: str, body: object, headers: Mapping[str, str], seconds: float = _SECONDS
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return the answer to a request, which is asked again where it may have been lost, or the server says to come back."""
        data = None if body is None else json.dumps(body).encode()
        sent = {**self._headers, **headers, **({"content-type": "application/json"} if data is not None else {})}
        told: RaystreamError | None = None
        for attempt in range(_TRIES):
            pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
            connection = self._connection(seconds)
            try:
                connection.request(method, self._base + path, data, sent)
                answer = connection.getresponse()
                found = answer.read()
            except (OSError, http.client.HTTPException) as error:
                told = ServiceError(f"{self.url} doesn't answer ({type(error).__name__}: {error}); see whether the server runs")
            else:
                if answer.status < 400:
                    return answer.status, dict(answer.headers), found
                told = _refused(answer.status, found)
                if answer.status not in _LATER or (answer.status == 409 and method == "GET"):
                    raise told
                asked_for = answer.headers.get("retry-after", "")
                pause = max(pause, min(float(asked_for), _LONGEST_PAUSE)) if asked_for.isdigit() else pause
            finally:
                connection.close()
            if attempt + 1 < _TRIES:
                self._wait(pause)
        assert told is not None
        raise told

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=seconds)


def document(query: Query | Mapping[str, Any] | str | PathLike[str]) -> dict[str, Any]:
    """Return a query as a server takes it: without where it runs and what is kept where.

    Raises:
        QueryError: it is none.
    """
    if isinstance(query, str | PathLike):
        query = Query.load(Path(query))
    if isinstance(query, Query):
        found = query.model_dump(mode="json", exclude_unset=True)
        found.pop("cluster", None)
        name = (found.pop("store", None) or {}).get("query")
        return found | ({"store": {"query": name}} if name else {})
    return dict(query)


def _refused(status: int, data: bytes) -> RaystreamError:
    """Make the error for an answer that refuses a request: a wrong query is one here, too."""
    try:
        problem = json.loads(data)
        detail = str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        problem, detail = {}, f"the server answers {status}"
    if status == 422:
        return QueryError("; ".join(error["detail"] for error in problem.get("errors", [])) or detail)
    return ServiceError(f"{detail} (status {status})", status, problem)


def _as_here(exit_code: int, error: str) -> RaystreamError:
    """Make the error that a run of this exit code would have raised here."""
    kinds: dict[int, type[RaystreamError]] = {2: QueryError, 3: DataError, 4: UnitsFailed, 5: ClusterError}
    return kinds.get(exit_code, RaystreamError)(error)

