"""A merged model as a module of sentence-transformers, which this file alone needs.

from sentence_transformers import SentenceTransformer
from puma_edge.sentence_transformer import PumaModule

model = SentenceTransformer(modules=[PumaModule.load("merged")])
model.encode(["a fox", {"text": "in blue", "image": picture}])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sentence_transformers.base.modules import InputModule
from torch.nn import functional

from puma_edge.decoding import decode
from puma_edge.errors import InputError
from puma_edge.inputs import Item
from puma_edge.model import Checkpoint, load, ret_states, save


class PumaModule(InputModule):  # type: ignore[misc]
    """Texts, pictures, and {"text", "image"} of both in; L2-normalised embeddings out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Take a loaded model."""
        super().__init__()
        self.model = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        self._checkpoint = checkpoint

    @classmethod
    def load(cls, model_name_or_path: str, **given: Any) -> PumaModule:
        """Load a merged model's folder; what else sentence-transformers gives is not needed."""
        return cls(load(model_name_or_path))

    @property
    def modalities(self) -> list[Any]:
        """What may be given."""
        return ["text", "image", ("image", "text")]

    def get_embedding_dimension(self) -> int:
        """Length of an embedding."""
        return self._checkpoint.dimension

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **given: Any
    ) -> dict[str, Any]:
        """One batch, through the one preprocessing there is; a prompt is the instruction."""
        spec = self._checkpoint.spec
        return {"batch": spec.collate([spec.encode(_item(one, prompt)) for one in inputs])}

    def forward(self, features: dict[str, Any], **given: Any) -> dict[str, Any]:
        """Embeddings [B, d] as "sentence_embedding"."""
        states = ret_states(self.model, features["batch"]).float()
        return {**features, "sentence_embedding": functional.normalize(states, dim=-1)}

    def save(self, output_path: str, *args: Any, **given: Any) -> None:
        """Write the model's folder."""
        save(self._checkpoint, Path(output_path))


def _item(given: Any, instruction: str | None) -> Item:
    parts = given if isinstance(given, Mapping) else {}
    if isinstance(given, str):
        parts = {"text": given}
    elif isinstance(given, Image.Image):
        parts = {"image": given}
    if not parts or set(parts) - {"text", "image"}:
        raise InputError(f"{type(given).__name__} given; expected a text, a picture, or both")
    images = (_pixels(parts["image"]),) if parts.get("image") is not None else ()
    return Item(parts.get("text"), images, instruction or None)


def _pixels(image: Any) -> Any:
    if isinstance(image, str | Path):
        return decode(Path(image))
    return np.asarray(image.convert("RGB"))
