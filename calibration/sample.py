"""A sample of the user's own corpus: modalities and lengths in equal shares, known by its hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from puma_edge.decoding import decode
from puma_edge.errors import InputError, PumaError
from puma_edge.inputs import Item
from puma_edge.prompts import Modality
from puma_edge.runtimes.documents import Corpus, Document, load

LEAST, ADVISED = 8, 64
LENGTHS = ("short", "middle", "long")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampled:
    """One document that was read.

    Attributes:
        item: its text and image.
        stratum: "text, short" and the like.
        content: hash of the text and of the image's bytes.
    """

    item: Item
    stratum: str
    content: str


@dataclass(frozen=True)
class Sample:
    """Documents of a corpus, spread evenly over strata from the first to the last.

    Attributes:
        folder: the corpus's name.
        items: the documents; any beginning of the list is spread evenly too.
        warnings: what a user should know of it, one line each.
    """

    folder: str
    items: tuple[Sampled, ...]
    warnings: tuple[str, ...]


def describe(folder: str, items: tuple[Sampled, ...]) -> dict[str, Any]:
    """For the manifest: how many of which stratum, and a hash that says which."""
    contents = "\n".join(sorted(one.content for one in items))
    return {
        "folder": folder,
        "strata": dict(sorted(Counter(one.stratum for one in items).items())),
        "sha256": hashlib.sha256(contents.encode()).hexdigest(),
    }


def draw(
    corpus: Corpus, count: int, seed: int, progress: Progress = lambda done, total: None
) -> Sample:
    """Read up to `count` documents, the same for the same corpus whatever its files are called.

    Args:
        corpus: what `scan` found.
        count: how many.
        seed: of the choice.
        progress: told how many of how many are read.

    Raises:
        PumaError: there are fewer than eight readable documents, or none with an image.
    """
    strata = _strata(corpus.documents, seed)
    count = min(count, sum(len(many) for many in strata.values()))
    items: list[Sampled] = []
    for stratum, document in _in_turn(strata):
        if len(items) == count:
            break
        try:
            parts = load(corpus.root, document)
            images = () if parts.image is None else (decode(parts.image),)
        except InputError:
            continue  # `embed` will name it; a calibration sample does without
        items.append(Sampled(Item(parts.text, images), stratum, document.content))
        progress(len(items), count)
    return Sample(corpus.root.name, tuple(items), _warnings(corpus, items))


def _strata(documents: tuple[Document, ...], seed: int) -> dict[str, list[Document]]:
    """Documents of each modality by thirds of their length, in an order drawn by content."""
    unique = {document.content: document for document in documents}
    strata: dict[str, list[Document]] = {}
    for modality in Modality:
        many = sorted(
            (one for one in unique.values() if one.modality is modality),
            key=lambda one: (one.size, one.content),
        )
        for third, name in enumerate(LENGTHS):
            piece = many[third * len(many) // 3 : (third + 1) * len(many) // 3]
            if piece:
                strata[f"{modality.value}, {name}"] = sorted(
                    piece, key=lambda one: _drawn(seed, one.content)
                )
    return strata


def _drawn(seed: int, content: str) -> bytes:
    return hashlib.sha256(f"{seed} {content}".encode()).digest()


def _in_turn(strata: dict[str, list[Document]]) -> Iterator[tuple[str, Document]]:
    """One of each stratum, then the next of each."""
    for rank in zip_longest(*strata.values()):
        for stratum, document in zip(strata, rank, strict=True):
            if document is not None:
                yield stratum, document


def _warnings(corpus: Corpus, items: list[Sampled]) -> tuple[str, ...]:
    if len(items) < LEAST:
        raise PumaError(
            f"--calibration {corpus.root} has {len(items)} readable items; calibration needs "
            f"{LEAST} at least and {ADVISED} to be good: add files like those that will be "
            "embedded, or give --data (M-BEIR's format) instead"
        )
    if not any(one.item.images for one in items):
        raise PumaError(
            f"--calibration {corpus.root} has texts only, and the vision graph is calibrated on "
            "pictures: add some like those that will be embedded"
        )
    warnings = []
    if len(items) < ADVISED:
        warnings.append(
            f"--calibration {corpus.root} has {len(items)} readable items; the ranges are surer "
            f"with {ADVISED} or more"
        )
    if not any(one.item.text for one in items):
        warnings.append(
            f"--calibration {corpus.root} has pictures only: words that people will search for "
            "are outside what is calibrated and judged; add texts like them"
        )
    return tuple(warnings)
