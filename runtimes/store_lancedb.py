"""LanceDB: a folder, an object store, or its cloud."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa

from puma_edge.errors import require
from puma_edge.inputs import Float32
from puma_edge.runtimes.store import Address, Origin, Points, store_errors
from puma_edge.runtimes.writer import SCHEMA

# From here on, looking ids up by going through all of them costs more than a tree over them.
TREE_ROWS = 100_000
_PAGE = 65536


class LanceStore:
    """One table of LanceDB.

    Attributes:
        batch: every write makes files of its own, so few and large ones.

    """

    batch = 4096

    def __init__(self, address: Address) -> None:
        """Open a folder, s3://..., gs://..., az://... or db://...

        Raises:
            MissingExtraError: lancedb is not installed.
            PumaError: it cannot be opened.

        """
        os.environ.setdefault("LANCE_LOG", "error")  # it warns that a new table is not there yet
        lancedb = require("lancedb", "lancedb")
        self._address = address
        with self._errors():
            self._database = lancedb.connect(address.url, api_key=address.key)
        self._table: Any = None

    def open(self, origin: Origin) -> None:
        """Make the table, or check that the one there has the same origin."""
        name = self._address.collection
        vector = pa.field("vector", pa.list_(pa.float32(), origin.dimension))
        fields = [pa.field("point", pa.string()), *SCHEMA, vector]
        schema = pa.schema(fields, metadata=origin.to_metadata())
        with self._errors():
            try:
                self._table = self._database.open_table(name)
            except ValueError:  # it is not there; two runs that begin together make one
                self._table = self._database.create_table(name, schema=schema, exist_ok=True)
            found = self._table.schema.metadata or {}
        origin.require(
            {key.decode(): value.decode() for key, value in found.items()}, self._address
        )
        if self.count() >= TREE_ROWS:
            with self._errors():
                self._table.create_scalar_index("point", replace=True)

    def known(self, ids: Sequence[str]) -> set[str]:
        """Tell which of these points it holds."""
        listed = ", ".join(f"'{one}'" for one in ids)
        with self._errors():
            found = (
                self._table.search()
                .where(f"point IN ({listed})")
                .select(["point"])
                .limit(len(ids))
                .to_arrow()
            )
        return set(found.column("point").to_pylist())

    def write(self, points: Points) -> None:
        """Keep these points: all of them, or none if the run is killed meanwhile."""
        width = points.vectors.shape[1]
        flat = pa.array(np.ascontiguousarray(points.vectors).reshape(-1))
        columns = [
            pa.array(points.ids, pa.string()),
            *points.records.columns,
            pa.FixedSizeListArray.from_arrays(flat, width),
        ]
        names = ["point", *points.records.schema.names, "vector"]
        with self._errors():
            self._table.add(pa.table(dict(zip(names, columns, strict=True))))

    def finish(self) -> None:
        """Join the files of many writes."""
        with self._errors():
            self._table.optimize()

    def count(self) -> int:
        """Count the points it holds."""
        with self._errors():
            return int(self._table.count_rows())

    def ids(self) -> Iterator[list[str]]:
        """List the points it holds, some at a time."""
        with self._errors():
            for batch in self._table.search().select(["point"]).to_batches(_PAGE):
                yield batch.column("point").to_pylist()

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        listed = ", ".join(f"'{one}'" for one in ids)
        with self._errors():
            self._table.delete(f"point IN ({listed})")

    def search(self, vectors: Float32, top: int) -> list[list[str]]:
        """Find the points with the largest inner product with each of [n, d], best first."""
        found = []
        for vector in vectors:
            with self._errors():
                search = self._table.search(vector, vector_column_name="vector")
                rows = search.distance_type("dot").select(["point", "_distance"]).limit(top)
                found.append(rows.to_arrow().column("point").to_pylist())
        return found

    def close(self) -> None:
        """Do nothing: what is written is on the disk."""

    def _errors(self) -> AbstractContextManager[None]:
        # Its errors from below come as these, whatever went wrong.
        return store_errors("LanceDB", self._address, (ValueError, RuntimeError, OSError))
