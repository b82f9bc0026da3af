"""How far a run is, in a notebook: a line and a bar below the cell, gone when the run ends."""

from __future__ import annotations

import html
import time
from types import TracebackType
from typing import Any

from raystream.scoring.progress import ScoringProgress

_SECONDS = 0.2
"""Between two drawings at least."""


class NotebookBar:
    """Tells how far a run is; use as a context manager, in a process of IPython's."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._text, self._last = "", 0.0

    def __enter__(self) -> NotebookBar:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._draw("")

    def stage(self, text: str) -> None:
        self._text = text
        self._draw(html.escape(text))

    def units(self, progress: ScoringProgress) -> None:
        if time.monotonic() - self._last < _SECONDS and progress.units < progress.of_units:
            return
        bar = f'<progress value="{progress.rows}" max="{progress.of_rows}" style="vertical-align: middle"></progress>'
        facts = [f"{progress.units:,}/{progress.of_units:,} units", *progress.words]
        self._draw(f"{html.escape(self._text)} {bar} {', '.join(facts)}")

    def _draw(self, content: str) -> None:
        self._last = time.monotonic()
        self._handle.update(self._html(content))
