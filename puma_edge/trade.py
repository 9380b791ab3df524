"""Which of several measured ways to serve is the better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Point:
    """One way to serve, measured.

    Attributes:
        bundle: the bundle's folder.
        layers: decoder layers.
        precision: of its graphs.
        pixels: largest area of an image.
        dimension: length of an embedding.
        recall: mean over the tasks.
        text_ms: median of one text query.
        image_ms: median of one picture query, at the pixel budget.
        peak_bytes: peak memory of the process that served both.
        file_bytes: size of the graphs.
        best: no other point has both more recall and less latency.
    """

    bundle: str
    layers: int
    precision: str
    pixels: int
    dimension: int
    recall: float
    text_ms: float
    image_ms: float
    peak_bytes: int
    file_bytes: int
    best: bool = False

    @property
    def latency_ms(self) -> float:
        """The slower of the two queries."""
        return max(self.text_ms, self.image_ms)


def front(points: Sequence[Point]) -> list[Point]:
    """The points by latency, those that no other beats in both recall and latency marked."""
    ordered = sorted(points, key=lambda one: (one.latency_ms, -one.recall))
    marked, highest = [], -1.0
    for one in ordered:
        marked.append(replace(one, best=one.recall > highest))
        highest = max(highest, one.recall)
    return marked


def pick(
    points: Sequence[Point], max_latency_ms: float | None, min_recall: float | None
) -> Point | None:
    """The best point within limits: most recall in the time, or least time for the recall.

    Args:
        points: measured.
        max_latency_ms: of the slower query.
        min_recall: as a share of the highest recall measured, 0 to 1. With both limits, recall is
            what is made most of.

    Returns:
        the point, or None if no point keeps the limits.
    """
    highest = max(one.recall for one in points)
    fits = [
        one
        for one in points
        if (max_latency_ms is None or one.latency_ms <= max_latency_ms)
        and (min_recall is None or one.recall >= min_recall * highest)
    ]
    if max_latency_ms is None:
        return min(fits, key=lambda one: (one.latency_ms, -one.recall), default=None)
    return max(fits, key=lambda one: (one.recall, -one.latency_ms), default=None)
