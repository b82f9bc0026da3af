"""The one policy of asking again: what is final, what is an outage, how long it is waited for, and what is said."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from obstore.exceptions import GenericError

from raystream.errors import StoreUnreachable
from raystream.lake import retry
from raystream.lake.retry import ATTEMPTS, LASTING, LONGEST_PAUSE, Patience, Place, in_short, is_final, is_outage, retried

BUSY = "Server returned non-2xx status code: 503 Service Unavailable: <Error><Code>SlowDown</Code></Error>"


class Time:
    """A clock that moves by pauses alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def patience(self, seconds: float, from_start: bool = False) -> Patience:
        return Patience(seconds, from_start, self.pause, self.clock)


def failing(times: float, error: BaseException) -> Callable[[], str]:
    """Fails so often, then answers."""
    left = [times]

    def call() -> str:
        if left[0] > 0:
            left[0] -= 1
            raise error
        return "answer"

    return call


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (GenericError(f"Generic S3 error: Error performing PUT http://x in 1s, after 5 retries - {BUSY}"), "503 Service Unavailable"),
        (GenericError("Generic S3 error: Error performing GET http://x/b/p/x in 102ms - HTTP error: error sending request"), "error"),
        (OSError("AWS Error UNKNOWN (HTTP status 500) during HeadObject operation: No response body."), "500"),
        (OSError("AWS Error SLOW_DOWN during ListObjectsV2 operation: Reduce."), "SLOW_DOWN"),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect; Details"), "Could"),
        (OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, PerformWork() - CURL error [7]=Could not connect"), "Could"),
        (OSError("ListBlobs failed. Azure Error: [] 429 Too Many Requests\nRequest ID: 1"), "429"),
        (OSError("ListBlobs failed. Azure Error: [] Error while sending request. Failure when receiving data"), "Error while sending"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/nfs/x"), "Stale file handle"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        (ConnectionResetError("the answer got lost"), "the answer got lost"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_is_an_outage(error: Exception, short: str) -> None:
    """As obstore, Arrow and the system say it; a few words of it are enough for people."""
    assert is_outage(error)
    assert not is_final(error)
    assert short in in_short(error)
    assert len(in_short(error)) <= 120


@pytest.mark.parametrize(
    "error",
    [
        GenericError("Server returned non-2xx status code: 501 Not Implemented"),
        GenericError("Server returned non-2xx status code: 400 Bad Request"),
        GenericError("Server returned non-2xx status code: 507 Insufficient Storage"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EACCES, os.strerror(errno.EACCES)),
        OSError(errno.ENOENT, os.strerror(errno.ENOENT)),
        OSError("503 bytes came of 504"),
        OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"),
        OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
        ValueError("not a number"),
    ],
)
def test_what_is_none(error: Exception) -> None:
    """A full disk, a missing right or a broken file doesn't pass by waiting."""
    assert not is_outage(error)


def test_an_outage_is_waited_for_with_growing_pauses(caplog: pytest.LogCaptureFixture) -> None:
    """Far more often than another failure is repeated, and said once when it begins and once when it is over."""
    time = Time()
    assert retried(failing(14, OSError(errno.ESTALE, "Stale file handle")), patience=time.patience(600), place="/nfs") == "answer"
    assert len(time.pauses) == 14
    assert max(time.pauses) <= 1.5 * LONGEST_PAUSE
    assert sorted(time.pauses[:7:3]) == time.pauses[:7:3]
    first, last = caplog.messages
    assert first == "/nfs doesn't answer: Stale file handle; waiting for it, for up to 10 minutes"
    assert last.startswith("/nfs answers again, after ")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_refusal_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waits to hear that there is no such file has heard from the place."""
    left = [20]

    def call() -> None:
        left[0] -= 1
        raise TimeoutError if left[0] else FileNotFoundError("no such key")

    with pytest.raises(FileNotFoundError):
        retried(call, patience=Time().patience(600), place="/nfs")
    assert "/nfs answers again" in caplog.messages[-1]


def test_a_short_one_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """What passes within the few attempts of any failure is counted, no more."""
    told: list[str] = []
    assert retried(failing(ATTEMPTS - 1, ConnectionResetError("x")), told.append, patience=Time().patience(600)) == "answer"
    assert (told, caplog.messages) == (["x"] * (ATTEMPTS - 1), [])


def test_waiting_has_a_limit() -> None:
    """Of the time since the outage began; a failure that is none gets its few attempts, and one that is final none."""
    time = Time()
    with pytest.raises(TimeoutError):
        retried(failing(10**9, TimeoutError()), patience=time.patience(600))
    assert 600 <= time.now < 600 + 2 * LONGEST_PAUSE
    for error, attempts in ((OSError("cut short"), ATTEMPTS), (FileNotFoundError("gone"), 1), (StoreUnreachable("waited"), 1)):
        time = Time()
        with pytest.raises(type(error)):
            retried(failing(10**9, error), patience=time.patience(600))
        assert len(time.pauses) == attempts - 1


def test_many_threads_that_wait_for_one_place_say_it_once(caplog: pytest.LogCaptureFixture) -> None:
    """Eight workers, one line; a second one when the last of them has its answer."""
    threads = 8
    all_wait, answered = threading.Barrier(threads), []

    def work() -> None:
        pauses = [0]

        def pause(seconds: float) -> None:
            pauses[0] += 1
            if pauses[0] == ATTEMPTS + 1:
                all_wait.wait()

        answered.append(retried(failing(ATTEMPTS + 1, TimeoutError()), patience=Patience(600, pause=pause), place="s3://lake/runs"))

    several = [threading.Thread(target=work) for _ in range(threads)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    assert answered == ["answer"] * threads
    assert len(caplog.messages) == 2
    assert "doesn't answer" in caplog.messages[0]
    assert "answers again" in caplog.messages[1]
    assert retry._waiting == {}


def test_whoever_ends_the_program_ends_the_waiting() -> None:
    """A thread in the middle of a pause of the real kind wakes up and gives up with the failure that it waited for."""
    failures, ended = [], threading.Event()

    def call() -> None:
        if len(failures) == 2:
            retry.stop_waiting()
        failures.append(1)
        raise ConnectionRefusedError("nobody there")

    def work() -> None:
        with pytest.raises(ConnectionRefusedError):
            retried(call, patience=LASTING, first_pause=0.0)
        ended.set()

    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert ended.is_set()
        assert len(failures) == 3
    finally:
        retry.wait_again()


def test_a_place_is_waited_for_once_it_has_answered() -> None:
    """The first look ends in seconds, for the name may be misspelt; who knows that it is there says so."""
    time = Time()
    new, known = Place("s3://typo", time.patience(600)), Place("s3://lake", time.patience(600, from_start=True))
    with pytest.raises(TimeoutError):
        new.ask(failing(10**9, TimeoutError()))
    assert len(time.pauses) == ATTEMPTS - 1
    assert known.ask(failing(20, TimeoutError())) == "answer"
    for answer in (failing(0, TimeoutError()), failing(1, FileNotFoundError("no such key"))):
        met = Place("s3://lake", time.patience(600))
        with suppress(FileNotFoundError):  # an answer, too
            met.ask(answer)
        assert met.ask(failing(20, TimeoutError())) == "answer"
