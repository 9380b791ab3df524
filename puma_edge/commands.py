"""The work behind `eval`, `check`, `info` and `doctor`."""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from puma_edge.bundle import MANIFEST, Bundle, Precision
from puma_edge.config import SAMPLE, ExportConfig
from puma_edge.data import load_dataset
from puma_edge.errors import PumaError, UsageError, require
from puma_edge.evaluate import Score, measure
from puma_edge.export.parity import Limits, alone, in_company, judge
from puma_edge.export.probe import Probe, read_probe
from puma_edge.inputs import InputSpec
from puma_edge.metrics import Pool
from puma_edge.progress import Progress
from puma_edge.run_folder import METRICS, SETTINGS
from puma_edge.runtimes.cuda import free_memory
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.notes import present_forms
from puma_edge.runtimes.openvino import OpenVinoEncoder
from puma_edge.runtimes.ort import CPU, CUDA, OrtEncoder
from puma_edge.runtimes.ort_bound import BoundEncoder
from puma_edge.runtimes.trt import open_gpu
from puma_edge.sample import emoji_folder
from puma_edge.serving import on_gpu

PACKAGES = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "numkong": "search",
    "usearch": "hnsw",
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "onnx": "export",
    "onnxscript": "export",
    "simplejpeg": "fast",
    "cykooz_resizer": "fast",
    "tensorrt": "trt",
    "qdrant_client": "qdrant",
    "lancedb": "lancedb",
    "pymilvus": "milvus",
    "ray": "ray",
    "cuda.bindings": "trt",
    "matplotlib": "plot",
}

# What the commands cannot do without; `gpu` in the place of `cpu` where there is a GPU.
NEEDS = {
    "embed, search, check": ("onnxruntime",),
    "train, merge": ("torch", "transformers", "peft"),
    "export, sweep": ("onnxruntime", "torch", "onnx", "onnxscript"),
}


@dataclass(frozen=True)
class EvalConfig:
    """`puma-edge eval`.

    Attributes:
        data: a folder in M-BEIR's format, or "sample".
        split: "train", "val" or "test".
        k: hits looked at, None for M-BEIR's.
        pool: among which candidates answers are looked for.
        threads: CPU threads, None for all.
    """

    data: str = SAMPLE
    split: str = "test"
    k: int | None = None
    pool: Pool = Pool.LOCAL
    threads: int | None = None


def run_eval(target: str, config: EvalConfig) -> list[Score]:
    """Scores of a model folder or a bundle, which may be followed by @ and a precision.

    Raises:
        UsageError: no such split, precision, or number of hits.
        PumaError: no such target or data.
    """
    data, split = config.data, config.split
    if config.k is not None and config.k < 1:
        raise UsageError(f"--k {config.k}: give 1 or more")
    dataset = load_dataset(emoji_folder() if data == SAMPLE else Path(data))
    if not dataset.examples.get(split):
        have = ", ".join(name for name, many in dataset.examples.items() if many)
        raise UsageError(f"--split {split}: {dataset.folder} has queries for: {have}")
    encoder, spec = _open_target(target, config.threads)
    progress: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal progress
        progress = progress or Progress(f"recall of {target}", total)
        progress.update(done)

    scores = measure(encoder, spec, dataset, split, k=config.k, pool=config.pool, progress=show)
    if progress is not None:
        progress.close()
    return scores


def _open_target(target: str, threads: int | None) -> tuple[Encoder, InputSpec]:
    folder, _, name = target.rpartition("@")
    if not folder or Path(target).exists():
        folder, name = target, PrecisionChoice.AUTO.value
    if (Path(folder) / MANIFEST).is_file():
        try:
            precision = PrecisionChoice(name)
        except ValueError:
            choices = ", ".join(PrecisionChoice)
            raise UsageError(f"{target}: no precision {name!r}; expected: {choices}") from None
        bundle = Bundle.open(Path(folder))
        return open_engine(bundle, Runtime.AUTO, precision, threads).encoder, bundle.spec
    torch = require("torch", "train")
    if threads:
        torch.set_num_threads(threads)
    from puma_edge.torch_encoder import TorchEncoder
    from puma_edge.train import open_model

    checkpoint = open_model(target)
    return TorchEncoder(checkpoint.model), checkpoint.spec


# What an installed ONNX Runtime may offer besides the CPU; others of its list run no model here.
ACCELERATORS = (
    "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
    CUDA,
    "OpenVINOExecutionProvider",
    "CoreMLExecutionProvider",
    "DmlExecutionProvider",
)
OPENVINO = OpenVinoEncoder.provider
OPENVINO_SERVES = (Precision.FP32, Precision.INT8)


def run_check(folder: Path, threads: int | None) -> list[dict[str, Any]]:
    """Run the gate again on this device: every precision, on every provider that is there.

    The embeddings that PyTorch gave lie in the bundle, and so do the thresholds.

    Raises:
        PumaError: no bundle, or a damaged one.
    """
    if not find_spec("tensorrt"):
        require("onnxruntime", "cpu")
    bundle = Bundle.open(folder)
    probe = read_probe(bundle)
    engines = _engines(bundle, threads)
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
    except PumaError as error:
        # One provider that does not start is a row of the report, not its end.
        return told | {"passed": False, "failures": [str(error)], "pairs": []}
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


def describe(path: Path) -> dict[str, Any]:
    """What a bundle, an index or a run says of itself.

    Raises:
        PumaError: the path is none of them.
    """
    if (path / MANIFEST).is_file():
        manifest = Bundle.open(path).manifest
        return {
            "kind": "bundle",
            "model": manifest.model_id,
            "base": manifest.base_model,
            "layers": f"{len(manifest.kept_layers)} of {manifest.total_layers}",
            "dimension": manifest.dimension,
            "precisions": ", ".join(manifest.graphs),
            "positions": manifest.positions.value,
            "pixels": f"{manifest.limits.min_pixels} to {manifest.limits.max_pixels}",
            "gate": manifest.gate,
            "versions": dict(manifest.versions),
        }
    if path.suffix == ".npy":
        header = Index.open(path).header
        forms = ", ".join(["exact", *(form.value for form in present_forms(path))])
        return {"kind": "index", **header.__dict__, "forms": forms}
    if (path / METRICS).is_file():
        metrics = json.loads((path / METRICS).read_text(encoding="utf-8"))
        means = {name: round(row["mean"], 4) for name, row in metrics["recall"].items()}
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        known = {name: settings[name] for name in ("model", "data")}
        return {"kind": "run", **known, "mean recall@5": means}
    raise PumaError(f"{path} is no bundle, no index (.npy) and no finished run")


def examine() -> dict[str, Any]:
    """Versions of what is installed, the engines' providers, and what the rest would need."""
    found: dict[str, Any] = {
        "puma-edge": metadata.version("puma-edge"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{names: _readiness(needs) for names, needs in NEEDS.items()},
    }
    for name, extra in PACKAGES.items():
        if find_spec(name.partition(".")[0]) is None or find_spec(name) is None:
            found[name] = f"not installed: pip install 'puma-edge[{extra}]'"
        else:
            found[name] = _version(name)
    if find_spec("onnxruntime"):
        import onnxruntime

        found["providers"] = ", ".join(onnxruntime.get_available_providers())
    found["gpu"] = _gpu()
    return found


def _readiness(needs: tuple[str, ...]) -> str:
    """Whether these packages are there, or what brings those that are not."""
    extras = dict.fromkeys(PACKAGES[name] for name in needs if find_spec(name) is None)
    return f"pip install 'puma-edge[{','.join(extras)}]'" if extras else "ready"


def _gpu() -> str:
    """The GPU as TensorRT sees it, or why it sees none."""
    try:
        gpu = open_gpu()
    except PumaError as error:
        return f"none for TensorRT: {error}"
    free, total = free_memory(gpu.cuda)
    about = f"{gpu.device.name}, compute capability {'.'.join(gpu.device.capability)}"
    return f"{about}, {free / 1e6:.0f} of {total / 1e6:.0f} MB free; engines: {gpu.device.slug}"


def _version(name: str) -> str:
    package = "onnxruntime-gpu" if _is_gpu_build(name) else name.replace(".", "-")
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # TensorRT's comes in packages of other names too
        return str(getattr(importlib.import_module(name), "__version__", "installed"))


def _is_gpu_build(name: str) -> bool:
    if name != "onnxruntime":
        return False
    names = metadata.packages_distributions().get("onnxruntime", [])
    return "onnxruntime-gpu" in names
