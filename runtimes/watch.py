"""What a run tells of itself: what it will do, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is, in items to embed (equal contents once) and the bytes of their parts.

    Attributes:
        done: items embedded, or found to be broken.
        total: items of the run.
        done_bytes: bytes of the done ones.
        total_bytes: bytes of all.
        kept: items that are on the disk: what a run that is stopped here need not do again.

    """

    done: int
    total: int
    done_bytes: int
    total_bytes: int
    kept: int


@dataclass(frozen=True)
class Start:
    """What a run is about to do.

    Attributes:
        items: different contents to embed.
        size: bytes of their parts.
        resumed: others, which a run that was cut off has done.
        seconds: a guess of how long it takes; None where that is short or unknown.
        remark: what should be known of the rows that are kept; empty for nothing.

    """

    items: int
    size: int
    resumed: int
    seconds: float | None
    remark: str = ""


@dataclass(frozen=True)
class Watch:
    """Whom to tell.

    Attributes:
        begin: called once, before anything is embedded.
        progress: called after each batch.

    """

    begin: Callable[[Start], None] | None = None
    progress: Callable[[Progress], None] | None = None
