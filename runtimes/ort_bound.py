"""ONNX Runtime on a GPU: inputs in buffers of the device, image tokens that never leave it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError, require
from puma_edge.feeds import text_feeds, vision_feeds
from puma_edge.inputs import Batch, Float32
from puma_edge.runtimes.ort import CUDA, open_session

BUFFERS = 32  # of each graph: about six shapes of a batch


class BoundEncoder:
    """A bundle's two graphs with IO binding: every input and output has a place that is named.

    Attributes:
        provider: "ort:" and the execution provider.
        dimension: length of an embedding.
    """

    def __init__(
        self,
        vision: Callable[[], Path],
        text: Path,
        *,
        provider: str = CUDA,
        device: str = "cuda",
        threads: int | None = None,
    ) -> None:
        """Load the text graph; the vision graph waits for the first image.

        Args:
            vision: tells the vision graph's file.
            text: the text graph's file.
            provider: the execution provider.
            device: where its buffers lie, by ONNX Runtime's name: "cuda", or "cpu".
            threads: threads of one operation on the CPU, None for ONNX Runtime's choice.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            PumaError: the installed build lacks the provider, or cannot load the graph on it.
        """
        self.provider = f"ort:{provider.removesuffix('ExecutionProvider').lower()}"
        self._vision_file = vision
        self._place, self._threads = (provider, device), threads
        self._text = _Bound(text, *self._place, threads, out="cpu")
        self.dimension = int(self._text.outputs[0].shape[-1])

    @cached_property
    def _vision(self) -> _Bound:
        return _Bound(self._vision_file(), *self._place, self._threads, out=self._place[1])

    def encode(self, batch: Batch) -> Float32:
        """Embeddings [B, dimension] of a batch, L2-normalised.

        Raises:
            PumaError: the vision graph, asked for here first, cannot be loaded; or the GPU has too
                little memory for this batch.
        """
        tokens = np.zeros((0, self._text.widths["image_tokens"]), np.float32)
        feeds: dict[str, Any] = dict(text_feeds(batch, tokens))
        if len(batch.n_patches):
            feeds["image_tokens"] = self._vision.run(vision_feeds(batch))
        result: Float32 = self._text.run(feeds).numpy()
        return result


class _Bound:
    """One graph with its binding, and buffers for the shapes seen last."""

    def __init__(
        self, path: Path, provider: str, device: str, threads: int | None, *, out: str
    ) -> None:
        self._session = open_session(path, (provider,), threads)
        self._binding = self._session.io_binding()
        self._make = require("onnxruntime", "gpu").OrtValue.ortvalue_from_shape_and_type
        self._device, self._out, self._name = device, out, path.name
        self._buffers: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self.outputs = self._session.get_outputs()
        self.widths = {one.name: one.shape[-1] for one in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, Any]) -> Any:
        """The first output as an `OrtValue`, on the device that was named for it."""
        try:
            for name, value in feeds.items():
                held = self._held(name, value) if isinstance(value, np.ndarray) else value
                self._binding.bind_ortvalue_input(name, held)
            self._binding.bind_output(self.outputs[0].name, self._out)
            self._binding.synchronize_inputs()
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        # ONNX Runtime raises its own unrelated types here, all of them about this one run.
        except Exception as error:
            raise PumaError(explain(self._name, str(error))) from error
        return self._binding.get_outputs()[0]

    def _held(self, name: str, value: NDArray[Any]) -> Any:
        """A buffer on the device with this content."""
        key = (name, value.shape)
        if key not in self._buffers:
            self._buffers[key] = self._make(value.shape, value.dtype, self._device)
        self._buffers.move_to_end(key)
        while len(self._buffers) > BUFFERS:
            self._buffers.popitem(last=False)
        self._buffers[key].update_inplace(value)
        return self._buffers[key]


def explain(graph: str, message: str) -> str:
    """One line about a run that failed, with the way out where memory was short."""
    first = message.strip().splitlines()[0] if message.strip() else "no reason given"
    if any(one in message.lower() for one in ("allocate memory", "out of memory")):
        return (
            f"{graph}: too little memory on the GPU ({first}); stop what else runs there, choose "
            "--precision fp16, or export with fewer --max-pixels"
        )
    return f"onnxruntime failed on {graph}: {first}"
