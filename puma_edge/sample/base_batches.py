"""What one step of the sample base's training sees: pairs, words, names and pictures."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from puma_edge.data import Dataset, Example, SourceEncoder
from puma_edge.images import Patches, patchify
from puma_edge.inputs import Encoded, InputSpec
from puma_edge.sample.build import LANGUAGES
from puma_edge.sample.folder import augment, glyph_images

TASK_WEIGHTS = {0: 6, 1: 3, 2: 2, 3: 5, 4: 2, 6: 5, 7: 2, 8: 1}
ENGLISH, FOREIGN, NAMES, PICTURES = 32, 24, 24, 96
# Words that say nothing, put into some queries, so that an unknown phrase is read by its content.
FILLERS = ["the", "a", "an", "some", "my", "one", "please", "show", "find", "any", "for"]
FILLED = 0.3  # of the queries


@dataclass(frozen=True)
class Side:
    """Inputs, and for each the concepts it may be taken for."""

    items: list[Encoded]
    owners: list[list[int]]


@dataclass(frozen=True)
class Step:
    """One step: pairs of all tasks, queries of words alone, foreign names, pictures."""

    queries: Side
    candidates: Side
    words: Side
    names: Side
    pictures: Side


@dataclass(frozen=True)
class Concepts:
    """A concept is an emoji, or an emoji's name in one language: emoji * languages + language."""

    emoji: int

    def of(self, did: str) -> int:
        """The concept of a document id."""
        number, kind = divmod(int(did.split(":")[1]) - 1, 2 + len(LANGUAGES))
        # kinds: image, both, en, then the other languages
        return number * len(LANGUAGES) + max(0, kind - 2)

    @property
    def count(self) -> int:
        """How many concepts there are."""
        return self.emoji * len(LANGUAGES)


class Views:
    """Endless new views of the glyphs, made as the set's own two of each were."""

    def __init__(self, spec: InputSpec, seed: int) -> None:
        """Decode every glyph once: about 100 MB."""
        self._draw = random.Random(seed)
        self._limits = spec.limits
        self._glyphs: dict[str, Image.Image] = {}
        for name, data in glyph_images():
            with Image.open(io.BytesIO(data)) as file:
                self._glyphs[Path(name).stem] = file.convert("RGB")

    def __call__(self, picture: Path) -> Patches:
        """A view of the glyph that a picture of the set shows: itself, or one of its views."""
        stem = picture.stem if picture.stem in self._glyphs else picture.stem.rsplit("-", 1)[0]
        view = augment(self._glyphs[stem], str(self._draw.random()))
        return patchify(np.asarray(view), self._limits)


class Batches:
    """Endless training steps, drawn by seed."""

    def __init__(self, data: Dataset, spec: InputSpec, concepts: Concepts, seed: int) -> None:
        """Sort the training queries by task and language."""
        self._data, self._spec, self._concepts = data, spec, concepts
        self._draw = random.Random(seed)
        self._load, self._view = SourceEncoder(spec), Views(spec, seed)
        self._by_task = {t: [one for one in data.train if one.task == t] for t in TASK_WEIGHTS}
        foreign = {one.query.text for one in self._by_task[1]}
        self._english = [one for one in self._by_task[0] if one.query.text not in foreign]

    def step(self, pairs: int) -> Step:
        """The next step, with this many pairs."""
        examples = self._pairs(pairs)
        words = self._draw.choices(self._english, k=ENGLISH)
        words += self._draw.choices(self._by_task[1], k=FOREIGN)
        return Step(
            queries=self._queries(examples),
            candidates=self._candidates([self._draw.choice(one.positives) for one in examples]),
            words=self._queries(words),
            names=self._candidates(self._draw.choices(self._data.pools[6], k=NAMES)),
            pictures=self._pictures(),
        )

    def _pairs(self, size: int) -> list[Example]:
        """Examples of all tasks, no two with an answer in common."""
        batch: list[Example] = []
        taken: set[str] = set()
        tasks, weights = list(TASK_WEIGHTS), list(TASK_WEIGHTS.values())
        while len(batch) < size:
            example = self._draw.choice(self._by_task[self._draw.choices(tasks, weights)[0]])
            if taken.isdisjoint(example.positives):
                taken.update(example.positives)
                batch.append(example)
        return batch

    def _queries(self, examples: Sequence[Example]) -> Side:
        items = []
        for one in examples:
            instruction = self._draw.choice(self._data.instructions[one.modalities])
            images = tuple(self._view(path) for path in one.query.images)
            text = one.query.text and self._filled(one.query.text)
            items.append(self._spec.encode_patches(instruction, text, images))
        return Side(items, [[self._concepts.of(did) for did in one.positives] for one in examples])

    def _filled(self, text: str) -> str:
        if self._draw.random() >= FILLED:
            return text
        words = text.split(" ")
        words.insert(self._draw.randint(0, len(words)), self._draw.choice(FILLERS))
        return " ".join(words)

    def _candidates(self, dids: Sequence[str]) -> Side:
        items = self._load.many([(self._data.candidates[did], None) for did in dids])
        return Side(items, [[self._concepts.of(did)] for did in dids])

    def _pictures(self) -> Side:
        """Pictures alone, a third of them glyphs as they are and the others views."""
        dids = self._draw.choices(self._data.pools[0], k=PICTURES)
        items = []
        for place, did in enumerate(dids):
            source = self._data.candidates[did]
            view = (self._view(source.images[0]),)
            items.append(
                self._spec.encode_patches(None, None, view) if place % 3 else self._load(source)
            )
        return Side(items, [[self._concepts.of(did)] for did in dids])


def plain_glyphs(data: Dataset) -> Dataset:
    """Task 0 alone, over the glyphs without a skin tone: queries of two keywords, answers pictures.

    No training query joins the two keywords of a test query.
    """
    named = {int(did.split(":")[1]) - 1 for did in data.pools[1]}
    kinds = 2 + len(LANGUAGES)
    numbers = {place // kinds for place in named}
    pool = [did for did in data.pools[0] if (int(did.split(":")[1]) - 1) // kinds in numbers]
    return replace(data, pools={0: pool}, local_pools={})
