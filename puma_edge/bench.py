"""Latency and memory of a bundle against PyTorch: one process a backend, turns interleaved."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bundle import Bundle
from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes.plans import ENGINES
from puma_edge.serving import on_gpu, split_backend
from puma_edge.turns import run_turns

BASELINES = ("torch-fp32", "torch-bf16")
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        name: for the table.
        items: batch size.
        tokens: length of a text in tokens, prompt included; 0 for no text.
        image: whether each item has a picture.
        edge: of that picture, in pixels.
    """

    name: str
    items: int
    tokens: int
    image: bool
    edge: int = 224


CASES = (
    Case("1 text of 32 tokens", 1, 32, False),
    Case("1 image", 1, 0, True),
    Case("16 texts of 64 tokens", 16, 64, False),
    Case("8 images", 8, 0, True),
)


@dataclass(frozen=True)
class BenchConfig:
    """`puma-edge bench`.

    Attributes:
        bundle: the bundle's folder.
        model: the PyTorch baseline; empty for what the bundle was exported from.
        threads: of every backend, 0 for all the process may use.
        rounds: turns of each backend.
        seconds: measuring time of each case in a turn.
        batches: time batches too, not only single queries.
        only: names of the cases that are timed; empty for all.
    """

    bundle: str = "bundle"
    model: str = ""
    threads: int = 0
    rounds: int = 3
    seconds: float = 1.0
    batches: bool = True
    only: tuple[str, ...] = ()

    @property
    def cases(self) -> list[Case]:
        """What is timed.

        Raises:
            UsageError: a case that does not exist is named.
        """
        names = [case.name for case in CASES]
        if unknown := sorted(set(self.only) - set(names)):
            raise UsageError(f"no case {unknown[0]!r}; expected one of: {', '.join(names)}")
        kept = self.only or names
        return [case for case in CASES if case.name in kept and (self.batches or case.items == 1)]


@dataclass(frozen=True)
class Row:
    """One backend in one case.

    Attributes:
        case: what was timed.
        backend: engine and precision.
        median_ms: median time of a run.
        p99_ms: its 99th percentile.
        speedup: baseline -> how many times faster than it, by medians.
        cosine: similarity of its embedding to PyTorch fp32's.
        runs: how many were timed.
    """

    case: str
    backend: str
    median_ms: float
    p99_ms: float
    speedup: dict[str, float]
    cosine: float | None
    runs: int


@dataclass(frozen=True)
class BenchReport:
    """All rows, and per backend the peak memory of its process, loading time and file size.

    `missing` has the backends that do not run here, and why.
    """

    rows: list[Row]
    peak_bytes: dict[str, int]
    load_seconds: dict[str, float]
    file_bytes: dict[str, int]
    about: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def bench(config: BenchConfig, turn_done: Callable[[int, int], None]) -> BenchReport:
    """Time every backend there is.

    Args:
        config: what and how long.
        turn_done: told how many turns of how many are over.

    Raises:
        PumaError: no bundle, or none of the backends runs.
        UsageError: a case that does not exist is named.
    """
    cases = config.cases
    bundle = Bundle.open(Path(config.bundle))
    threads = config.threads or len(os.sched_getaffinity(0))
    model = config.model or bundle.manifest.source
    served = [name for name in bundle.manifest.graphs if name not in ("fp16", "int8-trt")]
    engines = ["ort", "openvino"] if find_spec("openvino") else ["ort"]
    # A CPU gains nothing from the other two precisions.
    backends = [f"{engine}-{name}" for engine in engines for name in served]
    if find_spec("torch") and find_spec("transformers"):
        backends = [*BASELINES, *backends]
    base = {
        "bundle": config.bundle,
        "model": model,
        "threads": threads,
        "seconds": config.seconds,
        "cases": [asdict(case) for case in cases],
    }
    backends = [*backends, *(one.backend for one in on_gpu(bundle, threads))]
    turns = run_turns(base, backends, config.rounds, turn_done)
    results = turns.results
    if not results:
        why = "; ".join(f"{name}: {reason}" for name, reason in turns.missing.items())
        raise PumaError(f"no backend runs {config.bundle} here ({why}); see puma-edge doctor")
    return BenchReport(
        rows=_rows(results, cases),
        peak_bytes={name: max(one["peak_bytes"] for one in many) for name, many in results.items()},
        load_seconds={
            name: float(np.median([one["load_seconds"] for one in many]))
            for name, many in results.items()
        },
        file_bytes=_file_bytes(bundle, model, results),
        about=_about(bundle, model, threads, config),
        missing=turns.missing,
    )


def _rows(results: dict[str, list[dict[str, Any]]], cases: Sequence[Case]) -> list[Row]:
    rows = []
    for case in cases:
        times = {
            name: np.concatenate([turn["cases"][case.name]["seconds"] for turn in turns])
            for name, turns in results.items()
        }
        vectors = {
            name: np.asarray(turns[0]["cases"][case.name]["embedding"])
            for name, turns in results.items()
        }
        reference = vectors.get(BASELINES[0])
        for name, seconds in times.items():
            median = float(np.median(seconds))
            rows.append(
                Row(
                    case=case.name,
                    backend=name,
                    median_ms=1e3 * median,
                    p99_ms=1e3 * float(np.percentile(seconds, 99)),
                    speedup={
                        base: float(np.median(times[base])) / median
                        for base in BASELINES
                        if base in times
                    },
                    cosine=None if reference is None else float(vectors[name] @ reference),
                    runs=len(seconds),
                )
            )
    return rows


def _file_bytes(
    bundle: Bundle, model: str, results: dict[str, list[dict[str, Any]]]
) -> dict[str, int]:
    sizes = {}
    for backend, turns in results.items():
        engine, precision = split_backend(backend)
        if engine == "trt":
            device = str(turns[0]["provider"]).removeprefix("trt:")
            files = list((bundle.folder / ENGINES).glob(f"{device}.*.{precision}.plan"))
        elif engine.startswith(("ort", "openvino")):
            names = bundle.manifest.graphs[precision].values()
            files = [path for name in names for path in bundle.folder.glob(f"{name}*")]
        else:
            files = list(Path(model).glob("*.safetensors"))
        if files:
            sizes[backend] = sum(path.stat().st_size for path in files)
    return sizes


def _about(bundle: Bundle, model: str, threads: int, config: BenchConfig) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "device": processor(),
        "threads": threads,
        "model": model,
        "model_id": manifest.model_id,
        "kept_layers": len(manifest.kept_layers),
        "total_layers": manifest.total_layers,
        "rounds": config.rounds,
        "seconds": config.seconds,
        "versions": {name: metadata.version(name) for name in PACKAGES if find_spec(name)},
        "python": platform.python_version(),
        "commit": commit(),
    }


def processor() -> str:
    """The name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout puma-edge runs from, empty for an installed wheel."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
