"""Ctrl-C and SIGTERM while a query is on: what is said, what is kept, the exit code."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from commands import Command

import raystream as rs
from raystream.cli import main
from raystream.cli.terminal import Interruption, Leaving

MakeQuery = Callable[..., rs.Query]
ENDING = "raystream: interrupted; ending, again to stop at once\n"
RESUME = "raystream: interrupted; run the same command again to go on where it stopped\n"


@pytest.fixture
def gate(workplace: Path) -> Path:
    """A pipe that the model opens for each batch after the first unit's: it waits there while nobody holds the other end."""
    path = workplace / "gate"
    os.mkfifo(path)
    with (workplace / "user_nets.py").open("a") as source:
        source.write(
            "\n\nclass Gated(nn.Sequential):\n"
            "    batches = 0\n"
            "    def forward(self, x):\n"
            "        self.batches += 1\n"
            "        if self.batches > 15:\n"
            f"            open({str(path)!r}).close()\n"
            "        return super().forward(x)\n\n\n"
            "def gated():\n"
            "    return Gated(*net())\n"
        )
    return path


@contextmanager
def opened(gate: Path) -> Iterator[None]:
    """Whoever waits at the gate, or comes to it, goes on."""
    descriptor = os.open(gate, os.O_RDWR)
    try:
        yield
    finally:
        os.close(descriptor)


def gated_query(folder: Path, address: str) -> list[str]:
    """The arguments of a query that scores a unit and then waits at the gate."""
    spec = {
        "pool": {"uri": "pool", "id": "rid", "inputs": ["x"]},
        "model": {"source": "user_nets:gated", "batch_size": 32},
        "select": {"budget": 12},
        "cluster": {"address": address, "workers": 1},
    }
    (folder / "query.yaml").write_text(yaml.safe_dump(spec))
    return ["query", "query.yaml", "--no-report", "--json"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_ray_scores_is_none_of_our_defects(
    workplace: Path, make_query: MakeQuery, gate: Path, how: signal.Signals
) -> None:
    """The signal reaches the driver while it waits in Ray: exit 130 or 143, and the same command reuses what was scored."""
    undisturbed = rs.run(make_query(store__uri="undisturbed"))
    arguments = gated_query(workplace, "local")
    command = Command(workplace, *arguments)
    command.wait_for_receipts(workplace / "runs", 1)
    command.process.send_signal(how)
    code, output, error = command.wait()
    assert (code, output) == (128 + how, ""), error
    assert error.endswith(ENDING + RESUME)
    with opened(gate):
        code, output, error = Command(workplace, *arguments).wait()
    assert code == 0, error
    summary = json.loads(output)
    assert (summary["units_reused"], summary["units_scored"]) == (1, 3)
    assert pq.read_table(summary["selection"]).equals(undisturbed.selection)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_ray_starts_ends_as_any_other(workplace: Path, gate: Path, how: signal.Signals) -> None:
    """Ray has a handler of SIGTERM of its own while it starts, which would exit with 15 and without a word."""
    command = Command(workplace, *gated_query(workplace, "local"))
    command.wait_until_it_says("Starting Ray workers")
    command.process.send_signal(how)
    code, _, error = command.wait()
    assert code == 128 + how, error
    assert error.endswith(ENDING + RESUME)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["auto", "in_process"])
def test_what_is_scored_is_kept_and_what_is_on_the_way_is_not_waited_for(
    workplace: Path, make_query: MakeQuery, gate: Path, address: str
) -> None:
    """The model is in the middle of a batch that never ends: the program ends all the same, and goes on another time."""
    undisturbed = rs.run(make_query(store__uri="undisturbed"))
    arguments = gated_query(workplace, address)
    command = Command(workplace, *arguments)
    command.wait_for_receipts(workplace / "runs", 1)
    command.process.send_signal(signal.SIGINT)
    code, output, error = command.wait()
    assert (code, output) == (130, "")
    assert error.endswith(ENDING + RESUME)
    with opened(gate):
        code, output, error = Command(workplace, *arguments).wait()
    assert code == 0, error
    summary = json.loads(output)
    assert (summary["units_reused"], summary["units_scored"]) == (1, 3)
    assert pq.read_table(summary["selection"]).equals(undisturbed.selection)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["local", "in_process"])
def test_a_second_ctrl_c_ends_at_once(workplace: Path, gate: Path, address: str) -> None:
    """Nothing is waited for any more: the unit on the way, behind a gate that never opens, is left undone."""
    command = Command(workplace, *gated_query(workplace, address))
    command.wait_for_receipts(workplace / "runs", 1)
    command.process.send_signal(signal.SIGINT)
    command.wait_until_it_says(ENDING)
    command.process.send_signal(signal.SIGINT)
    code, _, error = command.wait()
    assert code == 130
    assert error.endswith(ENDING + RESUME)
    assert len(list((workplace / "runs").rglob("embeddings-*.receipt.json"))) == 1


@pytest.fixture
def handlers() -> Iterator[None]:
    """The signals' handlers as they were, after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job of a shell ignores
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_whatever_becomes_of_the_interruption_it_is_one(
    how: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A library that turns it into an error of its own, as Ray does, or swallows it: still 130 or 143, and no talk of a defect."""

    def wrapped(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(how)
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr("raystream.cli.commands.app", wrapped)
    with pytest.raises(SystemExit) as ended:
        main(["version"])
    assert ended.value.code == 128 + how
    assert capfd.readouterr().err == ENDING + RESUME


@pytest.mark.usefixtures("handlers")
def test_the_twin_of_a_sigterm_is_no_second_one(capfd: pytest.CaptureFixture[str]) -> None:
    """`timeout` sends SIGTERM to its child and at the same moment to the child's group: the program still ends in order."""
    interruption = Interruption()
    interruption.heed()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert interruption.exit_code == 143
    assert capfd.readouterr().err == ENDING


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """A background job of a shell ignores SIGINT, and so does the program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Interruption().heed()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_worker_that_cannot_be_broken_off_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that waits for it, or shuts down under it, would hang or abort: the process ends without, with the same code."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", lambda code: ended.append(code))
    leaving, over = Leaving(), threading.Event()
    worker = threading.Thread(target=over.wait, name="raystream-worker", daemon=True)
    worker.start()
    leaving.exit(130)
    assert ended == [130]
    with pytest.raises(SystemExit):
        Leaving().exit(130)  # those of others, which were there before
    over.set()
    worker.join()
    with pytest.raises(SystemExit):
        leaving.exit(0)
    assert ended == [130]
