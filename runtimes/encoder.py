"""What every engine looks like to the rest of the project."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puma_edge.inputs import Batch

Float32 = NDArray[np.float32]


class Encoder(Protocol):
    """Turns batches into embeddings; one implementation per engine.

    Attributes:
        provider: the engine and the device it runs on, as printed and recorded.
        dimension: length of an embedding.
    """

    @property
    def provider(self) -> str:
        """The engine and the device it runs on."""
        ...

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        ...

    def encode(self, batch: Batch) -> Float32:
        """Embeddings [B, dimension] of a batch, L2-normalised."""
        ...
