"""ONNX Runtime, on the CPU or on any provider its installed build has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.errors import PumaError, require
from puma_edge.feeds import text_feeds, vision_feeds
from puma_edge.inputs import Batch, Float32

__all__ = ["CPU", "CUDA", "OrtEncoder", "open_session", "text_feeds", "token_width", "vision_feeds"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OPTIONS = {
    # TF32 rounds float32 products to 10 bits, and the parity of fp32 would go with them. Memory is
    # taken as it is asked for: by default it doubles, which a small GPU has no room for.
    CUDA: {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"},
}
# What a model's time goes into; beside them a graph has arithmetic on shapes, at home on the CPU.
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "Attention", "Conv")


class OrtEncoder:
    """A bundle's two graphs in ONNX Runtime.

    Attributes:
        provider: "ort:" and the first execution provider.
        dimension: length of an embedding.
    """

    def __init__(
        self,
        vision: Callable[[], Path],
        text: Path,
        *,
        providers: Sequence[str] = (CPU,),
        threads: int | None = None,
    ) -> None:
        """Load the text graph; the vision graph waits for the first image.

        Args:
            vision: tells the vision graph's file: whoever has words alone never reads it.
            text: the text graph's file.
            providers: execution providers; nothing but these is used, except that the CPU takes
                the shape arithmetic a graph carries beside its products.
            threads: threads of one operation, None for ONNX Runtime's choice.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            PumaError: the installed build lacks a provider, or cannot load a graph.
        """
        self.provider = f"ort:{providers[0].removesuffix('ExecutionProvider').lower()}"
        self._vision_file, self._providers, self._threads = vision, providers, threads
        self._text = open_session(text, providers, threads)
        self.dimension = int(self._text.get_outputs()[0].shape[-1])
        self._token_width = token_width(self._text)

    @cached_property
    def _vision(self) -> Any:
        return open_session(self._vision_file(), self._providers, self._threads)

    def encode(self, batch: Batch) -> Float32:
        """Embeddings [B, dimension] of a batch, L2-normalised.

        Raises:
            PumaError: the vision graph, asked for here first, cannot be loaded.
        """
        if len(batch.n_patches):
            tokens = self._vision.run(None, vision_feeds(batch))[0]
        else:
            tokens = np.zeros((0, self._token_width), np.float32)
        result: Float32 = self._text.run(None, text_feeds(batch, tokens))[0]
        return result


def token_width(text: Any) -> int:
    """Length of an image token in a text graph's session.

    Wider than an embedding where image tokens carry features for further layers.
    """
    widths = {one.name: one.shape[-1] for one in text.get_inputs()}
    return int(widths["image_tokens"])


def open_session(path: Path, providers: Sequence[str], threads: int | None) -> Any:
    """An `onnxruntime.InferenceSession` on exactly these providers.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        PumaError: the installed build lacks a provider, or cannot load the graph.
    """
    ort = require("onnxruntime", "cpu")
    available = ort.get_available_providers()
    missing = [name for name in providers if name not in available]
    if missing:
        raise PumaError(
            f"this onnxruntime {ort.__version__} has no {', '.join(missing)} (it has: "
            f"{', '.join(available)}); install the build for your device, or choose another runtime"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # Where products of U8 and S8 saturate, this takes U8 weights instead: exact, and 2.5 times as
    # slow. ONNX Runtime would do so on every x86 processor, so it is asked only where it must.
    if not sums_in_32_bits():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if providers[0] != CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    named = [(name, OPTIONS.get(name, {})) for name in providers]
    try:
        session = ort.InferenceSession(str(path), options, providers=named)
    # ONNX Runtime raises a dozen unrelated types here, all of them about this one file.
    except Exception as error:
        raise PumaError(f"onnxruntime cannot load {path}: {error}") from error
    if session.get_providers()[0] != providers[0]:
        raise PumaError(
            f"onnxruntime fell back from {providers[0]} to {session.get_providers()[0]}; "
            "check the driver and library versions with: puma-edge doctor"
        )
    left = products_left_to_cpu(session) if providers[0] != CPU else 0
    if left:
        raise PumaError(
            f"{providers[0]} has no kernel for {left} products of {path}, and would leave them to "
            "the CPU; choose another precision, such as --precision fp16, or --runtime ort"
        )
    return session


@cache
def sums_in_32_bits() -> bool:
    """Whether this processor's products of U8 and S8 cannot saturate; what is unknown may."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and has_vnni(cpuinfo.read_text(encoding="utf-8"))


def has_vnni(cpuinfo: str) -> bool:
    """Whether Linux's description of the processor names VNNI, whose sums have 32 bits."""
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            return not {"avx512_vnni", "avx_vnni"}.isdisjoint(line.split())
    return False


def products_left_to_cpu(session: Any) -> int:
    """How many matrix products of a session run on the CPU; 0 where it was not recorded.

    Older ONNX Runtimes record it never.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return 0
    return sum(
        node.op_type in PRODUCTS
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU
        for node in part.get_nodes()
    )
