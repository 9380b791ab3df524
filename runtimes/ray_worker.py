"""One actor of a Ray cluster: what it opens, and the windows it embeds with that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from puma_edge.bundle import Bundle
from puma_edge.inputs import Batch, Float32, InputSpec
from puma_edge.runtimes.documents import Document
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.feeder import feed
from puma_edge.runtimes.fleet import Recipe
from puma_edge.runtimes.run import Stamp
from puma_edge.runtimes.shards import Shard
from puma_edge.runtimes.window import encode_window


@dataclass(frozen=True)
class Member:
    """What an actor embeds with."""

    spec: InputSpec
    encoder: Encoder
    stamp: Stamp


@dataclass(frozen=True)
class BundleOpener:
    """Opens the same bundle, by its path, on every machine."""

    folder: str
    runtime: Runtime
    precision: PrecisionChoice

    def __call__(self, threads: int) -> Member:
        """Open it for so many threads."""
        bundle = Bundle.open(Path(self.folder))
        engine = open_engine(bundle, self.runtime, self.precision, threads)
        stamp = Stamp(bundle.manifest.model_id, engine.precision.value)
        return Member(bundle.spec, engine.encoder, stamp)


@dataclass(frozen=True)
class About:
    """What must be the same everywhere."""

    provider: str
    dimension: int
    stamp: Stamp


class Worker:
    """One actor. Two windows may be in it: one being prepared, one being encoded."""

    def __init__(self, opener: Callable[[int], Member], threads: int) -> None:
        """Remember what to open; an error while opening then has a caller to go to."""
        self._opener, self._threads = opener, threads
        self._opening, self._encoding = threading.Lock(), threading.Lock()

    def about(self) -> About:
        """Say with what it embeds."""
        member = self._opened()
        return About(member.encoder.provider, member.encoder.dimension, member.stamp)

    def encode(self, batch: Batch) -> Float32:
        """Embed one batch."""
        with self._encoding:
            return self._opened().encoder.encode(batch)

    def shard(self, root: str, documents: Sequence[Document], recipe: Recipe) -> Shard:
        """Embed one window."""
        member = self._opened()
        fed = feed(Path(root), member.spec, [documents], recipe.feeders, recipe.resizer)
        with closing(fed):
            entries = next(fed)
        with self._encoding:
            return encode_window(
                entries, member.spec, member.encoder, recipe.budget, lambda places: None
            )

    def _opened(self) -> Member:
        with self._opening:
            return self._member

    @cached_property
    def _member(self) -> Member:
        return self._opener(self._threads)
