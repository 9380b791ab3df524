"""What a corpus is made of: documents, what could not be read, and their parts in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from puma_edge.errors import InputError
from puma_edge.prompts import Modality
from puma_edge.runtimes.parts import (
    Span,
    content_hash,
    parse_line,
    read_bytes,
    read_span,
    read_text,
)
from puma_edge.runtimes.tables import TABLE_SUFFIX, read_cell

_KINDS = {
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"), "video"),
    **dict.fromkeys((".heic", ".heif", ".avif", ".svg", ".psd", ".jxl"), "image"),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".pptx", ".odt", ".html", ".htm"), "document"),
}


_SUFFIXES = 10  # named; a folder may hold as many as files
_OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Document:
    """One thing to embed: a row of the index.

    Attributes:
        id: the id a line or row gives, otherwise `place`.
        place: where it was found, relative to the corpus, as text: `a/b.jpg` or `c.jsonl#12`.
        path: the file to show, relative to the corpus, as text: the image where there is one.
        modality: text, image or both.
        content: hash of the text and of the image's bytes.
        size: bytes of its parts.
        text_file: the text, JSONL or Parquet file as the system names it, None for a plain image.
        span: where it stands in a JSONL or Parquet file.
        image_file: the image as the system names it, None for a text.
        text: the beginning of its text.
        metadata: a JSON object, or empty.

    """

    id: str
    place: str
    path: str
    modality: Modality
    content: str
    size: int
    text_file: str | None = None
    span: Span | None = None
    image_file: str | None = None
    text: str = ""
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """What could not be embedded: where it is, relative to the corpus, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """What a folder holds.

    Attributes:
        root: the folder, as given.
        documents: texts, then images, then images with text, each sorted by the bytes of its path.
        quarantine: what cannot be read, sorted by path.
        unsupported: suffix, of the commonest ones, -> how many files of it were passed over, and
            how many `others`; no part of `seen`.

    """

    root: Path
    documents: tuple[Document, ...]
    quarantine: tuple[Quarantined, ...] = ()
    unsupported: Mapping[str, int] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        """Documents, readable or not."""
        return len(self.documents) + len(self.quarantine)

    @property
    def size(self) -> int:
        """Bytes of the documents."""
        return sum(document.size for document in self.documents)

    def describe_unsupported(self) -> str:
        """`3 .mp4 (video), 1 .pdf (document)`: empty where every file is supported."""
        ranked = _rank(self.unsupported)
        kinds = ((count, suffix, _KINDS.get(suffix)) for suffix, count in ranked)
        return ", ".join(
            f"{n} {suffix}" + (f" ({kind})" if kind else "") for n, suffix, kind in kinds
        )


def commonest(unsupported: Mapping[str, int]) -> dict[str, int]:
    """Keep the commonest suffixes, and count the files of all others together."""
    ranked = _rank(unsupported)
    others = sum(count for _, count in ranked[_SUFFIXES:])
    return {**dict(sorted(ranked[:_SUFFIXES])), **({_OTHERS: others} if others else {})}


def _rank(unsupported: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(unsupported.items(), key=lambda one: (one[0] == _OTHERS, -one[1], one[0]))


@dataclass(frozen=True)
class Loaded:
    """A document's parts in memory: its text, and the bytes of its image."""

    text: str | None
    image: bytes | None


def load(root: Path, document: Document) -> Loaded:
    """Read a document's parts again.

    Raises:
        InputError: they cannot be read, or are not what `scan` found.

    """
    text = None
    if document.text_file is not None:
        path = os.path.join(root, document.text_file)
        if document.span is None:
            text = read_text(path)
        elif path.lower().endswith(TABLE_SUFFIX):
            text = read_cell(path, *document.span)
        else:
            text = parse_line(read_span(path, *document.span)).text
    image = None
    if document.image_file is not None:
        image = read_bytes(os.path.join(root, document.image_file))
    if content_hash(text, image) != document.content:
        raise InputError("changed while it was being embedded; run again")
    return Loaded(text, image)
