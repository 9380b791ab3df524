"""Every form of search against brute force, and what damaged or stale derived files get."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes import scan
from puma_edge.runtimes.codes import Coded, Rotation, to_int8
from puma_edge.runtimes.convert import convert
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.kernels import Kernel, best_kernel, bit_distances, int8_products
from puma_edge.runtimes.notes import form_files
from puma_edge.runtimes.scan import Rows, rescore, scan_bits, scan_exactly, scan_int8
from puma_edge.runtimes.top import Found, Top
from puma_edge.runtimes.vectors import Form, Target
from tests.edge import write_rows

KERNELS = [Kernel.NUMPY] if best_kernel() is Kernel.NUMPY else [Kernel.NUMPY, Kernel.NUMKONG]


def clustered(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit rows in clusters of about 50, in a narrow cone, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(rows // 50, 1), width)) + 2
    drawn = centres[rng.integers(0, len(centres), rows)] + 0.5 * rng.standard_normal((rows, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def brute(scores: np.ndarray, top: int) -> Found:
    """The best of scores [queries, rows] by sorting all of them."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return Found(np.take_along_axis(scores, order, 1), order)


def overlap(found: np.ndarray, expected: np.ndarray) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])
    )


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    queries=st.integers(1, 5),
    size=st.integers(1, 30),
    values=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_top_is_a_stable_sort(
    parts: list[int], queries: int, size: int, values: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-values, values + 1, (sum(parts), queries)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    top, begin = Top(queries, size), 0
    for part in parts:
        rows = np.arange(begin, begin + part) if seed % 2 else begin
        top.add(scores[begin : begin + part], rows)
        begin += part
    found, expected = top.found(), brute(scores.T, size)
    assert np.array_equal(found.rows, expected.rows)
    assert np.array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    queries=st.integers(1, 40),
    width=st.integers(1, 2100),
    seed=st.integers(0, 2**16),
)
def test_kernels_count_exactly(
    kernel: Kernel, rows: int, queries: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (rows, width)).astype(np.int8)
    asked = rng.integers(-127, 128, (queries, width)).astype(np.int8)
    codes[0], asked[0] = 127, -127  # the largest sums
    expected = codes.astype(np.int64) @ asked.T.astype(np.int64)
    assert np.array_equal(int8_products(asked, kernel)(codes), expected)
    turned = np.asfortranarray(codes)
    assert np.array_equal(int8_products(np.asfortranarray(asked), kernel)(turned), expected)
    bits, other = np.packbits(codes > 0, axis=1), np.packbits(asked > 0, axis=1)
    differ = ((codes > 0)[:, None] != (asked > 0)[None]).sum(-1)
    assert np.array_equal(bit_distances(other, kernel)(bits), differ)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 80),
    queries=st.integers(1, 4),
    width=st.integers(1, 20),
    top=st.integers(1, 100),
    threads=st.integers(1, 3),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    elements=st.integers(1, 60),
    seed=st.integers(0, 2**16),
)
def test_scans_equal_brute_force(
    kernel: Kernel,
    rows: int,
    queries: int,
    width: int,
    top: int,
    threads: int,
    share: float,
    elements: int,
    seed: int,
) -> None:
    """Ties, filters that leave nothing, more hits than rows, rows of zeros, no rows at all."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-3, 4, (rows, width)).astype(np.float32)
    asked = rng.integers(-3, 4, (queries, width)).astype(np.float32)
    allowed = rng.random(rows) < share
    part = Rows(rows, None if share == 1 else allowed, threads)
    numbers = np.arange(rows) if share == 1 else np.flatnonzero(allowed)
    before, scan._ELEMENTS = scan._ELEMENTS, elements
    try:
        exact = scan_exactly(vectors, asked, top, part)
        coded, code = to_int8(vectors), to_int8(asked)
        quick = scan_int8(coded, asked, top, part, kernel)
        rotation = Rotation.draw(np.zeros(width, np.float32))
        bits = rotation.to_bits(vectors)
        distant = scan_bits(bits, rotation, asked, top, part, kernel)
    finally:
        scan._ELEMENTS = before
    products = code.codes.astype(np.int64) @ coded.codes[numbers].T.astype(np.int64)
    apart = (
        np.unpackbits(rotation.to_bits(asked), axis=1)[:, None]
        != np.unpackbits(bits[numbers], axis=1)[None]
    ).sum(-1)
    for found, scores in (
        (exact, asked @ vectors[numbers].T),
        (quick, products.astype(np.float32) * coded.scales[numbers]),
        (distant, -apart.astype(np.float32)),
    ):
        expected = brute(scores, top)
        assert np.array_equal(found.rows, numbers[expected.rows])
        assert np.array_equal(found.scores, expected.scores)
    again = rescore(vectors, asked, exact.rows[:, ::-1], top)
    assert np.array_equal(again.rows, exact.rows)
    assert np.array_equal(again.scores, exact.scores)


def test_int8_rows_are_within_half_a_step() -> None:
    vectors = np.concatenate([clustered(40, 65), np.zeros((2, 65), np.float32)])
    vectors[0] *= 1e-20
    vectors[1] *= 1e20
    coded = to_int8(vectors)
    again = coded.codes * coded.scales[:, None]
    assert (np.abs(again - vectors) <= 0.501 * coded.scales[:, None]).all()
    assert not coded.codes[-1].any()
    assert coded.scales[-1] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_recall_of_the_forms(tmp_path: Path, dtype: type[np.floating]) -> None:
    vectors = clustered(6000, 256)
    path = write_rows(tmp_path / "index.npy", vectors.astype(dtype))
    index = Index.open(path)
    queries = vectors[::100] + 0.01 * clustered(60, 256, seed=5)
    exact = index.search(queries, 10, SearchSettings(Form.EXACT))
    for form, least in ((Form.INT8, 0.999), (Form.BINARY, 0.95)):
        report = convert(path, Target(form.value))
        assert report.recall is not None
        assert report.recall >= least
        for kernel in KERNELS:
            found = Index.open(path).search(queries, 10, SearchSettings(form, kernel=kernel))
            assert overlap(found.rows, exact.rows) >= least
            assert np.allclose(found.scores[:, 0], exact.scores[:, 0], atol=1e-6)
    # Where there are int8 rows, they are what is gone through.
    quick = Index.open(path).search(queries, 10)
    assert np.array_equal(quick.rows, index.search(queries, 10, SearchSettings(Form.INT8)).rows)


@pytest.mark.parametrize("rows", [0, 1, 2, 11])
@pytest.mark.parametrize("form", [Form.INT8, Form.BINARY])
def test_small_indexes(tmp_path: Path, rows: int, form: Form) -> None:
    vectors = clustered(11, 12)[:rows]
    if rows == 11:
        vectors[3:7] = 0
    path = write_rows(tmp_path / "index.npy", vectors)
    report = convert(path, Target(form.value))
    assert report.recall == (1.0 if rows > 1 else None)
    queries = clustered(3, 12, seed=1)
    index = Index.open(path)
    found = index.search(queries, 20, SearchSettings(form))
    exact = index.search(queries, 20, SearchSettings(Form.EXACT))
    assert found.rows.shape == (3, rows)
    assert np.allclose(found.scores, exact.scores, atol=1e-6)
    nothing = SearchSettings(form, allowed=np.zeros(rows, bool))
    assert index.search(queries, 20, nothing).rows.shape == (3, 0)


def test_many_queries_and_none(tmp_path: Path) -> None:
    vectors = clustered(300, 16)
    path = write_rows(tmp_path / "index.npy", vectors)
    convert(path, Target.INT8)
    index = Index.open(path)
    found = index.search(vectors, 1)  # more than are taken at once
    assert found.rows[:, 0].tolist() == list(range(300))
    assert index.search(vectors[:0], 4).rows.shape == (0, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_memory_is_that_of_chunks(tmp_path: Path, dtype: type[np.floating]) -> None:
    vectors = clustered(40_000, 64)
    path = write_rows(tmp_path / "index.npy", vectors.astype(dtype))
    convert(path, Target.INT8)
    index = Index.open(path)
    for form in (Form.EXACT, Form.INT8):
        tracemalloc.start()
        index.search(vectors[:300], 10, SearchSettings(form, threads=2))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16e6  # all scores would be 48 MB


def test_a_matrix_in_fortran_order(tmp_path: Path) -> None:
    vectors = clustered(500, 24)
    path = write_rows(tmp_path / "index.npy", vectors)
    np.save(path, np.asfortranarray(vectors))
    for form in (Form.INT8, Form.BINARY):
        convert(path, Target(form.value))
    index = Index.open(path)
    assert not index.vectors.flags.c_contiguous
    exact = index.search(vectors[:9], 5, SearchSettings(Form.EXACT))
    assert overlap(index.search(vectors[:9], 5).rows, exact.rows) == 1


def _other_rows(path: Path) -> None:
    values = np.load(path)
    np.save(path, values[::-1])


def _one_row(path: Path) -> None:
    """The same size, and one number in the middle is another."""
    values = np.load(path, mmap_mode="r+")
    values[333, 3] += 0.25
    values.flush()
    os.utime(path)


def _longer(path: Path) -> None:
    write_rows(path, clustered(501, 24, seed=3))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _scale(path: Path) -> None:
    values = np.load(path)
    values[7] *= 2
    np.save(path, values)


def _swapped(path: Path) -> None:
    np.save(path, np.load(path)[::-1])


def _no_json(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("index.npy", _other_rows, "index.npy has changed since"),
        ("index.npy", _one_row, "index.npy has changed since"),
        ("index.npy", _longer, "index.npy has changed since"),
        ("index.int8.npy", _cut, "not the file that was written"),
        ("index.int8.npy", Path.unlink, "not the file that was written"),
        ("index.int8.npy", _swapped, "not those of the index"),
        ("index.scales.npy", _cut, "not the file that was written"),
        ("index.scales.npy", _scale, "not the file that was written"),
        ("index.scales.npy", Path.unlink, "not the file that was written"),
        ("index.int8.json", _no_json, "damaged"),
    ],
)
def test_stale_or_damaged_int8_rows_are_never_used(
    tmp_path: Path, name: str, harm: Callable[[Path], object], words: str
) -> None:
    path = write_rows(tmp_path / "index.npy", clustered(500, 24))
    convert(path, Target.INT8)
    assert Index.open(path).warning is None
    time.sleep(0.01)  # the clock of a file's times ticks every few milliseconds
    harm(tmp_path / name)
    index = Index.open(path)
    queries = clustered(4, 24, seed=9)
    assert index.warning is not None
    assert words in index.warning
    assert "puma-edge convert" in index.warning
    expected = brute(queries @ np.asarray(index.vectors).T, 5)
    assert np.array_equal(index.search(queries, 5).rows, expected.rows)
    with pytest.raises(PumaError, match=words):
        index.search(queries, 5, SearchSettings(Form.INT8))
    convert(path, Target.INT8)
    assert Index.open(path).warning is None


def test_a_copy_is_still_the_same_index(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "index.npy", clustered(100, 8))
    convert(path, Target.INT8)
    note = form_files(path, Form.INT8)[-1]
    os.utime(path, ns=(1, 1))
    assert Index.open(path).warning is None
    assert json.loads(note.read_text())["source"]["mtime_ns"] == 1  # not to be read again


def test_between_fp32_and_fp16(tmp_path: Path) -> None:
    vectors = clustered(600, 32)
    path = write_rows(tmp_path / "index.npy", vectors)
    convert(path, Target.INT8)
    half = convert(path, Target.FP16)
    assert half.recall is not None
    assert half.recall >= 0.99
    index = Index.open(path)
    assert index.header.dtype == "float16"
    assert np.array_equal(index.vectors, vectors.astype(np.float16))
    assert index.warning is None  # the int8 rows were made again
    found = index.search(vectors[:20], 1)
    assert found.rows[:, 0].tolist() == list(range(20))
    convert(path, Target.FP32)
    index = Index.open(path)
    assert index.vectors.dtype == np.float32
    assert np.array_equal(index.vectors, vectors.astype(np.float16).astype(np.float32))
    assert not (tmp_path / "index.npy.partial").exists()


def test_rows_without_numbers_are_not_converted(tmp_path: Path) -> None:
    vectors = clustered(50, 8)
    vectors[17, 2] = np.nan
    path = write_rows(tmp_path / "index.npy", vectors)
    for target in (Target.INT8, Target.BINARY, Target.FP16):
        with pytest.raises(PumaError, match="row 17"):
            convert(path, target)
    assert Index.open(path).search(clustered(1, 8), 50).rows[0, -1] == 17


def test_fewer_dimensions_are_compared_exactly(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "index.npy", clustered(50, 8))
    convert(path, Target.INT8)
    index, queries = Index.open(path), clustered(2, 8, seed=2)
    exact = index.search(queries, 5, SearchSettings(Form.EXACT, 4))
    assert np.array_equal(index.search(queries, 5, SearchSettings(dimension=4)).rows, exact.rows)
    with pytest.raises(UsageError, match="--form exact"):
        index.search(queries, 5, SearchSettings(Form.INT8, 4))


def test_codes_of_nothing() -> None:
    coded = to_int8(np.empty((0, 4), np.float32))
    assert isinstance(coded, Coded)
    assert coded.codes.shape == (0, 4)
