"""Milvus: a server, or Milvus Lite in a file (Linux and macOS)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from puma_edge.errors import PumaError, UsageError, require
from puma_edge.inputs import Float32
from puma_edge.runtimes.store import Address, Origin, Points, metadata_of, store_errors

_PAGE = 1000
_LONGEST = 65535  # bytes of a text, and of a JSON, that Milvus takes
_TEXTS = ("id", "path", "modality", "hash", "text")
_SECONDS = 60


class MilvusStore:
    """One collection of Milvus.

    Attributes:
        batch: 1,024 rows of 1,536 numbers are 6 MB and their texts; a server takes 64.

    """

    batch = 1024

    def __init__(self, address: Address) -> None:
        """Connect to http(s)://host:port, or open a file that ends in .db.

        Raises:
            UsageError: an address of another kind.
            MissingExtraError: pymilvus is not installed.
            PumaError: nothing answers there, or another process has the file open.

        """
        if not address.remote and not address.url.endswith(".db"):
            raise UsageError(
                f"Milvus at {address.shown}: give http://HOST:19530, or a file that ends in .db"
            )
        pymilvus = require("pymilvus", "milvus")
        # What it logs as errors it raises too, and one line is enough.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        if not address.remote:
            require("milvus_lite", "milvus")
        self._types = pymilvus.DataType
        failure = pymilvus.exceptions.MilvusException
        self._kinds = (failure, ValueError, RuntimeError, OSError)
        self._address, self._name = address, address.collection
        with self._errors():
            self._client = pymilvus.MilvusClient(
                address.url, token=address.key or "", timeout=_SECONDS
            )

    def open(self, origin: Origin) -> None:
        """Make the collection, or check that the one there has the same origin."""
        with self._errors():
            if not self._client.has_collection(self._name):
                self._create(origin)
            found = self._client.describe_collection(self._name).get("properties") or {}
        origin.require(found, self._address)
        with self._errors():
            self._client.load_collection(self._name)

    def _create(self, origin: Origin) -> None:
        types = self._types
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("point", types.VARCHAR, max_length=36, is_primary=True)
        for name in _TEXTS:
            schema.add_field(name, types.VARCHAR, max_length=_LONGEST)
        schema.add_field("metadata", types.JSON, nullable=True)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=origin.dimension)
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
        self._client.create_collection(
            self._name,
            schema=schema,
            index_params=indexes,
            properties=origin.to_metadata(),
            consistency_level="Strong",  # what was written is seen by the next question
        )

    def known(self, ids: Sequence[str]) -> set[str]:
        """Tell which of these points it holds."""
        with self._errors():
            found = self._client.get(self._name, ids=list(ids), output_fields=["point"])
        return {str(one["point"]) for one in found}

    def write(self, points: Points) -> None:
        """Keep these points.

        Raises:
            PumaError: a text or metadata of one is longer than Milvus takes.

        """
        columns = points.columns()
        rows: list[dict[str, Any]] = []
        for place, point in enumerate(points.ids):
            row = {name: column[place] for name, column in columns.items()}
            for name, value in row.items():
                if len(value.encode()) > _LONGEST:
                    raise PumaError(
                        f"the {name} of {row['id'][:80]} is {len(value.encode())} bytes; Milvus "
                        f"takes {_LONGEST}: shorten it and embed again, or push to another store"
                    )
            values = {"metadata": metadata_of(row["metadata"]), "vector": points.vectors[place]}
            rows.append({**row, **values, "point": point})
        with self._errors():
            self._client.upsert(self._name, rows)

    def finish(self) -> None:
        """Write what is in memory to the disk."""
        with self._errors():
            self._client.flush(self._name)

    def count(self) -> int:
        """Count the points it holds."""
        with self._errors():
            (found,) = self._client.query(self._name, filter="", output_fields=["count(*)"])
        return int(found["count(*)"])

    def ids(self) -> Iterator[list[str]]:
        """List the points it holds, a page at a time."""
        with self._errors():
            pages = self._client.query_iterator(
                self._name, batch_size=_PAGE, output_fields=["point"]
            )
            while page := pages.next():
                yield [str(one["point"]) for one in page]
            pages.close()

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        with self._errors():
            self._client.delete(self._name, ids=list(ids))

    def search(self, vectors: Float32, top: int) -> list[list[str]]:
        """Find the points with the largest inner product with each of [n, d], best first."""
        with self._errors():
            found = self._client.search(
                self._name, data=list(vectors), limit=top, output_fields=["point"]
            )
        return [[str(one["entity"]["point"]) for one in hits] for hits in found]

    def close(self) -> None:
        """Let go of the server, or of the file."""
        with self._errors():
            self._client.close()

    def _errors(self) -> AbstractContextManager[None]:
        return store_errors("Milvus", self._address, self._kinds)
