"""Vector databases that lie in a folder, and small indexes to push into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from puma_edge.runtimes.index import Index
from puma_edge.runtimes.push import Pushed, PushSettings, push
from puma_edge.runtimes.store import Address, Kind, Store, open_store
from tests.edge import write_rows
from tests.vectors import units

ROWS = 24  # Qdrant's local mode waits for the disk after each
KINDS = [
    Kind.QDRANT,
    pytest.param(Kind.LANCEDB, marks=pytest.mark.extra),
    pytest.param(Kind.MILVUS, marks=pytest.mark.extra),
]
SMALL = PushSettings(batch=5)


def make_index(out: Path, count: int = ROWS, width: int = 24) -> Index:
    """Write an index with metadata in every second row."""
    told = [{"lang": "de", "n": n} if n % 2 else {} for n in range(count)]
    return Index.open(write_rows(out, units(count, width), told))


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
