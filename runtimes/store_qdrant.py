"""Qdrant: a server, or its local mode in a folder (for trying out; it goes through every row)."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

from puma_edge.errors import UsageError, require
from puma_edge.inputs import Float32
from puma_edge.runtimes.qdrant_folder import check_folder
from puma_edge.runtimes.store import Address, Origin, Points, metadata_of, store_errors

_PAGE = 1000
_SECONDS = 60


class QdrantStore:
    """One collection of Qdrant.

    Attributes:
        batch: 256 rows of 1,536 numbers are some 6 MB of JSON; a server takes 32.

    """

    batch = 256

    def __init__(self, address: Address) -> None:
        """Connect to http(s)://host:port, or open a folder.

        Raises:
            UsageError: an address of another kind.
            MissingExtraError: qdrant-client is not installed.
            PumaError: another process has the folder open, or it holds more than points.

        """
        if address.remote and urlsplit(address.url).scheme not in ("http", "https"):
            raise UsageError(f"Qdrant at {address.shown}: give http://HOST:6333, or a folder")
        client = require("qdrant_client", "qdrant")
        self._models = client.models
        api = require("qdrant_client.http.exceptions", "qdrant")
        # The last four are what its local mode raises.
        self._kinds = (api.ApiException, ValueError, RuntimeError, OSError, sqlite3.Error)
        self._address, self._name = address, address.collection
        if not address.remote:
            check_folder(Path(address.url))
        with self._errors(), warnings.catch_warnings():
            if not address.remote:
                warnings.simplefilter("ignore")  # that local mode is for few rows: docs/scale.md
            where = {"url": address.url} if address.remote else {"path": address.url}
            key = {"api_key": address.key, "timeout": _SECONDS} if address.remote else {}
            self._client = client.QdrantClient(**where, **key, check_compatibility=False)

    def open(self, origin: Origin) -> None:
        """Make the collection, or check that the one there has the same origin.

        Inner products are Qdrant's "Dot": its "Cosine" would normalise the rows again.
        """
        with self._errors():
            if not self._client.collection_exists(self._name):
                self._client.create_collection(
                    self._name,
                    vectors_config=self._models.VectorParams(
                        size=origin.dimension, distance=self._models.Distance.DOT
                    ),
                    metadata=origin.to_metadata(),
                )
            found = self._client.get_collection(self._name).config.metadata
        origin.require(found or {}, self._address)

    def known(self, ids: Sequence[str]) -> set[str]:
        """Tell which of these points it holds."""
        with self._errors():
            found = self._client.retrieve(
                self._name, list(ids), with_payload=False, with_vectors=False
            )
        return {str(one.id) for one in found}

    def write(self, points: Points) -> None:
        """Keep these points; returns when they are searchable."""
        columns = points.columns()
        columns["metadata"] = [metadata_of(text) or {} for text in columns["metadata"]]  # type: ignore[misc]
        names = list(columns)
        payloads = [
            dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        batch = self._models.Batch(
            ids=list(points.ids), vectors=points.vectors.tolist(), payloads=payloads
        )
        with self._errors():
            self._client.upsert(self._name, points=batch, wait=True)

    def finish(self) -> None:
        """Do nothing: Qdrant builds its graph by itself."""

    def count(self) -> int:
        """Count the points it holds."""
        with self._errors():
            return int(self._client.count(self._name, exact=True).count)

    def ids(self) -> Iterator[list[str]]:
        """List the points it holds, a page at a time."""
        place = None
        while True:
            with self._errors():
                page, place = self._client.scroll(
                    self._name, limit=_PAGE, offset=place, with_payload=False, with_vectors=False
                )
            yield [str(one.id) for one in page]
            if place is None:
                return

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        with self._errors():
            self._client.delete(self._name, self._models.PointIdsList(points=list(ids)), wait=True)

    def search(self, vectors: Float32, top: int) -> list[list[str]]:
        """Find the points with the largest inner product with each of [n, d], best first."""
        wanted = [self._models.QueryRequest(query=vector, limit=top) for vector in vectors.tolist()]
        with self._errors():
            answers = self._client.query_batch_points(self._name, requests=wanted)
        return [[str(one.id) for one in answer.points] for answer in answers]

    def close(self) -> None:
        """Let go of the server, or of the folder."""
        self._client.close()

    def _errors(self) -> AbstractContextManager[None]:
        return store_errors("Qdrant", self._address, self._kinds)
