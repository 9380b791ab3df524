"""Batches cut and padded to the few shapes that an engine keeps graphs for; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from puma_edge.errors import PumaError
from puma_edge.feeds import Feeds
from puma_edge.inputs import Batch, Int64


@dataclass(frozen=True)
class Room:
    """The largest shapes of one of an engine's profiles.

    Attributes:
        count: items of the text engine, images of the vision engine.
        length: tokens of an item, patches of an image.
    """

    count: int
    length: int


@dataclass(frozen=True)
class Bucket:
    """A padded shape.

    Attributes:
        items: texts.
        tokens: of each.
        images: 0 where there is none.
        patches: of each.
    """

    items: int
    tokens: int
    images: int
    patches: int


def split(batch: Batch, texts: Sequence[Room], vision: Room, merged: int) -> list[slice]:
    """Cut a batch into runs of items that each fit a profile.

    Args:
        batch: any batch.
        texts: profiles of the text engine.
        vision: the vision engine's.
        merged: patches of an image token.

    Raises:
        PumaError: one item alone is beyond every profile.
    """
    lengths, images = batch.attention_mask.sum(1), images_of(batch, merged)
    found: list[slice] = []
    start = 0
    for end in range(1, len(batch) + 1):
        # One longer item changes what all before it are padded to, so each run is tried whole.
        if end - start > 1 and not _fits(lengths, images, batch, slice(start, end), texts, vision):
            found.append(slice(start, end - 1))
            start = end - 1
        if end - start == 1 and not _fits(lengths, images, batch, slice(start, end), texts, vision):
            raise PumaError(_beyond(lengths, images, batch, start, texts, vision))
    return [*found, slice(start, len(batch))]


def _fits(
    lengths: Int64,
    images: Int64,
    batch: Batch,
    rows: slice,
    texts: Sequence[Room],
    vision: Room,
) -> bool:
    count, tokens = rows.stop - rows.start, int(lengths[rows].max())
    pictures, patches = _pictures(images, batch, rows)
    return (
        pictures <= vision.count
        and patches <= vision.length
        and any(count <= room.count and tokens <= room.length for room in texts)
    )


def _pictures(images: Int64, batch: Batch, rows: slice) -> tuple[int, int]:
    first, last = int(images[: rows.start].sum()), int(images[: rows.stop].sum())
    return last - first, int(batch.n_patches[first:last].max(initial=0))


def _beyond(
    lengths: Int64,
    images: Int64,
    batch: Batch,
    item: int,
    texts: Sequence[Room],
    vision: Room,
) -> str:
    pictures, patches = _pictures(images, batch, slice(item, item + 1))
    return (
        f"an item of {int(lengths[item])} tokens and {pictures} images of up to {patches} patches "
        f"is beyond the engine's profiles ({max(room.length for room in texts)} tokens, "
        f"{vision.count} images of {vision.length} patches); shorten it, or take --runtime ort"
    )


def images_of(batch: Batch, merged: int) -> Int64:
    """How many images [B] each item has; every image has a token in its item."""
    each, end = _token_grid(batch, merged)
    starts = (batch.image_index < end) & (batch.image_index % max(each, 1) == 0)
    return np.asarray(starts.sum(1), np.int64)


def _token_grid(batch: Batch, merged: int) -> tuple[int, int]:
    """Rows of image tokens that an image takes, and all of them take."""
    each = batch.patches.shape[1] // merged
    return each, len(batch.n_patches) * each


def take(batch: Batch, rows: slice, merged: int) -> Batch:
    """Some neighbouring items of a batch, padded no longer than they need."""
    each, end = _token_grid(batch, merged)
    images = images_of(batch, merged)
    first, last = int(images[: rows.start].sum()), int(images[: rows.stop].sum())
    tokens = int(batch.attention_mask[rows].sum(1).max())
    patches = int(batch.n_patches[first:last].max(initial=0))
    index = batch.image_index[rows, :tokens]
    own = replace(
        batch,
        input_ids=batch.input_ids[rows, :tokens],
        attention_mask=batch.attention_mask[rows, :tokens],
        position_ids=batch.position_ids[:, rows, :tokens],
        image_index=index,
        patches=batch.patches[first:last, :patches],
        patch_positions=batch.patch_positions[first:last, :patches],
        n_patches=batch.n_patches[first:last],
        image_sizes=batch.image_sizes[first:last],
    )
    new, size = patches // merged, (last - first) * (patches // merged)
    moved = (index // max(each, 1) - first) * new + index % max(each, 1)
    return replace(own, image_index=np.where(index < end, moved, size))


def bucket_of(batch: Batch, texts: Sequence[Room], vision: Room) -> tuple[Bucket, int]:
    """The shape to pad a batch to, and the first text profile that holds it.

    Counts go up to powers of two, lengths to steps: few shapes, and little padding.

    Raises:
        PumaError: no profile holds the batch; see `split`.
    """
    items, tokens = batch.input_ids.shape
    images, patches = batch.patches.shape[:2]
    if images:
        images, patches = _round(images, patches, vision)
    for number, room in enumerate(texts):
        if items <= room.count and tokens <= room.length:
            items, tokens = _round(items, tokens, room)
            return Bucket(items, tokens, images, patches if images else 0), number
    raise PumaError(f"{items} items of {tokens} tokens are beyond the engine's profiles")


def _round(count: int, length: int, room: Room) -> tuple[int, int]:
    step = 16 if length <= 128 else 64
    power = 1 << (count - 1).bit_length()
    return min(power, room.count), min(-(-length // step) * step, room.length)


def pad(batch: Batch, bucket: Bucket, merged: int) -> Batch:
    """A batch of exactly a bucket's shape; its first rows embed as they did.

    What is added: items of one token, images of one token, and padding behind the rest.
    """
    items, tokens = batch.input_ids.shape
    images, patches = batch.patches.shape[:2]
    each, end = _token_grid(batch, merged)
    new, size = bucket.patches // merged, bucket.images * (bucket.patches // merged)
    text = ((0, bucket.items - items), (0, bucket.tokens - tokens))
    mask = np.pad(batch.attention_mask, text)
    mask[items:, 0] = 1
    index = np.full((bucket.items, bucket.tokens), size, np.int64)
    old = batch.image_index
    moved = old // max(each, 1) * new + old % max(each, 1)
    index[:items, :tokens] = np.where(old < end, moved, size)
    vision = ((0, bucket.images - images), (0, bucket.patches - patches), (0, 0))
    return replace(
        batch,
        input_ids=np.pad(batch.input_ids, text),
        attention_mask=mask,
        position_ids=np.pad(batch.position_ids, ((0, 0), *text)),
        image_index=index,
        patches=np.pad(batch.patches, vision),
        patch_positions=np.pad(batch.patch_positions, vision),
        n_patches=np.pad(batch.n_patches, vision[0], constant_values=merged),
        image_sizes=(*batch.image_sizes, *[(0, 0)] * (bucket.images - images)),
    )


def pad_windows(feeds: Feeds, most: int) -> Feeds:
    """What the vision engine is fed, with empty windows behind a Qwen2.5-VL's own.

    How many windows images have depends on their sides too, not on their patches alone.

    Args:
        feeds: of `puma_edge.feeds.vision_feeds`.
        most: windows that the engine's profile has room for.
    """
    windows = len(feeds["window_patches"])
    more = min(-(-windows // 16) * 16, most) - windows
    return feeds | {
        "window_patches": np.pad(feeds["window_patches"], ((0, more), (0, 0))),
        # One place is taken, so that softmax has something to add up.
        "window_lengths": np.pad(feeds["window_lengths"], (0, more), constant_values=1),
    }
