"""What the graphs are fed while their activations are watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from puma_edge.feeds import Feeds, vision_feeds
from puma_edge.inputs import Batch, Float32


def vision_readings(batches: Sequence[Batch]) -> Iterator[Feeds]:
    """Each image of `batches` alone and without padding, as feeds of the vision graph.

    Padding is left out because its activations, which no result depends on, would widen the ranges.
    """
    for batch in batches:
        for number in range(len(batch.n_patches)):
            yield vision_feeds(batch.image(number))


def text_readings(
    batches: Sequence[Batch], image_tokens: Sequence[Float32], width: int
) -> Iterator[Feeds]:
    """Each item of `batches` alone and without padding, as feeds of the text graph.

    Args:
        batches: padded batches.
        image_tokens: the tokens [n, width] of every image, in the order of `vision_readings`.
        width: length of a token.
    """
    done = 0
    for batch in batches:
        tokens = image_tokens[done : done + len(batch.n_patches)]
        done += len(tokens)
        table = _table(batch, tokens, width)
        for row, length in enumerate(batch.attention_mask.sum(1)):
            yield {
                "input_ids": batch.input_ids[row : row + 1, :length],
                "attention_mask": batch.attention_mask[row : row + 1, :length],
                "position_ids": batch.position_ids[:, row : row + 1, :length],
                "image_tokens": table,
                "image_index": batch.image_index[row : row + 1, :length],
            }


def _table(batch: Batch, tokens: Sequence[Float32], width: int) -> Float32:
    """Image tokens as the vision graph gives them for a padded batch: [images * P / 4, width]."""
    images, padded = batch.patches.shape[:2]
    if not images:
        return np.zeros((0, width), np.float32)
    merged = int(batch.n_patches[0]) // len(tokens[0])
    table = np.zeros((images, padded // merged, width), np.float32)
    for number, own in enumerate(tokens):
        table[number, : len(own)] = own
    return table.reshape(-1, width)
