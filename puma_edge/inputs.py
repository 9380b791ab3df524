"""From items to the arrays an encoder takes: tokens, positions, patches, padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import InputError
from puma_edge.images import Patches, PixelLimits, UInt8, patchify
from puma_edge.prompts import Modality, PromptTokenizer
from puma_edge.tower import PLAIN, Tower

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]


class Positions(str, Enum):
    """How tokens are numbered: part of a model's identity, because the embeddings differ."""

    MROPE = "mrope"  # time, height and width, as Qwen-VL models were trained
    PLAIN = "1d"  # PUMA's released checkpoints


class Pooling(str, Enum):
    """Whose hidden state an embedding is made of: part of a model's identity."""

    RET = "ret"  # the `[RET]` token's


class Norm(str, Enum):
    """At which point of the decoder that state is taken: part of a model's identity."""

    FINAL = "final"  # after the final norm, before L2 normalisation


@dataclass(frozen=True)
class Item:
    """Something to embed: text, images or both; queries carry an instruction, candidates none.

    Attributes:
        text: any text, cut to the prompt format's limit.
        images: decoded RGB images, each [height, width, 3], uint8.
        instruction: what is looked for.

    """

    text: str | None = None
    images: tuple[UInt8, ...] = ()
    instruction: str | None = None

    @property
    def modality(self) -> Modality:
        """Text, image, or both."""
        return Modality.of(has_text=bool(self.text), has_image=bool(self.images))


@dataclass(frozen=True)
class Encoded:
    """One item, ready to be batched.

    Attributes:
        input_ids: [sequence].
        positions: [3, sequence]: time, height, width.
        images: the patches of each image, in the order of their tokens.
        image_places: [image tokens], where in the sequence they stand.

    """

    input_ids: Int64
    positions: Int64
    images: tuple[Patches, ...]
    image_places: Int64

    @property
    def length(self) -> int:
        """Tokens of the item."""
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    """A padded batch: what the vision and the text graph are fed.

    Shapes, for B items, S tokens, I images and at most P patches an image:

    Attributes:
        input_ids: int64 [B, S], padded on the right.
        attention_mask: int64 [B, S], 1 where there is a token.
        position_ids: int64 [3, B, S].
        image_index: int64 [B, S]: the row of the image tokens [I * P / 4] that stands at this
            place, I * P / 4 (one past the end: a row of zeros) where there is text.
        patches: uint8 [I, P, 588].
        patch_positions: int64 [I, P, 2]: row and column.
        n_patches: int64 [I]: how many of the P are real.
        image_sizes: (rows, columns) of patches for each image.
        tower: decides what else the vision graph is fed; see `puma_edge.feeds`.

    """

    input_ids: Int64
    attention_mask: Int64
    position_ids: Int64
    image_index: Int64
    patches: UInt8
    patch_positions: Int64
    n_patches: Int64
    image_sizes: tuple[tuple[int, int], ...]
    tower: Tower = PLAIN

    def __len__(self) -> int:
        """Items in the batch."""
        return len(self.input_ids)

    def image(self, number: int) -> Batch:
        """The same batch with one image alone, its padding cut off."""
        row, count = slice(number, number + 1), int(self.n_patches[number])
        return replace(
            self,
            patches=np.ascontiguousarray(self.patches[row, :count]),
            patch_positions=np.ascontiguousarray(self.patch_positions[row, :count]),
            n_patches=self.n_patches[row],
            image_sizes=self.image_sizes[row],
        )

    def real_patches(self) -> UInt8:
        """Join the patches of all images, padding left out: [patches, 588]."""
        keep = np.arange(self.patches.shape[1]) < self.n_patches[:, None]
        return self.patches[keep]


@dataclass(frozen=True)
class InputSpec:
    """Everything that decides how an item becomes arrays; hashed into the model's identity."""

    tokenizer: PromptTokenizer
    limits: PixelLimits
    positions: Positions
    tower: Tower = PLAIN

    def encode(self, item: Item) -> Encoded:
        """Tokens, positions and patches of one item.

        Raises:
            InputError: the item is empty, or an image's shape is refused.

        """
        if not item.text and not item.images:
            raise InputError("an item needs text or an image, and has neither")
        images = tuple(patchify(image, self.limits) for image in item.images)
        return self.encode_patches(item.instruction, item.text, images)

    def encode_patches(
        self, instruction: str | None, text: str | None, images: tuple[Patches, ...]
    ) -> Encoded:
        """As `encode`, from images that are cut already."""
        merged = self.limits.merge_size**2
        counts = tuple(len(image.pixels) // merged for image in images)
        ids = self.tokenizer.encode(instruction, text, counts)
        sizes = [(image.rows, image.columns) for image in images]
        is_image = ids == self.tokenizer.image_pad_id
        if self.positions is Positions.MROPE:
            positions = rope_positions(is_image, sizes, self.limits.merge_size)
        else:
            positions = np.tile(np.arange(len(ids), dtype=np.int64), (3, 1))
        return Encoded(ids, positions, images, np.flatnonzero(is_image))

    def collate(self, items: Sequence[Encoded]) -> Batch:
        """Pad items to one batch."""
        return collate(items, self.tokenizer.pad_id, self.limits, self.tower)


def rope_positions(
    is_image: NDArray[np.bool_], sizes: Sequence[tuple[int, int]], merge_size: int
) -> Int64:
    """M-RoPE positions [3, sequence], equal to `get_rope_index` of all three families.

    Text counts on by one in all three rows. The tokens of an image share one time, and take their
    row and column added to it; the text after it goes on from the larger of the two sides.

    Args:
        is_image: [sequence], True at image tokens.
        sizes: patch rows and columns of each image.
        merge_size: patches per edge of a token.

    """
    pieces: list[Int64] = []
    start, done = 0, 0
    for rows, columns in sizes:
        height, width = rows // merge_size, columns // merge_size
        first = done + int(np.argmax(is_image[done:]))
        pieces.append(np.broadcast_to(np.arange(start, start + first - done), (3, first - done)))
        start += first - done
        grid = np.indices((1, height, width)).reshape(3, -1)
        pieces.append(start + grid)
        start += max(height, width)
        done = first + height * width
    rest = len(is_image) - done
    pieces.append(np.broadcast_to(np.arange(start, start + rest), (3, rest)))
    return np.concatenate(pieces, axis=1).astype(np.int64, copy=False)


def patch_positions(rows: int, columns: int, merge_size: int) -> Int64:
    """Row and column [rows * columns, 2] of each patch, in the order `patchify` cuts them."""
    grid = np.indices((rows, columns), dtype=np.int64)
    blocks = grid.reshape(2, rows // merge_size, merge_size, columns // merge_size, merge_size)
    places: Int64 = blocks.transpose(1, 3, 2, 4, 0).reshape(-1, 2)
    return places


def _cuts(item: Encoded, merged: int) -> list[int]:
    counts = np.cumsum([len(image.pixels) // merged for image in item.images])
    return [int(count) for count in counts[:-1]]


def collate(
    items: Sequence[Encoded], pad_id: int, limits: PixelLimits, tower: Tower = PLAIN
) -> Batch:
    """Pad items to one batch; see `Batch` for the shapes."""
    size, longest = len(items), max(item.length for item in items)
    images = [image for item in items for image in item.images]
    most = max((len(image.pixels) for image in images), default=0)
    merged = limits.merge_size**2
    ids = np.full((size, longest), pad_id, np.int64)
    mask = np.zeros((size, longest), np.int64)
    positions = np.zeros((3, size, longest), np.int64)
    index = np.full((size, longest), len(images) * most // merged, np.int64)
    patches = np.zeros((len(images), most, 3 * limits.patch_size**2), np.uint8)
    places = np.zeros((len(images), most, 2), np.int64)
    for number, image in enumerate(images):
        patches[number, : len(image.pixels)] = image.pixels
        places[number, : len(image.pixels)] = patch_positions(
            image.rows, image.columns, limits.merge_size
        )
    number = 0
    for row, item in enumerate(items):
        ids[row, : item.length] = item.input_ids
        mask[row, : item.length] = 1
        positions[:, row, : item.length] = item.positions
        spans = np.split(item.image_places, _cuts(item, merged))
        for image, span in zip(item.images, spans, strict=False):
            count = len(image.pixels) // merged
            index[row, span] = np.arange(count) + number * (most // merged)
            number += 1
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        image_index=index,
        patches=patches,
        patch_positions=places,
        n_patches=np.asarray([len(image.pixels) for image in images], np.int64),
        image_sizes=tuple((image.rows, image.columns) for image in images),
        tower=tower,
    )
