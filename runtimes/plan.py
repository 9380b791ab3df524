"""Which items share a shard, and which a batch: pure functions, so that runs repeat exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puma_edge.images import PixelLimits
from puma_edge.prompts import Modality
from puma_edge.runtimes.documents import Document

# Sorting 2,048 texts by length is enough to pad by a few percent; a window is also a shard, the
# most that a killed run loses: about a minute of a 2B model on two cores.
TEXT_WINDOW = 2048
IMAGE_WINDOW = 256
IMAGE_WINDOW_BYTES = 96 * 2**20


@dataclass(frozen=True)
class Budget:
    """How large a padded batch may get.

    Attributes:
        text_tokens: padded tokens of a batch of texts.
        image_tokens: padded tokens and patches of a batch with images.
        attention: patches squared, summed over the padded images of a batch: with 16 heads in
            float32 the vision tower's attention takes 64 bytes for each.
        least: tokens and patches after which a batch gains nothing by growing, and so ends where
            the next item, which is longer, would make all the others longer too.
        padding: share of padding that such an end allows.

    """

    text_tokens: int = 4096
    image_tokens: int = 8192
    attention: int = 4 * 1200**2
    least: int = 512
    padding: float = 0.04


@dataclass(frozen=True)
class Cost:
    """What one item costs: its tokens, and the patches of its image (0 where there is none)."""

    tokens: int
    patches: int = 0


def window_size(modality: Modality, limits: PixelLimits) -> int:
    """Bound the items of a window; images are held as patches, so theirs are bounded in bytes."""
    if modality is Modality.TEXT:
        return TEXT_WINDOW
    return min(IMAGE_WINDOW, max(8, IMAGE_WINDOW_BYTES // (3 * limits.max_pixels)))


def windows(documents: Sequence[Document], limits: PixelLimits) -> list[list[int]]:
    """Cut the documents into windows of one modality each; equal contents appear once.

    A window ends where it is full, or past its half where the content itself says so: a file that
    comes or goes then moves the borders near it, not those of every window after it.

    Returns:
        Positions in `documents`, which come sorted with each modality in one piece.

    """
    found: list[list[int]] = []
    seen: set[str] = set()
    open_window = False
    for position, document in enumerate(documents):
        if document.content in seen:
            continue
        seen.add(document.content)
        if not open_window or documents[found[-1][0]].modality is not document.modality:
            found.append([])
        found[-1].append(position)
        most = window_size(document.modality, limits)
        here = int(document.content[:8], 16) % max(1, most // 4) == 0
        open_window = len(found[-1]) < (most // 2 if here else most)
    return found


def batches(costs: Sequence[Cost], budget: Budget) -> list[list[int]]:
    """Cut a window into batches of items of like length, each within the budget (or alone).

    Returns:
        Positions in `costs`.

    """
    order = sorted(range(len(costs)), key=lambda item: (costs[item].patches, costs[item].tokens))
    found: list[list[int]] = []
    tokens = patches = real = 0
    for item in order:
        own = costs[item].tokens + costs[item].patches
        tokens, patches = max(tokens, costs[item].tokens), max(patches, costs[item].patches)
        count = len(found[-1]) + 1 if found else 0
        wasted = count * (tokens + patches) - (real + own)
        full = real >= budget.least and wasted > budget.padding * (real + own)
        if not found or full or not _fits(count, tokens, patches, budget):
            found.append([])
            tokens, patches, real = costs[item].tokens, costs[item].patches, 0
        found[-1].append(item)
        real += own
    return found


def _fits(count: int, tokens: int, patches: int, budget: Budget) -> bool:
    if not patches:
        return count * tokens <= budget.text_tokens
    return (
        count * (tokens + patches) <= budget.image_tokens and count * patches**2 <= budget.attention
    )
