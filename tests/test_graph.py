"""A graph over the rows (HNSW): what it finds, filters, and what a stale or damaged one gets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes.convert import convert
from puma_edge.runtimes.graph import Graph
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.notes import form_files, present_forms
from puma_edge.runtimes.vectors import Form, Target
from tests.commands import puma
from tests.edge import write_rows
from tests.vectors import brute, clustered, let_the_clock_tick, overlap

pytest.importorskip("usearch", reason="the extra hnsw is not installed")
WALK = SearchSettings(Form.HNSW)


def test_a_walk_finds_what_scanning_finds(tmp_path: Path) -> None:
    vectors = clustered(3000, 64)
    path = write_rows(tmp_path / "index.npy", vectors)
    told: list[tuple[int, int]] = []
    made = convert(path, Target.HNSW, lambda done, total: told.append((done, total)))
    assert told == [(3000, 3000)]
    assert set(made.sizes) == {"index.hnsw.usearch", "index.hnsw.json"}
    assert made.recall is not None
    assert made.recall >= 0.98
    assert present_forms(path) == [Form.HNSW]
    index = Index.open(path)
    queries = vectors[::100] + 0.01 * clustered(30, 64, seed=5)
    exact = index.search(queries, 10, SearchSettings(Form.EXACT))
    found = index.search(queries, 10, WALK)
    assert overlap(found.rows, exact.rows) >= 0.98
    # What it finds has the rows' own scores, in their order.
    expected = np.take_along_axis(queries.astype(np.float32) @ vectors.T, found.rows, 1)
    assert np.allclose(found.scores, expected, atol=1e-6)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert np.array_equal(index.search(queries[4:5], 10, WALK).rows, found.rows[4:5])
    assert index.search(queries[:0], 10, WALK).rows.shape == (0, 10)


def test_only_who_asks_for_it_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "index.npy", clustered(400, 16))
    convert(path, Target.HNSW)
    walked: list[int] = []
    nearest = Graph.nearest
    monkeypatch.setattr(Graph, "nearest", lambda *a: walked.append(1) or nearest(*a))
    index, queries = Index.open(path), clustered(3, 16, seed=2)
    index.search(queries, 5)
    assert not walked
    index.search(queries, 5, WALK)
    assert walked


def test_filtered_rows_are_gone_through(tmp_path: Path) -> None:
    vectors = clustered(2000, 32)
    path = write_rows(tmp_path / "index.npy", vectors)
    convert(path, Target.HNSW)
    index, queries = Index.open(path), clustered(5, 32, seed=3)
    for share in (0.0, 0.005, 0.5):
        allowed = np.random.default_rng(1).random(2000) < share
        numbers = np.flatnonzero(allowed)
        found = index.search(queries, 10, SearchSettings(Form.HNSW, allowed=allowed))
        expected = brute(queries @ vectors[numbers].T, 10)
        assert np.array_equal(found.rows, numbers[expected.rows])
    # A filter that keeps every row walks the graph, which is built a little differently each time.
    found = index.search(queries, 10, SearchSettings(Form.HNSW, allowed=np.ones(2000, bool)))
    exact = brute(queries @ vectors.T, 10).rows
    assert overlap(found.rows, exact) > 0.8


@pytest.mark.parametrize("rows", [0, 1, 2, 11])
def test_small_indexes(tmp_path: Path, rows: int) -> None:
    vectors = clustered(11, 12)[:rows]
    vectors[3:7] = 0
    path = write_rows(tmp_path / "index.npy", vectors)
    assert convert(path, Target.HNSW).recall == (1.0 if rows > 1 else None)
    queries = np.concatenate([clustered(3, 12, seed=1), np.zeros((1, 12), np.float32)])
    index = Index.open(path)
    found = index.search(queries, 20, WALK)
    exact = index.search(queries, 20, SearchSettings(Form.EXACT))
    assert found.rows.shape == (4, rows)
    assert np.allclose(found.scores, exact.scores, atol=1e-6)


def test_where_the_walk_ends_early_all_rows_are_gone_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(300, 16)
    path = write_rows(tmp_path / "index.npy", vectors)
    convert(path, Target.HNSW)
    monkeypatch.setattr(Graph, "nearest", lambda *_: None)
    queries = clustered(4, 16, seed=9)
    expected = brute(queries @ vectors.T, 5)
    assert np.array_equal(Index.open(path).search(queries, 5, WALK).rows, expected.rows)


def _another(path: Path) -> None:
    write_rows(path, clustered(500, 24, seed=3))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _bent(path: Path) -> None:
    """The same size, and bytes in the middle are others."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 255 for byte in data[middle : middle + 64])
    path.write_bytes(data)


def _no_json(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("index.npy", _another, "index.npy has changed since"),
        ("index.hnsw.usearch", _cut, "not the file that was written"),
        ("index.hnsw.usearch", _bent, "not the file that was written"),
        ("index.hnsw.usearch", Path.unlink, "not the file that was written"),
        ("index.hnsw.json", _no_json, "damaged"),
        ("index.hnsw.json", Path.unlink, "it is not there"),
    ],
)
def test_a_stale_or_damaged_graph_is_refused(
    tmp_path: Path, name: str, harm: Callable[[Path], object], words: str
) -> None:
    path = write_rows(tmp_path / "index.npy", clustered(500, 24))
    convert(path, Target.HNSW)
    let_the_clock_tick(tmp_path)
    harm(tmp_path / name)
    queries = clustered(4, 24, seed=9)
    with pytest.raises(PumaError, match=words) as caught:
        Index.open(path).search(queries, 5, WALK)
    assert "puma-edge convert INDEX --to hnsw" in str(caught.value)
    assert Index.open(path).search(queries, 5).rows.shape == (4, 5)
    convert(path, Target.HNSW)
    Index.open(path).search(queries, 5, WALK)


def test_a_copy_is_still_the_same_graph(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "index.npy", clustered(100, 8))
    convert(path, Target.HNSW)
    file, note = form_files(path, Form.HNSW)
    for one in (path, file):
        os.utime(one, ns=(1, 1))
    Index.open(path).search(clustered(1, 8), 5, WALK)
    values = json.loads(note.read_text())
    assert values["source"]["mtime_ns"] == values["rows"]["mtime_ns"] == 1  # not read again


def test_it_is_made_again_with_the_numbers(tmp_path: Path) -> None:
    vectors = clustered(400, 16)
    path = write_rows(tmp_path / "index.npy", vectors)
    convert(path, Target.HNSW)
    convert(path, Target.FP16)
    found = Index.open(path).search(vectors[:20], 1, WALK)
    assert found.rows[:, 0].tolist() == list(range(20))


def test_fewer_dimensions_are_not_walked(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "index.npy", clustered(50, 8))
    convert(path, Target.HNSW)
    with pytest.raises(UsageError, match="--form exact"):
        Index.open(path).search(clustered(2, 8), 5, SearchSettings(Form.HNSW, 4))


def test_from_the_command_line(tmp_path: Path) -> None:
    vectors = clustered(300, 16)
    write_rows(tmp_path / "index.npy", vectors)
    line = ("search", "index.npy", "--like", "id-3", "--top", "4", "--form", "hnsw", "--json")
    done = puma(*line, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "puma-edge convert INDEX --to hnsw" in done.stderr
    done = puma("convert", "index.npy", "--to", "hnsw", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recall"] >= 0.98
    about = json.loads(puma("info", "index.npy", "--json", cwd=tmp_path).stdout)
    assert about["forms"] == "exact, hnsw"
    hits = json.loads(puma(*line, cwd=tmp_path).stdout)[0]["hits"]
    order = np.argsort(-(vectors @ vectors[3]), kind="stable")[1:5]
    assert [hit["row"] for hit in hits] == order.tolist()
