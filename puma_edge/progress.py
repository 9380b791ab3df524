"""Progress on stderr: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from puma_edge.ranks import rank

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows how far a long piece of work has come, on the first rank; also a context manager."""

    def __init__(self, title: str, total: int) -> None:
        """Begin `title`, which consists of `total` steps."""
        self._title, self._total = title, total
        self._quiet = rank() > 0
        self._started = self._shown = time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty() and not self._quiet:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, note="")
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._shown > SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            self._line(f"{done}/{self._total} {note}".rstrip())

    def close(self, how: str = "done in") -> None:
        """Finish the bar, or print one last line."""
        if self._bar is not None:
            self._bar.stop()
        else:
            self._line(f"{how} {time.monotonic() - self._started:.0f} s")

    def _line(self, text: str) -> None:
        if not self._quiet:
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        """The progress itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it, whatever happened."""
        self.close()
