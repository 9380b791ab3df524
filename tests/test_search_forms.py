"""Every form of an index: what it finds, what it costs, and from one to another."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes.convert import convert
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.vectors import Form, Target
from tests.edge import write_rows
from tests.vectors import KERNELS, clustered, overlap


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


@pytest.mark.parametrize("form", [Form.INT8, Form.BINARY])
def test_equal_rows_have_equal_scores_and_come_in_their_order(tmp_path: Path, form: Form) -> None:
    path = write_rows(tmp_path / "index.npy", np.repeat(clustered(5, 96), 7, axis=0))
    convert(path, Target(form.value))
    found = Index.open(path).search(clustered(40, 96, seed=1), 35, SearchSettings(form))
    groups = found.rows.reshape(40, 5, 7)
    assert np.array_equal(groups, groups[:, :, :1] + np.arange(7))
    scores = found.scores.reshape(40, 5, 7)
    assert np.array_equal(scores, np.broadcast_to(scores[:, :, :1], scores.shape))


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
