"""The machine's own limits, which every figure stands beside: memory bandwidth and matrix products.

    python benchmarks/limits.py --threads 2

Prints JSON: GB/s of reading memory, and GFLOP/s (GOP/s) of the best square products in fp32 (numpy)
and in INT8 (ONNX Runtime's MatMulInteger, unsigned by signed), each the best of several rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    threads = parser.parse_args().threads
    rows = {
        "threads": threads,
        "read_gb_per_s": bandwidth(threads) / 1e9,
        "fp32_gflop_per_s": fp32_product() / 1e9,
        "int8_gop_per_s": int8_product(threads) / 1e9,
    }
    print(json.dumps({name: round(value, 1) for name, value in rows.items()}, indent=2))


if __name__ == "__main__":
    main()
