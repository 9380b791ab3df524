"""Search against a naive form, and queries that find what they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.errors import PumaError, UsageError
from puma_edge.prompts import Modality
from puma_edge.runtimes import scan
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.records import Table
from puma_edge.runtimes.searcher import Query, Wanted, embed_queries, search
from puma_edge.runtimes.vectors import shorten
from puma_edge.runtimes.writer import Header
from tests.edge import HashEncoder, embed, encoded, fill, picture, small_spec
from tests.vectors import brute, units


def index_of(vectors: np.ndarray) -> Index:
    rows, width = vectors.shape
    header = Header("m", "fp32", "p", width, str(vectors.dtype), rows, "c", rows, rows, 0, 0)
    return Index(Path("index.npy"), header, vectors, Table(Path("index.parquet")))


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(0, 70),
    queries=st.integers(1, 4),
    top=st.integers(1, 90),
    chunk=st.integers(1, 40),
    values=st.integers(1, 4),
    seed=st.integers(0, 2**16),
    half=st.booleans(),
)
def test_search_equals_a_naive_sort_ties_included(
    rows: int, queries: int, top: int, chunk: int, values: int, seed: int, half: bool
) -> None:
    rng = np.random.default_rng(seed)
    # Small whole numbers: sums are exact in any order, and ties are everywhere.
    vectors = rng.integers(-values, values + 1, (rows, 5)).astype(
        np.float16 if half else np.float32
    )
    asked = rng.integers(-values, values + 1, (queries, 5)).astype(np.float32)
    before, scan._CHUNK = scan._CHUNK, chunk
    try:
        found = index_of(vectors).search(asked, top)
    finally:
        scan._CHUNK = before
    expected = brute(asked @ vectors.T.astype(np.float32), top)
    assert np.array_equal(found.rows, expected.rows)
    assert np.array_equal(found.scores, expected.scores)


def test_search_over_several_real_chunks() -> None:
    vectors = units(40_000, 32)
    queries = vectors[[5, 20_000, 39_999]] + np.float32(0.01)
    found = index_of(vectors).search(queries, 10)
    assert found.rows[:, 0].tolist() == [5, 20_000, 39_999]
    assert np.array_equal(found.rows, brute(queries @ vectors.T, 10).rows)


def test_rows_that_are_no_numbers_come_last() -> None:
    vectors = np.asarray([[np.nan, 1], [1, 0], [-1, 0], [np.inf, 0], [np.inf, np.nan]], np.float32)
    found = index_of(vectors).search(np.asarray([[1, 0]], np.float32), 5)
    assert found.rows.tolist() == [[3, 1, 2, 0, 4]]
    assert index_of(vectors).search(np.asarray([[1, 0]], np.float32), 3).rows.tolist() == [
        [3, 1, 2]
    ]


def test_an_empty_index_finds_nothing() -> None:
    found = index_of(np.empty((0, 4), np.float32)).search(np.ones((2, 4), np.float32), 3)
    assert found.rows.shape == found.scores.shape == (2, 0)


def test_fewer_dimensions() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    queries = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    index = index_of(vectors)
    expected = brute(shorten(queries, 4) @ shorten(vectors, 4).T, 6).rows
    assert np.array_equal(index.search(queries, 6, SearchSettings(dimension=4)).rows, expected)
    short = index_of(shorten(vectors, 4))
    assert np.array_equal(short.search(queries, 6).rows, expected)


def test_queries_that_cannot_be_answered() -> None:
    index = index_of(np.ones((3, 4), np.float32))
    with pytest.raises(UsageError, match="top is 0"):
        index.search(np.ones((1, 4), np.float32), 0)
    with pytest.raises(UsageError, match="5 dimensions"):
        index.search(np.ones((1, 4), np.float32), 1, SearchSettings(dimension=5))
    with pytest.raises(PumaError, match="shape"):
        index.search(np.ones((1, 3), np.float32), 1)
    with pytest.raises(PumaError, match="not finite"):
        index.search(np.full((1, 4), np.nan, np.float32), 1)


@pytest.mark.parametrize(
    "allowed",
    [np.ones(3, bool), np.ones(30, bool), np.array([0, 3]), np.ones((9, 1), bool), [True] * 9],
)
def test_allowed_says_it_of_each_row(allowed: Any) -> None:
    with pytest.raises(UsageError, match="array of 9 bools"):
        index_of(units(9)).search(units(1), 3, SearchSettings(allowed=allowed))


def test_queries_find_what_they_describe(tmp_path: Path) -> None:
    lines: list[object] = [{"text": "words of a line", "id": "line-1", "price": 3}]
    files = {"fox.txt": "a fox", "a/sea.png": encoded(picture(5)), "l.jsonl": lines}
    files |= {"both.png": encoded(picture(6)), "both.txt": "with words"}
    root, out = fill(tmp_path / "corpus", files), tmp_path / "index.npy"
    embed(root, out)
    index, spec, encoder = Index.open(out), small_spec(), HashEncoder()
    queries = [
        Query(" a fox "),
        Query(image=root / "a/sea.png"),
        Query("with words", root / "both.png"),
        Query("words of a line"),
    ]
    vectors = embed_queries(queries, spec, encoder, {})
    hits = search(index, vectors, Wanted(2))
    assert [len(found) for found in hits] == [2] * 4
    first = [(found[0].rank, found[0].id, found[0].modality) for found in hits]
    assert first == [
        (1, "fox.txt", Modality.TEXT),
        (1, "a/sea.png", Modality.IMAGE),
        (1, "both.png", Modality.IMAGE_TEXT),
        (1, "line-1", Modality.TEXT),
    ]
    assert all(found[0].score == pytest.approx(1) for found in hits)
    assert index.records([hits[3][0].row])[0].metadata == {"price": 3}


def test_instructions_by_modality_and_by_hand(tmp_path: Path) -> None:
    spec, encoder = small_spec(), HashEncoder()
    path = tmp_path / "q.png"
    path.write_bytes(encoded(picture(1)))
    generic = {"text": "Find text.", "image": "Find image."}

    def one(query: Query, instructions: dict[str, str]) -> np.ndarray:
        return embed_queries([query], spec, encoder, instructions)[0]

    plain = one(Query("a"), {})
    assert not np.allclose(one(Query("a"), generic), plain)
    assert np.allclose(one(Query("a", instruction=""), generic), plain)
    assert np.allclose(one(Query("a", instruction="Find text."), {}), one(Query("a"), generic))
    image = one(Query(image=path, instruction="Find image."), {})
    assert np.allclose(one(Query(image=path), generic), image)


def test_queries_that_cannot_be_asked(tmp_path: Path) -> None:
    spec, encoder = small_spec(), HashEncoder()
    with pytest.raises(UsageError, match="nothing to search for"):
        embed_queries([Query("  ")], spec, encoder, {})
    with pytest.raises(PumaError, match=r"gone\.png"):
        embed_queries([Query(image=tmp_path / "gone.png")], spec, encoder, {})
