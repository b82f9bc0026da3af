"""What a check of `raystream doctor` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "skip", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was looked at, what was found, and for a `warn` or `fail` what to do about it.

    `exit_code` is that of the command when this fails.
    """

    name: str
    verdict: Verdict
    found: str
    exit_code: int = 0
