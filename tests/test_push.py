"""`puma-edge push`: the same rows and the same hits in every vector database, whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puma_edge.errors import PumaError
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.points import as_text, point_ids
from puma_edge.runtimes.push import PushSettings, push
from puma_edge.runtimes.store import Kind, Points, Store
from tests.commands import puma, refused
from tests.edge import write_rows
from tests.stores import KINDS, ROWS, SMALL, make_index, opened, place, pushed
from tests.vectors import units


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
        queries = units(7, seed=8)
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


def test_of_equal_rows_either_side_may_take_any(tmp_path: Path) -> None:
    index = Index.open(write_rows(tmp_path / "index.npy", np.repeat(units(2), 11, axis=0)))
    with opened(Kind.QDRANT, tmp_path) as store:
        assert push(index, store, SMALL).recall == 1.0
        # And where the collection has other vectors than the index says, that is seen.
        np.save(index.path, -np.asarray(index.vectors))
        assert push(Index.open(index.path), store, SMALL).recall == 0.0


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
