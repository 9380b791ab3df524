"""What a vision tower takes and gives besides patches: the few numbers both halves must share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from puma_edge.images import IMAGE_MEAN, IMAGE_STD

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Tower:
    """How a tower differs from Qwen2-VL's, which is what the defaults describe.

    Attributes:
        window: patches per edge of an attention window; 0 where every patch sees its whole image.
        grid: positions per edge of the learned grid that is resampled to each image; 0 for none.
        features: DeepStack: features of inner layers that an image token carries behind its own
            values, one for each of the first decoder layers.
        mean: of the red, green and blue values the tower was trained with, in parts of 255.
        std: their standard deviations.

    """

    window: int = 0
    grid: int = 0
    features: int = 0
    mean: Triple = IMAGE_MEAN
    std: Triple = IMAGE_STD

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tower:
        """Read what `dataclasses.asdict` wrote, from JSON too."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


PLAIN = Tower()  # Qwen2-VL's
