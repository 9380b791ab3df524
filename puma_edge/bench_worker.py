"""One backend's turn in the benchmark, in a process of its own: request on stdin, timings out.

Run by `puma_edge.bench`; peak memory means something because nothing else is in this process.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bundle import Bundle
from puma_edge.decoding import decode
from puma_edge.images import Patches, patchify
from puma_edge.inputs import Batch, InputSpec
from puma_edge.runtimes.cuda import used_memory
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.trt import TrtEncoder
from puma_edge.sample.folder import glyph_images
from puma_edge.serving import split_backend

IMAGE_EDGE = 224  # pixels, of the benchmark's picture
MIN_RUNS, MAX_RUNS = 3, 200
STAGED_RUNS = 11  # in which a GPU's copies and products are timed apart


@dataclass(frozen=True)
class Timing:
    """How long a case is timed: seconds, those before that, and the least and most runs."""

    seconds: float
    warm_up: float
    least: int
    most: int


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Load a backend, time every case, and say what it took.

    Args:
        request: bundle, backend ("torch-fp32", "ort-int8", ...), model, threads, seconds (for
            each case), cases ([name, items, tokens of text, with an image, its edge in pixels]),
            and, where they are other than usual, warm_up (seconds of each case that are not
            counted) and runs (the least and the most that are).
    """
    unused = used_memory()
    started = time.perf_counter()
    bundle = Bundle.open(Path(request["bundle"]))
    encoder = _open(request, bundle)
    loaded = time.perf_counter() - started
    timing = Timing(
        request["seconds"],
        request.get("warm_up", 0.0),
        *request.get("runs", (MIN_RUNS, MAX_RUNS)),
    )
    cases = {}
    for case in request["cases"]:
        batch = make_batch(
            bundle.spec, case["items"], case["tokens"], image=case["image"], edge=case["edge"]
        )
        times, vectors = _time(encoder, batch, timing)
        cases[case["name"]] = {"seconds": times, "embedding": vectors[0].tolist()}
        if isinstance(encoder, TrtEncoder):
            cases[case["name"]]["stages"] = [encoder.stages(batch) for _ in range(STAGED_RUNS)]
    used = used_memory()
    gpu = used - unused if used is not None and unused is not None else None
    return {
        "provider": encoder.provider,
        "load_seconds": loaded,
        "peak_bytes": peak_bytes(),
        "gpu_bytes": gpu,
        "cases": cases,
    }


def peak_bytes() -> int:
    """Peak memory of this process; what `getrusage` tells begins with the parent's, at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def make_batch(
    spec: InputSpec, items: int, tokens: int, *, image: bool, edge: int = IMAGE_EDGE
) -> Batch:
    """A batch of equal items: words up to `tokens` tokens in all, or one picture, or both."""
    images: tuple[Patches, ...] = ()
    if image:
        images = (patchify(_picture(edge), spec.limits),)
    words = "fox heart river bicycle lantern violin mountain umbrella "
    text = ""
    while tokens and spec.encode_patches(None, text + "fox", images).length < tokens:
        text += words[len(text) % len(words) :].split(" ")[0] + " "
    return spec.collate([spec.encode_patches(None, text.strip() or None, images)] * items)


def _picture(edge: int) -> Any:
    from PIL import Image

    picture = Image.fromarray(decode(next(glyph_images())[1]))
    return np.asarray(picture.resize((edge, edge), Image.Resampling.BICUBIC))


def _open(request: dict[str, Any], bundle: Bundle) -> Encoder:
    engine, precision = split_backend(request["backend"])
    threads = request["threads"]
    if not engine.startswith(("torch", "compile")):
        return open_engine(bundle, Runtime(engine), PrecisionChoice(precision), threads).encoder
    import torch

    from puma_edge.shapes import open_baseline
    from puma_edge.torch_encoder import TorchEncoder

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model: Any = open_baseline(request["model"], bundle.manifest, dtype).model
    if engine.endswith("-cuda"):
        model.to("cuda")
    if engine.startswith("compile"):
        for part in (model.visual, model.language_model):
            part.compile()
    return TorchEncoder(model)


def _time(encoder: Encoder, batch: Batch, timing: Timing) -> tuple[list[float], Any]:
    """Times of single runs after a warm-up."""
    seconds = timing.seconds
    started = time.perf_counter()
    vectors = encoder.encode(batch)
    first = time.perf_counter() - started
    if first < seconds:  # what takes longer than a case's whole time is warm after one run
        encoder.encode(batch)
    while time.perf_counter() - started < timing.warm_up:
        encoder.encode(batch)
    times: list[float] = []
    while len(times) < timing.least or (sum(times) < seconds and len(times) < timing.most):
        started = time.perf_counter()
        encoder.encode(batch)
        times.append(time.perf_counter() - started)
    return times, vectors


if __name__ == "__main__":
    print(json.dumps(serve(json.loads(sys.stdin.read()))))
