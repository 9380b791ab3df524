"""An index on disk: damaged or foreign ones are refused, open ones stay what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puma_edge.bundle import Manifest, Precision
from puma_edge.errors import PumaError
from puma_edge.images import PixelLimits
from puma_edge.prompts import PromptFormat
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.searcher import Wanted, search
from tests.checkout import run_python
from tests.edge import HashEncoder, embed, mixed, write_rows
from tests.vectors import units


def manifest(model_id: str) -> Manifest:
    return Manifest(
        model_id=model_id,
        base_model="test",
        source="test",
        kept_layers=(0,),
        total_layers=2,
        dimension=HashEncoder.dimension,
        limits=PixelLimits(),
        prompt=PromptFormat(),
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    embed(mixed(tmp_path / "corpus"), tmp_path / "index.npy")
    return tmp_path / "index.npy"


def _pickled(path: Path) -> None:
    np.save(path, np.asarray([{"a": 1}], object), allow_pickle=True)


def _text(path: Path) -> None:
    path.write_text("hello")


def _short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


def _flat(path: Path) -> None:
    np.save(path, np.ones(3, np.float32))


def _fewer(path: Path) -> None:
    np.save(path, np.load(path)[1:])


def _doubles(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def _newer(path: Path) -> None:
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("index.npy", Path.unlink, "there is no index"),
        ("index.npy", _pickled, "no index"),
        ("index.npy", _text, "no index"),
        ("index.npy", _short, "no index"),
        ("index.npy", _archive, "no index"),
        ("index.npy", _flat, "1 axes"),
        ("index.npy", _fewer, "do not belong together"),
        ("index.npy", _doubles, "do not belong together"),
        ("index.json", Path.unlink, "no index.json beside it"),
        ("index.json", _text, "damaged"),
        ("index.json", _newer, "format version 2"),
        ("index.json", lambda path: path.write_text('{"format_version": 1}'), "damaged"),
        ("index.json", lambda path: path.write_text("[]"), "damaged"),
        ("index.parquet", Path.unlink, "no index.parquet beside it"),
        ("index.parquet", _text, "damaged"),
    ],
)
def test_damaged_indexes_are_refused(
    made: Path, name: str, damage: Callable[[Path], object], words: str
) -> None:
    damage(made.with_name(name))
    with pytest.raises(PumaError, match=words) as caught:
        Index.open(made)
    assert "\n" not in str(caught.value)


def test_other_names_are_refused(tmp_path: Path) -> None:
    for name in ("gone.npy", "index.parquet", "."):
        with pytest.raises(PumaError, match="there is no index"):
            Index.open(tmp_path / name)


def test_the_model_must_be_the_same(made: Path) -> None:
    index = Index.open(made)
    assert index.require_model(manifest("model-a"), Precision.FP32) is None
    warning = index.require_model(manifest("model-a"), Precision.INT8)
    assert warning is not None
    assert "fp32" in warning
    assert "int8" in warning
    with pytest.raises(PumaError, match=r"model-a.*model-b"):
        index.require_model(manifest("model-b"), Precision.FP32)


def test_records_in_any_order(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puma_edge.runtimes.writer._ROW_GROUP", 4)
    embed(made.parent / "corpus", made)
    index = Index.open(made)
    everything = index.records(range(len(index)))
    assert index.records([21, 0, 7, 7]) == [everything[n] for n in (21, 0, 7, 7)]
    assert index.records([]) == []


def test_an_open_index_stays_the_one_it_was(tmp_path: Path) -> None:
    before = Index.open(write_rows(tmp_path / "index.npy", units(9)))
    write_rows(tmp_path / "new.npy", units(1, seed=1))
    for suffix in (".npy", ".json", ".parquet"):
        (tmp_path / f"new{suffix}").replace(tmp_path / f"index{suffix}")
    hits = search(before, units(9), Wanted(1))
    assert [found.id for (found,) in hits] == [f"id-{n}" for n in range(9)]
    assert len(Index.open(before.path)) == 1


# Two threads that read one of pyarrow's files end the process: so in one of its own.
TOGETHER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from puma_edge import Index
index = Index.open(sys.argv[1])
records = index.records(range(len(index)))

def read(seed):
    for n in range(60):
        rows = [(seed * 31 + n * 7) % len(index), (seed + n * 13) % len(index)]
        assert index.records(rows) == [records[row] for row in rows]
        assert index.table.find(records[rows[0]].id) == rows[0]
        assert index.table.column("path")[rows[1]] == records[rows[1]].path
        assert sum(block.num_rows for block in index.table.blocks(50)) == len(index)

with ThreadPoolExecutor(8) as pool:
    list(pool.map(read, range(8)))
"""


def test_threads_share_an_index(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "index.npy", units(500, 4))
    run_python("-c", TOGETHER, str(path))


def test_the_header_is_json_for_others(made: Path) -> None:
    header = json.loads(made.with_name("index.json").read_text())
    assert header["model_id"] == "model-a"
    assert header["provider"] == "test:numpy"
    assert header["rows"] == len(np.load(made))
    assert header["corpus"].endswith("corpus")
