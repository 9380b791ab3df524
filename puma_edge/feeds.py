"""What the graphs are fed: a batch's arrays, and the indices a graph must not compute itself.

Which patch lies in which window, or between which points of a learned grid, depends on the sizes
of the images. In a graph that would be shapes that depend on data; here it is a little arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.inputs import Batch, Float32, Int64
from puma_edge.tower import Tower

Feeds = dict[str, NDArray[Any]]


def vision_feeds(batch: Batch) -> Feeds:
    """What the vision graph takes of a batch that has images."""
    feeds = patch_feeds(batch)
    if batch.tower.window:
        feeds |= window_feeds(batch)
    if batch.tower.grid:
        feeds |= grid_feeds(batch)
    return feeds


def patch_feeds(batch: Batch) -> Feeds:
    """What every vision graph takes: pixels and places of I images of at most P patches."""
    return {
        "patches": batch.patches,
        "patch_positions": batch.patch_positions,
        "n_patches": batch.n_patches,
    }


def window_feeds(batch: Batch) -> Feeds:
    """Which patches attend to each other where attention is kept in windows (Qwen2.5-VL).

    An image is cut into windows from its upper left corner; those at its right and lower edge may
    be smaller. For W windows of at most S patches:

    Returns:
        window_patches: int64 [W, S], the patch at each place, counted over all images * P; 0 at
            places that stay empty.
        window_lengths: int64 [W], how many of the S places are taken.
        patch_places: int64 [images, P], the place of each patch, counted over W * S; 0 at padding.
    """
    edge = batch.tower.window
    room = edge**2
    most = batch.patches.shape[1]
    places = np.zeros(batch.patches.shape[:2], np.int64)
    patches, lengths = [np.zeros((0, room), np.int64)], [np.zeros(0, np.int64)]
    windows = 0
    for number, (rows, columns) in enumerate(batch.image_sizes):
        row, column = batch.patch_positions[number, : rows * columns].T
        window = row // edge * -(-columns // edge) + column // edge
        taken = np.bincount(window)
        order = np.argsort(window, kind="stable")
        slot = np.arange(len(order)) - np.repeat(np.cumsum(taken) - taken, taken)
        own = np.zeros((len(taken), room), np.int64)
        own[window[order], slot] = order + number * most
        places[number, order] = (window[order] + windows) * room + slot
        patches.append(own)
        lengths.append(taken)
        windows += len(taken)
    return {
        "window_patches": np.concatenate(patches),
        "window_lengths": np.concatenate(lengths).astype(np.int64, copy=False),
        "patch_places": places,
    }


def grid_feeds(batch: Batch) -> Feeds:
    """Where each patch lies on a learned grid of positions that spans its image (Qwen3-VL).

    The corners of image and grid coincide; between its points the grid is interpolated linearly.

    Returns:
        grid_index: int64 [images, P, 4], the four points around the patch; 0 at padding.
        grid_weights: float32 [images, P, 4], how much each of them counts.
    """
    side = batch.tower.grid
    shape = (*batch.patches.shape[:2], 4)
    index, weights = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for number, (rows, columns) in enumerate(batch.image_sizes):
        count = rows * columns
        row, column = batch.patch_positions[number, :count].T
        (above, down), (left, right) = _between(row, rows, side), _between(column, columns, side)
        index[number, :count] = (above[:, :, None] * side + left[:, None, :]).reshape(count, 4)
        weights[number, :count] = (down[:, :, None] * right[:, None, :]).reshape(count, 4)
    return {"grid_index": index, "grid_weights": weights}


def _between(places: Int64, length: int, side: int) -> tuple[Int64, Float32]:
    """The two points [n, 2] of a line of `side` around each of `length` places, and their shares.

    In single precision and in the reference's order of roundings.
    """
    exact = places.astype(np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
    first = np.floor(exact)
    points = np.minimum(first.astype(np.int64)[:, None] + np.arange(2), side - 1)
    distance = np.abs((exact - first)[:, None] - np.arange(2, dtype=np.float32))
    return points, np.maximum(1 - distance, np.float32(0))


def text_feeds(batch: Batch, image_tokens: Float32) -> Feeds:
    """What the text graph takes of a batch, with image tokens [rows, width] of the vision graph."""
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "image_tokens": image_tokens,
        "image_index": batch.image_index,
    }


def makers(tower: Tower) -> dict[str, dict[str, str]]:
    """Graph -> input -> the function of this module that makes it; the manifest records them."""
    vision = dict.fromkeys(("patches", "patch_positions", "n_patches"), "patch_feeds")
    if tower.window:
        own = ("window_patches", "window_lengths", "patch_places")
        vision |= dict.fromkeys(own, "window_feeds")
    if tower.grid:
        vision |= dict.fromkeys(("grid_index", "grid_weights"), "grid_feeds")
    names = ("input_ids", "attention_mask", "position_ids", "image_tokens", "image_index")
    return {"vision": vision, "text": dict.fromkeys(names, "text_feeds")}
