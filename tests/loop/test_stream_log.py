"""The log of decisions that were answered: whoever dies, takes over or writes whole files in between, each request is decided on once."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pools import pool_table
from streams import arrive, decisions, make_stream
from streams import run as look

import raystream as rs
from raystream.errors import QueryError, StoreError
from raystream.loop.streams import requests as by_request
from raystream.loop.streams.decided import Decided
from raystream.loop.streams.log import Progress, StreamLog, fold
from raystream.loop.streams.requests import FOLD_SECONDS, RequestedRows, StreamRequest
from raystream.loop.streams.segment import _AHEAD, _FRAME, _MAGIC, Begun, Segment, read_segment
from raystream.store.local import LocalStore
from raystream.store.opening import open_store

LOG = Path("runs/streams/s/log")
FILES = Path("runs/streams/s/decisions")

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture(autouse=True)
def _begun(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that has decided on 20 rows of a file; the disk is taken to be this machine's."""
    monkeypatch.setattr(by_request, "may_append", lambda store: True)
    monkeypatch.setattr(by_request, "_PIECES", 3)
    arrive("a.parquet", pool_table(20))
    look()


def server(stream: rs.Stream | None = None, **options: Any) -> RequestedRows:
    options.setdefault("pause", lambda seconds: None)
    return RequestedRows(stream or make_stream(), StreamLog(open_store("runs"), "s"), "m", 4, **options)


def request(number: int, rows: int = 2, width: int | None = None) -> StreamRequest:
    """The request of this number; its rows' scores and embeddings are those of no other."""
    draws = np.random.default_rng(number)
    vectors = None if width is None else draws.standard_normal((rows, width)).round(1)
    ids = pa.array([f"id{number}-{i}" for i in range(rows)])
    return StreamRequest(f"r{number}", f"asked {number}", ids, draws.uniform(0, 1, rows), vectors)


def ask(of: RequestedRows, *numbers: int, **options: Any) -> list[list[dict[str, Any]]]:
    """The answers to requests of one batch."""
    found = of.decide([request(number, **options) for number in numbers])
    assert not any(isinstance(rows, QueryError) for rows in found)
    return [told(rows) for rows in found if not isinstance(rows, QueryError)]


def told(decided: Decided) -> list[dict[str, Any]]:
    """The rows as a file of decisions has them."""
    rows: list[dict[str, Any]] = decided.in_columns("rid").to_pylist()
    return rows


ask_once = ask


def size_of_records() -> int:
    """Bytes of the log before the zeros over which further records come."""
    data, at = (LOG / "00000002.open").read_bytes(), len(_MAGIC)
    while length := _FRAME.unpack_from(data, at)[0]:
        at += _FRAME.size + length
    return at


def check(answers: dict[int, list[dict[str, Any]]]) -> None:
    """The decisions hold each answered row once, as it was answered, and rows are counted without a gap."""
    table = decisions()
    rows = {row["rid"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows == 20 + sum(map(len, answers.values()))
    for answer in answers.values():
        assert [rows[row["rid"]] for row in answer] == answer
    assert table.column("seen").to_pylist() == list(range(1, table.num_rows + 1))
    chosen = np.cumsum(table.column("chosen").to_pylist())
    assert (chosen <= np.ceil(0.2 * np.arange(1, table.num_rows + 1))).all()


def test_a_log_cut_anywhere_holds_what_was_whole_before_the_cut() -> None:
    """At every byte, by an end of file there or by other bytes from there on: the records before, and nothing else."""
    first = server()
    sizes = []
    for number in range(3):
        ask(first, number)
        sizes.append(size_of_records())
    data = (LOG / "00000002.open").read_bytes()
    assert len(data) == sizes[0] + _AHEAD
    assert not any(data[sizes[-1] :])
    data = data[: sizes[-1] + 20]  # of the zeros, more than what begins a record
    _, whole = read_segment(data)
    begins = sizes[0] - (sizes[1] - sizes[0])  # records are of one size here
    assert begins > 0
    for cut in range(begins, len(data) + 1):
        for torn in (data[:cut], data[:cut] + bytes(len(data) - cut), data[:cut] + bytes(byte ^ 0x55 for byte in data[cut:])):
            found, there = read_segment(torn)[1], sum(torn[:size] == data[:size] for size in sizes)
            assert [record.requests for record in found] == [record.requests for record in whole[:there]], cut
            assert all(told(a.decided) == told(b.decided) for a, b in zip(found, whole, strict=False))
    for cut in range(begins - 1):
        with pytest.raises(ValueError, match="begin"):
            read_segment(data[:cut])


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("torn", [0, 1, 11, -1, None])
def test_a_server_that_was_killed_is_gone_on_from(torn: int | None, zeros: bool) -> None:
    """While it appended: so many bytes of its fourth record were written. What was answered stands, the rest is decided on, once."""
    first = server()
    answers = {number: ask(first, number)[0] for number in range(3)}
    size = size_of_records()
    last = ask(first, 3)[0]
    if torn is None:
        answers[3] = last  # it was whole on disk
    else:
        kept = (size if torn >= 0 else size_of_records()) + torn
        content = (LOG / "00000002.open").read_bytes()
        (LOG / "00000002.open").write_bytes(content[:kept] + bytes(len(content) - kept) if zeros else content[:kept])
    second = server()
    assert ask(second, 3)[0] == last  # the same state gives the same decision
    for number in (0, 1, 2):
        assert ask(second, number)[0] == answers[number]
    check({**answers, 3: last})


@pytest.mark.parametrize("manager", ["quantile", "density", "split"])
def test_the_state_after_a_fold_is_that_of_one_that_never_stopped(manager: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folded by its owner, by another after a kill, and never having had a log: the same decisions on the same requests."""
    settings: dict[str, Any] = {"stream": {"budget": 0.2, "name": "s", "manager": manager}, "acquire": {"score": "least_confidence"}}
    if manager == "density":
        settings["select"] = {"near_duplicates": 0.9}
    found = []
    for number, how in enumerate(("owner", "killed", "whole")):
        place = tmp_path / f"{number}"
        place.mkdir()
        monkeypatch.chdir(place)
        arrive("a.parquet", pool_table(20))
        look(make_stream(**settings))
        monkeypatch.setattr(by_request, "may_append", lambda store, how=how: how != "whole")
        of = server(make_stream(**settings))
        for start in range(0, 36, 3):
            ask(of, start, start + 1, start + 2, rows=4, width=3 if manager == "density" else None)
            if how == "owner" and start % 2:
                of.fold()
            if how == "killed" and start % 4 == 0:
                of = server(make_stream(**settings))
        found.append(decisions().to_pylist())
    assert len(found[0]) == 20 + 144
    assert found[0] == found[1] == found[2]


def test_a_server_that_stood_still_answers_nothing_that_another_decided_on() -> None:
    """Between writing and its disk's word another took over, with the record or, as it was appended later, without it."""
    first, second = server(), server()
    ask(first, 0)
    written = first.write([request(1)])
    there = ask(second, 2)[0]  # which seals the log with the record in it
    late = first.write([request(3), request(2)])
    assert not written.sync()
    assert not late.sync()
    one, two = ask(first, 1)[0], ask(first, 2)[0]
    assert two == there
    assert ask(second, 1)[0] == one
    check({0: ask(first, 0)[0], 1: one, 2: two, 3: ask(first, 3)[0]})


def test_whoever_seals_at_any_point_doubles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that ends after any of its steps is done again by whoever comes, and gives the same files."""
    steps = 0
    expected: list[bytes] = []
    for last in range(1, 30):
        for folder in (LOG, FILES):
            for file in folder.iterdir() if folder.exists() else []:
                if file.name != "00000001.parquet":
                    file.unlink()
        for file in Path("runs/streams/s/states").glob("00000002-*"):
            file.unlink()
        of = server()
        for number in range(3):
            ask(of, number)
        with monkeypatch.context() as patched:
            steps = 0

            def ending(call: Callable[..., Any]) -> Callable[..., Any]:
                def step(*arguments: Any, **options: Any) -> Any:
                    nonlocal steps
                    found = call(*arguments, **options)
                    steps += 1
                    if steps == last:  # noqa: B023
                        raise KeyboardInterrupt
                    return found

                return step

            for name in ("put_if_absent", "discard"):
                patched.setattr(LocalStore, name, ending(getattr(LocalStore, name)))
            patched.setattr(os, "link", ending(os.link))
            patched.setattr(Path, "unlink", ending(Path.unlink))
            with suppress(KeyboardInterrupt):
                fold(StreamLog(open_store("runs"), "s"))
        fold(StreamLog(open_store("runs"), "s"))
        expected.append((FILES / "00000002.parquet").read_bytes())
        assert sorted(os.listdir(FILES)) == ["00000001.parquet", "00000002.parquet"]
        check({number: ask(server(), number)[0] for number in range(3)})
        if steps < last:
            break
    assert steps < last, "there are more steps than were tried"
    assert set(expected) == {expected[0]}


def test_a_server_waits_for_a_look_that_is_about_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that has scored takes the server's log, and the server, asked at any moment, lets it write its file first."""

    class StillWaits(Exception):
        pass

    def waits(seconds: float) -> None:
        raise StillWaits

    of = server(pause=waits)
    answers = {0: ask(of, 0)[0]}
    commit, asked = StreamLog.commit_decisions, []

    def about_to(log: StreamLog, *arguments: Any, **options: Any) -> Any:
        if not options.get("logged"):
            asked.append(arguments[1].parts)
            with pytest.raises(StillWaits):
                of.decide([request(1)])
        return commit(log, *arguments, **options)

    arrive("b.parquet", pool_table(5, 100))
    with monkeypatch.context() as patched:
        patched.setattr(StreamLog, "commit_decisions", about_to)
        assert look().new_rows == 5
    assert asked == [3]  # the first was the look before, the second is that of the log
    answers[1] = ask(of, 1)[0]
    answers[-1] = decisions().to_pylist()[22:27]
    assert [row["rid"] for row in answers[-1]] == pool_table(5, 100).column("rid").to_pylist()
    check(answers)


@pytest.mark.parametrize("who", ["a server", "a look"])
def test_a_log_that_was_sealed_and_not_folded_comes_first(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sealed it is gone; the next, who writes whole files, takes its name, and folds what it holds before."""
    answers = {0: ask(server(), 0)[0]}
    monkeypatch.setattr(by_request, "may_append", lambda store: False)
    stale = server()
    answers[1] = ask(stale, 1)[0]
    monkeypatch.setattr(by_request, "may_append", lambda store: True)
    answers[2] = ask(server(), 2)[0]
    StreamLog(open_store("runs"), "s").unfolded()
    assert [name.suffix for name in LOG.iterdir()] == [".sealed"]
    if who == "a server":
        answers[3] = ask(stale, 3)[0]
    else:
        arrive("b.parquet", pool_table(2, 100))
        look()
        answers[-1] = decisions().to_pylist()[-2:]
    check(answers)


@pytest.mark.parametrize("how", ["died", "torn", "full", "too many files"])
@pytest.mark.parametrize("who", ["a server", "a look"])
def test_a_log_that_was_begun_and_never_held_a_decision(how: str, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever began it died, or could not append; it keeps nobody from deciding, and what it never answered is decided on once."""
    answers: dict[int, list[dict[str, Any]]] = {}
    of, log = server(), StreamLog(open_store("runs"), "s")
    if how == "died":
        log.look()
        assert log.schema is not None
        assert log.begin_segment(2, Begun(1, "m", 4, log.schema)) is not None
    elif how == "torn":
        begins = 2 * size_of_two(of, 0) - size_of_records()
        content = (LOG / "00000002.open").read_bytes()
        (LOG / "00000002.open").write_bytes(content[: begins + 20])
        of = server()
    else:
        kind = errno.ENOSPC if how == "full" else errno.EMFILE

        def refuse(descriptor: int, data: memoryview, at: int) -> int:
            raise OSError(kind, os.strerror(kind))

        open_file = os.open

        def refuse_to_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if str(path).endswith(".open") and flags & os.O_RDWR:
                raise OSError(kind, os.strerror(kind))
            return open_file(path, flags, *more, **named)

        with monkeypatch.context() as patched:
            patched.setattr(os, *(("pwrite", refuse) if how == "full" else ("open", refuse_to_open)))
            with pytest.raises(StoreError, match=os.strerror(kind)):
                of.decide([request(0)])
    if who == "a look":
        arrive("b.parquet", pool_table(2, 100))
        look()
        answers[-1] = decisions().to_pylist()[20:22]
    answers[0] = ask(of, 0)[0]
    answers[1] = ask(server(), 1)[0]
    assert ask(of, 0)[0] == answers[0]
    check(answers)


def size_of_two(of: RequestedRows, number: int) -> int:
    """Ask two requests of one size; the log's size after the first."""
    ask(of, number)
    size = size_of_records()
    ask(of, number + 1)
    return size


def test_a_log_whose_name_was_taken_before_it_was_opened_is_not_appended_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sealed it and says that decisions come whole: what is appended under that name would never be found."""
    of, other = server(), StreamLog(open_store("runs"), "s")

    def late(path: Path, first: bytes, begun: Begun) -> Segment:
        other.unfolded()
        assert other.claim(2)
        return Segment(path, first, begun)

    with monkeypatch.context() as patched:
        patched.setattr("raystream.loop.streams.log.Segment", late)
        with pytest.raises(StoreError, match="sealed before anything was appended"):
            of.decide([request(0)])
    check({0: ask(of, 0)[0], 1: ask(server(), 1)[0]})


class Postponed(Future[Progress | None]):
    """A file of decisions that is written when somebody waits for it, or when `run` is called."""

    def __init__(self, commit: Callable[[], Progress | None]) -> None:
        super().__init__()
        self._commit = commit

    def run(self, error: StoreError | None = None) -> None:
        if not self.done():
            try:
                if error is not None:
                    raise error
                self.set_result(self._commit())
            except StoreError as failed:
                self.set_exception(failed)

    def result(self, timeout: float | None = None) -> Progress | None:
        self.run()
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self.run()
        return super().exception()


class Aside:
    """Where a server has its files of decisions written: `files` of them aren't there yet, if nobody waited for them."""

    def __init__(self) -> None:
        self.files: list[Postponed] = []
        self.clock, self.closed = 0.0, False

    def __call__(self, commit: Callable[[], Progress | None]) -> Postponed:
        if self.closed:
            raise RuntimeError("closed")
        self.files.append(Postponed(commit))
        return self.files[-1]

    def server(self) -> RequestedRows:
        return server(now=lambda: self.clock, aside=self)

    def turn(self, of: RequestedRows) -> None:
        """Half a minute later."""
        self.clock += FOLD_SECONDS
        of.fold(due=True)


def test_what_comes_while_a_file_of_decisions_is_written_does_not_wait_for_it() -> None:
    """It is appended to the next log, and asked again is known; the files come in order, and of the logs nothing stays."""
    aside = Aside()
    of = aside.server()
    answers = {number: ask(of, number)[0] for number in range(4)}
    aside.turn(of)
    answers |= {number: ask(of, number)[0] for number in range(4, 7)}
    assert [path.name for path in sorted(LOG.iterdir())] == ["00000002.open", "00000003.open"]
    aside.turn(of)  # the one before isn't there yet
    assert [ask(of, number)[0] for number in range(7)] == list(answers.values())
    assert len(aside.files) == len(list(FILES.iterdir())) == 1
    aside.files[0].run()
    ask(of, 0)
    assert [len(list(FILES.iterdir())), len(aside.files)] == [2, 2]
    of.fold()
    assert list(LOG.iterdir()) == []
    check(answers)


@pytest.mark.parametrize("how", ["killed", "refused", "late", "closed"])
def test_a_file_of_decisions_that_is_not_written_comes_before_those_after_it(how: str) -> None:
    """Its server is gone, or the disk had no room, or it is written once another server has done so: each row stands once, in order."""
    aside = Aside()
    of = aside.server()
    answers = {number: ask(of, number)[0] for number in range(3)}
    aside.closed = how == "closed"
    with suppress(RuntimeError):
        aside.turn(of)
    aside.closed = False
    answers |= {number: ask(of, number)[0] for number in range(3, 6)}
    if how == "closed":
        of.fold()
    elif how == "refused":
        aside.files[0].run(StoreError("no room"))
        with pytest.raises(StoreError, match="no room"):
            of.fold()
        of.fold()
        assert len(list(FILES.iterdir())) == 3
    else:
        stale, of = of, server()
    if how == "late":
        assert ask(stale, 7)[0] == ask(of, 7)[0]
        answers[7] = ask(of, 7)[0]
        aside.files[0].run()
    answers[6] = ask(of, 6)[0]
    assert [ask(of, number)[0] for number in answers] == list(answers.values())
    check(answers)
    assert pq.read_table(FILES / "00000002.parquet").column("rid").to_pylist() == [f"id{n}-{i}" for n in range(3) for i in range(2)]


def play(seed: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that append, one that writes whole files, looks, kills, and what is on disk late or not: in an order drawn by chance."""
    draw = random.Random(seed)
    answers: dict[int, list[dict[str, Any]]] = {}
    fresh, files = 0, 0
    asides = [Aside() for _ in range(3)]

    def begin(place: int) -> RequestedRows:
        monkeypatch.setattr(by_request, "may_append", lambda store: place != 2)
        return asides[place].server()

    def ask(of: RequestedRows, *numbers: int) -> list[list[dict[str, Any]]]:
        with suppress(StoreError):
            return ask_once(of, *numbers)
        return ask_once(of, *numbers)

    servers = [begin(place) for place in range(3)]
    for _ in range(steps):
        place = draw.randrange(3)
        whats = ["new"] * 3 + ["again", "late", "kill", "fold", "turn", "turn", "written", "refused", "seal", "claim", "begin", "look"]
        what = draw.choice(whats)
        if what == "kill":
            servers[place] = begin(place)
        elif what == "fold":
            with suppress(StoreError):
                servers[place].fold()
        elif what == "turn":
            with suppress(StoreError):
                asides[place].turn(servers[place])
        elif what in ("written", "refused"):  # also of one that seemed to be dead
            for file in asides[place].files:
                file.run(StoreError("no room") if what == "refused" else None)
        elif what == "seal":
            StreamLog(open_store("runs"), "s").unfolded()  # and dies before it folds
        elif what == "claim":
            log = StreamLog(open_store("runs"), "s")
            log.claim(log.look()[0].parts + 1)  # and dies before it writes
        elif what == "begin":
            log = StreamLog(open_store("runs"), "s")
            part, schema = log.look()[0].parts + 1, log.schema
            assert schema is not None
            log.begin_segment(part, Begun(1, "m", 4, schema))  # and dies before it appends
        elif what == "look":
            files += 1
            arrive(f"more{files}.parquet", pool_table(2, 100 * files))
            look()
            answers[-files] = decisions().to_pylist()[-2:]
        elif what == "late":
            ask(servers[place])
            written = servers[place].write([request(fresh)])
            other = draw.randrange(3)
            answers[fresh + 1] = ask(servers[other], fresh + 1)[0]
            if written.sync():
                rows = written.answers[0]
                assert not isinstance(rows, QueryError)
                answers[fresh] = told(rows)
            else:
                answers[fresh] = ask(servers[place], fresh)[0]
            fresh += 2
        else:
            asked = [fresh, *draw.sample(range(fresh), min(fresh, 2))] if what == "new" else draw.sample(range(fresh), min(fresh, 2))
            for number, answer in zip(asked, ask(servers[place], *asked) if asked else [], strict=True):
                assert answers.setdefault(number, answer) == answer
            fresh += what == "new"
    check(answers)


def test_an_order_drawn_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `play`."""
    play(0, 25, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 13))
def test_many_orders_drawn_by_chance(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """See `play`."""
    play(seed, 80, monkeypatch)


def test_a_disk_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails, half of it done, or a wait for the disk that does: an error; asked again, it is decided on once."""
    of = server()
    answers = {0: ask(of, 0)[0]}
    write, full = os.pwrite, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(descriptor: int, data: memoryview, at: int) -> int:
        write(descriptor, data[: len(data) // 2], at)
        raise full

    def refuse(descriptor: int) -> None:
        raise full

    for number, name, broken in ((1, "pwrite", half), (2, "fdatasync", refuse)):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, broken)
            with pytest.raises(StoreError, match="No space left"):
                of.decide([request(number)])
        answers[number] = ask(of, number)[0]
    check(answers)


def test_a_log_is_folded_by_time_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decisions then have their file, requests are known from there, and nothing of the log stays."""
    clock = [0.0]
    of = server(now=lambda: clock[0])
    first = ask(of, 0)
    assert sorted(os.listdir(FILES)) == ["00000001.parquet"]
    clock[0] = by_request.FOLD_SECONDS
    ask(of, 1)
    assert sorted(os.listdir(FILES)) == ["00000001.parquet", "00000002.parquet"]
    monkeypatch.setattr(by_request, "_FOLD_ROWS", 4)
    ask(of, 2)
    ask(of, 3)
    assert sorted(os.listdir(FILES))[-1] == "00000003.parquet"
    assert ask(of, 0) == first
    of.fold()
    assert os.listdir(LOG) == []
    assert sorted(os.listdir(FILES))[-1] == "00000004.parquet"
    check({number: ask(of, number)[0] for number in range(4)})


def test_decisions_that_come_out_otherwise_stand_as_they_were_answered(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """As by another version, which went on with what was in the log: what was answered is kept, and counts in the budget."""
    of = server()
    answers = {number: ask(of, number)[0] for number in range(12)}
    with monkeypatch.context() as patched:
        patched.setattr("raystream.loop.streams.managers._RESERVE", 10**6)
        fold(StreamLog(open_store("runs"), "s"))
    assert "what was answered stands" in caplog.text
    progress, _ = StreamLog(open_store("runs"), "s").progress()
    assert progress.chosen == sum(decisions().column("chosen").to_pylist())
    check(answers)
    assert ask(server(), 12)


def test_what_is_no_log_is_said() -> None:
    """Damage to the beginning of a log, which was written whole, isn't taken for an end."""
    ask(server(), 0)
    (LOG / "00000002.open").write_bytes(b"something else")
    with pytest.raises(StoreError, match=r"00000002.sealed is damaged"):
        server()
