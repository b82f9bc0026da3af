"""Figures in words."""

from __future__ import annotations


def number_of(number: int, noun: str) -> str:
    """`1 unit`, `1,200 units`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def in_bytes(number: float) -> str:
    """`1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def in_seconds(seconds: float) -> str:
    """`12 s`, `34 min`, `5.6 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
