"""Going through rows: each kernel and each scan against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.runtimes import scan
from puma_edge.runtimes.codes import Coded, Rotation, to_int8
from puma_edge.runtimes.kernels import Kernel, bit_distances, int8_products
from puma_edge.runtimes.scan import Rows, rescore, scan_bits, scan_exactly, scan_int8
from puma_edge.runtimes.top import Top
from tests.vectors import KERNELS, brute, clustered


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


def test_codes_of_nothing() -> None:
    coded = to_int8(np.empty((0, 4), np.float32))
    assert isinstance(coded, Coded)
    assert coded.codes.shape == (0, 4)
