"""Exact search over one matrix: NumPy, PyTorch, faiss, usearch, numkong and this project.

    pip install 'puma-edge[search,train,bench]'
    python benchmarks/search.py --rows 1000000 --dim 1536 --threads 2 --out search.json

All backends search the same clustered unit vectors in one process, in turns: each round reads
memory as fast as it can, then lets each backend answer 1 query and 64 queries for their 10 best
rows. Medians are given, the ratio to PyTorch, the share of what the machine could do at best (the
larger of bytes over the bandwidth read in those rounds and operations over the best product), and
recall@10 against the exact fp32 answer. Prints a table, and JSON with --out. Needs room for 5.2
bytes a number on the disk and in memory. Where other work shares the machine, --cpu-time with
--threads 1 (and OMP_NUM_THREADS=1) gives ratios that do not depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import limits
import numpy as np

TOP = 10
BLOCK = 16384
PROBE_BYTES = 2**29


@dataclass(frozen=True)
class Backend:
    """One way to search.

    Attributes:
        name: what the table calls it.
        find: queries [q, d] -> rows [q, 10].
        row_bytes: bytes read of each row.
        kind: the arithmetic, "fp32", "int8" or "bits".
    """

    name: str
    find: Callable[[np.ndarray], np.ndarray]
    row_bytes: float
    kind: str


def write_index(path: Path, rows: int, dim: int) -> None:
    """Write clustered unit rows in a narrow cone, as embeddings lie, with int8 rows and bits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from puma_edge.runtimes.convert import convert
    from puma_edge.runtimes.vectors import Target
    from puma_edge.runtimes.writer import SCHEMA, Header, dump_header

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(rows // 100, 1), dim), np.float32) + np.float32(1)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, dim))
    for begin in range(0, rows, BLOCK):
        block = out[begin : begin + BLOCK]
        block[:] = centres[rng.integers(0, len(centres), len(block))]
        block += np.float32(0.5) * rng.standard_normal(block.shape, np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    out.flush()
    header = Header("benchmark", "fp32", "", dim, "float32", rows, "", rows, rows, 0, 0)
    path.with_suffix(".json").write_bytes(dump_header(header))
    columns = {name: [""] * rows for name in SCHEMA.names}
    pq.write_table(pa.table(columns, schema=SCHEMA), path.with_suffix(".parquet"))
    for target in (Target.INT8, Target.BINARY):
        made = convert(path, target)
        print(f"{target.value}: recall@10 {made.recall}", file=sys.stderr, flush=True)


def draw_queries(vectors: np.ndarray, count: int) -> np.ndarray:
    """Rows with noise, as unit vectors."""
    rng = np.random.default_rng(1)
    queries = vectors[rng.choice(len(vectors), count, replace=False)]
    queries = queries + rng.standard_normal(queries.shape, np.float32) * np.float32(0.01)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def best_of(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The 10 best of candidates [q, n]."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return np.take_along_axis(rows, order, 1)


def in_chunks(score: Callable[[int, int], np.ndarray], rows: int, threads: int) -> np.ndarray:
    """Chunks of scores [n, q], each cut to its 10 best by argpartition, then joined."""

    def one(begin: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.ascontiguousarray(score(begin, min(begin + BLOCK, rows)).T)
        kept = np.argpartition(-scores, min(TOP, scores.shape[1] - 1), axis=1)[:, :TOP]
        return np.take_along_axis(scores, kept, 1), kept + begin

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(one, range(0, rows, BLOCK)))
    return best_of(*(np.concatenate(part, axis=1) for part in zip(*parts, strict=True)))


def numpy_backends(vectors: np.ndarray) -> Iterator[Backend]:
    """Chunks of 16k rows and argpartition."""

    def find(queries: np.ndarray) -> np.ndarray:
        return in_chunks(lambda b, e: vectors[b:e] @ queries.T, len(vectors), 1)

    yield Backend("numpy fp32", find, 4 * vectors.shape[1], "fp32")


def torch_backends(vectors: np.ndarray, threads: int) -> Iterator[Backend]:
    """One product and one topk."""
    import torch

    torch.set_num_threads(threads)
    matrix = torch.from_numpy(vectors)

    def find(queries: np.ndarray) -> np.ndarray:
        return torch.topk(torch.from_numpy(queries) @ matrix.T, TOP).indices.numpy()

    yield Backend("torch fp32", find, 4 * vectors.shape[1], "fp32")


def faiss_backends(vectors: np.ndarray, threads: int) -> Iterator[Backend]:
    """Brute force with the default BLAS threshold, and with 1: products by BLAS always."""
    import faiss

    faiss.omp_set_num_threads(threads)
    default = faiss.cvar.distance_compute_blas_threshold
    for threshold in sorted({default, 20}, reverse=True):

        def find(queries: np.ndarray, threshold: int = threshold) -> np.ndarray:
            faiss.cvar.distance_compute_blas_threshold = threshold
            return faiss.knn(queries, vectors, TOP, metric=faiss.METRIC_INNER_PRODUCT)[1]

        note = " (default)" if threshold == default else ""
        name = f"faiss fp32, blas threshold {threshold}{note}"
        yield Backend(name, find, 4 * vectors.shape[1], "fp32")


def usearch_backends(vectors: np.ndarray, codes: np.ndarray, threads: int) -> Iterator[Backend]:
    """Its exact search, fp32 and int8 (by the cosine: rows have a scale each)."""
    from usearch.index import MetricKind, search

    def find(data: np.ndarray, queries: np.ndarray) -> np.ndarray:
        options = {"exact": True, "threads": threads}
        metric = MetricKind.Cos if data.dtype == np.int8 else MetricKind.IP
        keys = search(data, queries, TOP, metric, **options).keys
        return np.asarray(keys, np.int64).reshape(len(queries), -1)

    width = vectors.shape[1]
    yield Backend("usearch fp32", lambda q: find(vectors, q), 4 * width, "fp32")
    yield Backend("usearch int8", lambda q: find(codes, to_codes(q)), width, "int8")


def numkong_backends(vectors: np.ndarray, codes: np.ndarray, threads: int) -> Iterator[Backend]:
    """Packed products, or angles for int8, with the same argpartition as NumPy's."""
    import numkong

    def find(data: np.ndarray, queries: np.ndarray) -> np.ndarray:
        packed = numkong.dots_pack(queries)

        def score(begin: int, end: int) -> np.ndarray:
            if data.dtype == np.int8:
                return -np.asarray(numkong.angulars_packed(data[begin:end], packed))
            return np.asarray(numkong.dots_packed(data[begin:end], packed))

        return in_chunks(score, len(data), threads)

    width = vectors.shape[1]
    yield Backend("numkong fp32", lambda q: find(vectors, q), 4 * width, "fp32")
    yield Backend("numkong int8", lambda q: find(codes, to_codes(q)), width, "int8")


def our_backends(path: Path, threads: int) -> Iterator[Backend]:
    """Each form of `puma-edge search`."""
    from puma_edge.runtimes.index import Index, SearchSettings
    from puma_edge.runtimes.vectors import Form

    index = Index.open(path)
    width = index.header.dimension
    bytes_read = {Form.EXACT: (4 * width, "fp32"), Form.INT8: (width + 4, "int8")}
    bytes_read[Form.BINARY] = (width / 8, "bits")
    for form, (size, kind) in bytes_read.items():
        settings = SearchSettings(form, threads=threads)

        def find(queries: np.ndarray, settings: SearchSettings = settings) -> np.ndarray:
            return index.search(queries, TOP, settings).rows

        yield Backend(f"puma-edge {form.value}", find, size, kind)


def to_codes(queries: np.ndarray) -> np.ndarray:
    """Queries as int8."""
    from puma_edge.runtimes.codes import to_int8

    return to_int8(queries).codes


def backends(path: Path, threads: int) -> list[Backend]:
    """All that are installed; the others are named on stderr."""
    vectors = np.asarray(np.load(path, mmap_mode="c"))
    codes = np.asarray(np.load(path.with_suffix(".int8.npy"), mmap_mode="c"))
    makers: list[Callable[[], Iterator[Backend]]] = [
        lambda: numpy_backends(vectors),
        lambda: torch_backends(vectors, threads),
        lambda: faiss_backends(vectors, threads),
        lambda: usearch_backends(vectors, codes, threads),
        lambda: numkong_backends(vectors, codes, threads),
        lambda: our_backends(path, threads),
    ]
    found: list[Backend] = []
    for maker in makers:
        try:
            found += maker()
        except ModuleNotFoundError as error:
            print(f"left out: {error.name} is not installed", file=sys.stderr)
    return found


def measure(
    path: Path, counts: list[int], threads: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Let the backends take turns, and put medians beside the limits."""
    vectors = np.asarray(np.load(path, mmap_mode="r"))
    rows, dim = vectors.shape
    peak = {"fp32": limits.fp32_product(), "int8": limits.int8_product(threads)}
    queries = {count: draw_queries(vectors, count) for count in counts}
    every = backends(path, threads)
    parts = np.array_split(np.ones(PROBE_BYTES // 8), threads)
    bandwidths: list[float] = []
    times: dict[tuple[str, int], list[float]] = {}
    answers: dict[tuple[str, int], np.ndarray] = {}
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(rounds + 1):  # the first warms up
            if turn > 1 and time.perf_counter() - began > seconds * turn / (turn + 1):
                break
            bandwidths.append(PROBE_BYTES / clock(lambda: list(pool.map(np.max, parts))))
            for count in counts:
                for backend in every:
                    key = (backend.name, count)
                    answer = backend.find(queries[count]) if not turn else None
                    if answer is not None:
                        answers[key] = answer
                        continue
                    found = clock(lambda b=backend, c=count: b.find(queries[c]))
                    times.setdefault(key, []).append(found)
    bandwidth = median(bandwidths[1:])
    table = []
    for count in counts:
        exact = answers["numpy fp32", count]
        base = median(times["torch fp32", count]) if ("torch fp32", count) in times else None
        for backend in every:
            spent = median(times[backend.name, count])
            limit = rows * backend.row_bytes / bandwidth
            if backend.kind in peak:
                limit = max(limit, 2 * rows * dim * count / peak[backend.kind])
            pairs = zip(answers[backend.name, count], exact, strict=True)
            table.append(
                {
                    "backend": backend.name,
                    "queries": count,
                    "ms": round(spent * 1e3, 2),
                    "over_torch": round(base / spent, 2) if base else None,
                    "of_limit": round(limit / spent, 3),
                    "recall_at_10": float(np.mean([len({*a} & {*b}) / TOP for a, b in pairs])),
                }
            )
    return {
        "rows": rows,
        "dim": dim,
        "threads": threads,
        "clock": limits.CLOCK.__name__,
        "rounds": len(bandwidths) - 1,
        "read_gb_per_s": round(bandwidth / 1e9, 1),
        "fp32_gflop_per_s": round(peak["fp32"] / 1e9),
        "int8_gop_per_s": round(peak["int8"] / 1e9),
        "table": table,
    }


def clock(work: Callable[[], object]) -> float:
    """Seconds, of the clock that was chosen."""
    started = limits.CLOCK()
    work()
    return limits.CLOCK() - started


def show(report: dict[str, Any]) -> None:
    """Print it as a table."""
    names = ("rows", "dim", "threads", "clock", "rounds", "read_gb_per_s", "fp32_gflop_per_s")
    print(", ".join(f"{name} {report[name]}" for name in (*names, "int8_gop_per_s")))
    print("| queries | backend | ms | over torch | of the limit | recall@10 |")
    print("|---|---|---|---|---|---|")
    for row in report["table"]:
        ratio = "-" if row["over_torch"] is None else f"{row['over_torch']:.2f}"
        print(
            f"| {row['queries']} | {row['backend']} | {row['ms']} | {ratio} | "
            f"{row['of_limit']:.2f} | {row['recall_at_10']:.4f} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=600, help="No round begins that ends later."
    )
    parser.add_argument("--folder", type=Path, help="Where the index is written; a temporary one.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cpu-time", action="store_true", help="Count CPU time, not the clock's.")
    given = parser.parse_args()
    if given.cpu_time:
        limits.CLOCK = time.process_time
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "index.npy"
        write_index(path, given.rows, given.dim)
        report = measure(path, given.queries, given.threads, given.rounds, given.seconds)
    show(report)
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
