"""Commands in processes of their own, for tests that interrupt them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil


class Command:
    """`raystream ARGUMENTS` in a process of its own. Its output goes to files: helpers of Ray's outlive it and would hold a pipe open."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._output, self._error = folder / "stdout", folder / "stderr"
        with self._output.open("w") as output, self._error.open("w") as error:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raystream.cli", *arguments],
                cwd=folder,
                env=os.environ | {"RAY_AUTH_MODE": "disabled"} | dict(environment or {}),
                stdout=output,
                stderr=error,
                # A background job of a shell starts with SIGINT ignored, and so do its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        code = self.process.wait(timeout=120)
        return code, self._output.read_text(), self._error.read_text()

    def wait_until_it_says(self, words: str) -> None:
        """Wait for these words on stderr."""
        self._wait_until(lambda: words in self._error.read_text())

    def wait_for_receipts(self, store: Path, count: int) -> None:
        """Wait until so many units are in the store, with the embeddings, whose receipt comes last."""
        self._wait_until(lambda: len(list(store.rglob("embeddings-*.receipt.json"))) >= count)

    def _wait_until(self, true: Callable[[], bool]) -> None:
        while not true():
            assert self.process.poll() is None, self.wait()
            psutil.Process().cpu_percent(interval=0.01)
