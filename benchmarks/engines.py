"""A bundle in ONNX Runtime and in OpenVINO, one process each, turns interleaved.

    pip install openvino
    python benchmarks/engines.py bundle/ --out engines.json

Both read the same two files. OpenVINO is asked for float32 where a graph is not INT8, and with
"-bf16" for bf16 there. Prints medians, and the cosine of each embedding to the first backend's and
between an item alone and in a batch of others, because a faster engine must also hold that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bench import CASES
from puma_edge.bench_worker import make_batch
from puma_edge.bundle import Bundle, Precision
from puma_edge.export.parity import in_company
from puma_edge.export.probe import read_probe
from puma_edge.feeds import text_feeds, vision_feeds
from puma_edge.inputs import Batch, Float32
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.ort import OrtEncoder

BACKENDS = ("ort-fp32", "ort-int8", "openvino-fp32", "openvino-int8", "openvino-int8-bf16")
NAMES = tuple(case.name for case in CASES)


class OpenVinoEncoder:
    """A bundle's two graphs in OpenVINO, on the CPU; see `puma_edge.runtimes.encoder.Encoder`."""

    provider = "openvino:cpu"

    def __init__(self, vision: Callable[[], Path], text: Path, rest: str, threads: int) -> None:
        """Compile the text graph, what is not INT8 as `rest`; the vision graph waits for images."""
        self._vision_file, self._rest, self._threads = vision, rest, threads
        self._text = self._compile(text)
        self.dimension = int(self._text.output(0).partial_shape[1].get_length())
        widths = {one.any_name: one.partial_shape[-1] for one in self._text.inputs}
        self._token_width = int(widths["image_tokens"].get_length())

    @cached_property
    def _vision(self) -> Any:
        return self._compile(self._vision_file())

    def _compile(self, path: Path) -> Any:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": self._rest,
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        return openvino.Core().compile_model(str(path), "CPU", settings)

    def encode(self, batch: Batch) -> Float32:
        """Embeddings [B, dimension] of a batch, L2-normalised."""
        tokens = np.zeros((0, self._token_width), np.float32)
        if len(batch.n_patches):
            tokens = self._vision(vision_feeds(batch))[0]
        return np.array(self._text(text_feeds(batch, tokens))[0])


def turn(bundle: Bundle, backend: str, threads: int, names: list[str], seconds: float) -> Any:
    """Times of every case, its first embedding, and the worst cosine of an item in company."""
    engine, precision, *rest = backend.split("-")
    files = {part: bundle.graph(Precision(precision), part) for part in ("vision", "text")}
    encoder: Encoder
    if engine == "ort":
        encoder = OrtEncoder(lambda: files["vision"], files["text"], threads=threads)
    else:
        half = "bf16" if rest else "f32"
        encoder = OpenVinoEncoder(lambda: files["vision"], files["text"], half, threads)
    cases = {}
    for case in CASES:
        if case.name not in names:
            continue
        batch = make_batch(bundle.spec, case.items, case.tokens, image=case.image, edge=case.edge)
        vectors = [encoder.encode(batch) for _ in range(2)]
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:
            started = time.perf_counter()
            encoder.encode(batch)
            times.append(time.perf_counter() - started)
        cases[case.name] = {"seconds": times, "embedding": vectors[0][0].tolist()}
    company = in_company(encoder, bundle.spec, read_probe(bundle).items[:4])
    return {"cases": cases, "company": company}


def main() -> None:
    """Run the turns, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turn", choices=BACKENDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names, backends = given.only or list(NAMES), given.backend or list(BACKENDS)
    if given.turn:
        bundle = Bundle.open(given.bundle)
        print(json.dumps(turn(bundle, given.turn, given.threads, names, given.seconds)))
        return
    line = [sys.executable, __file__, str(given.bundle), "--threads", str(given.threads)]
    line += ["--seconds", str(given.seconds)]
    line += [word for name in names for word in ("--only", name)]
    results: dict[str, list[Any]] = {name: [] for name in backends}
    for backend in backends * given.rounds:
        done = subprocess.run(
            [*line, "--turn", backend], capture_output=True, text=True, check=True
        )
        results[backend].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{backend} done", file=sys.stderr)
    rows = _rows(results, names)
    for row in rows:
        print(" ".join(f"{value:>22}" for value in row.values()))
    if given.out:
        given.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _rows(results: dict[str, list[Any]], names: list[str]) -> list[dict[str, Any]]:
    first = next(iter(results))
    rows = []
    for name in names:
        reference = np.asarray(results[first][0]["cases"][name]["embedding"])
        for backend, turns in results.items():
            times = np.concatenate([one["cases"][name]["seconds"] for one in turns])
            vector = np.asarray(turns[0]["cases"][name]["embedding"])
            rows.append(
                {
                    "case": name,
                    "backend": backend,
                    "median_ms": round(1e3 * float(np.median(times)), 2),
                    "cosine": round(float(vector @ reference), 6),
                    "in_company": round(min(one["company"] for one in turns), 6),
                    "runs": len(times),
                }
            )
    return rows


if __name__ == "__main__":
    main()
