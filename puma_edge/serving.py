"""Which engines can serve a bundle on this device, by the names that benchmarks give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from puma_edge.bundle import Bundle, Precision
from puma_edge.errors import PumaError
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.plans import SERVED, has_plans

# Longest first: a backend is an engine, a dash, and a precision that may have dashes itself.
BACKENDS = ("compile-cuda", "torch-cuda", "ort-cuda", "compile", "torch", "openvino", "ort", "trt")
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Served:
    """An engine that is not opened yet.

    Attributes:
        runtime: its kind.
        precision: of its graphs.
        open: loads it; a `PumaError` says why it cannot.
    """

    runtime: Runtime
    precision: Precision
    open: Callable[[], Encoder]

    @property
    def backend(self) -> str:
        """The name that benchmarks give it."""
        return f"{self.runtime.value}-{self.precision.value}"


def split_backend(name: str) -> tuple[str, str]:
    """The engine and the precision of a name such as "ort-cuda-fp16".

    Raises:
        PumaError: there is no such engine.
    """
    for engine in BACKENDS:
        if name.startswith(f"{engine}-"):
            return engine, name.removeprefix(f"{engine}-")
    raise PumaError(
        f"no backend {name!r}; expected one of {', '.join(BACKENDS)}, - and a precision"
    )


def on_gpu(bundle: Bundle, threads: int | None = None) -> list[Served]:
    """What may run on a GPU here: ONNX Runtime where its build has CUDA, TensorRT where installed.

    Engines of another GPU are among them: opening one says why it does not serve.
    """
    found: list[tuple[Runtime, Precision]] = []
    if cuda_build():
        kinds = (Precision.FP16, Precision.FP32)
        found += [(Runtime.ORT_CUDA, one) for one in kinds if one.value in bundle.manifest.graphs]
    if find_spec("tensorrt"):
        found += [(Runtime.TRT, one) for one in SERVED if has_plans(bundle, one)]
    return [
        Served(runtime, one, partial(_open, bundle, runtime, one, threads))
        for runtime, one in found
    ]


def cuda_build() -> bool:
    """Whether the installed ONNX Runtime has CUDA."""
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


def _open(bundle: Bundle, runtime: Runtime, precision: Precision, threads: int | None) -> Encoder:
    return open_engine(bundle, runtime, PrecisionChoice(precision.value), threads).encoder
