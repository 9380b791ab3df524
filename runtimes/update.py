"""What an index written before holds, so that an update embeds only what is new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError
from puma_edge.prompts import Modality
from puma_edge.resize import Resizer
from puma_edge.runtimes.documents import Document
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.writer import find_file

_UNKNOWN, _AND = "unknown", ", "


@dataclass(frozen=True)
class Changes:
    """How an index differs from the one before it, in rows.

    `kept + new + changed` are the rows there are, `kept + changed + removed` those there were.

    Attributes:
        kept: of the same id and the same content.
        new: of an id that was not there.
        changed: of an id that was there with another content.
        removed: of an id that is not there any more, or cannot be read.

    """

    kept: int
    new: int
    changed: int
    removed: int


@dataclass(frozen=True)
class Needed:
    """What rows must have in common to stand in one index; see `Header`."""

    model_id: str
    precision: str
    dimension: int
    dtype: str


@dataclass(frozen=True)
class Earlier:
    """The rows of the index that is updated.

    Attributes:
        vectors: [rows, dimension], mapped from the file.
        rows: content hash -> a row of that content.
        entries: id and content hash of each row.
        resizers: what resized the pictures of these rows.

    """

    vectors: NDArray[Any]
    rows: dict[str, int]
    entries: tuple[tuple[str, str], ...]
    resizers: frozenset[str] = frozenset()

    def __contains__(self, content: str) -> bool:
        """Tell whether there is a row of this content."""
        return content in self.rows

    def __getitem__(self, content: str) -> NDArray[Any]:
        """Find the row [dimension] of this content."""
        row: NDArray[Any] = self.vectors[self.rows[content]]
        return row

    @classmethod
    def none(cls) -> Earlier:
        """Make what stands for no index before."""
        return cls(np.zeros((0, 0), np.float32), {}, ())

    @classmethod
    def open(cls, out: Path, needed: Needed) -> Earlier:
        """Read the index at `out`, if there is one.

        Raises:
            PumaError: its rows cannot stand beside new ones, or it is damaged.

        """
        if not find_file(out, out.name).exists():
            return cls.none()
        index = Index.open(out)
        for name, wanted in vars(needed).items():
            found = getattr(index.header, name)
            if found != wanted:
                raise PumaError(
                    f"{out} has {name} {found}, this run {wanted}: its rows cannot be kept; "
                    "run as it was made, or leave out --update to embed everything again"
                )
        hashes = index.table.column("hash")
        entries = tuple(zip(index.table.column("id"), hashes, strict=True))
        rows = {content: row for row, content in enumerate(hashes)}
        noted = index.header.resizer
        resizers = frozenset(filter(None, (_UNKNOWN if noted is None else noted).split(_AND)))
        return cls(index.vectors, rows, entries, resizers)

    def remark(self, resizer: Resizer, documents: Sequence[Document]) -> str:
        """Say that the pictures to embed are resized by another program than those before."""
        if self.resizers <= {resizer.value} or all(
            document.modality is Modality.TEXT for document in documents
        ):
            return ""
        return (
            f"pictures are resized by {resizer.value} now, and were by "
            f"{_AND.join(sorted(self.resizers))} in the index: embeddings of equal pictures "
            "differ slightly (cosine above 0.999); the rows that are there are kept"
        )

    def join_resizers(self, resizer: Resizer, documents: Sequence[Document]) -> str:
        """Name what resized the pictures of `documents`, the rows of the new index."""
        pictures = [item.content for item in documents if item.modality is not Modality.TEXT]
        kept = self.resizers if any(content in self for content in pictures) else frozenset()
        new = {resizer.value} if any(content not in self for content in pictures) else frozenset()
        return _AND.join(sorted(kept | new))

    def compare(self, documents: Sequence[Document]) -> Changes:
        """Count how `documents`, the rows of the new index, differ from the rows of this one.

        Several rows may share an id that JSONL lines gave; each is matched with one of the other
        index, equal contents first.
        """
        before = Counter(self.entries)
        after = Counter((document.id, document.content) for document in documents)
        kept = sum((before & after).values())
        gone = Counter(_names(before - after))
        come = Counter(_names(after - before))
        changed = sum((gone & come).values())
        return Changes(kept, come.total() - changed, changed, gone.total() - changed)


def _names(entries: Counter[tuple[str, str]]) -> list[str]:
    return [name for name, _ in entries.elements()]
