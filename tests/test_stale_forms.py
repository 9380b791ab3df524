"""Derived files that are stale or damaged: said so, and never used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puma_edge.errors import PumaError
from puma_edge.runtimes.convert import convert
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.notes import form_files
from puma_edge.runtimes.vectors import Form, Target
from tests.edge import write_rows
from tests.vectors import brute, clustered, let_the_clock_tick


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
    let_the_clock_tick(tmp_path)
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
