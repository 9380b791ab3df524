"""`puma-edge push`: the same rows and the same hits in every vector database, whatever happens."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.points import Rows, as_text, point_ids
from puma_edge.runtimes.push import Pushed, PushSettings, push
from puma_edge.runtimes.records import Table
from puma_edge.runtimes.store import Address, Kind, Points, Store, open_store
from tests.commands import puma, refused
from tests.edge import write_rows

ROWS = 24  # Qdrant's local mode waits for the disk after each
KINDS = [
    Kind.QDRANT,
    pytest.param(Kind.LANCEDB, marks=pytest.mark.extra),
    pytest.param(Kind.MILVUS, marks=pytest.mark.extra),
]
SMALL = PushSettings(batch=5)


def rows(count: int, width: int = 24, seed: int = 3) -> np.ndarray:
    """Unit vectors, no two of them equal."""
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_index(out: Path, count: int = ROWS, width: int = 24) -> Index:
    """Write an index with metadata in every second row."""
    told = [{"lang": "de", "n": n} if n % 2 else {} for n in range(count)]
    return Index.open(write_rows(out, rows(count, width), told))


def place(kind: Kind, folder: Path) -> str:
    """Say where a database of this kind lies, in this process."""
    return str(folder / ("store.db" if kind is Kind.MILVUS else "store"))


@contextmanager
def opened(kind: Kind, folder: Path, collection: str = "photos") -> Iterator[Store]:
    """Open a database in a folder."""
    store = open_store(kind, Address(place(kind, folder), collection))
    try:
        yield store
    finally:
        store.close()


def pushed(kind: Kind, folder: Path, index: Index, options: PushSettings = SMALL) -> Pushed:
    """Push into a folder."""
    with opened(kind, folder) as store:
        return push(index, store, options)


def held(store: Store) -> list[str]:
    """List all points, sorted."""
    return sorted(name for page in store.ids() for name in page)


def told_by_qdrant(url: str, point: str) -> dict[str, Any]:
    import qdrant_client

    client = qdrant_client.QdrantClient(path=url)
    (found,) = client.retrieve("photos", [point], with_payload=True, with_vectors=True)
    client.close()
    return {**found.payload, "vector": found.vector}


def told_by_lancedb(url: str, point: str) -> dict[str, Any]:
    import lancedb

    table = lancedb.connect(url).open_table("photos")
    (found,) = table.search().where(f"point = '{point}'").to_arrow().to_pylist()
    return {**found, "metadata": json.loads(found["metadata"])}


def told_by_milvus(url: str, point: str) -> dict[str, Any]:
    import pymilvus

    client = pymilvus.MilvusClient(url)
    (found,) = client.get("photos", ids=[point], output_fields=["*"])
    client.close()
    return dict(found)


OWN: dict[Kind, Callable[[str, str], dict[str, Any]]] = {
    Kind.QDRANT: told_by_qdrant,
    Kind.LANCEDB: told_by_lancedb,
    Kind.MILVUS: told_by_milvus,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_store_holds_the_rows_and_finds_the_same_ten(kind: Kind, tmp_path: Path) -> None:
    index = make_index(tmp_path / "index.npy")
    names = as_text(point_ids(index.table))
    with opened(kind, tmp_path) as store:
        done = push(index, store, SMALL)
        assert (done.rows, done.written, done.there, done.others) == (ROWS, ROWS, 0, 0)
        assert (done.recall, done.queries) == (1.0, 20)
        assert store.count() == ROWS
        assert held(store) == sorted(names)
        queries = rows(7, seed=8)
        exact = index.search(queries, 10)
        found = store.search(queries, 10)
        assert [[names[row] for row in line] for line in exact.rows] == found
        again = push(index, store, SMALL)
        assert (again.written, again.there) == (0, ROWS)
    # And as the database's own client shows it to whoever goes on from there.
    shown = OWN[kind](place(kind, tmp_path), names[3])
    (record,) = index.records([3])
    for name in ("id", "path", "hash", "text", "metadata"):
        assert shown[name] == getattr(record, name)
    assert shown["modality"] == record.modality.value
    np.testing.assert_allclose(shown["vector"], index.vectors[3], atol=1e-7)


# Ends itself without a word to anyone, so many seconds after the first batch is on its way.
KILLED = """
import os, signal, sys, threading
from pathlib import Path
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.push import PushSettings, push
from puma_edge.runtimes.store import Address, Kind, open_store

kind, url, index, seconds = sys.argv[1:]
store = open_store(Kind(kind), Address(url, "photos"))
write, timers = store.write, []

def late(points):
    if not timers:
        die = lambda: os.kill(os.getpid(), signal.SIGKILL)
        timers.append(threading.Timer(float(seconds), die))
        timers[0].start()
    write(points)

store.write = late
push(Index.open(index), store, PushSettings(batch=4))
timers[0].cancel()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_push_goes_on_and_ends_with_exactly_the_rows(kind: Kind, tmp_path: Path) -> None:
    index = make_index(tmp_path / "index.npy", 48)
    url, ends = place(kind, tmp_path), []
    for seconds in (0.02, 0.1):
        line = [sys.executable, "-c", KILLED, kind.value, url, str(index.path), str(seconds)]
        ends.append(subprocess.run(line, capture_output=True, timeout=600, check=False).returncode)
    with opened(kind, tmp_path) as store:
        done = push(index, store, SMALL)
        assert -9 in ends
        assert done.written + done.there == 48
        assert done.there < 48 or -9 not in ends[1:]
        assert held(store) == sorted(as_text(point_ids(index.table)))
        assert done.recall == 1.0


class Stops:
    """A store whose connection ends after some batches."""

    def __init__(self, store: Store, batches: int) -> None:
        self._store, self._left = store, batches
        self.batch = store.batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, points: Points) -> None:
        self._left -= 1
        if self._left < 0:
            raise PumaError("gone")
        self._store.write(points)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_missing_is_sent_again(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is Kind.LANCEDB:  # ids of a large table are looked up in a tree
        monkeypatch.setattr("puma_edge.runtimes.store_lancedb.TREE_ROWS", 1)
    index = make_index(tmp_path / "index.npy")
    seen: list[tuple[int, int]] = []
    with opened(kind, tmp_path) as store:
        with pytest.raises(PumaError, match="gone"):
            push(index, Stops(store, 3), SMALL, lambda *told: seen.append(told))
        assert seen == [(5, ROWS), (10, ROWS), (15, ROWS)]
        done = push(index, store, PushSettings(batch=7))
        assert (done.written, done.there, done.recall) == (ROWS - 15, 15, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_went_stay_until_prune(kind: Kind, tmp_path: Path) -> None:
    index = make_index(tmp_path / "index.npy")
    pushed(kind, tmp_path, index)
    shorter = make_index(tmp_path / "index.npy", 19)
    done = pushed(kind, tmp_path, shorter)
    assert (done.rows, done.written, done.others, done.recall) == (19, 0, 5, None)
    done = pushed(kind, tmp_path, shorter, PushSettings(prune=True, check=0))
    assert (done.removed, done.others, done.queries) == (5, 0, 0)
    with opened(kind, tmp_path) as store:
        push(shorter, store, PushSettings(check=0))
        assert held(store) == sorted(as_text(point_ids(shorter.table)))


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


def test_of_equal_rows_either_side_may_take_any(tmp_path: Path) -> None:
    index = Index.open(write_rows(tmp_path / "index.npy", np.repeat(rows(2), 11, axis=0)))
    with opened(Kind.QDRANT, tmp_path) as store:
        assert push(index, store, SMALL).recall == 1.0
        # And where the collection has other vectors than the index says, that is seen.
        np.save(index.path, -np.asarray(index.vectors))
        assert push(Index.open(index.path), store, SMALL).recall == 0.0


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


@pytest.mark.extra
def test_what_milvus_cannot_take_is_said(tmp_path: Path) -> None:
    told = [{"note": "x" * 70_000}, {}, {}, {}]
    index = Index.open(write_rows(tmp_path / "index.npy", rows(4), told))
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
    assert Address("https://me:secret@host:6333/x", "c").shown == "https://host:6333/x"


def test_the_command(tmp_path: Path) -> None:
    make_index(tmp_path / "my index.npy", 21)
    line = ("push", "my index.npy", "store", "--to", "qdrant", "--batch", "8")
    done = puma(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "my_index at store: 21 rows = 21 written + 0 there before, 0 removed" in done.stdout
    assert "recall@10 1.0000 of exact search in the index, 20 of its rows" in done.stdout
    done = puma(*line, "--json", cwd=tmp_path, PUMA_EDGE_API_KEY="secret")
    values = json.loads(done.stdout)
    assert (values["written"], values["there"], values["recall"]) == (0, 21, 1.0)
    assert "secret" not in done.stdout + done.stderr


BAD = [
    (("index.npy", "http://127.0.0.1:1", "--to", "qdrant"), 1, "Qdrant at http://127.0.0.1:1"),
    (("nowhere.npy", "store", "--to", "qdrant"), 1, "there is no index at nowhere.npy"),
    (("index.npy", "store", "--to", "qdrant", "--batch", "0"), 2, "--batch 0: give 1 or more"),
    (("index.npy", "store", "--to", "qdrant", "--check", "-1"), 2, "--check -1: give 0 or more"),
]


@pytest.mark.parametrize(("line", "code", "words"), BAD)
def test_bad_input_is_one_line(line: Sequence[str], code: int, words: str, tmp_path: Path) -> None:
    make_index(tmp_path / "index.npy", 4)
    done = puma("push", *line, cwd=tmp_path)
    assert words in refused(done, code)


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


CELLS = st.sampled_from(["", "a", '"', "a b", "\u00e4", "[]"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[CELLS] * 6), min_size=1, max_size=30))
def test_ids_are_stable_and_never_shared(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, ...]]
) -> None:
    """The fast form against a plain one, which counts in a dictionary."""
    path = tmp_path_factory.mktemp("ids") / "index.npy"
    write_rows(path, rows(len(cells)))
    import pyarrow.parquet as pq

    from puma_edge.runtimes.writer import SCHEMA

    columns = [list(column) for column in zip(*cells, strict=True)]
    pq.write_table(pa.table(columns, schema=SCHEMA), path.with_suffix(".parquet"), row_group_size=7)
    table = Table(path.with_suffix(".parquet"))
    space = uuid.uuid5(uuid.NAMESPACE_URL, "https://arxiv.org/abs/2507.08064#puma-edge-row")
    counts: Counter[tuple[str, ...]] = Counter()
    plain = []
    for row in cells:
        first = str(uuid.uuid5(space, json.dumps(row)))
        number = counts[row]
        counts[row] += 1
        plain.append(str(uuid.uuid5(space, f"{first} #{number}")) if number else first)
    ids = point_ids(table)
    assert as_text(ids) == plain
    assert len(set(plain)) == len(cells)
    assert Rows(ids).find([*plain, str(uuid.uuid4()), "7"]).tolist() == [*range(len(cells)), -1, -1]


def test_an_id_is_what_it_was(tmp_path: Path) -> None:
    """Collections that were filled by an earlier version must know their rows again."""
    index = make_index(tmp_path / "index.npy", 4)
    assert as_text(point_ids(index.table))[1] == "c3ccf2c7-3f5e-5b8b-aa60-0399e2712970"
