"""What a vector database refuses, and what is refused of one: a clear line each."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.push import push
from puma_edge.runtimes.store import Address, Kind, open_store
from tests.edge import write_rows
from tests.stores import KINDS, ROWS, make_index, opened, place, pushed
from tests.vectors import units


def retold(index: Index, **changes: Any) -> Index:
    """Say something else in index.json, and give the rows its dimension."""
    info = index.path.with_suffix(".json")
    header = {**json.loads(info.read_text()), **changes}
    info.write_text(json.dumps(header))
    np.save(index.path, np.asarray(index.vectors)[:, : header["dimension"]])
    return Index.open(index.path)


@pytest.mark.parametrize("kind", KINDS)
def test_another_models_rows_are_refused(kind: Kind, tmp_path: Path) -> None:
    pushed(kind, tmp_path, make_index(tmp_path / "index.npy"))
    for changes, words in (
        ({"model_id": "model-b"}, "model_id model-a, the index model-b"),
        ({"precision": "int8"}, "precision fp32, the index int8"),
        ({"dimension": 8}, "dimension 24, the index 8"),
    ):
        other = retold(make_index(tmp_path / "other.npy"), **changes)
        with pytest.raises(PumaError, match=words):
            pushed(kind, tmp_path, other)
    with opened(kind, tmp_path) as store:
        push(make_index(tmp_path / "index.npy"), store)
        assert store.count() == ROWS


def test_a_collection_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    import qdrant_client

    client = qdrant_client.QdrantClient(path=str(tmp_path / "store"))
    models = qdrant_client.models
    shape = models.VectorParams(size=24, distance=models.Distance.DOT)
    client.create_collection("photos", vectors_config=shape)
    client.close()
    with pytest.raises(PumaError, match="does not say which model"):
        pushed(Kind.QDRANT, tmp_path, make_index(tmp_path / "index.npy"))


class Harm:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("value", [pickle.dumps(Harm()), b"", b"no pickle"])
def test_pickles_in_a_folder_are_looked_through_first(
    value: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = make_index(tmp_path / "index.npy", 2)
    pushed(Kind.QDRANT, tmp_path, index)
    (path,) = (tmp_path / "store").glob("collection/*/storage.sqlite")
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("INSERT INTO points VALUES ('x', ?)", (value,))
    with pytest.raises(PumaError, match="something else than Qdrant's points"):
        pushed(Kind.QDRANT, tmp_path, index)
    assert not (tmp_path / "harmed").exists()


HALF = """
import os, signal, sqlite3, sys
base = sqlite3.connect(sys.argv[1])
base.execute("PRAGMA cache_size = 1")
base.executemany("INSERT INTO points VALUES (?, ?)", ((str(n), bytes(9000)) for n in range(99)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_that_a_kill_left_half_written_is_opened(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index.npy", 2)
    pushed(Kind.QDRANT, tmp_path, index)
    (path,) = (tmp_path / "store").glob("collection/*/storage.sqlite")
    subprocess.run([sys.executable, "-c", HALF, str(path)], check=False)
    assert path.with_name("storage.sqlite-journal").stat().st_size
    assert pushed(Kind.QDRANT, tmp_path, index).there == 2


def _other_name(store: Path, name: str) -> None:
    meta = store / "meta.json"
    told = json.loads(meta.read_text())
    told["collections"][name] = told["collections"].pop("photos")
    meta.write_text(json.dumps(told))
    (store / "collection" / name).parent.mkdir(exist_ok=True)
    os.rename(store / "collection" / "photos", store / "collection" / name)


SHOWN = {
    # What qdrant-client reads and the check would not: points of another file, ...
    "nested": lambda store: _other_name(store, "a/b"),
    "outside": lambda store: _other_name(store, "../b"),
    # ... every second time, and where the rows come from an index.
    "view": "ALTER TABLE points RENAME TO old;"
    "CREATE VIEW points AS SELECT id, CASE WHEN abs(random()) % 2 THEN point END AS point FROM old",
    "index": "CREATE INDEX other ON points (point)",
}


@pytest.mark.parametrize("how", SHOWN.values(), ids=SHOWN)
def test_a_folder_that_shows_other_points_than_it_holds_is_refused(
    how: str | Callable[[Path], None], tmp_path: Path
) -> None:
    index = make_index(tmp_path / "index.npy", 2)
    pushed(Kind.QDRANT, tmp_path, index)
    pushed(Kind.QDRANT, tmp_path, index)  # as it is, it is opened again
    (path,) = (tmp_path / "store").glob("collection/*/storage.sqlite")
    if callable(how):
        how(tmp_path / "store")
    else:
        with closing(sqlite3.connect(path)) as base, base:
            base.executescript(how)
    with pytest.raises(PumaError, match="something else than Qdrant's points"):
        pushed(Kind.QDRANT, tmp_path, index)


@pytest.mark.extra
def test_what_milvus_cannot_take_is_said(tmp_path: Path) -> None:
    told = [{"note": "x" * 70_000}, {}, {}, {}]
    index = Index.open(write_rows(tmp_path / "index.npy", units(4), told))
    with pytest.raises(PumaError, match="the metadata of id-0 is 70012 bytes; Milvus takes 65535"):
        pushed(Kind.MILVUS, tmp_path, index)


NOWHERE = [
    (Kind.QDRANT, "http://127.0.0.1:1", "refused"),
    pytest.param(Kind.MILVUS, "http://127.0.0.1:1", "127.0.0.1:1", marks=pytest.mark.extra),
    pytest.param(Kind.LANCEDB, "/proc/nothing/here", "No such file", marks=pytest.mark.extra),
]


@pytest.mark.parametrize(("kind", "url", "words"), NOWHERE)
def test_a_store_that_is_not_there_is_one_line(
    kind: Kind, url: str, words: str, tmp_path: Path
) -> None:
    index = make_index(tmp_path / "index.npy", 4)
    with pytest.raises(PumaError, match=words) as caught:
        push(index, open_store(kind, Address(url, "photos")))
    assert "\n" not in str(caught.value)


def test_addresses_that_cannot_be(tmp_path: Path) -> None:
    for kind, url, words in (
        (Kind.QDRANT, "localhost:6333", "write http://localhost:6333"),
        (Kind.QDRANT, "ftp://a/b", "give http://HOST:6333, or a folder"),
        (Kind.MILVUS, "folder", "a file that ends in .db"),
    ):
        with pytest.raises(UsageError, match=words):
            open_store(kind, Address(url, "photos"))
    with pytest.raises(UsageError, match="the address is no URL"):
        Address("http://me:secret@[bad", "photos")
    assert Address("https://me:secret@host:6333/x", "c").shown == "https://host:6333/x"


@pytest.mark.parametrize(
    ("kind", "module"),
    [(Kind.QDRANT, "qdrant_client"), (Kind.LANCEDB, "lancedb"), (Kind.MILVUS, "pymilvus")],
)
def test_a_missing_extra_is_one_line(
    kind: Kind, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PumaError, match=rf"pip install 'puma-edge\[{kind.value}\]'"):
        open_store(kind, Address(place(kind, tmp_path), "photos"))
