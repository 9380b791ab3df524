"""What every vector database looks like to the rest of the project, and which one is meant."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa

from puma_edge.errors import PumaError, UsageError
from puma_edge.inputs import Float32

_MOST_WORDS = 300  # characters of what a client says of its error
_PREFIX = "puma_edge_"


class Kind(str, Enum):
    """The vector databases that an index can be pushed to."""

    QDRANT = "qdrant"
    LANCEDB = "lancedb"
    MILVUS = "milvus"


@dataclass(frozen=True)
class Address:
    """Where rows go.

    Attributes:
        url: a server's address, or a folder or file for what runs in this process.
        collection: the collection, or table.
        key: API key or token, None for none.

    Raises:
        UsageError: the url is none.

    """

    url: str
    collection: str
    key: str | None = None

    def __post_init__(self) -> None:
        try:
            urlsplit(self.url)
        except ValueError as error:  # not named: it may carry a password
            raise UsageError(f"the address is no URL ({error}); give http://HOST:PORT") from None

    @property
    def shown(self) -> str:
        """The address for people to read: without a name and password that it may carry."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def remote(self) -> bool:
        """Whether it names a scheme, as a server's does and a folder's does not."""
        return "://" in self.url


@dataclass(frozen=True)
class Origin:
    """What the rows of one collection have in common, recorded with the collection."""

    model_id: str
    precision: str
    dimension: int

    def to_metadata(self) -> dict[str, str]:
        """Spell it as names and texts, which every store can keep."""
        return {_PREFIX + name: str(value) for name, value in asdict(self).items()}

    def require(self, found: Mapping[str, str], address: Address) -> None:
        """Check that a collection with these metadata may take such rows.

        Raises:
            PumaError: it holds rows of another model, or of none that is known.

        """
        where = f"the collection {address.collection} at {address.shown}"
        for name, wanted in asdict(self).items():
            value = found.get(_PREFIX + name)
            if value is None:
                raise PumaError(
                    f"{where} does not say which model its rows come from, so puma-edge push did "
                    "not make it, or this store keeps no metadata: name another --collection"
                )
            if value != str(wanted):
                raise PumaError(
                    f"{where} has {name} {value}, the index {wanted}: their rows cannot be "
                    "compared; name another --collection"
                )


@dataclass(frozen=True)
class Points:
    """Rows on their way.

    Attributes:
        ids: the UUID of each as text.
        vectors: [n, d].
        records: their columns in the index's table.

    """

    ids: Sequence[str]
    vectors: Float32
    records: pa.RecordBatch

    def columns(self) -> dict[str, list[str]]:
        """Each column of the records as a list."""
        values: dict[str, list[str]] = self.records.to_pydict()
        return values


class Store(Protocol):
    """One collection of a vector database; one implementation per database.

    Every method raises PumaError where the database is not there, or refuses.
    """

    @property
    def batch(self) -> int:
        """How many rows it likes to be sent at once."""
        ...

    def open(self, origin: Origin) -> None:
        """Make the collection, or check that the one there has the same origin."""
        ...

    def known(self, ids: Sequence[str]) -> set[str]:
        """Tell which of these points it holds."""
        ...

    def write(self, points: Points) -> None:
        """Keep these points; when this returns, a kill loses none of them."""
        ...

    def finish(self) -> None:
        """Tidy up after the last write."""
        ...

    def count(self) -> int:
        """Count the points it holds."""
        ...

    def ids(self) -> Iterator[list[str]]:
        """List the points it holds, some at a time, in any order."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points."""
        ...

    def search(self, vectors: Float32, top: int) -> list[list[str]]:
        """Find the points with the largest inner product with each of [n, d], best first."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


def open_store(kind: Kind, address: Address) -> Store:
    """Connect to a database.

    Raises:
        UsageError: an address that it cannot have.
        MissingExtraError: its client is not installed.
        PumaError: it is not there.

    """
    if re.fullmatch(r"[\w.-]+:\d+", address.url):
        raise UsageError(f"{address.url} could be a folder; write http://{address.url}")
    match kind:
        case Kind.QDRANT:
            from puma_edge.runtimes.store_qdrant import QdrantStore

            return QdrantStore(address)
        case Kind.LANCEDB:
            from puma_edge.runtimes.store_lancedb import LanceStore

            return LanceStore(address)
        case Kind.MILVUS:
            from puma_edge.runtimes.store_milvus import MilvusStore

            return MilvusStore(address)


@contextmanager
def store_errors(name: str, address: Address, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what a database's client raises into one line.

    Raises:
        PumaError: the database is not there, or refuses.

    """
    try:
        yield
    except kinds as error:
        words = " ".join(str(error).split())[:_MOST_WORDS] or type(error).__name__
        raise PumaError(
            f"{name} at {address.shown}, collection {address.collection}: {words}; see that it "
            "runs and that the address and --api-key are right; rows that it has are kept, and "
            "the same command goes on"
        ) from error


def metadata_of(text: str) -> dict[str, Any] | None:
    """Read the metadata column of a row; None where there is none."""
    values: dict[str, Any] | None = json.loads(text) if text else None
    return values
