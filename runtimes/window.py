"""One window's documents -> its shard: what every run does, on one machine or on many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from puma_edge.errors import PumaError
from puma_edge.inputs import Encoded, Float32, InputSpec
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.plan import Budget, Cost, batches
from puma_edge.runtimes.shards import Batches, Shard


def encode_window(
    entries: Sequence[Encoded | str],
    spec: InputSpec,
    encoder: Encoder,
    budget: Budget,
    tick: Callable[[Sequence[int]], None],
    done: Batches | None = None,
) -> Shard:
    """Embed what could be prepared, in batches that depend on nothing but the window.

    Args:
        entries: each document's tokens and patches, or why there are none.
        spec: how items become arrays.
        encoder: the model.
        budget: how large a batch may get.
        tick: told the places in the window that are done, after each batch.
        done: batches that are known; gets those that are made.

    Raises:
        PumaError: the encoder's answer has the wrong shape.

    """
    failed = {place: entry for place, entry in enumerate(entries) if isinstance(entry, str)}
    ready = [(place, entry) for place, entry in enumerate(entries) if isinstance(entry, Encoded)]
    tick(list(failed))
    vectors = np.zeros((len(entries), encoder.dimension), np.float32)
    costs = [Cost(entry.length, sum(len(i.pixels) for i in entry.images)) for _, entry in ready]
    done = {} if done is None else done
    for batch in batches(costs, budget):
        places = tuple(ready[item][0] for item in batch)
        if places not in done:
            done[places] = _rows([ready[item][1] for item in batch], spec, encoder)
        vectors[list(places)] = done[places]
        for place in np.asarray(places)[~np.isfinite(done[places]).all(axis=1)]:
            failed[int(place)] = "the model gave no finite embedding; try --precision fp32"
        tick(places)
    kept = [place for place in range(len(entries)) if place not in failed]
    return Shard(vectors[kept], dict(sorted(failed.items())))


def _rows(items: Sequence[Encoded], spec: InputSpec, encoder: Encoder) -> Float32:
    """Embed one batch: [items, d]."""
    rows = encoder.encode(spec.collate(items))
    if rows.shape != (len(items), encoder.dimension):
        raise PumaError(
            f"{encoder.provider} returned embeddings of shape {rows.shape}, "
            f"expected {(len(items), encoder.dimension)}; export the bundle again"
        )
    return np.array(rows, np.float32)  # of our own: an engine may use its memory again
