"""The work behind `check`: the parity gate again, on every engine of this device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from puma_edge.bundle import Bundle, Precision
from puma_edge.config import ExportConfig
from puma_edge.errors import PumaError, require
from puma_edge.export.parity import Limits, alone, in_company, judge
from puma_edge.export.probe import Probe, read_probe
from puma_edge.progress import Progress
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.engine import Runtime
from puma_edge.runtimes.openvino import OpenVinoEncoder
from puma_edge.runtimes.ort import CPU, CUDA, OrtEncoder
from puma_edge.runtimes.ort_bound import BoundEncoder
from puma_edge.serving import on_gpu

# Not TensorRT's own two: a build lists them with or without its libraries, and no runtime serves
# by them.
ACCELERATORS = (
    CUDA,
    "OpenVINOExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
)
OPENVINO = OpenVinoEncoder.provider
OPENVINO_SERVES = (Precision.FP32, Precision.INT8)


def run_check(folder: Path, threads: int | None, only: str = "") -> list[dict[str, Any]]:
    """Run the gate again on this device: every precision, on every provider that is there.

    The embeddings that PyTorch gave lie in the bundle, and so do the thresholds.

    Args:
        folder: the bundle.
        threads: of the CPU's engines.
        only: the one engine to check, such as "trt"; empty for all.

    Raises:
        MissingExtraError: nothing is installed that could serve a bundle.
        PumaError: no bundle, a damaged one, or one that has no engine for this device.
    """
    if not find_spec("tensorrt") and not find_spec("openvino"):
        require("onnxruntime", "cpu")
    bundle = Bundle.open(folder)
    probe = read_probe(bundle)
    engines = [one for one in _engines(bundle, threads) if only in ("", one[1])]
    if not engines:
        raise PumaError(
            f"nothing here can run {folder}, so nothing was checked; build its TensorRT engines "
            f"(puma-edge export --trt {folder}), or pip install 'puma-edge[cpu]'"
        )
    with Progress(f"checking {folder}", len(engines)) as progress:
        checked = []
        for precision, name, opens in engines:
            checked.append(_check(bundle, probe, precision, name, opens))
            progress.update(len(checked), f"{precision.value} on {name}")
    return checked


Opens = Callable[[], Encoder]


def _engines(bundle: Bundle, threads: int | None) -> list[tuple[Precision, str, Opens]]:
    """Every precision on the CPU and on every accelerator, and TensorRT's engines."""
    there: list[str] = []
    if find_spec("onnxruntime"):
        import onnxruntime

        available = onnxruntime.get_available_providers()
        there = [name for name in (CPU, *ACCELERATORS) if name in available]
    found: list[tuple[Precision, str, Opens]] = []
    for precision in map(Precision, bundle.manifest.graphs):
        for provider in there:
            name = f"ort:{provider.removesuffix('ExecutionProvider').lower()}"
            opens = partial(_open_on, bundle, precision, provider, threads)
            found.append((precision, name, opens))
    if find_spec("openvino"):
        for precision in OPENVINO_SERVES:
            if precision.value in bundle.manifest.graphs:
                found.append((precision, OPENVINO, partial(_open_vino, bundle, precision, threads)))
    served = [one for one in on_gpu(bundle, threads) if one.runtime is Runtime.TRT]
    return [*found, *((one.precision, "trt", one.open) for one in served)]


def _open_on(bundle: Bundle, precision: Precision, provider: str, threads: int | None) -> Encoder:
    vision, text = partial(bundle.graph, precision, "vision"), bundle.graph(precision, "text")
    if provider == CUDA:  # as `--runtime ort-cuda` serves it
        return BoundEncoder(vision, text, threads=threads)
    return OrtEncoder(vision, text, providers=(provider,), threads=threads)


def _open_vino(bundle: Bundle, precision: Precision, threads: int | None) -> Encoder:
    vision, text = partial(bundle.graph, precision, "vision"), bundle.graph(precision, "text")
    return OpenVinoEncoder(vision, text, threads=threads)


def _check(
    bundle: Bundle, probe: Probe, precision: Precision, engine: str, opens: Opens
) -> dict[str, Any]:
    told = {"precision": precision.value, "engine": engine}
    try:
        encoder = opens()
        found = alone(encoder, bundle.spec, probe)
        company = in_company(encoder, bundle.spec, probe.items)
    # One engine that does not start or run is a row of the report, not its end; each raises types
    # of its own.
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        return told | {"passed": False, "failures": [why], "pairs": []}
    limits = _limits(bundle, precision)
    parity = judge(probe.pairs, probe.embeddings, found, company, precision.value, limits)
    return told | {
        "max_difference": parity.max_difference,
        "mean_cosine": parity.mean_cosine,
        "worst_cosine": parity.worst_cosine,
        "batch_cosine": parity.batch_cosine,
        "overlap": parity.overlap,
        "pairs": [asdict(one) for one in parity.pairs],
        "passed": parity.passed,
        "failures": list(parity.failures),
    }


def _limits(bundle: Bundle, precision: Precision) -> Limits:
    """The thresholds the bundle was exported with; today's defaults for an older one."""
    recorded = bundle.manifest.parity.get(precision.value, {}).get("limits")
    if recorded:
        return Limits.from_json(recorded)
    defaults = ExportConfig()
    return Limits(defaults.parity.of(precision.value), defaults.max_recall_loss)
