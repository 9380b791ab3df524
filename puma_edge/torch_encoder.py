"""The PyTorch baseline as an encoder like any other."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from puma_edge.frozen_vision import FrozenVision
from puma_edge.inputs import Batch, Float32
from puma_edge.model import ret_states


class TorchEncoder:
    """transformers' own modelling code, eager, in evaluation mode.

    Attributes:
        provider: "torch", the device and the dtype.
        dimension: length of an embedding.
    """

    def __init__(self, model: Any, vision: FrozenVision | None = None) -> None:
        """Take a `Qwen2VLModel`, where and in which dtype it lies.

        With `vision`, the tokens of images seen before are not computed again.
        """
        weight = next(model.parameters())
        self._model = model
        self._vision = vision
        self.dimension = int(model.config.text_config.hidden_size)
        self.provider = f"torch-{weight.device.type}-{str(weight.dtype).removeprefix('torch.')}"

    def encode(self, batch: Batch) -> Float32:
        """L2-normalised embeddings [B, d] of a batch."""
        self._model.eval()
        with torch.inference_mode():
            vision = self._vision(self._model, batch) if self._vision else None
            states = ret_states(self._model, batch, vision).float()
            result: Float32 = functional.normalize(states, dim=-1).cpu().numpy()
        return result
