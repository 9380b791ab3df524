"""OpenVINO on the CPU, from the same ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.errors import PumaError, require
from puma_edge.feeds import text_feeds, vision_feeds
from puma_edge.inputs import Batch, Float32


class OpenVinoEncoder:
    """A bundle's two graphs in OpenVINO.

    Attributes:
        provider: "openvino:cpu".
        dimension: length of an embedding.
    """

    provider = "openvino:cpu"

    def __init__(
        self, vision: Callable[[], Path], text: Path, *, threads: int | None = None
    ) -> None:
        """Compile the text graph; the vision graph waits for the first image.

        Args:
            vision: tells the vision graph's file: whoever has words alone never reads it.
            text: the text graph's file.
            threads: threads of one operation, None for OpenVINO's choice.

        Raises:
            MissingExtraError: OpenVINO is not installed.
            PumaError: it cannot compile a graph.
        """
        self._vision_file, self._threads = vision, threads
        self._text = _compile(text, threads)
        self.dimension = int(self._text.output(0).partial_shape[1].get_length())
        widths = {one.any_name: one.partial_shape[-1] for one in self._text.inputs}
        self._token_width = int(widths["image_tokens"].get_length())

    @cached_property
    def _vision(self) -> Any:
        return _compile(self._vision_file(), self._threads)

    def encode(self, batch: Batch) -> Float32:
        """Embeddings [B, dimension] of a batch, L2-normalised.

        Raises:
            PumaError: the vision graph, asked for here first, cannot be compiled.
        """
        tokens = np.zeros((0, self._token_width), np.float32)
        if len(batch.n_patches):
            tokens = self._vision(vision_feeds(batch))[0]
        # What comes back lies in the engine's own memory, which the next call writes over.
        return np.array(self._text(text_feeds(batch, tokens))[0], np.float32)


def _compile(path: Path, threads: int | None) -> Any:
    openvino = require("openvino", "openvino")
    # Left alone it takes bf16 where the processor has it, which no parity check has seen.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        return openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise PumaError(f"openvino cannot compile {path}: {first}") from error
