"""Write the emoji set as a folder in M-BEIR's format, its query pictures augmented on the way."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

from PIL import Image, ImageEnhance

from puma_edge.prompts import Modality
from puma_edge.sample.emoji import (
    DATASET_ID,
    INSTRUCTIONS,
    LANGUAGE_NAMES,
    SPLITS,
    TASKS,
    Emoji,
    Query,
    build_queries,
    describe,
    document,
    load_emoji,
    share,
)

QUERIES_PER_TASK = {"val": 100, "test": 200}
VIEWS = {"train": 2, "val": 1, "test": 1}  # augmented pictures of each glyph
VIEW_EDGE = 112  # pixels


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


def write_emoji(folder: Path, progress: Callable[[int], None] = lambda done: None) -> None:
    """Write the set in M-BEIR's format to `folder`: about 30 MB, the same bytes every time.

    Args:
        folder: where to.
        progress: told how many emoji's pictures are written.
    """
    emoji = load_emoji()
    _write_instructions(folder / "instructions" / "query_instructions.tsv")
    queries = build_queries(emoji)
    shown: set[str] = set()
    for task, (asked, wanted) in TASKS.items():
        _write_pool(folder, task, wanted, emoji)
        for split in SPLITS:
            chosen = queries[task][split]
            if split in QUERIES_PER_TASK:
                chosen = sorted(chosen, key=lambda one: share(task, one.text, one.emoji))
                chosen = chosen[: QUERIES_PER_TASK[split]]
            shown |= _write_queries(folder, task, split, asked, chosen)
    _write_images(folder, shown, progress)


def _write_images(folder: Path, shown: set[str], progress: Callable[[int], None]) -> None:
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
        for done, _ in enumerate(threads.map(write, glyph_images()), start=1):
            progress(done)


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
    glyphs, taken = dict(glyph_images()), set[str]()
    for name in ("pictures", "captioned", "notes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for one in (one for one in load_emoji() if not one.toned):
        # "keycap: #" and "keycap: *" differ in nothing a file name keeps.
        slug = re.sub(r"[^a-z0-9]+", "-", one.name.lower()).strip("-")
        slug = f"{slug}-{one.number}" if slug in taken else slug
        taken.add(slug)
        part = share("corpus", one.symbol)
        if part < 0.8:
            (folder / "pictures" / f"{slug}.webp").write_bytes(glyphs[one.file])
            counts["pictures"] += 1
        elif part < 0.88:
            (folder / "captioned" / f"{slug}.webp").write_bytes(glyphs[one.file])
            (folder / "captioned" / f"{slug}.txt").write_text(one.name + "\n", encoding="utf-8")
            counts["pictures with text"] += 1
        else:
            text = describe(one, "en") + "\n"
            (folder / "notes" / f"{slug}.txt").write_text(text, encoding="utf-8")
            counts["texts"] += 1
    return counts
