"""Write the emoji set as a folder in M-BEIR's format: eight tasks over one set of glyphs and names.

What keeps it honest: query images are augmented and never a candidate's bytes; every pool holds
every candidate of its kind; a query's own document is never its answer; test queries join keywords
that no training query joined, in phrases that no training query uses, and ask for pairs of glyphs
(task 4, 7, 8) or translations (task 6) that no training query asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import random
import re
import zipfile
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from PIL import Image, ImageEnhance

from puma_edge.prompts import Modality
from puma_edge.sample.build import LANGUAGES, TONES, file_name

DATASET_ID = 1
SPLITS = ("train", "val", "test")
QUERIES_PER_TASK = {"val": 100, "test": 200}
VIEWS = {"train": 2, "val": 1, "test": 1}  # augmented pictures of each glyph
VIEW_EDGE = 112  # pixels
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


def _share(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone: decides splits without an order."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _split(*key: object) -> str:
    share = _share(*key)
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


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
                if split != "train" or language == "en" or _share(phrase, first, second) < 1 / 3:
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


def augment(glyph: Image.Image, key: str) -> Image.Image:
    """A glyph turned, scaled, shifted and relit, on a background of another colour."""
    draw = random.Random(key)
    angle, scale = draw.uniform(-15, 15), draw.uniform(0.75, 1.05)
    edge = round(VIEW_EDGE * scale)
    paper = tuple(draw.randint(225, 255) for _ in range(3))
    small = glyph.resize((edge, edge), Image.Resampling.BILINEAR)
    turned = small.rotate(angle, Image.Resampling.BILINEAR, fillcolor="white")
    slack = VIEW_EDGE - edge
    place = (
        draw.randint(min(0, slack), max(0, slack)),
        draw.randint(min(0, slack), max(0, slack)),
    )
    canvas = Image.new("RGB", (VIEW_EDGE, VIEW_EDGE), "white")
    canvas.paste(turned, place)
    # Multiplying keeps the ink and tints the white around it.
    tinted = Image.merge(
        "RGB",
        [
            band.point([value * level // 255 for value in range(256)])
            for band, level in zip(canvas.split(), paper, strict=True)
        ],
    )
    lit = ImageEnhance.Brightness(tinted).enhance(draw.uniform(0.85, 1.08))
    return ImageEnhance.Color(lit).enhance(draw.uniform(0.75, 1.25))


def glyph_images() -> Iterator[tuple[str, bytes]]:
    """(file name, WebP bytes) of every shipped glyph."""
    archive = resources.files("puma_edge.sample").joinpath("glyphs.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(archive)) as glyphs:
        for name in glyphs.namelist():
            yield name, glyphs.read(name)


def write_emoji(folder: Path) -> None:
    """Write the set in M-BEIR's format to `folder`: about 20 MB, the same bytes every time."""
    emoji = load_emoji()
    _write_instructions(folder / "instructions" / "query_instructions.tsv")
    queries = build_queries(emoji)
    shown: set[str] = set()
    for task, (asked, wanted) in TASKS.items():
        _write_pool(folder, task, wanted, emoji)
        for split in SPLITS:
            chosen = queries[task][split]
            if split in QUERIES_PER_TASK:
                chosen = sorted(chosen, key=lambda one: _share(task, one.text, one.emoji))
                chosen = chosen[: QUERIES_PER_TASK[split]]
            shown |= _write_queries(folder, task, split, asked, chosen)
    _write_images(folder, shown)


def _write_images(folder: Path, shown: set[str]) -> None:
    """Write every glyph, and the views of them that a query shows."""
    for split in ("glyph", *SPLITS):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)

    def write(glyph: tuple[str, bytes]) -> None:
        name, data = glyph
        (folder / "images" / "glyph" / name).write_bytes(data)
        with Image.open(io.BytesIO(data)) as file:
            picture = file.convert("RGB")
        for split, count in VIEWS.items():
            for view in range(count):
                path = _view_path(split, name, view)
                if path in shown:
                    augmented = augment(picture, f"{split} {view} {name}")
                    augmented.save(folder / path, "WEBP", quality=80, method=0)

    with ThreadPoolExecutor() as threads:  # Pillow releases the interpreter lock
        deque(threads.map(write, glyph_images()), maxlen=0)


def _view_path(split: str, file: str, view: int) -> str:
    return f"images/{split}/{file.replace('.webp', f'-{view}.webp')}"


def _write_instructions(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "\t".join(("query_modality", "cand_modality", "dataset_name", "dataset_id", "prompts"))
    ]
    for task, (asked, wanted) in TASKS.items():
        prompts = INSTRUCTIONS[task]
        lines.append("\t".join((asked.value, wanted.value, "emoji", str(DATASET_ID), *prompts)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pool_documents(task: int, emoji: list[Emoji]) -> Iterator[tuple[str, Emoji]]:
    """(kind of document, emoji) for every candidate of a task's pool."""
    for one in emoji:
        if task in (0, 4, 7):
            yield "image", one
        elif task in (2, 8):
            yield "both", one
        elif not one.toned:
            yield from ((kind, one) for kind in (LANGUAGE_NAMES if task == 6 else ("en",)))


def _write_pool(folder: Path, task: int, wanted: Modality, emoji: list[Emoji]) -> None:
    lines = []
    for kind, one in pool_documents(task, emoji):
        shown = kind in ("image", "both")
        text = None if kind == "image" else one.name if kind == "both" else describe(one, kind)
        lines.append(
            {
                "did": document(kind, one),
                "txt": text,
                "img_path": f"images/glyph/{one.file}" if shown else None,
                "modality": wanted.value,
                "src_content": None,
            }
        )
    _write_jsonl(folder / "cand_pool" / "local" / f"mbeir_emoji_task{task}_cand_pool.jsonl", lines)


def _write_queries(
    folder: Path, task: int, split: str, asked: Modality, queries: list[Query]
) -> set[str]:
    """Write one task's queries and qrels; returns the pictures they show."""
    lines, qrels, shown = [], [], set()
    for number, query in enumerate(queries, start=1):
        # Task, split and place make the number unique within the data set.
        qid = f"{DATASET_ID}:{(task * len(SPLITS) + SPLITS.index(split)) * 1_000_000 + number}"
        image = None
        if query.emoji is not None:
            image = _view_path(split, query.emoji.file, number % VIEWS[split])
            shown.add(image)
        lines.append(
            {
                "qid": qid,
                "query_txt": query.text,
                "query_img_path": image,
                "query_modality": asked.value,
                "query_src_content": None,
                "pos_cand_list": list(query.answers),
                "neg_cand_list": [],
                "task_id": task,
            }
        )
        qrels += [f"{qid} 0 {did} 1 {task}" for did in query.answers]
    name = f"mbeir_emoji_task{task}_{split}"
    _write_jsonl(folder / "query" / split / f"{name}.jsonl", lines)
    path = folder / "qrels" / split / f"{name}_qrels.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(qrels) + "\n", encoding="utf-8")
    return shown


def _write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_corpus(folder: Path) -> dict[str, int]:
    """Write a folder to try `embed` on: pictures, pictures with a text beside them, and texts.

    Returns:
        how many files of each kind were written.
    """
    counts = {"pictures": 0, "pictures with text": 0, "texts": 0}
    glyphs = dict(glyph_images())
    for name in ("pictures", "captioned", "notes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for one in load_emoji():
        slug = re.sub(r"[^a-z0-9]+", "-", one.name.lower()).strip("-")
        share = _share("corpus", one.symbol)
        if one.toned or share > 0.6:
            continue
        if share < 0.45:
            (folder / "pictures" / f"{slug}.webp").write_bytes(glyphs[one.file])
            counts["pictures"] += 1
        elif share < 0.5:
            (folder / "captioned" / f"{slug}.webp").write_bytes(glyphs[one.file])
            (folder / "captioned" / f"{slug}.txt").write_text(one.name + "\n", encoding="utf-8")
            counts["pictures with text"] += 1
        else:
            text = describe(one, "en") + "\n"
            (folder / "notes" / f"{slug}.txt").write_text(text, encoding="utf-8")
            counts["texts"] += 1
    return counts
