"""The machine's own limits, which every figure stands beside: memory bandwidth and matrix products.

    python benchmarks/limits.py --threads 2 --bundle bundle/

Prints JSON: GB/s of reading memory, and GFLOP/s (GOP/s) of the best square products in fp32 (numpy)
and in INT8 (ONNX Runtime's MatMulInteger, unsigned by signed), each the best of several rounds.
With a bundle also what the cases of `puma-edge bench` cost at least in INT8: the bytes of the
weights they read, the operations of all products, counted as the graphs run, and the milliseconds
in which this machine can read the one and do the other.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bench import CASES
from puma_edge.bench_worker import make_batch
from puma_edge.bundle import Bundle, Precision
from puma_edge.feeds import text_feeds, vision_feeds
from puma_edge.runtimes.ort import token_width

PARTS = ("vision", "text")
READ_BYTES = 2**30
EDGE = 2048
ROUNDS = 7
CLOCK = time.perf_counter  # benchmarks/search.py may take CPU time instead


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several rounds."""
    times = []
    for _ in range(ROUNDS):
        started = CLOCK()
        work()
        times.append(CLOCK() - started)
    return min(times)


def bandwidth(threads: int) -> float:
    """Bytes a second that all threads together read from memory."""
    parts = np.array_split(np.ones(READ_BYTES // 8, np.float64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / best(lambda: list(pool.map(np.max, parts)))


def fp32_product() -> float:
    """Operations a second of numpy's product of two square matrices."""
    matrix = np.random.default_rng(0).standard_normal((EDGE, EDGE), np.float32)
    return 2 * EDGE**3 / best(lambda: matrix @ matrix)


def int8_product(threads: int) -> float:
    """Operations a second of ONNX Runtime's product of u8 and s8 square matrices."""
    import onnx
    import onnxruntime

    values = np.random.default_rng(0).integers(0, 100, (EDGE, EDGE))
    weight = onnx.numpy_helper.from_array(values.astype(np.int8), "b")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [EDGE, EDGE])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [EDGE, EDGE])],
        [weight],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {"a": values.astype(np.uint8)}
    return 2 * EDGE**3 / best(lambda: session.run(None, feeds))


@dataclass(frozen=True)
class Cost:
    """Operations in INT8 and in float32, and bytes of INT8 weights."""

    int8: float = 0
    fp32: float = 0
    weights: float = 0

    def __add__(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(self.int8 + other.int8, self.fp32 + other.fp32, self.weights + other.weights)


def costs(folder: Path) -> dict[str, Cost]:
    """What each case of the benchmark takes in a bundle's INT8 graphs."""
    bundle = Bundle.open(folder)
    sessions = {part: _profiled(bundle.graph(Precision.INT8, part)) for part in PARTS}
    ran: dict[str, list[str]] = {part: [] for part in PARTS}
    for case in CASES:
        batch = make_batch(bundle.spec, case.items, case.tokens, image=case.image, edge=case.edge)
        tokens = np.zeros((0, token_width(sessions["text"])), np.float32)
        if len(batch.n_patches):
            tokens = sessions["vision"].run(None, vision_feeds(batch))[0]
            ran["vision"].append(case.name)
        sessions["text"].run(None, text_feeds(batch, tokens))
        ran["text"].append(case.name)
    found = {case.name: Cost() for case in CASES}
    for part, session in sessions.items():
        profile = Path(session.end_profiling())
        events = json.loads(profile.read_text(encoding="utf-8"))
        profile.unlink()
        runs = [event for event in events if event["name"] == "model_run"]
        for name, run in zip(ran[part], runs, strict=True):
            inside = [e for e in events if run["ts"] <= e["ts"] <= run["ts"] + run["dur"]]
            found[name] = sum((_cost(event) for event in inside), found[name])
    return found


def _profiled(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(tempfile.gettempdir()) / f"limits.{path.stem}")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _cost(event: dict[str, Any]) -> Cost:
    """Of one node as it ran: the product of [..., m, k] and [..., k, n] takes 2 m k n."""
    about = event.get("args", {})
    kind = about.get("op_name", "")
    if not event["name"].endswith("_kernel_time") or "MatMul" not in kind:
        return Cost()
    (shape,), (result,) = (
        about["input_type_shape"][0].values(),
        about["output_type_shape"][0].values(),
    )
    operations = 2 * float(np.prod(result)) * shape[-1]
    if kind == "MatMulIntegerToFloat":
        return Cost(int8=operations, weights=float(shape[-1] * result[-1]))
    return Cost(fp32=operations)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--bundle", type=Path, default=None)
    given = parser.parse_args()
    threads = given.threads
    read, fp32, int8 = bandwidth(threads), fp32_product(), int8_product(threads)
    rows: dict[str, Any] = {
        "threads": threads,
        "read_gb_per_s": round(read / 1e9, 1),
        "fp32_gflop_per_s": round(fp32 / 1e9, 1),
        "int8_gop_per_s": round(int8 / 1e9, 1),
    }
    for name, cost in costs(given.bundle).items() if given.bundle else ():
        rows[name] = {
            "int8_gop": round(cost.int8 / 1e9, 2),
            "fp32_gop": round(cost.fp32 / 1e9, 2),
            "int8_weights_gb": round(cost.weights / 1e9, 3),
            "least_ms_to_read": round(1e3 * cost.weights / read, 1),
            "least_ms_to_compute": round(1e3 * (cost.int8 / int8 + cost.fp32 / fp32), 1),
        }
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
