"""What several machines that embed together look like to a run."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from puma_edge.resize import Resizer
from puma_edge.runtimes.documents import Document
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.plan import Budget
from puma_edge.runtimes.shards import Shard


@dataclass(frozen=True)
class Recipe:
    """What besides a window and the model decides how its shard is made."""

    budget: Budget
    feeders: int
    resizer: Resizer


@runtime_checkable
class Fleet(Encoder, Protocol):
    """Encoders of the same model in several processes or machines, which take whole windows."""

    @property
    def size(self) -> int:
        """How many encoders work at once."""
        ...

    def shards(
        self, root: Path, windows: Sequence[Sequence[Document]], recipe: Recipe
    ) -> Generator[tuple[int, Shard], None, None]:
        """Embed each window; its place in `windows` and its shard, in the order they are done."""
        ...
