"""Embed and search from Python: NumPy in and out, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puma_edge.bundle import Bundle
from puma_edge.errors import UsageError
from puma_edge.inputs import Float32
from puma_edge.runtimes.engine import Engine, PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.searcher import Query, embed_queries

__all__ = ["Embedder", "Index", "Query", "SearchSettings", "open_bundle"]


@dataclass(frozen=True)
class Embedder:
    """An opened bundle.

    Attributes:
        bundle: its folder and manifest.
        engine: what runs it.
    """

    bundle: Bundle
    engine: Engine

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.engine.encoder.dimension

    def embed(self, items: Sequence[str | Path | Query], instruction: str = "") -> Float32:
        """Embed texts, pictures, or both together: [items, dimension], L2-normalised.

        Args:
            items: words as `str`, a picture as `Path`, or `Query(text=..., image=...)`.
            instruction: what is looked for, such as "Find an image of this."; "" for documents.
                A `Query` may carry its own.

        Raises:
            UsageError: an item is neither, or empty; or one is given without a list.
            PumaError: a picture cannot be read.
        """
        queries = _as_queries(items, instruction)
        if not queries:
            return np.empty((0, self.dimension), np.float32)
        return embed_queries(queries, self.bundle.spec, self.engine.encoder, {})

    def embed_queries(self, items: Sequence[str | Path | Query]) -> Float32:
        """Embed what is looked for, as `puma-edge search` does: with the bundle's instructions.

        Raises:
            UsageError: an item is neither words nor a picture, or empty; or see `embed`.
            PumaError: a picture cannot be read.
        """
        queries = _as_queries(items, None)
        if not queries:
            return np.empty((0, self.dimension), np.float32)
        instructions = self.bundle.manifest.instructions
        return embed_queries(queries, self.bundle.spec, self.engine.encoder, instructions)


def open_bundle(
    folder: Path | str = "bundle",
    runtime: Runtime = Runtime.AUTO,
    precision: PrecisionChoice = PrecisionChoice.AUTO,
    threads: int | None = None,
) -> Embedder:
    """Open a bundle for embedding.

    Args:
        folder: what `puma-edge export` wrote.
        runtime: the engine.
        precision: its arithmetic; "auto" takes INT8 where the bundle has it.
        threads: CPU threads, None for all.

    Raises:
        PumaError: no bundle there, or a damaged one.
        MissingExtraError: the engine is not installed.
    """
    bundle = Bundle.open(Path(folder))
    engine = open_engine(bundle, Runtime(runtime), PrecisionChoice(precision), threads)
    return Embedder(bundle, engine)


def _as_queries(
    items: Sequence[str | Path | Query] | Path | Query, instruction: str | None
) -> list[Query]:
    # A text is a sequence too: of its letters.
    if isinstance(items, str | Path | Query):
        raise UsageError(f"{items!r} given; expected a list of such: [{items!r}]")
    return [_as_query(item, instruction) for item in items]


def _as_query(item: str | Path | Query, instruction: str | None) -> Query:
    match item:
        case Query():
            own = instruction if item.instruction is None else item.instruction
            return Query(item.text, item.image, own)
        case str():
            return Query(text=item, instruction=instruction)
        case Path():
            return Query(image=item, instruction=instruction)
    raise UsageError(f"{item!r} given; expected words (str), a picture (Path) or a Query")
