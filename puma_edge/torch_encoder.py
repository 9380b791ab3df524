"""The PyTorch baseline as an encoder like any other."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from puma_edge.inputs import Batch, Float32
from puma_edge.model import ret_states


class TorchEncoder:
    """transformers' own modelling code, eager, in evaluation mode.

    Attributes:
        provider: "torch", the device and the dtype.
        dimension: length of an embedding.
    """

    def __init__(self, model: Any) -> None:
        """Take a `Qwen2VLModel`, where and in which dtype it lies."""
        weight = next(model.parameters())
        self._model = model
        self.dimension = int(model.config.text_config.hidden_size)
        self.provider = f"torch-{weight.device.type}-{str(weight.dtype).removeprefix('torch.')}"

    def encode(self, batch: Batch) -> Float32:
        """L2-normalised embeddings [B, d] of a batch."""
        self._model.eval()
        with torch.inference_mode():
            states = ret_states(self._model, batch).float()
            result: Float32 = functional.normalize(states, dim=-1).cpu().numpy()
        return result
