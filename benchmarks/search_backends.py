"""Ways to search one matrix exactly: NumPy, PyTorch, faiss, usearch, numkong and this project."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOP = 10
BLOCK = 16384


@dataclass(frozen=True)
class Backend:
    """One way to search.

    Attributes:
        name: what the table calls it.
        find: queries [q, d] -> rows [q, 10].
        row_bytes: bytes read of each row; 0 where most rows are never read.
        kind: the arithmetic, "fp32", "int8" or "bits", or "walk" along a graph.
    """

    name: str
    find: Callable[[np.ndarray], np.ndarray]
    row_bytes: float
    kind: str


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
    """Each form of `puma-edge search`; a graph only where it was built."""
    from puma_edge.runtimes.index import Index, SearchSettings
    from puma_edge.runtimes.notes import present_forms
    from puma_edge.runtimes.vectors import Form

    index = Index.open(path)
    width = index.header.dimension
    bytes_read: dict[Form, tuple[float, str]] = {Form.EXACT: (4 * width, "fp32")}
    bytes_read |= {Form.INT8: (width + 4, "int8"), Form.BINARY: (width / 8, "bits")}
    if Form.HNSW in present_forms(path):
        bytes_read[Form.HNSW] = (0, "walk")
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
