"""Which engine serves a bundle: an explicit choice, said aloud, never a silent fall back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from puma_edge.bundle import Bundle, Precision
from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes.encoder import Encoder


class Runtime(str, Enum):
    """The engines that run a bundle."""

    AUTO = "auto"
    ORT = "ort"
    OPENVINO = "openvino"
    ORT_CUDA = "ort-cuda"
    TRT = "trt"


class Spread(str, Enum):
    """Where the documents of a run are embedded."""

    LOCAL = "local"
    RAY = "ray"


class PrecisionChoice(str, Enum):
    """A precision, or the fastest one the bundle holds."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_TRT = "int8-trt"


@dataclass(frozen=True)
class Engine:
    """An opened engine.

    Attributes:
        encoder: what embeds.
        precision: the arithmetic of its graphs.
    """

    encoder: Encoder
    precision: Precision

    @property
    def name(self) -> str:
        """Engine, device and precision, for people to read."""
        return f"{self.encoder.provider} {self.precision.value}"


def open_engine(
    bundle: Bundle,
    runtime: Runtime = Runtime.AUTO,
    precision: PrecisionChoice = PrecisionChoice.AUTO,
    threads: int | None = None,
) -> Engine:
    """Open a bundle's graphs.

    Args:
        bundle: an opened bundle; its files are verified on the way.
        runtime: the engine; "auto" is ONNX Runtime on the CPU.
        precision: the arithmetic; "auto" takes INT8 on a CPU where the bundle has it, else FP32 (a
            CPU gains nothing from FP16), and FP16 on a GPU, else FP32; of TensorRT's engines
            INT8, then FP16.
        threads: threads of one operation, None for the engine's own choice.

    Raises:
        UsageError: fewer than one thread.
        PumaError: the bundle has no such precision, there is no GPU for the engine, or it cannot
            open the graphs.
        MissingExtraError: the engine is not installed.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: give 1 or more")
    match runtime:
        case Runtime.AUTO | Runtime.ORT:
            from puma_edge.runtimes.ort import OrtEncoder

            chosen = _precision(bundle, precision, (Precision.INT8, Precision.FP32))
            vision, text = _graphs(bundle, chosen)
            return Engine(OrtEncoder(vision, text, threads=threads), chosen)
        case Runtime.OPENVINO:
            from puma_edge.runtimes.openvino import OpenVinoEncoder

            chosen = _precision(bundle, precision, (Precision.INT8, Precision.FP32))
            vision, text = _graphs(bundle, chosen)
            return Engine(OpenVinoEncoder(vision, text, threads=threads), chosen)
        case Runtime.ORT_CUDA:
            from puma_edge.runtimes.ort_bound import BoundEncoder

            chosen = _precision(bundle, precision, (Precision.FP16, Precision.FP32))
            vision, text = _graphs(bundle, chosen)
            return Engine(BoundEncoder(vision, text, threads=threads), chosen)
        case Runtime.TRT:
            from puma_edge.runtimes.trt import TrtEncoder, open_gpu

            named = precision is not PrecisionChoice.AUTO
            wanted = Precision(precision.value) if named else None
            encoder = TrtEncoder(bundle, wanted, open_gpu())
            return Engine(encoder, encoder.precision)


def _graphs(bundle: Bundle, precision: Precision) -> tuple[Callable[[], Path], Path]:
    return partial(bundle.graph, precision, "vision"), bundle.graph(precision, "text")


def _precision(bundle: Bundle, choice: PrecisionChoice, fastest: Sequence[Precision]) -> Precision:
    if choice is not PrecisionChoice.AUTO:
        return Precision(choice.value)
    for precision in fastest:
        if precision.value in bundle.manifest.graphs:
            return precision
    raise PumaError(f"{bundle.folder} holds no graphs; export it again: puma-edge export")
