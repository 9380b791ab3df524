"""Rows of an index as points of a vector database: ids that stay what they are."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from puma_edge.runtimes.records import Table

Ids = NDArray[np.bytes_]  # 16 bytes each
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://arxiv.org/abs/2507.08064#puma-edge-row")
_BLOCK = 8192


def point_ids(table: Table) -> Ids:
    """The UUIDs of all rows: [rows], 16 bytes each.

    The UUIDv5 of all that the table says of a row. A row that changes is another point, and so is
    the second of two equal ones. A hundred million rows take 1.6 GB.
    """
    found = np.fromiter((_point(name) for name in _names(table)), "S16")
    copies = [(row, _point(f"{as_text(found[[row]])[0]} #{n}")) for row, n in _repeated(found)]
    for row, point in copies:
        found[row] = point
    return found


def as_text(ids: Ids) -> list[str]:
    """Spell 16 bytes as UUIDs."""
    return [str(uuid.UUID(bytes=one.ljust(16, b"\0"))) for one in ids.tolist()]


def as_bytes(ids: Sequence[str]) -> Ids:
    """Read UUIDs; what is none can be no row's, and becomes zeros."""
    return np.asarray([_parse(one) for one in ids], "S16")


class Rows:
    """Finds the row of a point."""

    def __init__(self, ids: Ids) -> None:
        """Sort the ids of all rows."""
        self._ids, self._order = ids, np.argsort(ids)

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each point, -1 for one that the index does not have."""
        wanted = as_bytes(ids)
        places = np.searchsorted(self._ids, wanted, sorter=self._order)
        rows = self._order[np.minimum(places, len(self._order) - 1)]
        result: NDArray[np.int64] = np.where(self._ids[rows] == wanted, rows, -1)
        return result


def _point(name: str) -> bytes:
    return uuid.uuid5(_NAMESPACE, name).bytes


def _parse(text: str) -> bytes:
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return bytes(16)


def _names(table: Table) -> Iterator[str]:
    """Spell each row, so that no two rows that differ are spelt alike."""
    for block in table.blocks(_BLOCK):
        columns = [column.to_pylist() for column in block.columns]
        for row in zip(*columns, strict=True):
            yield json.dumps(row)


def _repeated(ids: Ids) -> Iterator[tuple[int, int]]:
    """List the rows whose id an earlier row has, each with its number among the equal ones."""
    order = np.argsort(ids, kind="stable")
    same = np.concatenate([[False], ids[order][1:] == ids[order][:-1]])
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(ids))))
    for place in np.flatnonzero(same).tolist():
        yield int(order[place]), int(place - first[place])
