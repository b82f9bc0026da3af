"""Pieces in processes that are lost at any moment, by plain calls: no process, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import data, pools

from raystream.choosing.holding import LOSSES, Host, Lost, ProcessRounds, Step
from raystream.errors import ClusterError, DataError
from raystream.selection import Candidates, Constraints, LocalShards, NearDuplicates, Rows, Shards, choose, farthest_first
from raystream.selection.lazy_bounds import Gain
from raystream.selection.rows import as_rows
from raystream.selection.strategies.core_set import score_weights
from raystream.store.vectors import MappedEmbeddings


class Losing:
    """Processes of this one that go, with what they hold, when they are told to: `loses(place, run)` is '', 'before' or 'after'."""

    def __init__(self, count: int, loses: Any = lambda place, run: "") -> None:
        self.hosts = [Host() for _ in range(count)]
        self.scripts: list[dict[int, list[Step]]] = []
        self._loses = loses

    def __len__(self) -> int:
        return len(self.hosts)

    def share(self, data: bytes) -> bytes:
        return data

    def run(self, scripts: Mapping[int, Sequence[Step]]) -> dict[int, bytes | Lost]:
        self.scripts.append({place: list(steps) for place, steps in scripts.items()})
        answers: dict[int, bytes | Lost] = {}
        for place, steps in scripts.items():
            when = self._loses(place, len(self.scripts))
            if when != "before":
                answers[place] = self.hosts[place].run(steps)
            if when:
                self.hosts[place] = None  # type: ignore[call-overload]
                answers[place] = Lost("its machine was taken away")
        return answers

    def renew(self, place: int) -> None:
        assert self.hosts[place] is None
        self.hosts[place] = Host()


class AtRandom:
    """Loses processes by chance, each of them as often as it may be lost."""

    def __init__(self, seed: int, share: float = 0.3) -> None:
        self._chance = np.random.default_rng(seed)
        self._share = share
        self._left: dict[int, int] = {}

    def __call__(self, place: int, run: int) -> str:
        left = self._left.setdefault(place, LOSSES - 1)
        if not left or self._chance.random() > self._share:
            return ""
        self._left[place] -= 1
        return str(self._chance.choice(["before", "after"]))


class Diary:
    """A piece that tells what it was told."""

    pure = frozenset({"read"})
    fresh = frozenset({"clear"})

    def __init__(self, owner: str, more: str) -> None:
        self._words = [owner, more]

    def write(self, word: str, own: str = "") -> int:
        self._words.append(word + own)
        return len(self._words)

    def clear(self) -> None:
        self._words = []

    def read(self) -> list[str]:
        return self._words

    def fail(self, why: str) -> None:
        raise DataError(why)

    def look(self) -> None:
        Path("/no/such/embeddings.arrow").read_bytes()


def spread(rows: Rows, places: Losing, memory: int = 1 << 30) -> tuple[Shards, ProcessRounds]:
    rounds = ProcessRounds(places)
    return Shards(rows, rounds.processes, rounds.spread, memory=memory, block=16), rounds


@settings(max_examples=60, deadline=None)
@given(
    pool=pools(),
    count=st.sampled_from([1, 2, 3, 7]),
    seed=st.integers(0, 10**6),
    weight=st.sampled_from([0.0, 1.5]),
    m=st.integers(0, 4),
    threshold=st.sampled_from([None, 0.9]),
    cached=st.booleans(),
)
def test_losses_at_any_moment_change_nothing(pool, count, seed, weight, m, threshold, cached):
    """Processes lost before or after they worked, up to twice each: rows, gains and distances are those of one process, bit for bit."""
    x, k = pool
    rng = np.random.default_rng(seed)
    options = {
        "gain": Gain(score_weights(rng.integers(0, 4, len(x)) / 3, weight, len(x))),
        "labelled": x[rng.integers(0, len(x), m)],
        "leaders": 6,
    }

    def constraints() -> Constraints:
        alike = None if threshold is None else NearDuplicates(threshold, x.shape[1], options["labelled"])
        return Constraints(k, near_duplicates=alike)

    shards, _ = spread(as_rows(x), Losing(count, AtRandom(seed)), memory=1 << 30 if cached else 0)
    found = farthest_first(shards, k, constraints=constraints(), **options)
    alone = farthest_first(LocalShards.of_array(x), k, constraints=constraints(), **options)
    np.testing.assert_array_equal(found.rows, alone.rows)
    np.testing.assert_array_equal(found.gain, alone.gain)
    np.testing.assert_array_equal(found.distance, alone.distance)


@pytest.mark.parametrize(("metric", "alike"), [("euclidean", 0.99), ("cosine", 0.99), ("cosine", None)])
def test_a_whole_choice_is_the_same(metric, alike):
    """What is reported of the batch, too: represents and the certificate come from the pieces, as do exact repeats."""
    x = data("duplicated", 500, 5, 3)
    score = np.random.default_rng(1).random(500)
    options = {"strategy": "core_set", "budget": 40, "weight": 0.5, "metric": metric, "near_duplicates": alike}
    shards, rounds = spread(as_rows(x, metric), Losing(3, AtRandom(5)))
    found = choose(Candidates(score=score, shards=shards, labelled=x[:3]), **options)
    alone = choose(Candidates(score=score, shards=LocalShards.of_array(x, metric=metric), labelled=x[:3]), **options)
    np.testing.assert_array_equal(found.rows, alone.rows)
    np.testing.assert_array_equal(found.represents, alone.represents)
    assert found.certificate == alone.certificate
    assert found.facts == alone.facts
    assert ("exact_repeats" in found.facts) == (alike is None)
    assert rounds.record.restarts > 0


def test_what_a_lost_process_is_told_again():
    """Its pieces are made by their factories, then told what changed them since the last call that forgets all before; nothing else."""
    places = Losing(2, lambda place, run: "before" if (place, run) == (1, 9) else "")
    rounds = ProcessRounds(places)
    one = rounds.spread(Diary, [("a", "0"), ("b", "1")])
    two = rounds.spread(Diary, [("c", "2"), ("d", "3")])
    one.call("write", "gone")
    one.call("clear")
    one.call("write", "kept ", apart=[("left",), ("right",)])
    two.call("write", "other")
    one.call("read")
    assert one.call("write", "more") == [2, 2]
    assert one.call("read") == [["kept left", "more"], ["kept right", "more"]]
    assert two.call("read") == [["c", "2", "other"], ["d", "3", "other"]]
    [again] = [script for script in places.scripts if 0 not in script]
    assert [(step.pieces, step.method) for step in again[1]] == [
        (0, None), (0, "clear"), (0, "write"), (0, "write"), (1, None), (1, "write"), (0, "read"),
    ]  # fmt: skip
    assert rounds.record.restarts == 1


def test_a_third_loss_of_one_process_is_the_end():
    """The error has exit code 5 and says what to do; losses of different processes don't add up."""
    rounds = ProcessRounds(Losing(3, lambda place, run: "before" if run <= 2 else ""))
    rounds.spread(Diary, [("a", "0")] * 3)
    assert rounds.record.restarts == 6
    rounds = ProcessRounds(Losing(3, lambda place, run: "after" if place == 1 else ""))
    with pytest.raises(ClusterError, match=r"selection actor 2 of 3 was lost 3 times, last: its machine was taken away; lower") as lost:
        rounds.spread(Diary, [("a", "0")] * 3)
    assert lost.value.exit_code == 5


def test_errors_of_ours_come_back_as_themselves():
    """What a piece raises is raised here, the first piece's if several do; a file that isn't there means that the store isn't shared."""
    pieces = ProcessRounds(Losing(2)).spread(Diary, [("a", "0"), ("b", "1")])
    with pytest.raises(DataError, match=r"^left$"):
        pieces.call("fail", apart=[("left",), ("right",)])
    with pytest.raises(ClusterError, match=r"can't see /no/such/embeddings.arrow; give store.uri a folder that every node shares"):
        pieces.call("look")
    x = data("normal", 40, 3, 0)
    x[30, 1] = np.nan
    with pytest.raises(DataError, match=r"1 candidate embeddings .* rows 30"):
        farthest_first(spread(as_rows(x), Losing(4))[0], 3)


def test_this_process_holds_no_more_than_a_round(monkeypatch, tmp_path):
    """Rounds and bytes are counted; no message comes near the data, which this process reads by row number only."""
    n, d, leaders, k = 8000, 16, 64, 30
    x = data("normal", n, d, 0)
    (tmp_path / "x").write_bytes(x.tobytes())
    rows = Rows([MappedEmbeddings(tmp_path / "x", 4 * d * first, n // 4, d, "float32") for first in range(0, n, n // 4)])
    places = Losing(3)
    shards, rounds = spread(rows, places)
    monkeypatch.setattr(rows, "blocks", None)
    first = rounds.record
    assert (first.actors, first.restarts, first.rounds) == (3, 0, 1)
    assert first.bytes < 3000
    found = farthest_first(shards, k, leaders=leaders)
    shards.cover(x[found.rows], k)
    record = rounds.record
    np.testing.assert_array_equal(found.rows, farthest_first(LocalShards.of_array(x), k).rows)
    assert record.rounds == len(record.bytes_per_round) == len(places.scripts) == 1 + 4 + found.passes + 1
    assert record.bytes == sum(record.bytes_per_round)
    answered = 8 * leaders * (4 * d + 16)  # the leaders double when few of them are taken
    asked = 3 * k * 4 * d
    assert max(record.bytes_per_round[1:]) < answered + asked + 3 * 2000 < x.nbytes / 4
