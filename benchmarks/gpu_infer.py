"""Embedding on one GPU: PyTorch eager and compiled, ONNX Runtime CUDA, TensorRT; median and p99.

    python benchmarks/gpu_infer.py --work gpu_infer/ --out gpu_infer.json

Subjects are the sample's base and the 2B shape (random weights) with 12 and 28 layers. Bundles and
engines that are not in the work folder yet are made there first. Every backend has a process of its
own, and they take turns; a time is from arrays on the host to embeddings there. Of TensorRT's,
the GPU's copies in, its products and its copies out are told apart, from runs without CUDA graphs.
What cannot run is named, with the reason. `--device cpu --only sample` proves without a GPU that
this runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bench import CASES, commit, processor
from puma_edge.bundle import MANIFEST, Bundle
from puma_edge.errors import PumaError
from puma_edge.runtimes.trt import open_gpu
from puma_edge.sample import base_folder
from puma_edge.turns import run_turns

PACKAGES = (
    *("torch", "transformers", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-cu12"),
    *("tensorrt-cu13", "cuda-bindings", "numpy"),
)
# The first is what cosines are taken to, the second what speed is compared with.
BACKENDS = {
    "cuda": ("torch-cuda-fp32", "torch-cuda-bf16", "compile-cuda-bf16"),
    "cpu": ("torch-fp32", "torch-bf16", "compile-bf16", "ort-fp32"),
}
SERVED = ("ort-cuda-fp16", "trt-fp16", "trt-int8-trt")
WARM_UP = 0.2  # seconds, as trtexec has it
RUNS = (10, 5000)


@dataclass(frozen=True)
class Subject:
    """A model that is timed."""

    name: str
    model: str
    layers: int


SUBJECTS = (
    Subject("sample", str(base_folder()), 8),
    Subject("2b-12", "shape:qwen2-vl-2b", 12),
    Subject("2b-28", "shape:qwen2-vl-2b", 28),
)


def prepare(subject: Subject, folder: Path) -> tuple[Path, str]:
    """The subject's bundle, and why it has no engines; "" where it has.

    Raises:
        PumaError: it cannot be exported.
    """
    bundle = folder / subject.name
    if not (bundle / MANIFEST).is_file():
        # Random weights do not pass the gate, and speed does not ask for it.
        options = ["--keep-layers", str(subject.layers), "--gate", "report", "--data", "sample"]
        done = puma("export", subject.model, "--out", str(bundle), "--fp16", "--int8-trt", *options)
        if done.returncode:
            raise PumaError(f"{subject.name} was not exported: {last_line(done.stderr)}")
    plans = bundle / "engines"
    if any(plans.glob("*.plan")):
        return bundle, ""
    done = puma("export", str(bundle), "--trt")
    return bundle, "" if any(plans.glob("*.plan")) else last_line(done.stderr)


def puma(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command itself, in a process."""
    command = [sys.executable, "-m", "puma_edge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last_line(text: str) -> str:
    """What an error ends with."""
    return (text.strip().splitlines() or ["no reason given"])[-1]


def measure(
    subject: Subject, args: argparse.Namespace, turn_done: Callable[[int, int], None]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of one subject, and the backends that are missing with the reason."""
    bundle, no_engines = prepare(subject, args.work)
    backends = args.backends or [*BACKENDS[args.device], *SERVED]
    request = {
        "bundle": str(bundle),
        "model": Bundle.open(bundle).manifest.source,
        "threads": args.threads,
        "seconds": args.seconds,
        "warm_up": WARM_UP,
        "runs": args.runs,
        "cases": [asdict(case) for case in CASES if args.batches or case.items == 1],
    }
    turns = run_turns(request, backends, args.rounds, turn_done)
    missing = {
        name: f"{why}; no engine was built: {no_engines}"
        if name.startswith("trt") and no_engines
        else why
        for name, why in turns.missing.items()
    }
    return rows_of(subject, turns.results, BACKENDS[args.device]), missing


def rows_of(
    subject: Subject, results: dict[str, list[dict[str, Any]]], bases: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each case and backend."""
    rows = []
    for case in next(iter(results.values()), [{"cases": {}}])[0]["cases"]:
        times = {
            name: np.concatenate([turn["cases"][case]["seconds"] for turn in turns])
            for name, turns in results.items()
        }
        vectors = {
            name: np.asarray(turns[0]["cases"][case]["embedding"])
            for name, turns in results.items()
        }
        reference, eager = vectors.get(bases[0]), times.get(bases[1])
        for name, seconds in times.items():
            turns = results[name]
            gpu = [turn["gpu_bytes"] for turn in turns if turn["gpu_bytes"] is not None]
            row: dict[str, Any] = {"subject": subject.name, "layers": subject.layers, "case": case}
            row |= {"backend": name, "median_ms": round(1e3 * float(np.median(seconds)), 4)}
            row["p99_ms"] = round(1e3 * float(np.percentile(seconds, 99)), 4)
            if eager is not None:
                row["x_eager_bf16"] = round(float(np.median(eager) / np.median(seconds)), 3)
            if reference is not None:
                row["cosine"] = round(float(vectors[name] @ reference), 6)
            row |= stages_of([turn["cases"][case].get("stages", []) for turn in turns])
            row["load_seconds"] = round(float(np.median([t["load_seconds"] for t in turns])), 2)
            row["host_bytes"] = max(turn["peak_bytes"] for turn in turns)
            row["gpu_bytes"] = max(gpu) if gpu else None
            rows.append({**row, "runs": len(seconds)})
    return rows


def stages_of(turns: list[list[dict[str, float]]]) -> dict[str, float]:
    """Medians of what the GPU takes to copy in, compute and copy out, where a backend tells."""
    runs = [run for turn in turns for run in turn]
    names = runs[0] if runs else ()
    return {f"{name}_ms": round(float(np.median([run[name] for run in runs])), 4) for name in names}


def about(args: argparse.Namespace) -> dict[str, Any]:
    """Device, versions, commit."""
    device = processor()
    if args.device == "cuda":
        device = gpu_name()
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    python = platform.python_version()
    given = {"rounds": args.rounds, "seconds": args.seconds, "threads": args.threads}
    told = {"device": device, "python": python, "versions": versions, "commit": commit()}
    return {**told, **given}


def gpu_name() -> str:
    """The GPU's name, from TensorRT's side or PyTorch's.

    Raises:
        PumaError: neither sees one.
    """
    try:
        return open_gpu().device.name
    except PumaError as error:
        import torch

        if not torch.cuda.is_available():
            raise PumaError(f"--device cuda: {error}; try --device cpu --only sample") from None
        return torch.cuda.get_device_name()


def tell(name: str, done: int, total: int) -> None:
    """Progress, on stderr."""
    print(f"{name}: turn {done} of {total}", file=sys.stderr, flush=True)


def main() -> int:
    """Every subject, then the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=sorted(BACKENDS), default="cuda")
    parser.add_argument("--only", choices=[one.name for one in SUBJECTS], action="append")
    parser.add_argument("--backends", nargs="+", help="these alone, such as torch-bf16 trt-fp16")
    parser.add_argument("--work", type=Path, default=Path("gpu_infer"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--runs", type=int, nargs=2, default=RUNS, metavar=("LEAST", "MOST"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path("gpu_infer.json"))
    args = parser.parse_args()
    try:
        report: dict[str, Any] = {**about(args), "rows": [], "missing": {}}
        for subject in SUBJECTS:
            if args.only and subject.name not in args.only:
                continue
            rows, missing = measure(subject, args, partial(tell, subject.name))
            report["rows"] += rows
            report["missing"][subject.name] = missing
            for row in rows:
                print(json.dumps(row), flush=True)
            for name, why in missing.items():
                print(f"{subject.name}: {name} is missing: {why}", flush=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except PumaError as error:
        print(f"gpu_infer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
