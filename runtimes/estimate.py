"""How long a run will take, from a few items of each kind tried beforehand."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from puma_edge.inputs import Encoded, InputSpec
from puma_edge.prompts import Modality
from puma_edge.resize import Resizer
from puma_edge.runtimes.documents import Document
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.feeder import prepare
from puma_edge.runtimes.fleet import Fleet
from puma_edge.runtimes.plan import Budget

SHORT = 64  # items: what is over before it could be estimated
_TRIED = 4  # items of each modality
_BATCH = Budget().least  # tokens and patches: larger batches are no quicker


def estimate(
    root: Path,
    spec: InputSpec,
    encoder: Encoder,
    documents: Sequence[Document],
    feeders: int,
    resizer: Resizer,
) -> float | None:
    """Guess the seconds that these documents will take; None for a few, or where none can be read.

    Items from the whole range are tried, each in a batch of its like: alone, small ones would take
    several times as long as they will. The first call of anything is not timed: it may import a
    decoder, load a graph, or make room.
    """
    if len(documents) < SHORT:
        return None
    seconds = 0.0
    for modality in Modality:
        these = [item for item in documents if item.modality is modality]
        if not these:
            continue
        chosen = these[:: max(1, len(these) // _TRIED)][:_TRIED]
        prepare(root, chosen[0], spec, resizer)
        began = time.perf_counter()
        entries = [prepare(root, item, spec, resizer) for item in chosen]
        reading = (time.perf_counter() - began) / len(chosen) / max(1, feeders)
        ready = [entry for entry in entries if isinstance(entry, Encoded)]
        if ready:
            seconds += len(these) * (reading + _encoding(spec, encoder, ready))
    # Several machines share the work, and are as fast as the one that was tried.
    many = encoder.size if isinstance(encoder, Fleet) else 1
    return seconds / many or None


def _encoding(spec: InputSpec, encoder: Encoder, entries: Sequence[Encoded]) -> float:
    """Time the encoder: seconds an item."""
    costs = [entry.length + sum(len(image.pixels) for image in entry.images) for entry in entries]
    counts = [max(1, _BATCH // cost) for cost in costs]
    batches = [spec.collate([entry] * n) for entry, n in zip(entries, counts, strict=True)]
    encoder.encode(batches[costs.index(max(costs))])
    seconds = 0.0
    for batch in batches:
        began = time.perf_counter()
        encoder.encode(batch)
        seconds += (time.perf_counter() - began) / len(batch)
    return seconds / len(batches)
