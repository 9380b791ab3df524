"""An embedding run as a person follows it, on stderr."""

from __future__ import annotations

from puma_edge.progress import Progress
from puma_edge.report import counted, say
from puma_edge.runtimes.watch import Progress as Done
from puma_edge.runtimes.watch import Start, Watch


class Embedding:
    """Shows an embedding run: what it will do, how far it is, and what of it a Ctrl-C leaves."""

    def __init__(self, title: str) -> None:
        """Wait for the run to begin."""
        self.watch = Watch(self._begin, self._update)
        self._title = title
        self._progress: Progress | None = None
        self._kept = self._total = 0

    def _begin(self, start: Start) -> None:
        resumed = f", {start.resumed} are there from a run before" if start.resumed else ""
        guess = "" if start.seconds is None else f", about {duration(start.seconds)}"
        items = counted(start.items, "different item")
        say(f"to embed: {items}, {start.size / 1e6:.1f} MB{guess}{resumed}")
        if start.remark:
            say(start.remark)
        self._progress = Progress(self._title, start.items + start.resumed)

    def _update(self, state: Done) -> None:
        self._kept, self._total = state.kept, state.total
        if self._progress is not None:
            self._progress.update(state.done)

    def __enter__(self) -> Embedding:
        """The display itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close it; after Ctrl-C, say what is kept."""
        if self._progress is not None:
            self._progress.close("done in" if kind is None else "stopped after")
        if kind is KeyboardInterrupt:
            say(f"{self._kept} of {self._total} items are done and kept")


def duration(seconds: float) -> str:
    """`40 s`, `12 minutes`, `3.5 hours`: rounded, for people to plan with."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
