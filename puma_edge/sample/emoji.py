"""The emoji set: eight retrieval tasks over one set of glyphs and their names.

What keeps it honest: query images are augmented and never a candidate's bytes; every pool holds
every candidate of its kind; a query's own document is never its answer; test queries join keywords
that no training query joined, in phrases that no training query uses, and ask for pairs of glyphs
(task 4, 7, 8) or translations (task 6) that no training query asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources

from puma_edge.prompts import Modality
from puma_edge.sample.build import LANGUAGES, TONES, file_name

DATASET_ID = 1
SPLITS = ("train", "val", "test")
# A keyword that fits more emoji than this names none of them: it is asked only beside another.
COMMON = 6
LANGUAGE_NAMES = {"de": "German", "fr": "French", "es": "Spanish"}

TEXT, IMAGE, BOTH = Modality.TEXT, Modality.IMAGE, Modality.IMAGE_TEXT
TASKS: dict[int, tuple[Modality, Modality]] = {
    0: (TEXT, IMAGE),
    1: (TEXT, TEXT),
    2: (TEXT, BOTH),
    3: (IMAGE, TEXT),
    4: (IMAGE, IMAGE),
    6: (BOTH, TEXT),
    7: (BOTH, IMAGE),
    8: (BOTH, BOTH),
}
# The first of each is the one evaluation uses; the second serves every task of a query modality.
INSTRUCTIONS = {
    0: ("Find the picture of this.", "Find what fits this.", "Which picture shows this?"),
    1: ("Find the English name of this.", "Find what fits this.", "Translate this to English."),
    2: ("Find the picture and name of this.", "Find what fits this.", "Find the entry for this."),
    3: ("Find the name of this picture.", "Find what fits this.", "What does this picture show?"),
    4: ("Find pictures of other kinds of this.", "Find pictures like this.", "Find its relatives."),
    6: ("Find the name of this in the language.", "Find what fits this.", "Translate the picture."),
    7: ("Find the picture changed like this.", "Find what fits this.", "Change the picture so."),
    8: ("Find the picture and name changed so.", "Find what fits this.", "Find the changed entry."),
}
PHRASES = {
    "train": ("{a} {b}", "{a}, {b}", "{a} and {b}", "{b} {a}", "a {b} {a}"),
    "val": ("{a}, {b}",),
    "test": ("{b} with {a}", "a picture of {b} and {a}"),
}
CHANGES = {"train": ("{x}", "now {x}"), "val": ("{x}",), "test": ("this picture {x}",)}
TRANSLATIONS = {"train": ("in {x}", "{x}"), "val": ("in {x}",), "test": ("the name in {x}",)}

_COLOURS = "red orange yellow green blue purple brown black white"
_PEOPLE = "man woman person men women people boy girl child"
_DIRECTIONS = "up-right up-left down-right down-left right left up down upwards downwards"
_ATTRIBUTES = (
    (re.compile(r": ([a-z-]+ skin tone)$"), "with {}"),
    (re.compile(rf"\b({_PEOPLE.replace(' ', '|')})\b"), "as a {}"),
    (re.compile(rf"\b({_COLOURS.replace(' ', '|')})\b"), "in {}"),
    (re.compile(rf"\b({_DIRECTIONS.replace(' ', '|')})\b"), "pointing {}"),
    (re.compile(r"^([a-z]+(?: o’clock|-thirty))$"), "at {}"),
)


@dataclass(frozen=True)
class Emoji:
    """One emoji: its number, glyph file, and name and keywords by language."""

    number: int
    symbol: str
    words: dict[str, list[str]]

    @property
    def file(self) -> str:
        """The glyph's file name."""
        return file_name(self.symbol)

    @property
    def name(self) -> str:
        """The English CLDR short name."""
        return self.words["en"][0]

    @property
    def toned(self) -> bool:
        """Whether it carries a skin tone."""
        return any(tone in self.symbol for tone in TONES)


@dataclass(frozen=True)
class Query:
    """One query before it is written: what it says, what it shows, and its answers' documents."""

    text: str | None
    emoji: Emoji | None
    answers: tuple[str, ...]


def load_emoji() -> list[Emoji]:
    """The shipped annotations."""
    data = resources.files("puma_edge.sample").joinpath("emoji.json.gz").read_bytes()
    rows = json.loads(gzip.decompress(data))
    return [
        Emoji(number, row["emoji"], {language: row[language] for language in LANGUAGES})
        for number, row in enumerate(rows)
    ]


def share(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone: decides splits without an order."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _split(*key: object) -> str:
    part = share(*key)
    return "train" if part < 0.7 else "val" if part < 0.8 else "test"


def document(kind: str, emoji: Emoji) -> str:
    """The id of a candidate: `image`, `both`, or the name in a language (`en`, `de`, ...)."""
    kinds = ("image", "both", *LANGUAGES)
    return f"{DATASET_ID}:{emoji.number * len(kinds) + kinds.index(kind) + 1}"


def describe(emoji: Emoji, language: str) -> str:
    """A text candidate: the English name with its keywords, or the bare name elsewhere."""
    name, *keywords = emoji.words[language]
    return f"{name}: {', '.join(keywords)}" if language == "en" and keywords else name


def relatives(emoji: list[Emoji]) -> dict[int, dict[int, str]]:
    """Number -> {number of a relative: the change that leads to it}.

    Two emoji are relatives if their English names differ in one attribute alone: a skin tone, a
    person, a colour, a direction, an hour.
    """
    groups: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for one in emoji:
        for kind, (pattern, change) in enumerate(_ATTRIBUTES):
            match = pattern.search(one.name)
            if match:
                stem = one.name[: match.start(1)] + "*" + one.name[match.end(1) :]
                groups[stem, kind][one.number] = change.format(match.group(1))
    related: dict[int, dict[int, str]] = defaultdict(dict)
    for group in groups.values():
        for first, second in itertools.permutations(group, 2):
            related[first][second] = group[second]
    return related


def _by_words(emoji: list[Emoji], language: str) -> dict[str, set[int]]:
    owners: dict[str, set[int]] = defaultdict(set)
    for one in emoji:
        for word in one.words[language]:
            owners[word].add(one.number)
    return owners


def _worded(emoji: list[Emoji], language: str) -> Iterator[tuple[str, str, set[int]]]:
    """(split, text, numbers of the emoji that fit) for one language."""
    owners = _by_words(emoji, language)
    for one in emoji:
        name, *keywords = one.words[language]
        yield "train", name, owners[name]
        if language == "en":
            yield "train", f"a {name}", owners[name]
        for word in keywords:
            if len(owners[word]) <= COMMON:
                yield "train", word, owners[word]
        for first, second in itertools.combinations(sorted(keywords, key=str.casefold), 2):
            fitting = owners[first] & owners[second]
            if len(fitting) > COMMON or first in second or second in first:
                continue
            split = _split(language, first, second)
            for phrase in PHRASES[split]:
                # English is what most people will type: it gets every phrase.
                if split != "train" or language == "en" or share(phrase, first, second) < 1 / 3:
                    yield split, phrase.format(a=first, b=second), fitting


def text_queries(emoji: list[Emoji], kind: str, languages: Iterable[str]) -> dict[str, list[Query]]:
    """Queries of words: names and keywords, whose answers are the `kind` documents that fit."""
    found: dict[str, dict[str, set[int]]] = {split: defaultdict(set) for split in SPLITS}
    # What is asked in training in any language and any task is no test of anything.
    trained = {
        text
        for language in LANGUAGES
        for split, text, _ in _worded(emoji, language)
        if split == "train"
    }
    for language in languages:
        for split, text, fitting in _worded(emoji, language):
            if split == "train" or text not in trained:
                found[split][text] |= fitting
    return {
        split: [
            Query(text, None, tuple(document(kind, emoji[number]) for number in sorted(numbers)))
            for text, numbers in found[split].items()
        ]
        for split in SPLITS
    }


def build_queries(emoji: list[Emoji]) -> dict[int, dict[str, list[Query]]]:
    """All queries: task -> split -> queries, before they are thinned out for val and test."""
    plain = [one for one in emoji if not one.toned]
    related = relatives(emoji)
    queries = {
        0: text_queries(plain, "image", LANGUAGES),
        1: text_queries(plain, "en", LANGUAGE_NAMES),
        2: text_queries(plain, "both", LANGUAGES),
    }
    for task in (3, 4, 6, 7, 8):
        queries[task] = {split: [] for split in SPLITS}
    for one in plain:
        for split in SPLITS:
            queries[3][split].append(Query(None, one, (document("en", one),)))
        for language, name in LANGUAGE_NAMES.items():
            split = _split(6, language, one.symbol)
            for phrase in TRANSLATIONS[split]:
                answer = (document(language, one),)
                queries[6][split].append(Query(phrase.format(x=name), one, answer))
    for number, changes in related.items():
        one = emoji[number]
        others = tuple(document("image", emoji[other]) for other in changes)
        queries[4][_split(4, one.symbol)].append(Query(None, one, others))
        by_change: dict[str, list[int]] = defaultdict(list)
        for other, change in changes.items():
            by_change[change].append(other)
        for change, found in by_change.items():
            split = _split(7, one.symbol, change)
            for phrase in CHANGES[split]:
                for task, kind in ((7, "image"), (8, "both")):
                    answers = tuple(document(kind, emoji[other]) for other in found)
                    queries[task][split].append(Query(phrase.format(x=change), one, answers))
    return queries
