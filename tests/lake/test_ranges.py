"""Byte ranges fetched at the same time, and asking again: against plain bytes, without a server."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystream.lake import ranges, retry
from raystream.lake.ranges import Fetching, joined
from raystream.lake.retry import ATTEMPTS, is_final, reason, retried

DATA = bytes(range(256)) * 40
RANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 240)).map(lambda r: (r[0], r[0] + r[1])), min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.0)


@given(RANGES, st.integers(0, 300))
def test_joined_ranges_cover_what_is_wanted_and_little_more(wanted: list[tuple[int, int]], hole: int) -> None:
    """Every wanted byte is covered once, and unwanted ones only in holes of at most that size."""
    covered = [byte for start, stop in joined(wanted, hole) for byte in range(start, stop)]
    assert covered == sorted(set(covered))
    needed = {byte for start, stop in wanted for byte in range(start, stop)}
    assert needed <= set(covered)
    gaps = sorted(set(covered) - needed)
    longest = run = 0
    for at, byte in enumerate(gaps):
        run = run + 1 if at and gaps[at - 1] == byte - 1 else 1
        longest = max(longest, run)
    assert longest <= hole


@given(RANGES, st.integers(1, 50))
def test_fetched_bytes_are_the_files(wanted: list[tuple[int, int]], piece: int) -> None:
    """Whatever the pieces, and also outside the ranges, reading gives the file's own bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "PIECE", piece)
        file = Fetching(lambda count, at: DATA[at : at + count], len(DATA), wanted).wait()
    for start, stop in [*wanted, (0, 5), (len(DATA) - 3, len(DATA) + 9)]:
        file.seek(start)
        assert bytes(file.read(stop - start)) == DATA[start:stop]
        assert file.tell() == min(stop, len(DATA))


def test_a_short_answer_is_asked_for_again_and_counted() -> None:
    """Bytes that are cut short never reach the reader, however the connection ended."""
    lock, answers, told = threading.Lock(), [0], list[str]()

    def read_at(count: int, at: int) -> bytes:
        with lock:
            answers[0] += 1
            return DATA[at : at + count - 1] if answers[0] <= 2 else DATA[at : at + count]

    file = Fetching(read_at, len(DATA), [(10, 20)], told.append).wait()
    file.seek(10)
    assert bytes(file.read(10)) == DATA[10:20]
    assert told == ["9 bytes came of 10"] * 2


def test_asking_again_has_a_limit_and_stops_at_a_refusal() -> None:
    """What may pass is asked for a fixed number of times; what is final, once."""
    for error, times in ((OSError("connection reset"), ATTEMPTS), (FileNotFoundError("gone"), 1), (OSError("AWS Error ACCESS_DENIED"), 1)):
        asked = []

        def ask(error: OSError = error, asked: list[int] = asked) -> None:
            asked.append(1)
            raise error

        with pytest.raises(OSError, match=str(error)):
            retried(ask)
        assert len(asked) == times


def test_reasons_are_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a storage says, the first line is shown, and nothing that the environment holds as a secret."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    error = OSError("AWS Error EXPIRED_TOKEN: hunter2-hunter2 (Request ID: 18EA).\nStack\nTrace")
    assert reason(error) == "AWS Error EXPIRED_TOKEN: <AWS_SECRET_ACCESS_KEY>"
    assert is_final(error)
