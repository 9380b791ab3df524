"""One embedding run: its settings, its plan, and what of it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from puma_edge.errors import PumaError
from puma_edge.inputs import Encoded, Float32, InputSpec
from puma_edge.resize import Resizer, best_resizer
from puma_edge.runtimes.documents import Corpus, Document, Quarantined
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.estimate import estimate
from puma_edge.runtimes.feeder import feed
from puma_edge.runtimes.files import disk_errors
from puma_edge.runtimes.fleet import Fleet, Recipe
from puma_edge.runtimes.plan import Budget, windows
from puma_edge.runtimes.shards import Batches, Shard, ShardStore
from puma_edge.runtimes.update import Earlier
from puma_edge.runtimes.vectors import Storage, shorten
from puma_edge.runtimes.watch import Progress, Start, Watch
from puma_edge.runtimes.window import encode_window
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
        # Other machines take whole windows, and begin them anew.
        begun = {} if isinstance(self.encoder, Fleet) else self._read_begun(missing)
        todo = [[self.documents[item] for item in self.plan[number]] for number in missing]
        self._begin(missing, begun)
        if isinstance(self.encoder, Fleet):
            self._collect(self.encoder, missing, todo)
            return
        feeders, resizer = self.settings.feeders, self.settings.resizer
        with closing(feed(self.corpus.root, self.spec, todo, feeders, resizer)) as fed:
            for number, entries in zip(missing, fed, strict=True):
                done = begun.get(number, {})
                known = _size(done)
                try:
                    shard = self._encode(self.plan[number], entries, done)
                    with disk_errors(self.store.folder):
                        self.store.write(self.keys[number], shard)
                except KeyboardInterrupt:
                    self._keep(number, done, known)
                    raise
                self.kept += len(entries) - known
                self._tell()

    def _read_begun(self, missing: Sequence[int]) -> dict[int, Batches]:
        """Batches of windows in which a run was stopped, by the window's number."""
        found = {number: self.store.read_begun(self.keys[number]) for number in missing}
        begun = {number: done for number, done in found.items() if done}
        known = sum(_size(done) for done in begun.values())
        self.resumed += known
        self.kept += known
        return begun

    def _keep(self, number: int, done: Batches, known: int) -> None:
        """Keep the batches of a window that is stopped now; `known` rows of it were kept before."""
        if _size(done) > known:
            with disk_errors(self.store.folder):
                self.store.write_begun(self.keys[number], done)
            self.kept += _size(done) - known
            self._tell()

    def _begin(self, missing: Sequence[int], begun: Mapping[int, Batches]) -> None:
        if self.watch.begin is None:
            return
        documents = []
        for number in missing:
            known = {place for places in begun.get(number, ()) for place in places}
            window = enumerate(self.plan[number])
            documents += [self.documents[item] for place, item in window if place not in known]
        feeders, resizer = self.settings.feeders, self.settings.resizer
        root = self.corpus.root
        seconds = estimate(root, self.spec, self.encoder, documents, feeders, resizer)
        size = sum(item.size for item in documents)
        remark = self.earlier.remark(resizer, documents)
        self.watch.begin(Start(len(documents), size, self.resumed, seconds, remark))

    def _encode(
        self, window: Sequence[int], entries: Sequence[Encoded | str], done: Batches
    ) -> Shard:
        def tick(places: Sequence[int]) -> None:
            self._tick([window[place] for place in places])

        return encode_window(entries, self.spec, self.encoder, self.settings.budget, tick, done)

    def _collect(
        self, fleet: Fleet, missing: Sequence[int], todo: Sequence[Sequence[Document]]
    ) -> None:
        """Have the windows embedded elsewhere, and keep each shard as it comes."""
        settings = self.settings
        recipe = Recipe(settings.budget, settings.feeders, settings.resizer)
        with closing(fleet.shards(self.corpus.root, todo, recipe)) as done:
            for place, shard in done:
                number = missing[place]
                with disk_errors(self.store.folder):
                    self.store.write(self.keys[number], shard)
                self.kept += len(self.plan[number])
                self._tick(self.plan[number])

    def outcome(self) -> Outcome:
        """Put together what became of each document, from the shards."""
        failed: dict[str, Quarantined] = {}
        for key, window in zip(self.keys, self.plan, strict=True):
            for place, reason in self.store.failed(key).items():
                item = self.documents[window[place]]
                failed[item.content] = Quarantined(item.place, reason)
        kept = tuple(item for item in self.corpus.documents if item.content not in failed)
        broken = [
            _as_read(failed[item.content], item.place)
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


def _as_read(first: Quarantined, place: str) -> Quarantined:
    """Say of each place of a content what became of the one that was read."""
    if place == first.path:
        return first
    return Quarantined(place, f"equal to {first.path}, which was tried: {first.reason}")


def _size(done: Batches) -> int:
    return sum(len(places) for places in done)


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
