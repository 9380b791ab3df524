"""Layers that go back to float where INT8 fails the gate: the dearest first, a bounded number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from puma_edge.calibration.sensitivity import Cost
from puma_edge.export.parity import Parity
from puma_edge.retrieval import mean_agreement, mean_recall


@dataclass(frozen=True)
class Fallback:
    """What was kept in float, what that gained, and what it cost.

    Attributes:
        tried: how many groups were kept in each try.
        of: how many groups there are.
        kept: those of the last try, the dearest first.
        bytes_added: by which the graphs grew.
        before: the comparison without exceptions.
        after: the comparison with them.
    """

    tried: tuple[int, ...]
    of: int
    kept: tuple[Cost, ...]
    bytes_added: int
    before: Parity
    after: Parity

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "passed": self.after.passed,
            "tried": list(self.tried),
            "groups": self.of,
            "kept": [cost.to_json() for cost in self.kept],
            "bytes_added": self.bytes_added,
            "before": _summary(self.before),
            "after": _summary(self.after),
        }

    def describe(self) -> str:
        """One line for people."""
        before, after = _summary(self.before), _summary(self.after)
        changes = [f"{name} {before[name]:.4f} -> {after[name]:.4f}" for name in before]
        weights = ", ".join(name for cost in self.kept for name in cost.unit.weights)
        return (
            f"{len(self.kept)} of {self.of} groups kept in float, {self.bytes_added / 1e6:+.2f} MB;"
            f" {'; '.join(changes)}: {weights}"
        )


def _summary(parity: Parity) -> dict[str, float]:
    told = {"mean_cosine": parity.mean_cosine, "worst_cosine": parity.worst_cosine}
    if parity.pairs:
        told["rank_agreement"] = mean_agreement(parity.pairs)
    recall = mean_recall(parity.pairs)
    return told if recall is None else told | {"recall": recall[0]}


def counts(groups: int, tries: int, share: float) -> list[int]:
    """How many groups each try keeps: twice as many every time, `share` of all in the last."""
    found = [math.ceil(groups * share / 2**left) for left in reversed(range(tries))]
    return sorted({min(count, groups) for count in found if count > 0})


def keep_until_passed(
    before: Parity,
    plain_bytes: int,
    write: Callable[[frozenset[str]], int],
    check: Callable[[], Parity],
    costs: Sequence[Cost],
    tries: Sequence[int],
) -> Fallback:
    """Keep more and more of the dearest groups until the gate passes, or the tries are used up.

    Args:
        before: the failed comparison.
        plain_bytes: size of the graphs without exceptions.
        write: writes the graphs with these weights in float; returns their bytes.
        check: compares what was written.
        costs: all groups, the dearest first.
        tries: how many groups each try keeps; not empty.
    """
    for number, count in enumerate(tries, start=1):
        kept = tuple(costs[:count])
        size = write(frozenset(name for cost in kept for name in cost.unit.weights))
        after = check()
        if after.passed or number == len(tries):
            break
    return Fallback(tuple(tries[:number]), len(costs), kept, size - plain_bytes, before, after)
