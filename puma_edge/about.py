"""The work behind `info` and `doctor`: what a folder says of itself, and what is installed."""

from __future__ import annotations

import importlib
import json
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from puma_edge.bundle import MANIFEST, Bundle
from puma_edge.errors import PumaError
from puma_edge.run_folder import METRICS, SETTINGS
from puma_edge.runtimes.cuda import free_memory
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.notes import present_forms
from puma_edge.runtimes.trt import open_gpu

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


def describe(path: Path) -> dict[str, Any]:
    """What a bundle, an index or a run says of itself.

    Raises:
        PumaError: the path is none of them, or damaged.
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
        return _describe_run(path)
    raise PumaError(f"{path} is no bundle, no index (.npy) and no finished run")


def _describe_run(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads((path / METRICS).read_text(encoding="utf-8"))
        means = {name: round(row["mean"], 4) for name, row in metrics["recall"].items()}
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        known = {name: settings[name] for name in ("model", "data")}
    # Of the wrong type, or not there: whatever a damaged file holds.
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PumaError(
            f"the run {path} is damaged ({type(error).__name__}: {error}); expected {METRICS} and "
            f"{SETTINGS} as puma-edge train writes them"
        ) from None
    return {"kind": "run", **known, "mean recall@5": means}


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
