"""One embedding run: its settings, its plan, and what of it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from puma_edge.errors import PumaError
from puma_edge.inputs import Encoded, Float32, InputSpec
from puma_edge.resize import Resizer, best_resizer
from puma_edge.runtimes.documents import Corpus, Document, Quarantined
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.estimate import estimate
from puma_edge.runtimes.feeder import feed
from puma_edge.runtimes.files import disk_errors
from puma_edge.runtimes.plan import Budget, Cost, batches, windows
from puma_edge.runtimes.shards import Shard, ShardStore
from puma_edge.runtimes.update import Earlier
from puma_edge.runtimes.vectors import Storage, shorten
from puma_edge.runtimes.watch import Progress, Start, Watch
from puma_edge.runtimes.writer import Outcome


@dataclass(frozen=True)
class Stamp:
    """Which model makes the embeddings, as the index records it."""

    model_id: str
    precision: str


@dataclass(frozen=True)
class Settings:
    """How to embed.

    Attributes:
        storage: how the index stores its numbers.
        dimension: numbers kept of each embedding (Matryoshka), None for all of them.
        feeders: threads that read, decode and tokenise.
        resizer: what resizes pictures: the fastest that is installed.
        budget: how large a batch may get.
        update: take the rows of equal content from the index that stands at the output.

    """

    storage: Storage = Storage.FLOAT32
    dimension: int | None = None
    feeders: int = field(default_factory=lambda: max(2, len(os.sched_getaffinity(0))))
    resizer: Resizer = field(default_factory=best_resizer)
    budget: Budget = field(default_factory=Budget)
    update: bool = False


class Run:
    """One run: what is planned, and what is done."""

    def __init__(
        self,
        corpus: Corpus,
        spec: InputSpec,
        encoder: Encoder,
        stamp: Stamp,
        settings: Settings,
        work: Path,
        earlier: Earlier,
        watch: Watch,
    ) -> None:
        self.earlier = earlier
        self.documents = [item for item in corpus.documents if item.content not in earlier]
        self.corpus, self.spec, self.encoder, self.settings = corpus, spec, encoder, settings
        self.plan = windows(self.documents, spec.limits)
        self.store = ShardStore(work, encoder.dimension, _identity(spec, encoder, stamp, settings))
        self.keys = [self.store.key(self._contents(window)) for window in self.plan]
        self.watch = watch
        self.resumed = self.done = self.done_bytes = self.kept = 0
        self.total = sum(len(window) for window in self.plan)
        self.total_bytes = sum(self.documents[item].size for window in self.plan for item in window)

    def embed(self) -> None:
        """Fill every window's shard that is not there yet."""
        missing: list[int] = []
        for number, (key, window) in enumerate(zip(self.keys, self.plan, strict=True)):
            shard = self.store.read(key, len(window))
            if shard is None:
                missing.append(number)
            else:
                self.resumed += len(shard.vectors)
                self.kept += len(window)
                self._tick(window)
        todo = [[self.documents[item] for item in self.plan[number]] for number in missing]
        self._begin([item for window in todo for item in window])
        feeders, resizer = self.settings.feeders, self.settings.resizer
        with closing(feed(self.corpus.root, self.spec, todo, feeders, resizer)) as fed:
            for number, entries in zip(missing, fed, strict=True):
                shard = self._encode(self.plan[number], entries)
                with disk_errors(self.store.folder):
                    self.store.write(self.keys[number], shard)
                self.kept += len(entries)
                self._tell()

    def _begin(self, documents: Sequence[Document]) -> None:
        if self.watch.begin is None:
            return
        feeders, resizer = self.settings.feeders, self.settings.resizer
        root = self.corpus.root
        seconds = estimate(root, self.spec, self.encoder, documents, feeders, resizer)
        size = sum(item.size for item in documents)
        remark = self.earlier.remark(resizer, documents)
        self.watch.begin(Start(len(documents), size, self.resumed, seconds, remark))

    def _encode(self, window: Sequence[int], entries: Sequence[Encoded | str]) -> Shard:
        failed = {place: entry for place, entry in enumerate(entries) if isinstance(entry, str)}
        ready = [
            (place, entry) for place, entry in enumerate(entries) if isinstance(entry, Encoded)
        ]
        self._tick([window[place] for place in failed])
        vectors = np.zeros((len(entries), self.encoder.dimension), np.float32)
        costs = [Cost(entry.length, sum(len(i.pixels) for i in entry.images)) for _, entry in ready]
        for batch in batches(costs, self.settings.budget):
            places = [ready[item][0] for item in batch]
            result = self.encoder.encode(self.spec.collate([ready[item][1] for item in batch]))
            if result.shape != (len(batch), self.encoder.dimension):
                raise PumaError(
                    f"{self.encoder.provider} returned embeddings of shape {result.shape}, "
                    f"expected {(len(batch), self.encoder.dimension)}; export the bundle again"
                )
            vectors[places] = result
            for place in np.asarray(places)[~np.isfinite(result).all(axis=1)]:
                failed[int(place)] = "the model gave no finite embedding; try --precision fp32"
            self._tick([window[place] for place in places])
        kept = [place for place in range(len(entries)) if place not in failed]
        return Shard(vectors[kept], dict(sorted(failed.items())))

    def outcome(self) -> Outcome:
        """Put together what became of each document, from the shards."""
        failed: dict[str, str] = {}
        for key, window in zip(self.keys, self.plan, strict=True):
            for place, reason in self.store.failed(key).items():
                failed[self.documents[window[place]].content] = reason
        kept = tuple(item for item in self.corpus.documents if item.content not in failed)
        broken = [
            Quarantined(item.place, failed[item.content])
            for item in self.documents
            if item.content in failed
        ]
        quarantine = sorted([*self.corpus.quarantine, *broken], key=lambda entry: entry.path)
        if not kept:
            raise PumaError(
                f"none of the {len(quarantine)} items of {self.corpus.root} can be embedded "
                f"(the first, {quarantine[0].path}: {quarantine[0].reason}); no index was written"
            )
        contents = dict.fromkeys(item.content for item in kept)
        reused = sum(content in self.earlier for content in contents)
        return Outcome(
            kept, tuple(quarantine), len(contents), reused, lambda: self._vectors(contents)
        )

    def _vectors(self, contents: Iterable[str]) -> Iterator[Float32]:
        """Go through the rows [d] of these contents, which stand in the order of the documents."""
        computed = self._computed()
        for content in contents:
            yield self.earlier[content] if content in self.earlier else next(computed)

    def _computed(self) -> Iterator[Float32]:
        """Go through the rows that the model computed, [d] each, in the order of the documents."""
        for key, window in zip(self.keys, self.plan, strict=True):
            shard = self.store.read(key, len(window))
            if shard is None:
                raise PumaError(f"{self.store.folder} lacks a shard written before; run again")
            yield from shorten(shard.vectors, self.settings.dimension)

    def _contents(self, window: Sequence[int]) -> list[str]:
        return [self.documents[item].content for item in window]

    def _tick(self, items: Sequence[int]) -> None:
        self.done += len(items)
        self.done_bytes += sum(self.documents[item].size for item in items)
        if items:
            self._tell()

    def _tell(self) -> None:
        if self.watch.progress is not None:
            now = Progress(self.done, self.total, self.done_bytes, self.total_bytes, self.kept)
            self.watch.progress(now)


def _identity(spec: InputSpec, encoder: Encoder, stamp: Stamp, settings: Settings) -> str:
    """Everything beside the contents that decides the bytes of a shard, as JSON."""
    values = {
        "budget": asdict(settings.budget),
        "dimension": encoder.dimension,
        "limits": asdict(spec.limits),
        "model_id": stamp.model_id,
        "positions": spec.positions.value,
        "precision": stamp.precision,
        "prompt": asdict(spec.tokenizer.prompt),
        "provider": encoder.provider,
        "resizer": settings.resizer.value,
    }
    return json.dumps(values, sort_keys=True)
