"""The vision tower's tokens, computed once an image: PUMA's training never changes the tower."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from puma_edge.inputs import Batch
from puma_edge.model import vision_tokens


class FrozenVision:
    """Remembers the tokens of the images it has seen, by content, while there is room.

    Teacher, cut and student, queries and candidates, every epoch: they all see the same tokens.
    """

    def __init__(self, room: int = 2**30) -> None:
        """Keep at most `room` bytes of tokens, in the computer's memory."""
        self._room = room
        self._known: dict[bytes, Tensor] = {}

    def __call__(self, model: Any, batch: Batch) -> Tensor | None:
        """The image tokens [image tokens, hidden] of a batch, in order; None without images.

        `model` must have the same vision tower each time.
        """
        if not batch.image_sizes:
            return None
        images = [
            pixels[:count] for pixels, count in zip(batch.patches, batch.n_patches, strict=True)
        ]
        keys = [
            hashlib.blake2b(pixels.tobytes() + repr(size).encode(), digest_size=16).digest()
            for pixels, size in zip(images, batch.image_sizes, strict=True)
        ]
        tokens = {key: self._known[key] for key in keys if key in self._known}
        # One entry a key: an image that stands twice in the batch is computed once.
        missing = {key: place for place, key in enumerate(keys) if key not in tokens}
        if missing:
            places = list(missing.values())
            sizes = [batch.image_sizes[place] for place in places]
            # Ordinary tensors, also where an encoder asks: training cannot use inference tensors.
            # And the same tokens in training, whose autocast is not theirs, as before it.
            device = next(model.parameters()).device
            plain = torch.autocast(device.type, enabled=False)
            with torch.inference_mode(False), torch.no_grad(), plain:
                found = vision_tokens(model, [images[place] for place in places], sizes)
            for key, one in zip(missing, found, strict=True):
                tokens[key] = one
                self._keep(key, one)
        device = next(model.parameters()).device
        return torch.cat([tokens[key].to(device) for key in keys])

    def _keep(self, key: bytes, tokens: Tensor) -> None:
        size = tokens.nbytes
        if size <= self._room:
            self._room -= size
            self._known[key] = tokens.to("cpu", copy=True)  # no view of the whole batch's
