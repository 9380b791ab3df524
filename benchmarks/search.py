"""Exact search over one matrix: NumPy, PyTorch, faiss, usearch, numkong and this project.

    pip install 'puma-edge[search,train,bench]'
    python benchmarks/search.py --rows 1000000 --dim 1536 --threads 2 --out search.json

All backends search the same clustered unit vectors in one process, in turns: each round reads
memory as fast as it can, then lets each backend answer 1 query and 64 queries for their 10 best
rows, a few times where that is over soon. Medians are given, the ratio to PyTorch, the share of
what the machine could do at best (the larger of bytes over the bandwidth read in those rounds and
operations over the best product), and recall@10 against the exact fp32 answer. Prints a table, and
JSON with --out. Needs room for 5.2 bytes a number on the disk and in memory; --index keeps them for
another run. Where other work shares the machine, --cpu-time with --threads 1 (and
OMP_NUM_THREADS=1) gives ratios that do not depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import limits
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from search_backends import BLOCK, TOP, Backend, backends

from puma_edge.runtimes.convert import convert
from puma_edge.runtimes.notes import present_forms
from puma_edge.runtimes.vectors import Form, Target
from puma_edge.runtimes.writer import SCHEMA, Header, dump_header

PROBE_BYTES = 2**29
REPEATS, TURN_SECONDS = 7, 0.5


def write_index(path: Path, rows: int, dim: int) -> None:
    """Write clustered unit rows in a narrow cone, as embeddings lie, with int8 rows and bits."""
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
        say_recall(path, target)


def say_recall(path: Path, target: Target) -> None:
    """Make another form, and say what recall it costs and how long it took."""
    began = time.perf_counter()
    made = convert(path, target)
    text = f"{target.value}: recall@10 {made.recall}, {time.perf_counter() - began:.0f} s"
    print(text, file=sys.stderr, flush=True)


def draw_queries(vectors: np.ndarray, count: int) -> np.ndarray:
    """Rows with noise, as unit vectors."""
    rng = np.random.default_rng(1)
    queries = vectors[rng.choice(len(vectors), count, replace=False)]
    queries = queries + rng.standard_normal(queries.shape, np.float32) * np.float32(0.01)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


@dataclass(frozen=True)
class Timings:
    """What the rounds gave.

    Attributes:
        bandwidth: bytes a second that all threads read from memory, the median of the rounds.
        rounds: how many counted.
        times: (backend, queries) -> seconds of each answer, of all rounds.
        answers: (backend, queries) -> rows [queries, 10].
    """

    bandwidth: float
    rounds: int
    times: dict[tuple[str, int], list[float]]
    answers: dict[tuple[str, int], np.ndarray]


def take_turns(
    every: Sequence[Backend], queries: dict[int, np.ndarray], given: argparse.Namespace
) -> Timings:
    """Let the backends take turns; a round before the first warms up and keeps the answers."""
    parts = np.array_split(np.ones(PROBE_BYTES // 8), given.threads)
    bandwidths: list[float] = []
    times: dict[tuple[str, int], list[float]] = {}
    answers = {
        (backend.name, count): backend.find(asked)
        for count, asked in queries.items()
        for backend in every
    }
    began, done = time.perf_counter(), 0
    with ThreadPoolExecutor(given.threads) as pool:
        while done < given.rounds:
            if done and time.perf_counter() - began > given.seconds * done / (done + 1):
                break
            reading = clocked(lambda: list(pool.map(np.max, parts)))
            bandwidths += [PROBE_BYTES / seconds for seconds in reading]
            for count, asked in queries.items():
                for backend in every:
                    found = clocked(lambda b=backend, q=asked: b.find(q))
                    times.setdefault((backend.name, count), []).extend(found)
            done += 1
    return Timings(median(bandwidths), done, times, answers)


def tabulate(
    every: Sequence[Backend], shape: tuple[int, int], peak: dict[str, float], seen: Timings
) -> list[dict[str, Any]]:
    """Put the medians beside the limits: a row for each backend and number of queries."""
    (rows, dim), table = shape, []
    by_name = {backend.name: backend for backend in every}
    for (name, count), times in seen.times.items():
        backend, spent = by_name[name], median(times)
        base = seen.times.get(("torch fp32", count))
        limit = rows * backend.row_bytes / seen.bandwidth
        if backend.kind in peak:
            limit = max(limit, 2 * rows * dim * count / peak[backend.kind])
        exact = seen.answers["numpy fp32", count]
        pairs = zip(seen.answers[name, count], exact, strict=True)
        table.append(
            {
                "backend": name,
                "queries": count,
                "ms": round(spent * 1e3, 2),
                "over_torch": round(median(base) / spent, 2) if base else None,
                "of_limit": round(limit / spent, 3) if backend.row_bytes else None,
                "recall_at_10": float(np.mean([len({*a} & {*b}) / TOP for a, b in pairs])),
            }
        )
    return table


def measure(path: Path, given: argparse.Namespace) -> dict[str, Any]:
    """All backends over the index at `path`, as the report that is written."""
    vectors = np.asarray(np.load(path, mmap_mode="r"))
    peak = {"fp32": limits.fp32_product(), "int8": limits.int8_product(given.threads)}
    queries = {count: draw_queries(vectors, count) for count in given.queries}
    every = backends(path, given.threads)
    seen = take_turns(every, queries, given)
    return {
        "rows": len(vectors),
        "dim": vectors.shape[1],
        "threads": given.threads,
        "clock": limits.CLOCK.__name__,
        "rounds": seen.rounds,
        "read_gb_per_s": round(seen.bandwidth / 1e9, 1),
        "fp32_gflop_per_s": round(peak["fp32"] / 1e9),
        "int8_gop_per_s": round(peak["int8"] / 1e9),
        "table": tabulate(every, vectors.shape, peak, seen),
    }


def clocked(work: Callable[[], object]) -> list[float]:
    """Seconds of the clock that was chosen, of one turn: what is over soon is done a few times."""
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < TURN_SECONDS:
        started = limits.CLOCK()
        work()
        times.append(limits.CLOCK() - started)
    return times


def show(report: dict[str, Any]) -> None:
    """Print it as a table."""
    names = ("rows", "dim", "threads", "clock", "rounds", "read_gb_per_s", "fp32_gflop_per_s")
    print(", ".join(f"{name} {report[name]}" for name in (*names, "int8_gop_per_s")))
    print("| queries | backend | ms | over torch | of the limit | recall@10 |")
    print("|---|---|---|---|---|---|")
    for row in report["table"]:
        shares = [row[name] for name in ("over_torch", "of_limit")]
        ratio, share = ("-" if one is None else f"{one:.2f}" for one in shares)
        print(
            f"| {row['queries']} | {row['backend']} | {row['ms']} | {ratio} | {share} | "
            f"{row['recall_at_10']:.4f} |"
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
    parser.add_argument("--index", type=Path, help="Written there if it is not, and kept.")
    parser.add_argument("--hnsw", action="store_true", help="Build and time a graph too.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cpu-time", action="store_true", help="Count CPU time, not the clock's.")
    given = parser.parse_args()
    if given.cpu_time:
        limits.CLOCK = time.process_time
    with tempfile.TemporaryDirectory() as folder:
        path = given.index or Path(folder) / "index.npy"
        if not path.exists():
            write_index(path, given.rows, given.dim)
        if given.hnsw and Form.HNSW not in present_forms(path):
            say_recall(path, Target.HNSW)
        report = measure(path, given)
    show(report)
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
