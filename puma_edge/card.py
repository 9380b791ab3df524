"""The card: what a checkpoint says of itself, beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from puma_edge.errors import PumaError
from puma_edge.images import PixelLimits
from puma_edge.inputs import Norm, Pooling, Positions
from puma_edge.prompts import PromptFormat

GENERIC_INSTRUCTIONS = {
    "text": "Find an image or text that matches this text.",
    "image": "Find an image or text that matches this image.",
    "image,text": "Find an image or text that matches this image and text.",
}


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of itself under the key "puma" of its `config.json`.

    Attributes:
        base_model: the name or folder it was made from.
        kept_layers: indices of the kept decoder layers in the base.
        total_layers: decoder layers of the base.
        positions: how tokens are numbered.
        pooling: whose hidden state is taken.
        norm: at which point of the decoder it is taken.
        limits: pixel limits.
        prompt: the prompt format.
        instructions: the generic instruction for each query modality.
        matryoshka: dimensions to which embeddings may be cut because training did so.
    """

    base_model: str
    kept_layers: tuple[int, ...]
    total_layers: int
    positions: Positions = Positions.MROPE
    pooling: Pooling = Pooling.RET
    norm: Norm = Norm.FINAL
    limits: PixelLimits = field(default_factory=PixelLimits)
    prompt: PromptFormat = field(default_factory=PromptFormat)
    instructions: dict[str, str] = field(default_factory=lambda: dict(GENERIC_INSTRUCTIONS))
    matryoshka: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Card:
        """Read what `dataclasses.asdict` wrote.

        Raises:
            PumaError: it holds what this version does not know, an unknown norm for one.
        """
        try:
            return cls(
                **{
                    **values,
                    "kept_layers": tuple(values["kept_layers"]),
                    "matryoshka": tuple(values.get("matryoshka", ())),
                    "positions": Positions(values["positions"]),
                    "pooling": Pooling(values.get("pooling", Pooling.RET)),
                    "norm": Norm(values.get("norm", Norm.FINAL)),
                    "limits": PixelLimits(**values["limits"]),
                    "prompt": PromptFormat(**values["prompt"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PumaError(
                f'the card under "puma" in config.json cannot be read ({error}); another version '
                "of puma-edge wrote it, or it is damaged: train or merge again with this one"
            ) from None
